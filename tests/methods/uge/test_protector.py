import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.errors import UGEError
from uge.files import EventLog, read_events
from uge.learning.recipes import Recipe
from uge.learning.trajectory import record_trajectory
from uge.methods.uge.generator import Generator, add_perturbation, delta_records
from uge.methods.uge.losses import Authorized, TotalLoss
from uge.methods.uge.protector import converged, imitation, make_generator, train_generator
from uge.methods.uge.settings import GeneratorSettings, LossWeights
from uge.networks import build, weights_hash
from uge.runtime import Runtime

SETTINGS = GeneratorSettings(width=4, blocks=1, batch_size=8, max_steps=12, window=3, settle=0.5, tolerance=0)


def mean_loss(generator: Generator, store: PixelStore, total: TotalLoss) -> float:
    """Of the whole set, every snapshot alike, with the generator as it is applied."""
    x = store.pixels.read(torch.arange(len(store))).float() / 255
    generator.eval()
    with torch.no_grad():
        x_u = add_perturbation(x, generator(x))
    draws = [torch.Generator().manual_seed(seed) for seed in range(8)]
    return sum(total(x, x_u, store.labels, draw)["loss"].item() for draw in draws) / len(draws)


def fresh(store: PixelStore) -> Generator:
    return make_generator(SETTINGS, store, Budget(), seed=0)


@pytest.fixture
def store(make_store: Callable[..., PixelStore]) -> PixelStore:
    return make_store(count=20)


@pytest.fixture
def make_total(linear_space: Callable[..., Any], store: PixelStore) -> Callable[..., TotalLoss]:
    def make(method: str, runtime: Runtime) -> TotalLoss:
        theta0 = build("cnn", 3, seed=0, size=16)
        network, recipe = build("cnn", 3, seed=0, size=16), Recipe(epochs=2, batch_size=8)
        path = record_trajectory(network, store, recipe, seed=0, runtime=runtime, snapshots=3)
        return TotalLoss(
            method,
            LossWeights(),
            authorized=[Authorized(theta0, path)],
            hacker=build("lenet", 3, seed=5, size=16),
            space=linear_space(768, 3),
            classes=store.classes,
            runtime=runtime,
        )

    return make


