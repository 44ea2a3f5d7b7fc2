"""Changes of the authorised user's training, each of which an audit measures."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from uge.attacks.base import Context, transformed
from uge.attacks.compression import jpeg
from uge.data.augment import cutout
from uge.data.store import PixelStore
from uge.errors import UnknownNameError
from uge.learning.objectives import Objective, augmented, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import History, fit
from uge.runtime import Runtime, stream


@dataclass(frozen=True)
class Variant:
    """One change of the authorised user's training; everything else, θ0 and data order included, stays as it was.

    Attributes:
        about: The change in one line.
        recipe: Makes the recipe from the usual one.
        precision: Arithmetic, if other than the audit's.
        images: Makes training and test images from the usual ones and the number of the repetition.
        objective: Makes the objective from the seed of the training.
        reorders: True if data order and augmentation are drawn anew.
    """

    about: str
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    precision: str | None = None
    images: Callable[[PixelStore, PixelStore, int], tuple[PixelStore, PixelStore]] | None = None
    objective: Callable[[int], Objective] | None = None
    reorders: bool = False

    def runtime(self, runtime: Runtime) -> Runtime:
        """Device and precision of the training."""
        return replace(runtime, precision=self.precision or runtime.precision)

    def differs(self, recipe: Recipe, precision: str) -> bool:
        """True if the variant changes a training with this recipe and precision."""
        return (
            self.reorders
            or self.images is not None
            or self.objective is not None
            or self.recipe(recipe) != recipe
            or (self.precision or precision) != precision
        )

    def run(self, context: Context, repetition: int) -> History:
        """Train ``context.network``, which stands at θ0, and measure it after every epoch.

        Args:
            context: As for an attack, with the usual images, recipe and precision.
            repetition: Number of the seed; another class is left out in every repetition.
        """
        store, test = context.store, context.test
        if self.images:
            store, test = self.images(store, test, repetition)
        return fit(
            context.network,
            store,
            self.recipe(context.recipe),
            seed=context.seed,
            runtime=self.runtime(context.runtime),
            objective=self.objective(context.seed) if self.objective else supervised,
            test=test,
            progress=context.progress,
        )


def without_class(store: PixelStore, number: int) -> PixelStore:
    """All images but those of class ``number``; labels stay as they are."""
    return store.subset(torch.nonzero(store.labels != number).flatten().cpu())


def _drop_class(store: PixelStore, test: PixelStore, repetition: int) -> tuple[PixelStore, PixelStore]:
    used = torch.unique(store.labels).tolist()
    number = used[repetition % len(used)]
    return without_class(store, number), without_class(test, number)


#: The authorised user's changes by name; each is a case of role ``authorized`` with this name as its scheme.
VARIANTS: dict[str, Variant] = {
    "order": Variant("another order of the images and other random crops", reorders=True),
    "batch-half": Variant(
        "batches of half the size",
        recipe=lambda r: r.model_copy(update={"batch_size": max(2, r.batch_size // 2)}),
    ),
    "batch-double": Variant(
        "batches of twice the size", recipe=lambda r: r.model_copy(update={"batch_size": 2 * r.batch_size})
    ),
    "lr-half": Variant("half the learning rate", recipe=lambda r: r.model_copy(update={"lr": r.lr / 2})),
    "lr-double": Variant("twice the learning rate", recipe=lambda r: r.model_copy(update={"lr": r.lr * 2})),
    "adam": Variant(
        "Adam at a learning rate of 0.001", recipe=lambda r: r.model_copy(update={"optimizer": "adam", "lr": 1e-3})
    ),
    "sgd": Variant(
        "SGD with momentum at a learning rate of 0.1",
        recipe=lambda r: r if r.optimizer == "sgd" else r.model_copy(update={"optimizer": "sgd", "lr": 0.1}),
    ),
    "no-augment": Variant("no augmentation", recipe=lambda r: r.model_copy(update={"augment": "none"})),
    "rotate": Variant(
        "random rotations and flips as augmentation", recipe=lambda r: r.model_copy(update={"augment": "rotate-flip"})
    ),
    "cutout": Variant(
        "a gray square over a part of every training image",
        objective=lambda seed: augmented(cutout, stream(seed, "cutout")),
    ),
    "bf16": Variant("arithmetic in bf16", precision="bf16-mixed"),
    "fp32": Variant("arithmetic in fp32", precision="fp32"),
    "drop-class": Variant("one class missing in training, tested on the others", images=_drop_class),
    "jpeg95": Variant(
        "the published copy compressed as JPEG of quality 95",
        images=lambda store, test, repetition: (transformed(store, functools.partial(jpeg, quality=95)), test),
    ),
}


def choose_variants(words: Sequence[str]) -> list[str]:
    """Names of variants from names, ``all`` and ``none``.

    Raises:
        UnknownNameError: There is none of that name.
    """
    chosen: list[str] = []
    for word in words:
        if word not in VARIANTS and word not in ("all", "none"):
            raise UnknownNameError("variant", word, [*VARIANTS, "all", "none"])
        chosen += VARIANTS if word == "all" else [] if word == "none" else [word]
    return list(dict.fromkeys(chosen))
