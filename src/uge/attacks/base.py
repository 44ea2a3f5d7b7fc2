"""What every attack gets, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.objectives import Objective, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import History, fit
from uge.progress import Progress
from uge.runtime import Runtime

Family = Literal[
    "plain", "preprocess", "augment", "train", "purify", "transfer", "knowledge", "combination", "yardstick"
]
"""What kind of thing a hacker does."""
Need = Literal["key", "clean", "public"]
"""What a hacker has beyond the published folder: the trained authorised network or θ0, originals, other images."""


_MOST, _PIXELS = 500, 500 * 32 * 32


def batched(store: PixelStore, rows: Tensor | None = None) -> Sequence[Tensor]:
    """Rows of a store, all by default, in groups that take as much memory at any size of image."""
    rows = torch.arange(len(store)) if rows is None else rows
    return torch.split(rows, max(1, min(_MOST, _PIXELS // store.size**2)))


def _no_clean() -> PixelStore:
    raise UsageError("this attack needs originals of the published images, and none were given; leave it out")


def _no_theta0() -> nn.Module:
    raise UsageError("this attack needs the authorised network's initial parameters; give --key FILE, or leave it out")


def _no_public() -> PixelStore:
    raise UsageError("this attack needs labelled images of another data set; give --public SOURCE, or leave it out")


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
        clean: Gives the originals of the published images, row by row the same; raises UsageError where
            there are none.
        theta0: Gives a fresh copy of the authorised network before training; raises UsageError where there
            is no key.
        public: Gives labelled images of another data set at the training size; raises UsageError where
            there are none.
        leak_seed: Root of which originals leaked; the same for every attack of one repetition.
        checkpoint: File from which an interrupted training goes on; None for none.
    """

    network: nn.Module
    store: PixelStore
    test: PixelStore
    recipe: Recipe
    seed: int
    runtime: Runtime
    teacher: Callable[[], nn.Module]
    progress: Progress | None = None
    clean: Callable[[], PixelStore] = _no_clean
    theta0: Callable[[], nn.Module] = _no_theta0
    public: Callable[[], PixelStore] = _no_public
    leak_seed: int = 0
    checkpoint: Path | None = None


Attack = Callable[[Context], History]
"""Trains ``context.network`` and returns what was measured after each epoch."""


Preparation = Callable[[Context], Context]
"""Changes what a hacker has (images, recipe, starting weights) before training."""


def learn(context: Context, objective: Objective = supervised) -> History:
    """Train ``context.network`` on ``context.store`` by an objective, tested after every epoch."""
    return fit(
        context.network,
        context.store,
        context.recipe,
        seed=context.seed,
        runtime=context.runtime,
        objective=objective,
        test=context.test,
        checkpoint=context.checkpoint,
        progress=context.progress,
    )


def direct(context: Context) -> History:
    """Train on labels as anybody would ("Normal" in the paper's tables)."""
    return learn(context)


@dataclass(frozen=True)
class Entry:
    """One attack and what is known of it beforehand.

    Attributes:
        run: Does it.
        family: What kind of thing the hacker does.
        about: One plain sentence for a reader of the report.
        cost: Time in units of plain training, roughly measured.
        expected: A prior, not a measurement of this audit: points of test accuracy that it wins back over
            plain training, after what a public benchmark found for seven protections of CIFAR-10.
        needs: What the hacker has beyond the published folder.
        same_architecture: Whether the hacker's network must be of the authorised network's architecture.
        prepare: What it does before training, where any other attack may follow; see :func:`combination`.
        revision: Raised when the attack is changed, so that cases of the earlier form are run again.
    """

    run: Attack
    family: Family
    about: str
    cost: float = 1.0
    expected: float = 10.0
    needs: frozenset[Need] = frozenset()
    same_architecture: bool = False
    prepare: Preparation | None = None
    revision: int = 0

    @classmethod
    def prepared(
        cls,
        prepare: Preparation,
        family: Family,
        about: str,
        *,
        cost: float = 1.0,
        expected: float = 10.0,
        needs: Iterable[Need] = (),
        same_architecture: bool = False,
        attack: Attack = direct,
        revision: int = 0,
    ) -> Entry:
        """An attack that gets its material ready and then goes on like another, by default plain training."""
        needed = frozenset(needs)
        run = _Prepared(prepare, attack)
        return cls(run, family, about, cost, expected, needed, same_architecture, prepare, revision)


@dataclass(frozen=True)
class _Prepared:
    prepare: Preparation
    attack: Attack

    def __call__(self, context: Context) -> History:
        return self.attack(self.prepare(context))


def with_recipe(**changes: Any) -> Preparation:
    """Train with some fields of the recipe changed."""
    return lambda context: replace(context, recipe=context.recipe.model_copy(update=changes))
