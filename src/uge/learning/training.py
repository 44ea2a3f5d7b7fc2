"""The only training loop and the only evaluation loop of the project."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from uge.data.augment import augmentation
from uge.data.loader import Batch, batches
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.naming import Integers, Renamed, better, rename
from uge.learning.objectives import Objective, evaluating, supervised
from uge.learning.recipes import Recipe
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.progress import Progress
from uge.runtime import Runtime, seeded, stream

Tested = Literal["changed", "original"]
"""Form of the test images: as an attack changed them, or as they came."""


@dataclass(frozen=True)
class EpochResult:
    """Results of one epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean training loss.
        train_accuracy: Percent, on the augmented batches.
        test_accuracy: Percent; None without a test.
        renamed: Accuracies with outputs named by labelled images; None without these.
        other_accuracy: Percent, on the test images in their other form; None where there is none.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    other_accuracy: float | None = None
    renamed: Renamed | None = None


@dataclass
class History:
    """Results of a run.

    Attributes:
        epochs: Results of every epoch.
        seconds: Time that training and testing took.
        recipe: Recipe of the run.
        tested: Form of the test images of ``test_accuracy``; None where they have one form only.
    """

    epochs: list[EpochResult] = field(default_factory=list)
    seconds: float = 0.0
    recipe: Recipe | None = None
    tested: Tested | None = None

    @property
    def last(self) -> float:
        """Test accuracy after the last epoch in percent; NaN without a test."""
        return next(
            (epoch.test_accuracy for epoch in reversed(self.epochs) if epoch.test_accuracy is not None), math.nan
        )

    @property
    def best(self) -> EpochResult | None:
        """First epoch of the highest test accuracy, the best for an attacker with test images; None without a test."""
        return max(
            (epoch for epoch in self.epochs if epoch.test_accuracy is not None),
            key=lambda epoch: epoch.test_accuracy or 0.0,
            default=None,
        )

    def by_larger(self) -> "History":
        """The same with ``test_accuracy`` in the form of the test images in which the last epoch is better.

        An attacker may filter the images that the network is used for, or not. One curve counts as a whole: the larger
        of two accuracies at every epoch would be no network's.
        """
        last = self.epochs[-1] if self.epochs else None
        if last is None or last.test_accuracy is None or last.other_accuracy is None:
            return self
        if last.other_accuracy <= last.test_accuracy:
            return replace(self, tested="changed")
        swapped = [
            replace(epoch, test_accuracy=epoch.other_accuracy, other_accuracy=epoch.test_accuracy)
            for epoch in self.epochs
        ]
        return replace(self, epochs=swapped, tested="original")

    def to_json(self) -> dict[str, Any]:
        """Epochs and seconds as JSON values."""
        return {"epochs": [asdict(result) for result in self.epochs], "seconds": self.seconds}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """A history from the value of :meth:`to_json`, without its recipe."""
        return cls([_epoch(**epoch) for epoch in value["epochs"]], value["seconds"])


def _epoch(renamed: dict[str, Any] | None = None, **values: Any) -> EpochResult:
    named = renamed and Renamed(**{name: tuple(accuracies) for name, accuracies in renamed.items()})
    return EpochResult(**values, renamed=named or None)


