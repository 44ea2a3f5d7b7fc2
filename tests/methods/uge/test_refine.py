import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from uge.budget import Budget
from uge.data.store import PixelStore, Records
from uge.errors import UGEError
from uge.files import EventLog, read_events
from uge.methods.uge.generator import Generator, delta_records
from uge.methods.uge.losses import TotalLoss
from uge.methods.uge.protector import class_batches, move, protected_store, refine_pass, start_delta
from uge.methods.uge.settings import LossWeights
from uge.runtime import Runtime

ALL = torch.arange(13)
OPTIONS: dict[str, Any] = {"step": 2, "batch_size": 4, "seed": 0, "name": (0, 0)}


@pytest.fixture
def store(make_store: Callable[..., PixelStore]) -> PixelStore:
    return make_store(count=13)


@pytest.fixture
def total(store: PixelStore, linear_space: Callable[..., Any], runtime: Runtime) -> TotalLoss:
    space = linear_space(768, 3)
    return TotalLoss(
        "unlearn", LossWeights(), authorized=[], hacker=None, space=space, classes=store.classes, runtime=runtime
    )


def loss(store: PixelStore, delta: Records, total: TotalLoss) -> float:
    clean = store.pixels.read(ALL)
    x, x_u = clean / 255, (clean + delta.read(ALL)) / 255
    return total(x, x_u, store.labels, torch.Generator())["loss"].item()


@pytest.mark.parametrize(("bound", "dtype"), [(8, np.int8), (200, np.int16)])
@given(
    arrays.arrays(np.uint8, 12),
    arrays.arrays(np.float32, 12, elements=st.floats(-1, 1, width=32)),
    arrays.arrays(np.float32, 12, elements=st.floats(-2, 2, width=32)),
    st.integers(1, 200),
)
def test_a_move_is_a_sign_step_projected(
    bound: int, dtype: type, clean: np.ndarray, part: np.ndarray, gradient: np.ndarray, step: int
) -> None:
    budget, delta = Budget(bound / 255), (part * bound).astype(dtype)
    moved = move(torch.from_numpy(clean), torch.from_numpy(delta), torch.from_numpy(gradient), step, budget)
    for pixel, before, g, after in zip(clean.tolist(), delta.tolist(), gradient.tolist(), moved.tolist(), strict=True):
        wanted = before - step * ((g > 0) - (g < 0))
        wanted = min(max(wanted, -bound), bound)
        assert after == min(max(pixel + wanted, 0), 255) - pixel


def test_starts_from_the_generator(store: PixelStore, runtime: Runtime) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(3, Budget(), width=4, blocks=1)
        torch.nn.init.normal_(generator.decoder[-1].weight)
    delta = delta_records(store, Budget())
    start_delta(generator, store, delta, runtime)
    clean = store.pixels.read(ALL)
    with torch.no_grad():
        expected = (clean / 255 + generator.eval()(clean / 255)).clamp(0, 1).mul(255).round() - clean
    assert torch.equal(delta.read(ALL).float(), expected)
    assert delta.read(ALL).abs().max() > 3


@pytest.mark.parametrize("in_files", [False, True])
def test_every_pass_lowers_the_loss_within_the_budget(
    in_files: bool, store: PixelStore, total: TotalLoss, tmp_path: Path
) -> None:
    files = [delta_records(store, Budget(), tmp_path / str(side) if in_files else None) for side in (0, 1)]
    budget, log = Budget(3 / 255), EventLog(tmp_path / "log.jsonl")
    losses, done = [loss(store, files[0], total)], []
    for number in range(3):
        before, after = files[number % 2], files[(number + 1) % 2]
        unmoved = before.read(ALL)
        on_progress = {"events": log, "progress": lambda count, whole, figures: done.append(count)}
        refine_pass(store, before, after, total, budget, **{**OPTIONS, "step": 1, "name": (0, number)}, **on_progress)
        assert torch.equal(before.read(ALL), unmoved)
        losses.append(loss(store, after, total))
        protected = store.pixels.read(ALL).int() + after.read(ALL)
        assert after.read(ALL).abs().max() <= 3
        assert 0 <= protected.min() <= protected.max() <= 255
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4
    assert done == [4, 8, 12, 13] * 3
    events = read_events(tmp_path / "log.jsonl")
    assert [(event["event"], event["name"], event["levels"]) for event in events] == [
        ("refine", f"0/{number}", 1) for number in range(3)
    ]
    # What is logged is the loss before the move, of all images that moved (the last batch of one does not).
    assert [event["loss"] for event in events] == sorted((event["loss"] for event in events), reverse=True)


