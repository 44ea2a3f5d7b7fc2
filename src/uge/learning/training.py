"""The only training loop and the only evaluation loop of the project."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uge.data.augment import augmentation
from uge.data.loader import batches
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.objectives import Objective, supervised
from uge.learning.recipes import Recipe
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.progress import Progress
from uge.runtime import Runtime, seeded, stream

log = logging.getLogger(__name__)

Observer = Callable[[int, nn.Module], None]


@dataclass(frozen=True)
class EpochResult:
    """One epoch: mean training loss, and accuracies in percent (test is None when not measured)."""

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None


@dataclass
class History:
    """What happened in a run, epoch by epoch; accuracies in percent on the test set; and by which recipe."""

    epochs: list[EpochResult] = field(default_factory=list)
    seconds: float = 0.0
    recipe: Recipe | None = None

    def tested(self) -> list[EpochResult]:
        """Epochs in which the test accuracy was measured."""
        return [result for result in self.epochs if result.test_accuracy is not None]

    @property
    def last(self) -> float:
        """Test accuracy after the last epoch; NaN where nothing was tested."""
        tested = self.tested()
        return float(tested[-1].test_accuracy or 0.0) if tested else math.nan

    @property
    def best(self) -> EpochResult | None:
        """The epoch of the highest test accuracy: what an attacker who stops early gets."""
        return max(self.tested(), key=lambda result: result.test_accuracy or 0.0, default=None)

    def to_json(self) -> dict[str, Any]:
        """The history as JSON values."""
        return {"epochs": [asdict(result) for result in self.epochs], "seconds": self.seconds}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> History:
        """Read what :meth:`to_json` gave."""
        return cls([EpochResult(**epoch) for epoch in value["epochs"]], value["seconds"])


class DivergedError(UsageError):
    """The training loss became NaN or infinite.

    Attributes:
        history: What was measured, the epoch in which it happened included.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        last = history.epochs[-1]
        super().__init__(f"the training loss became {last.loss} in epoch {last.epoch}; lower the learning rate")


def fit(
    network: nn.Module,
    store: PixelStore,
    recipe: Recipe,
    *,
    seed: int,
    runtime: Runtime,
    objective: Objective = supervised,
    test: PixelStore | None = None,
    observer: Observer | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> History:
    """Train ``network`` in place.

    The data order comes from the stream ``order`` of ``seed`` and augmentation from
    ``augment``, both by epoch, so a resumed run draws what an uninterrupted one would.

    Args:
        network: Takes pixels in [0, 1] and returns logits.
        store: Training images; a perturbation stored in them is augmented like content.
        recipe: Optimiser, schedule, augmentation.
        seed: Root of the data order and of augmentation (not of initialisation).
        runtime: Device and precision.
        objective: What a step minimises.
        test: Measured after every epoch when given.
        observer: Called with the number of steps done and the network, before the first step
            and after every step.
        checkpoint: File from which to resume if it exists, written after every epoch.
        progress: Called after every epoch with (epochs done, epochs, figures).

    Returns:
        The history; ``best`` and ``last`` test accuracy are read from it.

    Raises:
        UsageError: The set is smaller than two images.
        DivergedError: The loss is not finite.
    """
    if len(store) < 2:
        raise UsageError(f"training needs at least two images, got {len(store)}")
    runtime.place(network)
    optimizer = _optimizer(network, recipe)
    history, first = History(), 0
    if checkpoint is not None and checkpoint.exists():
        meta = load_checkpoint(checkpoint, {"network": network}, optimizer)
        history = History.from_json(meta)
        first = len(history.epochs)
    history.recipe = recipe
    augment = augmentation(recipe.augment)
    size = min(recipe.batch_size, len(store))
    total = recipe.epochs * steps_per_epoch(len(store), size)
    step = first * steps_per_epoch(len(store), size)
    if observer is not None and step == 0:
        observer(0, network)
    for epoch in range(first, recipe.epochs):
        began = time.perf_counter()
        network.train()
        sums, seen = torch.zeros(2, device=runtime.device), 0
        epoch_batches = batches(
            store, size, order=stream(seed, "order", epoch), augment=augment, generator=stream(seed, "augment", epoch)
        )
        with seeded(seed, "layers", epoch):
            for batch in epoch_batches:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step / total)
                optimizer.zero_grad(set_to_none=True)
                with runtime.autocast():
                    parts = objective(network, batch)
                parts["loss"].backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step, seen = step + 1, seen + len(batch.y)
                sums += _sums(parts, batch.y)
                if observer is not None:
                    observer(step, network)
        loss, right = (sums / seen).tolist()
        accuracy = evaluate(network, test, runtime) if test is not None else None
        history.epochs.append(EpochResult(epoch + 1, loss, 100 * right, accuracy))
        history.seconds += time.perf_counter() - began
        if not math.isfinite(loss):
            raise DivergedError(history)
        if checkpoint is not None:
            save_checkpoint(checkpoint, {"network": network}, optimizer, history.to_json())
        if progress is not None:
            figures = {"loss": loss, "train": 100 * right} | ({} if accuracy is None else {"test": accuracy})
            progress(epoch + 1, recipe.epochs, figures)
    optimizer.zero_grad(set_to_none=True)  # Gradients take as much memory as the network.
    network.eval()
    return history


def evaluate(network: nn.Module, store: PixelStore, runtime: Runtime, *, batch_size: int = 200) -> float:
    """Top-1 accuracy in percent, network in eval mode, no augmentation."""
    was_training = network.training
    runtime.place(network).eval()
    right = 0
    with torch.inference_mode(), runtime.autocast():
        for batch in batches(store, batch_size):
            logits = network(batch.x.to(memory_format=runtime.memory_format))
            right += int((logits.argmax(1) == batch.y).sum())
    network.train(was_training)
    return 100 * right / len(store)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Steps that one epoch of :func:`fit` takes (a last batch of one image is left out)."""
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1) + (rest == 1 and whole == 0)


def _sums(parts: dict[str, Tensor], labels: Tensor) -> Tensor:
    right = (parts["logits"].detach().argmax(1) == labels).sum()
    return torch.stack([parts["loss"].detach().float() * len(labels), right.float()])


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters: list[Any] = [p for p in network.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