class DivergedError(UsageError):
    """The training loss became NaN or infinite.

    Attributes:
        history: All results, with the epoch in which it happened.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        super().__init__(
            f"the training loss became {history.epochs[-1].loss} in epoch {history.epochs[-1].epoch}; "
            "lower the learning rate"
        )


def fit(
    network: nn.Module,
    store: PixelStore,
    recipe: Recipe,
    *,
    seed: int,
    runtime: Runtime,
    objective: Objective = supervised,
    test: PixelStore | None = None,
    labelled: PixelStore | None = None,
    original_test: PixelStore | None = None,
    original_labelled: PixelStore | None = None,
    observer: Callable[[int, nn.Module], None] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> History:
    """Train ``network`` in place.

    The data order comes from the stream ``order`` of ``seed`` and augmentation from ``augment``, both by epoch, so a
    resumed run draws the numbers of an uninterrupted one.

    Args:
        network: Takes pixels in [0, 1] and returns logits.
        store: Training images; a perturbation stored in them is augmented like content.
        recipe: Optimiser, schedule, augmentation.
        seed: Root of the data order and of augmentation (not of initialisation).
        runtime: Device and precision.
        objective: Loss of a step.
        test: Images on which accuracy is measured after every epoch.
        labelled: Images by which outputs are named anew after every epoch; counts only with ``test``.
        original_test: The same images as they were before an attack changed them, which are measured besides; None
            where they are ``test``.
        original_labelled: The labelled images as they were, for ``original_test``; the form with the higher accuracy on
            labelled images counts in every epoch.
        observer: Called with the number of steps done and the network, before the first step and after every step.
        checkpoint: File from which to resume if it exists, written after every epoch.
        progress: Called after every epoch with (epochs done, epochs, figures).

    Returns:
        The history, with ``best`` and ``last`` test accuracy.

    Raises:
        UsageError: The set is smaller than two images.
        DivergedError: The loss is not finite.
    """
    if len(store) < 2:
        raise UsageError(f"training needs at least two images, got {len(store)}; give more")
    runtime.place(network)
    optimizer = _optimizer(network, recipe)
    history = History()
    if checkpoint is not None and checkpoint.exists():
        history = History.from_json(load_checkpoint(checkpoint, {"network": network}, optimizer))
    history.recipe = recipe
    augment = augmentation(recipe.augment)
    size = min(recipe.batch_size, len(store))
    steps = steps_per_epoch(len(store), size)
    if observer is not None and not history.epochs:
        observer(0, network)
    for epoch in range(len(history.epochs), recipe.epochs):
        began = time.perf_counter()
        network.train()
        sums = torch.zeros(2, device=runtime.device)
        seen = 0
        drawn = batches(
            store,
            size,
            order=stream(seed, "order", epoch),
            augment=augment,
            generator=stream(seed, "augment", epoch),
        )
        with seeded(seed, "layers", epoch):
            for step, batch in enumerate(drawn, epoch * steps):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(step / (recipe.epochs * steps))
                sums += _step(network, batch, objective, optimizer, runtime)
                seen += len(batch.y)
                if observer is not None:
                    observer(step + 1, network)
        loss, right = (sums / seen).tolist()
        figures = {"loss": loss, "train": 100 * right}
        outputs, others = (None if each is None else predict(network, each, runtime) for each in (test, original_test))
        tested = None if test is None or outputs is None else _share(outputs, _labels(test))
        other = None if test is None or others is None else _share(others, _labels(test))
        if tested is not None:
            figures["test"] = max(tested, other or 0.0)
        forms = [(labelled, outputs), (original_labelled, others)]
        renamings = [
            rename((predict(network, few, runtime), _labels(few)), (answers, _labels(test)), len(test.classes))
            for few, answers in forms
            if test is not None and few is not None and answers is not None
        ]
        renamed = better(*renamings) if renamings else None
        history.epochs.append(EpochResult(epoch + 1, loss, 100 * right, tested, other, renamed))
        history.seconds += time.perf_counter() - began
        if not math.isfinite(loss):
            raise DivergedError(history)
        if checkpoint is not None:
            save_checkpoint(checkpoint, {"network": network}, optimizer, history.to_json())
        if progress is not None:
            progress(epoch + 1, recipe.epochs, figures)
    optimizer.zero_grad(set_to_none=True)  # Gradients take as much memory as the network.
    network.eval()
    return history


def evaluate(network: nn.Module, store: PixelStore, runtime: Runtime, *, batch_size: int = 200) -> float:
    """Top-1 accuracy in percent, with the network in evaluation mode and no augmentation."""
    return _share(predict(network, store, runtime, batch_size=batch_size), _labels(store))


def predict(network: nn.Module, store: PixelStore, runtime: Runtime, *, batch_size: int = 200) -> Integers:
    """Number of the largest output for each image, with the network in evaluation mode and no augmentation."""
    runtime.place(network)
    outputs = torch.empty(len(store), dtype=torch.int64)
    with evaluating(network), torch.inference_mode(), runtime.autocast():
        for batch in batches(store, batch_size):
            outputs[batch.indices] = network(batch.x.to(memory_format=runtime.memory_format)).argmax(1).cpu()
    return outputs.numpy()


def _labels(store: PixelStore) -> Integers:
    return store.labels.cpu().numpy()


def _share(outputs: Integers, labels: Integers) -> float:
    return 100 * int((outputs == labels).sum()) / len(labels)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Steps that one epoch of :func:`fit` takes (a last batch of one image is left out)."""
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1) + (rest == 1 and whole == 0)


def _step(
    network: nn.Module,
    batch: Batch,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
) -> Tensor:
    """One optimiser step; returns the sum of the losses and the number of right predictions, (2,)."""
    optimizer.zero_grad(set_to_none=True)
    with runtime.autocast():
        parts = objective(network, batch)
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    right = (parts["logits"].detach().argmax(1) == batch.y).sum()
    return torch.stack([parts["loss"].detach().float() * len(batch.y), right.float()])


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
