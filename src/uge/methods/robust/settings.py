"""Settings of the method ``robust``. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from cyclopts import Parameter
from pydantic import BaseModel, Field

from uge.errors import UsageError

CLUSTERS = "clusters.json"
"""File in a private folder with the clusters that took the place of classes."""


class FilterShares(BaseModel, frozen=True, extra="forbid"):
    """Relative frequency of each random filter; they need not add up to 1.

    Attributes:
        none: The image as it is.
        jpeg: JPEG of a quality from 8 to 50, low ones as often as high ones (logarithmically), colour halved.
        gray: Brightness alone.
        blur: Gaussian of 0.5 to 1.2 pixels.
        half: Half the size and back.
        bits: 2 or 3 bits a value.
        colour: Gain of every channel from 0.8 to 1.2, and brightness by up to 20 levels either way.
    """

    none: float = Field(0.2, ge=0)
    jpeg: float = Field(0.3, ge=0)
    gray: float = Field(0.12, ge=0)
    blur: float = Field(0.12, ge=0)
    half: float = Field(0.1, ge=0)
    bits: float = Field(0.06, ge=0)
    colour: float = Field(0.1, ge=0)


class SurrogateName(NamedTuple):
    """A surrogate: its network, and the radius of its adversarial training in 8-bit levels (0 for none)."""

    network: str
    radius: int


class Effort(NamedTuple):
    """Work for one word of ``--effort``."""

    surrogates: str
    epochs: int
    steps: int


EFFORTS = {
    "low": Effort("cnn,cnn@4", 4, 12),
    "standard": Effort("cnn,resnet8,cnn@4", 8, 24),
    "high": Effort("cnn,resnet8,cnn@4,resnet8@4", 12, 48),
}
"""Surrogates, their epochs of training, and steps on every image."""


class RobustSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings of the method ``robust``.

    Attributes:
        effort: Surrogates, epochs and steps at once: low, standard or high.
        surrogates: Networks separated by commas; NAME@4 is trained adversarially within 4 levels. Instead of the
            effort's.
        epochs: Epochs of every surrogate's training, instead of the effort's.
        steps: Sign steps on every image, instead of the effort's.
        targets: Class that images of a class are moved to: ``"next"`` one; or, by the surrogates' answers, the
            ``"far"`` one that they take its images for least, or the ``"near"`` one. No two classes share a target.
        filters: Shares of the random filters.
        clusters: Clusters of features that take the place of classes. By default the labels are used where two
            classes are there; else one cluster for every 20 images is made, from 2 to 10.
        generator: Steps in which a generator learns the same loss, by which ``uge apply`` protects new images; 0 for
            none. Its size is set by ``--generator.width`` and the like.
        by: What the published images are perturbed by: ``"steps"`` of their own, or the ``"generator"`` alone.
    """

    effort: Annotated[Literal["low", "standard", "high"], Parameter(name="--effort")] = "standard"
    surrogates: str | None = None
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    targets: Literal["next", "far", "near"] = "next"
    filters: FilterShares = FilterShares()
    clusters: int | None = Field(None, ge=2)
    generator: int = Field(0, ge=0)
    by: Literal["steps", "generator"] = "steps"

    def takes_clusters(self, class_counts: Sequence[int]) -> bool:
        """True where clusters take the place of classes: as they are asked for, or fewer than two classes have images.

        Args:
            class_counts: Number of images of every class.
        """
        return self.clusters is not None or sum(map(bool, class_counts)) < 2

    @property
    def work(self) -> Effort:
        """Surrogates, epochs and steps after all settings."""
        usual = EFFORTS[self.effort]
        return Effort(self.surrogates or usual.surrogates, self.epochs or usual.epochs, self.steps or usual.steps)

    @property
    def surrogate_names(self) -> list[SurrogateName]:
        """Surrogates in order.

        Raises:
            UsageError: There is none, or a radius is no whole number above 0.
        """
        found = []
        for part in filter(None, map(str.strip, self.work.surrogates.split(","))):
            network, at, radius = part.partition("@")
            if at and not (radius.isdecimal() and int(radius)):
                raise UsageError(f"a surrogate is NETWORK or NETWORK@LEVELS with whole levels above 0, got '{part}'")
            found.append(SurrogateName(network, int(radius or 0)))
        if not found:
            raise UsageError(f"expected surrogates separated by commas, got '{self.work.surrogates}'")
        return found
