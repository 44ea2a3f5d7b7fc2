"""Perturbations of every image by sign steps through random filters, on all surrogates at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uge.budget import Budget
from uge.data.augment import moved
from uge.data.loader import batches, fetch
from uge.data.store import PixelStore, Records
from uge.errors import UsageError
from uge.learning.objectives import full_precision
from uge.methods.robust.filters import NUMBERS, filtered
from uge.methods.robust.settings import FilterShares
from uge.networks import ImageClassifier
from uge.runtime import Runtime, stream

#: Loss of each image, (B,): from a surrogate, pixels in [0, 1], labels and targets.
Loss = Callable[[ImageClassifier, Tensor, Tensor, Tensor], Tensor]
_MOMENTUM = 0.7
_PLACES = 3  # Uniform numbers for the place of a window: down, across, flipped.
DRAWN = _PLACES + NUMBERS
"""Uniform numbers for one image and one surrogate: its place, then its filter."""
_BATCH = 256
_VALUES = 2**20  # Values of a batch's pixels at most; its activations take a few hundred times their memory.


def targeted(network: ImageClassifier, x: Tensor, labels: Tensor, goals: Tensor) -> Tensor:
    """Cross-entropy with the targets."""
    return F.cross_entropy(full_precision(network(x)), goals, reduction="none")


@dataclass(frozen=True)
class Steps:
    """Sign steps with momentum on whole batches of images.

    Each step sends every image through one filter and one window (shift by up to an eighth, flip) for each surrogate,
    and adds their losses. Two thirds of the steps are long (2.5 budgets in all), the others short. An image's random
    numbers follow from its sample id alone.

    Attributes:
        surrogates: Frozen networks.
        shares: Frequency of each filter.
        budget: Bound on the change of a stored pixel.
        steps: Number of steps.
        seed: Root seed.
        runtime: Device and precision.
        loss: Loss that falls.
    """

    surrogates: Sequence[ImageClassifier]
    shares: FilterShares
    budget: Budget
    steps: int
    seed: int
    runtime: Runtime
    loss: Loss = targeted

    def perturbation(self, clean: Tensor, labels: Tensor, goals: Tensor, ids: Sequence[str]) -> Tensor:
        """Perturbation of some images in whole 8-bit levels.

        Args:
            clean: uint8 pixels, batch × channels × size × size.
            labels: int64 classes, (batch,).
            goals: Target of each image, (batch,).
            ids: Sample id of each image.

        Returns:
            int16, of the images' shape: within the budget, and with the images within 0..255.
        """
        bound = self.budget.levels
        numbers = torch.stack([self._numbers(id) for id in ids])
        pixels = clean.float()
        delta = torch.zeros_like(pixels)
        momentum = torch.zeros_like(pixels)
        for step in range(self.steps):
            length = bound * (2.5 if step < self.steps * 2 // 3 else 1.0) / self.steps
            gradient = self._gradient(pixels + delta, labels, goals, numbers[:, step])
            mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            momentum = _MOMENTUM * momentum + gradient / mean
            delta = (delta - length * momentum.sign()).clamp(-bound, bound)
        levels = delta.round().to(torch.int16)
        return self.budget.add(clean, levels).to(torch.int16) - clean.to(torch.int16)  # type: ignore[no-any-return]

    def _numbers(self, id: str) -> Tensor:
        """Uniform numbers of one image: steps × surrogates × numbers."""
        draw = stream(self.seed, "robust", "image", id)
        return torch.rand(self.steps, len(self.surrogates), DRAWN, generator=draw)

    def _gradient(self, levels: Tensor, labels: Tensor, goals: Tensor, numbers: Tensor) -> Tensor:
        """Gradient of all surrogates' losses in pixels, which may leave 0..255 and are clipped first."""
        levels.requires_grad_(True)
        total = self.total(levels.clamp(0, 255) / 255, labels, goals, numbers)
        (gradient,) = torch.autograd.grad(total, levels)
        return gradient

    def total(self, x: Tensor, labels: Tensor, goals: Tensor, numbers: Tensor) -> Tensor:
        """Sum of the losses of all images on all surrogates, each through a filter and a window of its own.

        Args:
            x: Pixels in [0, 1], batch × channels × size × size.
            labels: int64 classes, (batch,).
            goals: Target of each image, (batch,).
            numbers: Uniform numbers, batch × surrogates × :data:`DRAWN`, on the CPU.
        """
        total = torch.zeros((), device=x.device)
        for surrogate, drawn in zip(self.surrogates, numbers.unbind(1), strict=True):
            seen = filtered(window(x, drawn[:, :_PLACES]), drawn[:, _PLACES:], self.shares)
            with self.runtime.autocast():
                seen = seen.contiguous(memory_format=self.runtime.memory_format)
                total = total + self.loss(surrogate, seen, labels, goals).sum()
        return total


