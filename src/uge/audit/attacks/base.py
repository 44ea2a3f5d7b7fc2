"""What every attack gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from uge.data.store import PixelStore
from uge.recipes import Recipe
from uge.runtime import Runtime
from uge.training import History


@dataclass(frozen=True)
class Context:
    """One attack's material: what a hacker has.

    Attributes:
        network: Fresh network, to be trained in place.
        store: The published images at the training size.
        test: Clean test images.
        recipe: Optimiser and schedule.
        seed: Root of data order and augmentation.
        runtime: Device and precision.
        teacher: Gives the trained authorised network; raises UsageError where there is no key.
        progress: Called after every epoch with (epochs done, epochs, figures).
    """

    network: nn.Module
    store: PixelStore
    test: PixelStore
    recipe: Recipe
    seed: int
    runtime: Runtime
    teacher: Callable[[], nn.Module]
    progress: Callable[[int, int, dict[str, float]], None] | None = None


class Attack(Protocol):
    """Trains ``context.network`` and returns what was measured after each epoch."""

    def __call__(self, context: Context) -> History:
        """Run the attack."""
