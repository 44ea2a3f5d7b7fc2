from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from uge.data.loader import Batch
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.objectives import supervised
from uge.learning.recipes import Recipe
from uge.learning.training import EpochResult, History, evaluate, fit, steps_per_epoch
from uge.networks import build, weights_hash
from uge.progress import Progress
from uge.runtime import Runtime

RECIPES = {
    "sgd": Recipe(epochs=4, batch_size=8, lr=0.05),
    "adam": Recipe(epochs=4, batch_size=8, lr=1e-3, optimizer="adam", augment="rotate-flip"),
}
MakeStore = Callable[..., PixelStore]


def network(name: str = "resnet8", classes: int = 3) -> nn.Module:
    return build(name, classes, seed=0, size=16)


def interrupt_after(epochs: int) -> Progress:
    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        if done == epochs:
            raise KeyboardInterrupt

    return progress


def test_learns_what_is_easy(make_store: MakeStore, runtime: Runtime) -> None:
    train, test = make_store(count=48, separable=True), make_store(count=30, separable=True, seed=1)
    net, figures = network("cnn"), []
    before = evaluate(net, test, runtime)
    recipe = Recipe(epochs=6, batch_size=16, lr=0.05)
    history = fit(net, train, recipe, seed=0, runtime=runtime, test=test, progress=lambda *call: figures.append(call))
    assert history.last == evaluate(net, test, runtime) > max(90, before)
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [result.epoch for result in history.epochs] == list(range(1, 7))
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert [(done, total) for done, total, _ in figures] == [(epoch, 6) for epoch in range(1, 7)]
    assert figures[-1][2] == {
        "loss": history.epochs[-1].loss,
        "train": history.epochs[-1].train_accuracy,
        "test": history.last,
    }


def test_last_and_best() -> None:
    epochs = [EpochResult(n, 1.0, 50.0, accuracy) for n, accuracy in enumerate([40.0, 70.0, 70.0, 60.0], 1)]
    history = History(epochs, 3.5)
    assert history.last == 60
    assert history.best is epochs[1]
    assert History.from_json(history.to_json()) == history
    untested = History([EpochResult(1, 1.0, 50.0, None)])
    assert untested.best is None
    assert untested.last != untested.last