def test_an_interrupted_pass_starts_again(store: PixelStore, total: TotalLoss) -> None:
    before, straight, again = (delta_records(store, Budget()) for _ in range(3))
    refine_pass(store, before, straight, total, Budget(), **OPTIONS)

    def interrupt(count: int, whole: int, figures: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_pass(store, before, again, total, Budget(), progress=interrupt, **OPTIONS)
    assert 0 < (again.read(ALL) != 0).flatten(1).any(1).sum() < 13
    refine_pass(store, before, again, total, Budget(), **OPTIONS)
    assert torch.equal(again.read(ALL), straight.read(ALL))


def test_batches_of_one_class(store: PixelStore, total: TotalLoss) -> None:
    seen = list[list[int]]()

    def watched(x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        seen.append(y.tolist())
        return total(x, x_u, y, draw)

    before, after = (delta_records(store, Budget()) for _ in range(2))
    refine_pass(store, before, after, watched, Budget(), by_class=True, **OPTIONS)
    assert all(len(set(labels)) == 1 for labels in seen)
    assert len({labels[0] for labels in seen}) > 1
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    steps = class_batches(order, store.labels, 4)
    assert sorted(torch.cat(steps).tolist()) == list(range(13))
    assert max(map(len, steps)) <= 4
    assert [int(store.labels[few[0]]) for few in steps[:3]] == [0, 1, 2]


def test_a_batch_of_one_is_kept(store: PixelStore, total: TotalLoss) -> None:
    before, after = (delta_records(store, Budget()) for _ in range(2))
    before.write(ALL, torch.ones(13, 3, 16, 16, dtype=torch.int8))
    refine_pass(store, before, after, total, Budget(), **OPTIONS)
    unmoved = (after.read(ALL) == 1).flatten(1).all(1)
    assert unmoved.sum() == 1


def test_layers_that_draw_do_not_disturb_repetition(store: PixelStore) -> None:
    """A loss that draws from the global generator gives the same bytes, whatever was drawn before."""

    def noisy(x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        return {"loss": (x_u * (torch.rand_like(x_u) - 0.5)).sum()}

    results = []
    for used in (1, 2):
        torch.rand(used)
        before, after = (delta_records(store, Budget()) for _ in range(2))
        refine_pass(store, before, after, noisy, Budget(), **OPTIONS)
        results.append(after.read(ALL))
    assert torch.equal(*results)


def test_a_loss_that_is_no_number_stops_the_pass(store: PixelStore) -> None:
    def broken(x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        return {"loss": x_u.sum() * math.nan}

    with pytest.raises(UGEError, match="became nan"):
        refine_pass(store, delta_records(store, Budget()), delta_records(store, Budget()), broken, Budget(), **OPTIONS)


def test_perturbations_take_a_byte_where_the_budget_allows(store: PixelStore, tmp_path: Path) -> None:
    for levels, wanted in ((127, torch.int8), (128, torch.int16)):
        assert delta_records(store, Budget(levels / 255), tmp_path / "delta").dtype == wanted
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"delta.int8": 13 * 768, "delta.int16": 13 * 768 * 2}


def test_protected_store_adds_within_the_budget(store: PixelStore) -> None:
    delta = delta_records(store, Budget())
    values = torch.randint(-20, 21, (13, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    delta.write(ALL, values.to(torch.int8))
    protected = protected_store(store, delta, Budget(8 / 255))
    expected = (store.pixels.read(ALL).int() + values.clamp(-8, 8)).clamp(0, 255)
    assert torch.equal(protected.pixels.read(ALL).int(), expected)
    assert protected.labels is store.labels