@pytest.mark.parametrize("method", ["uge", "uge-no-ud", "unlearn"])
def test_the_loss_goes_down_and_the_output_does_not_saturate(
    method: str, make_total: Callable[..., TotalLoss], store: PixelStore, runtime: Runtime, tmp_path: Path
) -> None:
    total, generator, reports = make_total(method, runtime), fresh(store), []
    before = mean_loss(generator, store, total)
    log = tmp_path / "log.jsonl"
    steps = train_generator(
        generator,
        store,
        total,
        SETTINGS.model_copy(update={"max_steps": 40}),
        seed=0,
        runtime=runtime,
        events=EventLog(log),
        progress=lambda *seen: reports.append(seen),
    )
    assert steps == 40
    assert not generator.training
    assert mean_loss(generator, store, total) < before
    with torch.no_grad():
        delta = generator(store.pixels.read(torch.arange(20)).float() / 255).abs() * 255
    assert delta.max() <= 10.001
    assert delta.mean() > 0.05
    # Saturated pixels have no gradient: a good part must still be able to move.
    assert (delta < 9.9).float().mean() > 0.25
    assert [seen[:2] for seen in reports] == [(step, 40) for step in (10, 20, 30, 40)]
    events = read_events(log)
    assert [event["step"] for event in events] == [10, 20, 30, 40]
    for (_, _, figures), event in zip(reports, events, strict=True):
        assert figures.items() <= event.items()
        assert set(figures) == total.parts | {"loss"}
        assert 0 < event["mean_abs_delta"] < 10 / 255


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.parametrize("at", [2, 6, 9])
def test_killed_and_resumed_is_uninterrupted(
    precision: str, at: int, make_total: Callable[..., TotalLoss], store: PixelStore, tmp_path: Path
) -> None:
    """Killed before the first checkpoint, at one, and in the phase in which statistics stand still."""
    runtime = Runtime.create("cpu", precision)
    total = make_total("uge", runtime)
    whole, resumed = fresh(store), fresh(store)
    train_generator(whole, store, total, SETTINGS, seed=0, runtime=runtime)
    calls = 0

    def killed(x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > at:
            raise KeyboardInterrupt
        return total(x, x_u, y, draw)

    options = {"seed": 0, "runtime": runtime, "checkpoint": tmp_path / "checkpoint", "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        train_generator(fresh(store), store, killed, SETTINGS, **options)
    torch.rand(3)
    assert train_generator(resumed, store, total, SETTINGS, **options) == 12
    assert weights_hash(resumed) == weights_hash(whole) != weights_hash(fresh(store))
    finished = fresh(store)
    train_generator(finished, store, total, SETTINGS, **options)
    assert weights_hash(finished) == weights_hash(whole)


def test_imitation_is_the_formula() -> None:
    delta, target = torch.tensor([[0.01, -0.02]], dtype=torch.float64), torch.tensor([[10, -3]], dtype=torch.int8)
    expected = ((2.55 - 10) ** 2 + (-5.1 + 3) ** 2) / 2 / 10**2
    assert imitation(delta, target, Budget(10 / 255)).item() == pytest.approx(expected)
    assert imitation(target / 255, target, Budget(10 / 255)).item() == pytest.approx(0, abs=1e-12)
    delta.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda moved: imitation(moved, target, Budget(10 / 255)), delta)


@pytest.mark.parametrize("changes", [{}, {"skips": True, "conditional": True}])
def test_learns_perturbations_that_were_found(
    changes: dict[str, bool], store: PixelStore, runtime: Runtime, tmp_path: Path
) -> None:
    """One pattern per class: it is imitated the better by a generator that is told the class."""
    settings = SETTINGS.model_copy(update={**changes, "max_steps": 60})
    target = delta_records(store, Budget(), tmp_path / "delta")
    levels = torch.tensor([8, -8, 3])[store.labels][:, None, None, None].expand(-1, 3, 16, 16)
    target.write(torch.arange(20), levels)
    generator = make_generator(settings, store, Budget(), seed=0)
    assert train_generator(generator, store, target, settings, seed=0, runtime=runtime) == 60
    x = store.pixels.read(torch.arange(20)).float() / 255
    with torch.no_grad():
        error = imitation(generator(x, store.labels), levels, Budget()).item()
    nothing = (levels.float() / 10).square().mean().item()
    assert error < (0.15 if changes else 1) * nothing


def test_seed_decides(make_total: Callable[..., TotalLoss], store: PixelStore, runtime: Runtime) -> None:
    hashes = []
    for seed in (0, 0, 1):
        generator = fresh(store)
        train_generator(generator, store, make_total("unlearn", runtime), SETTINGS, seed=seed, runtime=runtime)
        hashes.append(weights_hash(generator))
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_steps_leave_the_identity(make_total: Callable[..., TotalLoss], store: PixelStore, runtime: Runtime) -> None:
    generator = fresh(store)
    none = SETTINGS.model_copy(update={"max_steps": 0})
    assert train_generator(generator, store, make_total("unlearn", runtime), none, seed=0, runtime=runtime) == 0
    assert not generator(torch.rand(1, 3, 16, 16)).any()


class Stub:
    """A loss with given values; its gradient keeps every parameter where it is."""

    def __init__(self, values: Callable[[int], float]) -> None:
        self.values, self.calls, self.training = values, 0, []

    def __call__(self, x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        self.calls += 1
        return {"loss": 0 * x_u.sum() + self.values(self.calls)}


def test_stops_when_converged_after_settling(store: PixelStore, runtime: Runtime) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 40, "settle": 0.1, "tolerance": 0.01})
    generator, modes = fresh(store), []
    generator.register_forward_hook(lambda module, given, delta: modes.append(module.training))
    flat_after_6 = Stub(lambda call: float(max(7 - call, 1)))
    assert train_generator(generator, store, flat_after_6, settings, seed=0, runtime=runtime) == 19
    # Windows of 3 steps: 5, 2, 1 and then two that do not improve by 1 % of the range.
    assert modes == [True] * 15 + [False] * 4
    falling = Stub(lambda call: -float(call))
    assert train_generator(fresh(store), store, falling, settings, seed=0, runtime=runtime) == 40
    rising = Stub(float)
    assert train_generator(fresh(store), store, rising, settings, seed=0, runtime=runtime) < 40
    without = settings.model_copy(update={"tolerance": 0.0})
    assert train_generator(fresh(store), store, rising, without, seed=0, runtime=runtime) == 40


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], False),
        ([5, 5, 5], False),
        ([5, 5, 5, 5], False),
        ([5, 1, 1, 1], True),
        ([9, 5, 4.999, 4.998], True),
        ([9, 5, 4, 3.999], False),
        ([9, 5, 4.999, 4], False),
        ([9, 5, 6, 7], True),
    ],
)
def test_convergence(windows: list[float], expected: bool) -> None:
    assert converged(windows, GeneratorSettings(tolerance=0.002)) == expected
    assert not converged(windows, GeneratorSettings(tolerance=0)), "0 switches the test off, whatever the loss does"


def test_a_loss_that_is_no_number_stops_the_run(store: PixelStore, runtime: Runtime, tmp_path: Path) -> None:
    broken = Stub(lambda call: math.nan if call == 4 else 1.0)
    options = {"seed": 0, "runtime": runtime, "checkpoint": tmp_path / "checkpoint", "checkpoint_every": 2}
    with pytest.raises(UGEError, match="nan at step 4"):
        train_generator(fresh(store), store, broken, SETTINGS, **options)
    header = (tmp_path / "checkpoint").read_bytes()
    meta = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]["meta"]
    assert json.loads(meta)["step"] == 2
