"""What the library hands from verb to verb: an authorised network's path, and a protected image set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels, Sample
from uge.learning.recipes import Recipe
from uge.learning.trajectory import Trajectory
from uge.methods.apply import protected_images
from uge.networks import ImageClassifier
from uge.pipeline.perturbation import Noise
from uge.runtime import Runtime


@dataclass(frozen=True)
class AuthorizedPath:
    """An authorised network: θ0, its recipe, and the path it takes on the clean images where that was recorded."""

    theta0: ImageClassifier
    recipe: Recipe
    trajectory: Trajectory | None = None


@dataclass(frozen=True)
class Protected:
    """A protected image set; iterating gives samples with protected pixels, made when asked for.

    Attributes:
        images: The clean images. Keep them to yourself.
        noise: What protects them, with its provenance.
        paths: The authorised networks.
        runtime: Device and precision.
    """

    images: ImageSet
    noise: Noise
    paths: tuple[AuthorizedPath, ...]
    runtime: Runtime

    @property
    def budget(self) -> Budget:
        """The bound that every pixel keeps."""
        return self.noise.generator.budget

    def __len__(self) -> int:
        return len(self.images)

    def pairs(self) -> Iterator[tuple[Pixels, Pixels]]:
        """Clean and protected pixels of every image, in order."""
        return protected_images(self.images, self.noise.generator, self.runtime, delta=self.noise.delta)

    def __iter__(self) -> Iterator[Sample]:
        for number, (_, pixels) in enumerate(self.pairs()):
            yield Sample(self.images.ids[number], pixels, int(self.images.labels[number]))
