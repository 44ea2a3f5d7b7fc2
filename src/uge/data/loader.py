"""Batches of a pixel store: shuffled, augmented on the device, as floats in [0, 1]."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from uge.data.augment import Augmentation
from uge.data.store import PixelStore


@dataclass(frozen=True)
class Batch:
    """Pixels, labels and positions of some images.

    Attributes:
        x: Pixels in [0, 1], batch × channels × size × size.
        y: int64 labels.
        indices: int64 positions in the store, on the CPU.
    """

    x: Tensor
    y: Tensor
    indices: Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]."""
    return pixels.to(torch.float32).div_(255)


def epoch_order(count: int, generator: torch.Generator | None) -> Tensor:
    """Positions in the order of one epoch: a permutation from ``generator``, or 0..count-1 without one."""
    return torch.arange(count) if generator is None else torch.randperm(count, generator=generator)


def fetch(store: PixelStore, indices: Tensor) -> Batch:
    """Batch of the images at ``indices``, not augmented."""
    return Batch(to_unit(store.pixels.read(indices)), store.labels[indices.to(store.device)], indices)


def batches(
    store: PixelStore,
    batch_size: int,
    *,
    order: torch.Generator | None = None,
    augment: Augmentation | None = None,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[Batch]:
    """Batches of one epoch.

    Args:
        store: Pixels and labels.
        batch_size: Images per batch; the last batch may be smaller, and a last batch of one
            image is left out when ``order`` is given (batch statistics need two).
        order: Generator of the permutation, on the CPU; None for the stored order.
        augment: Applied to uint8 pixels, after any perturbation that is stored in them.
        generator: Generator of the augmentation, on the CPU; required with ``augment``.
        drop_last: Leave out an incomplete last batch.

    Yields:
        Pixels in [0, 1] and labels on the store's device, with their positions in the store.
    """
    permutation = epoch_order(len(store), order)
    for start in range(0, len(store), batch_size):
        indices = permutation[start : start + batch_size]
        if start and len(indices) < batch_size and (drop_last or (order is not None and len(indices) < 2)):
            return
        pixels = store.pixels.read(indices)
        if augment is not None:
            assert generator is not None, "augment needs a generator"
            pixels = augment(pixels, generator)
        yield Batch(to_unit(pixels), store.labels[indices.to(store.device)], indices)