def window(x: Tensor, numbers: Tensor) -> Tensor:
    """Images shifted by up to an eighth of their side, half of them flipped, by uniform numbers, batch × 3."""
    height, width = x.shape[2:]
    down, across = ((numbers[:, k] * (2 * side + 1)).long() - side for k, side in enumerate((height // 8, width // 8)))
    return moved(x, down, across, numbers[:, 2] < 0.5)


def batch_rows(store: PixelStore) -> list[Tensor]:
    """Rows of the images in batches, in order; large images come in small batches."""
    size = min(_BATCH, _VALUES // (store.channels * store.size**2))
    return list(torch.split(torch.arange(len(store)), max(1, size)))


def perturb(
    store: PixelStore,
    ids: Sequence[str],
    goals: Tensor,
    steps: Steps,
    records: Records,
    rows: Iterable[Tensor],
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Write the perturbations of images, batch by batch.

    Args:
        store: Clean images.
        ids: Sample id of every image.
        goals: Target of every class.
        steps: How images are perturbed.
        records: Perturbations, one per image; those of ``rows`` are replaced.
        rows: Rows of each batch, in any order.
        done: Called with the number of batches, from 1, after each.
    """
    for number, own in enumerate(rows, 1):
        batch = fetch(store, own)
        clean = store.pixels.read(own)
        names = [ids[row] for row in own.tolist()]
        records.write(own, steps.perturbation(clean, batch.y, goals.to(batch.y.device)[batch.y], names))
        done(number)


def class_targets(kind: str, store: PixelStore, surrogates: Sequence[ImageClassifier], runtime: Runtime) -> Tensor:
    """Target of every class, none its own and no two the same, int64.

    Args:
        kind: ``"next"`` class; or by the surrogates' mean log-probabilities the ``"far"`` or ``"near"`` one, in the
            best assignment of all classes at once.
        store: Clean images.
        surrogates: Trained networks.
        runtime: Device and precision.

    Raises:
        UsageError: There is one class alone.
    """
    count = len(store.classes)
    if count < 2:
        raise UsageError("method 'robust' moves images towards other classes and needs two of them, got 1; add another")
    if kind == "next":
        return (torch.arange(count) + 1) % count
    likely = torch.zeros(count, count, dtype=torch.float64)
    with torch.inference_mode(), runtime.autocast():
        for batch in batches(store, _BATCH):
            x = batch.x.contiguous(memory_format=runtime.memory_format)
            for surrogate in surrogates:
                answers = full_precision(surrogate(x)).log_softmax(1).double().cpu()
                likely.index_add_(0, batch.y.cpu(), answers)
    likely /= store.labels.bincount(minlength=count).clamp_min(1)[:, None].cpu()
    cost = likely.numpy() if kind == "far" else -likely.numpy()
    np.fill_diagonal(cost, 1e6)
    return torch.from_numpy(linear_sum_assignment(cost)[1])
