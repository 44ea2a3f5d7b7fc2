"""The table of encoders by name, which other packages can add to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from uge.data.store import PixelStore
from uge.encoders.base import FeatureSpace
from uge.encoders.clip_space import ClipSpace
from uge.encoders.imagenet_space import ImageNetSpace
from uge.encoders.local_space import RECIPE, LocalSpace
from uge.errors import UsageError
from uge.learning.recipes import Recipe
from uge.progress import Progress
from uge.registry import Made, Registry, summary_of
from uge.runtime import Runtime

Maker = TypeVar("Maker", bound=Callable[..., FeatureSpace])


@dataclass(frozen=True)
class Material:
    """Material of an encoder.

    Attributes:
        store: The protector's clean images at the training size, with labels and class names.
        runtime: Device and precision.
        argument: The text after the colon in ``NAME:ARGUMENT``; empty without one.
        seed: Root seed of the run.
        recipe: Recipe of encoders that are trained on ``store``.
        path: File in which a trained encoder is kept for the next run, if there is one.
        progress: Called with (epochs done, epochs, figures).
    """

    store: PixelStore
    runtime: Runtime
    argument: str = ""
    seed: int = 0
    recipe: Recipe = RECIPE
    path: Path | None = None
    progress: Progress | None = None


def _row(name: str, entry: Any, about: str = "") -> Made:
    if not callable(entry) or (":" in name and not name.endswith(":ID")):
        raise UsageError(f"the encoder '{name}' must be a function of its material, named NAME or NAME:ID, got {entry}")
    return Made(entry, summary_of(entry, about))


#: Encoders by name; those named ``NAME:ID`` take an argument.
ENCODERS: Registry[Made] = Registry(
    "encoder",
    {
        "local": Made(
            lambda material: LocalSpace.train(
                material.store,
                seed=material.seed,
                runtime=material.runtime,
                recipe=material.recipe,
                path=material.path,
                progress=material.progress,
            ),
            "a small space trained on the protector's own images, offline",
        ),
        "imagenet": Made(
            lambda material: ImageNetSpace.fit(material.store, material.runtime),
            "EfficientNet-Lite0 with ImageNet weights out of a package, prototypes of your classes",
        ),
        "clip:ID": Made(
            lambda material: ClipSpace.load(material.argument, material.runtime.device),
            "CLIP by transformers, ID a hub id or a folder",
        ),
    },
    "uge.encoders",
    adapt=_row,
    hint="ID is a hub id or a local folder",
)


def encoder(name: str, *, about: str = "") -> Callable[[Maker], Maker]:
    """Register a function as an encoder, for the paper's methods (``--encoder NAME``).

    The function is called with a :class:`Material` and returns a :class:`FeatureSpace`. A name that ends in ``:ID``
    takes an argument, as ``clip:openai/clip-vit-base-patch32`` does.

    A package registers the same function for the command line by an entry point of the group ``uge.encoders``; see
    :func:`uge.attack`.

    Args:
        name: Name of the encoder, for instance ``siglip`` or ``siglip:ID``.
        about: One line for listings; by default the first line of the docstring.

    Raises:
        UsageError: UGE has an encoder of that name, or the object is no function.
    """
    return lambda maker: ENCODERS.register(name, maker, about=about)


def find_encoder(name: str) -> Made:
    """Row of ``NAME`` or of ``NAME:ARGUMENT``.

    Raises:
        UnknownNameError: There is none of that name.
    """
    return ENCODERS[_row_name(name)]


def _row_name(name: str) -> str:
    kind, _, argument = name.partition(":")
    key = f"{kind}:ID" if argument else name
    return key if key in ENCODERS else name


def open_encoder(name: str, material: Material) -> FeatureSpace:
    """The feature space of ``NAME`` or ``NAME:ARGUMENT``; the argument goes into the material.

    Raises:
        UnknownNameError: There is none of that name.
        UsageError: Its weights cannot be had, or a plug-in fails or gives no feature space.
    """
    row = _row_name(name)
    make = find_encoder(name).make
    with ENCODERS.answering(row):
        space = make(replace(material, argument=name.partition(":")[2]))
    if not isinstance(space, FeatureSpace):
        raise UsageError(f"the encoder '{name}' must return a FeatureSpace, got {type(space).__name__}")
    return space if ENCODERS.is_own(row) else _Foreign(space, row)


class _Foreign:
    """Feature space of another package; its faults become one sentence each."""

    def __init__(self, space: FeatureSpace, row: str) -> None:
        self.name = space.name
        self._space = space
        self._row = row

    def image_features(self, x: Tensor) -> Tensor:
        """Features of images, by the space."""
        with ENCODERS.answering(self._row):
            return self._space.image_features(x)

    def text_features(self, classes: Sequence[str]) -> Tensor:
        """Features of class names, by the space."""
        with ENCODERS.answering(self._row):
            return self._space.text_features(classes)

    def to(self, device: torch.device | str) -> Self:
        """Move the space; returns itself."""
        with ENCODERS.answering(self._row):
            self._space = self._space.to(device)
        return self

    def identity(self) -> dict[str, Any]:
        """Identity of the space."""
        with ENCODERS.answering(self._row):
            return self._space.identity()