@pytest.mark.parametrize(("test", "other", "tested"), [(60, 55, "changed"), (60, 60, "changed"), (60, 61, "original")])
def test_the_form_of_the_test_images_with_the_larger_end_counts(test: float, other: float, tested: str) -> None:
    history = History([EpochResult(1, 1.0, 50.0, 90.0, 20.0), EpochResult(2, 1.0, 50.0, test, other)], 3.5)
    larger = history.by_larger()
    assert (larger.last, larger.tested) == (max(test, other), tested)
    first = larger.epochs[0]
    assert (first.test_accuracy, first.other_accuracy) == ((90, 20) if tested == "changed" else (20, 90))
    assert larger.best.test_accuracy == max(first.test_accuracy, larger.last)
    assert History.from_json(history.to_json()).epochs == history.epochs
    once = History([EpochResult(1, 1.0, 50.0, 40.0)])
    assert once.by_larger() is once


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_resumed_run_ends_with_the_same_bytes(
    recipe: str, precision: str, make_store: MakeStore, tmp_path: Path
) -> None:
    runtime, store = Runtime.create("cpu", precision), make_store(count=21)
    whole = network()
    history = fit(whole, store, RECIPES[recipe], seed=3, runtime=runtime, test=store)
    options = {"seed": 3, "runtime": runtime, "test": store, "checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(KeyboardInterrupt):
        fit(network(), store, RECIPES[recipe], progress=interrupt_after(2), **options)
    resumed, steps = network(), []
    again = fit(resumed, store, RECIPES[recipe], observer=lambda step, _: steps.append(step), **options)
    assert weights_hash(resumed) == weights_hash(whole)
    assert again.epochs == history.epochs
    assert steps == list(range(7, 13))
    finished = network()
    fit(finished, store, RECIPES[recipe], **options)
    assert weights_hash(finished) == weights_hash(whole)


def test_seed_decides_order_and_augmentation(make_store: MakeStore, runtime: Runtime) -> None:
    store = make_store(count=20)

    def trained(seed: int, augment: str = "none") -> str:
        net = network("lenet")
        torch.rand(seed + 1)  # the state of the global generator must not matter
        fit(net, store, Recipe(epochs=1, batch_size=8, augment=augment), seed=seed, runtime=runtime)
        return weights_hash(net)

    assert trained(0) == trained(0) != trained(1)
    assert trained(0, "crop-flip") == trained(0, "crop-flip") != trained(0)


def test_every_epoch_is_augmented_anew(make_store: MakeStore, runtime: Runtime) -> None:
    store, seen = make_store(count=4), []
    store.pixels.write(torch.arange(4), store.pixels.read(torch.zeros(4, dtype=torch.int64)))  # the order does not show

    def spy(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.x)
        return supervised(net, batch)

    fit(network("lenet"), store, Recipe(epochs=3, augment="crop"), seed=0, runtime=runtime, objective=spy)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_file_gives_the_same_network_as_memory(make_store: MakeStore, runtime: Runtime) -> None:
    hashes = set()
    for limit in (0, 2**30):
        net = network("lenet")
        fit(net, make_store(count=20, resident_bytes=limit), Recipe(epochs=1), seed=0, runtime=runtime)
        hashes.add(weights_hash(net))
    assert len(hashes) == 1


@pytest.mark.parametrize(("count", "batch", "steps"), [(20, 8, 3), (17, 8, 2), (16, 8, 2), (5, 8, 1), (2, 2, 1)])
def test_steps_of_an_epoch(count: int, batch: int, steps: int, make_store: MakeStore, runtime: Runtime) -> None:
    seen: list[int] = []
    recipe = Recipe(epochs=2, batch_size=batch, augment="none")
    fit(
        network("lenet"),
        make_store(count=count),
        recipe,
        seed=0,
        runtime=runtime,
        observer=lambda step, _: seen.append(step),
    )
    assert seen == list(range(2 * steps + 1))
    assert steps_per_epoch(count, min(batch, count)) == steps


def test_the_schedule_reaches_the_optimiser(make_store: MakeStore, runtime: Runtime) -> None:
    """With plain SGD, no decay and a constant gradient, a step is the learning rate itself."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.value.expand(len(x), 3)

    recipe = Recipe(epochs=4, batch_size=4, lr=1, momentum=0, weight_decay=0, schedule="multistep", milestones=(2,))
    values: list[float] = []

    def objective(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": net.value, "logits": net(batch.x)}

    fit(
        Constant(),
        make_store(count=8),
        recipe,
        seed=0,
        runtime=runtime,
        objective=objective,
        observer=lambda _, net: values.append(net.value.item()),
    )
    steps = [before - after for before, after in pairwise(values)]
    assert steps == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1], abs=1e-5)


def test_evaluate_counts_and_leaves_the_mode(make_store: MakeStore, runtime: Runtime) -> None:
    store = make_store(count=7)

    class ByPosition(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(torch.arange(len(x)) % 3, 3).float()

    net = ByPosition().train()
    assert evaluate(net, store, runtime) == 100
    assert evaluate(net, store, runtime, batch_size=2) == pytest.approx(100 * 3 / 7)
    assert net.training
    trained = network()
    before = weights_hash(trained)
    evaluate(trained, store, runtime)
    assert weights_hash(trained) == before


def test_refuses(make_store: MakeStore, runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="at least two images"):
        fit(network(), make_store(count=1), Recipe(epochs=1), seed=0, runtime=runtime)

    def diverging(net: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        parts = supervised(net, batch)
        return {**parts, "loss": parts["loss"] * float("nan")}

    with pytest.raises(UsageError, match="lower the learning rate"):
        fit(network(), make_store(), Recipe(epochs=1), seed=0, runtime=runtime, objective=diverging)
