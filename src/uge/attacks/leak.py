"""Leaked originals: subsets of rows, and stores put together from originals and published images."""

from dataclasses import replace

import torch
from torch import Tensor

from uge.attacks.base import Context, batched
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.runtime import stream

REVISION = 1  # Revision of every attack on a leak: before, each of them had a leak of its own.


def leaked_rows(context: Context, count: int) -> Tensor:
    """Leaked rows, ``count`` of them, int64 in rising order; the same for every attack of one repetition.

    A smaller leak is part of a larger one.
    """
    if count < 1:
        raise UsageError(f"a leak needs at least one image, got {count}; publish more images or leave the attack out")
    return torch.randperm(len(context.store), generator=stream(context.leak_seed, "leak"))[:count].sort().values


def part(context: Context, percent: int) -> int:
    """Number of images that ``percent`` of the published ones are, at least one of each class on average."""
    return min(len(context.store), max(len(context.store.classes), round(len(context.store) * percent / 100)))


def originals(context: Context) -> PixelStore:
    """The originals, checked against the published images.

    Raises:
        UsageError: There are none, or they are of another number, shape or label.
    """
    clean = context.clean()
    store = context.store
    if (len(clean), clean.pixels.shape) != (len(store), store.pixels.shape) or not torch.equal(
        clean.labels.to(store.device), store.labels
    ):
        raise UsageError(
            f"the originals must be the published images row by row, {len(store)} of shape {store.pixels.shape}, "
            f"got {len(clean)} of shape {clean.pixels.shape} or other labels; give the folder that was protected"
        )
    return clean


def replaced(store: PixelStore, other: PixelStore, rows: Tensor) -> PixelStore:
    """``store`` with the pixels at ``rows`` from ``other``."""
    result = store.empty_like()
    result.pixels.copy(store.pixels)
    for indices in batched(store, rows):
        result.pixels.write(indices, other.pixels.read(indices))
    return result


def on_leak(context: Context, percent: int) -> Context:
    """The context with a share of leaked originals as the images to learn from, repeated to the same steps."""
    rows = leaked_rows(context, part(context, percent))
    return replace(context, store=originals(context).subset(rows[torch.arange(len(context.store)) % len(rows)]))
