"""The contract of everything that perturbs images. Needs no torch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import BaseModel, Field

from uge.budget import Budget
from uge.data.depth import probed
from uge.data.images import ImageSet, Pixels, Strips, bytes_of
from uge.errors import DataError, UsageError
from uge.learning.recipes import Recipe
from uge.methods.robust.settings import RobustSettings
from uge.methods.uge.settings import GeneratorSettings, LossWeights, RefineSettings
from uge.names import CHECKPOINT, behind_key
from uge.progress import Display, Silent

if TYPE_CHECKING:
    from uge.data.store import PixelStore, Records
    from uge.encoders import FeatureSpace
    from uge.learning.trajectory import Trajectory
    from uge.methods.apply import Perturber
    from uge.networks import ImageClassifier
    from uge.runtime import Runtime


ANEW = "protect all images anew (--overwrite), or the new ones in a folder of their own"
"""Way out where no image can be added to a protected copy."""
WITHOUT_CLASSES = (
    "without classes, --method robust --robust.clusters N takes clusters in their place, and --method preview seals "
    "the originals behind previews"
)
"""End of a sentence: methods for images without usable classes."""


DEFAULT_METHOD = "robust"
"""Method of ``uge protect`` where none is named and no network is asked for."""


class MethodSettings(BaseModel, frozen=True, extra="forbid"):
    """Everything that a method may read; each field's description says what it sets."""

    authorized: Annotated[
        str | None,
        Field(
            description="Authorised network, or several separated by commas, of a method that protects for networks; "
            "cnn by default."
        ),
    ] = None
    authorized_seed: Annotated[
        int | None,
        Field(description="Makes the same keys of the same images again, for reproduction only; by default secret."),
    ] = None
    authorized_weights: Annotated[
        tuple[Path, ...], Field(description="Safetensors file(s) with θ0 instead of a seed.")
    ] = ()
    method: Annotated[str, Field(description="Name in the table of methods.")] = DEFAULT_METHOD
    rho: Annotated[
        str | None,
        Parameter(name=("--rho", "--strength")),
        Field(description="L-inf budget in [0, 1] units, 0.04 or 8/255; by default 0.04, or the baseline's own."),
    ] = None
    encoder: Annotated[
        str,
        Field(description="Feature space: local, clip:ID with a hub id or a folder, or a name of uge list encoders."),
    ] = "local"
    size: Annotated[
        int | None, Field(description="Side length for training; the native one by default.", ge=16, le=4096)
    ] = None
    refine: Annotated[bool, Field(description="Optimise every image's perturbation directly as well.")] = False
    snapshots: Annotated[int, Field(description="Snapshots per trajectory.", ge=2)] = 10
    hacker: Annotated[str, Field(description="Architecture of the random hacker in the undistill loss.")] = "resnetc20"
    seed: Annotated[int, Field(description="Root seed of the run.")] = 0
    recipe: Annotated[Recipe, Field(description="How the authorised network trains.")] = Recipe()
    encoder_recipe: Annotated[Recipe, Field(description="How the local encoder trains.")] = Recipe()
    loss: Annotated[LossWeights, Field(description="Weights and constants of the losses.")] = LossWeights()
    generator: Annotated[GeneratorSettings, Field(description="The perturbation generator.")] = GeneratorSettings()
    refinement: Annotated[RefineSettings, Field(description="Direct optimisation.")] = RefineSettings()
    robust: Annotated[RobustSettings, Field(description="The method robust.")] = RobustSettings()
    baseline: Annotated[
        dict[str, str], Field(description="A baseline's settings, as --baseline.NAME VALUE (docs/baselines.md).")
    ] = {}


@dataclass(frozen=True)
class ImagesInfo:
    """Properties of an image set, from up to 64 images that are spread evenly over it.

    Attributes:
        name: Name of the set.
        classes: Class names.
        native_size: Side length in pixels; None where sizes are mixed or not square.
        channels: 1 for gray images, else 3.
        digest: Hexadecimal sha256 of the 64 images.
    """

    name: str
    classes: tuple[str, ...]
    native_size: int | None
    channels: int
    digest: str

    @classmethod
    def of(cls, images: ImageSet) -> ImagesInfo:
        """Read the images of the probe, each once."""
        digest = hashlib.sha256()
        shapes = []
        for pixels in probed(images):
            shapes.append(pixels.shape)
            digest.update(str(pixels.shape).encode())
            for part in bytes_of(pixels):
                digest.update(part)
            del pixels  # Not kept while the next one is read.
        sizes = {shape[:2] for shape in shapes}
        height, width = next(iter(sizes))
        return cls(
            name=images.name,
            classes=images.classes,
            native_size=int(height) if len(sizes) == 1 and height == width else None,
            channels=1 if all(shape[2] <= 2 for shape in shapes) else 3,
            digest=digest.hexdigest(),
        )

    def training_size(self, size: int | None) -> int:
        """Side length in pixels: ``size`` where it is given, else that of the images.

        Raises:
            UsageError: Neither is known.
        """
        size = size or self.native_size
        if size is None:
            raise UsageError(
                f"the images of {self.name} have mixed or non-square sizes; give --size N (for instance 64)"
            )
        return size


@dataclass(frozen=True)
class Task:
    """One data set that a method perturbs, and the means for it.

    Attributes:
        images: Clean images at their native size.
        settings: How to protect.
        budget: Bound on the change of every stored pixel.
        networks: θ0 of every authorised network, as :meth:`Method.networks` made them.
        runtime: Device and precision.
        read: Decodes all images at the training size; see ``store``.
        progress: Shows stages.
        folder: Private folder in which stages keep their results, so that a killed run resumes; None keeps them in
            memory. The resulting bytes are the same.
        trajectories: Recorded paths of the networks on the clean images, where there are any.
        space: Feature space of the caller; by default the one that the settings name.
    """

    images: ImageSet
    settings: MethodSettings
    budget: Budget
    networks: Sequence[ImageClassifier]
    runtime: Runtime
    read: Callable[[], PixelStore]
    progress: Display = field(default_factory=Silent)
    folder: Path | None = None
    trajectories: Sequence[Trajectory] = ()
    space: FeatureSpace | None = None

    @cached_property
    def store(self) -> PixelStore:
        """Clean images at the training size, decoded at the first use."""
        return self.read()

    def file(self, *names: str) -> Path | None:
        """Place in the private folder; None without a folder."""
        return None if self.folder is None else self.folder.joinpath(*names)


@dataclass(frozen=True)
class Earlier:
    """Earlier run, to which images are added.

    Attributes:
        folder: Its private folder, which is only read.
        count: Number of its published images.
        details: Their :attr:`Perturbation.details`.
    """

    folder: Path
    count: int
    details: Mapping[str, Any]

    def file(self, *names: str) -> Path:
        """File of the private folder without which no image can be added.

        Raises:
            UsageError: It is missing.
        """
        path = self.folder.joinpath(*names)
        if not path.is_file():
            raise UsageError(f"{path} is missing, by which further images are perturbed; {ANEW}")
        return path


@dataclass(frozen=True)
class Perturbation:
    """Result of a method on one data set.

    Attributes:
        budget: Bound that every stored pixel keeps.
        perturber: Gives the perturbation of any image by label and sample id; None where only the images of the task
            can be perturbed.
        delta: Perturbations of the images themselves at the training size, in 8-bit levels, in their order.
        details: JSON values for the manifest: settings and measured facts, no private path.
        encoder: Identity of the feature space, where one was used.
    """

    budget: Budget
    perturber: Perturber | None = None
    delta: Records | None = None
    details: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] | None = None

    def pairs(self, images: ImageSet, runtime: Runtime) -> Iterator[tuple[Pixels | Strips, Pixels | Strips]]:
        """Clean and protected pixels of every image, in order; strips of large images."""
        from uge.methods.apply import protected_images

        return protected_images(images, self.perturber, runtime, delta=self.delta, budget=self.budget)


class Method(ABC):
    """One way to perturb images: a row of :data:`uge.methods.METHODS`.

    A subclass gives :meth:`perturb` and changes what differs from the defaults. Importing its module imports no torch;
    methods that need it import it inside.

    Attributes:
        name: Name in the table.
        about: One sentence for lists of methods.
        reads_store: True where all images are decoded at the training size before anything else.
        trains: False where perturbations come from the seed alone and nothing is learned from the images; a failed run
            then keeps nothing for ``--resume``, and ``own-key`` is quick.
        authorizes: True where images are protected for authorised networks.
        wave_key: True where these networks carry one wave key.
        needs_paths: True where these networks' trajectories on the clean images are needed.
        refines: True where perturbations can be refined.
        needs_classes: True where images are perturbed by their classes, of which there must be two at least.
        has_options: True where ``--baseline.NAME`` sets something.
        revision: Raised when the method is changed, so that published results of its earlier form do not count.

    Example:
        ::

            @uge.method("gray-noise", about="The same random level in all colours of a pixel.")
            class GrayNoise(uge.methods.Method):
                def perturb(self, task):
                    store = task.store
                    delta = Records(len(store), store.pixels.shape, torch.int8)
                    ...
                    return Perturbation(task.budget, delta=delta)
    """

    name = ""
    about = ""
    reads_store = True
    trains = True
    authorizes = False
    wave_key = False
    needs_paths = False
    refines = False
    needs_classes = True
    has_options = False
    revision = 0

    def budget(self, settings: MethodSettings) -> Budget:
        """Budget that settings name, or the method's own.

        Raises:
            UsageError: It is no budget.
        """
        return Budget() if settings.rho is None else Budget.parse(settings.rho)

    def check(self, settings: MethodSettings) -> None:
        """Refuse settings that the method cannot follow, before any image is read.

        Raises:
            UsageError: A setting is wrong; by default authorised networks, refinement and settings of a baseline are,
                unless the method has them.
        """
        for flag in ("authorized", "authorized_weights"):
            if not self.authorizes and (given := getattr(settings, flag)) not in (None, "", ()):
                given = ", ".join(map(str, given)) if isinstance(given, tuple) else given
                raise UsageError(
                    f"method '{self.name}' protects for no network, got --{flag.replace('_', '-')} {given}; leave it "
                    "out, or choose --method keyed or another that protects for networks"
                )
        if settings.refine and not self.refines:
            raise UsageError(f"method '{self.name}' has nothing to refine; leave out --refine, or choose --method uge")
        if settings.baseline and not self.has_options:
            raise UsageError(
                f"method '{self.name}' is no baseline, got --baseline.{next(iter(settings.baseline))}; leave that out, "
                "or choose a baseline (docs/baselines.md)"
            )

    def check_images(self, images: ImageSet, settings: MethodSettings) -> ImageSet:
        """Images that the method can perturb: the same ones.

        Raises:
            DataError: They cannot be read, or a method by classes has none, one alone, or one with a single image.
        """
        if not self.needs_classes:
            return images.check()
        try:
            return images.check_trainable()
        except DataError as error:
            raise DataError(f"{error}; {WITHOUT_CLASSES}") from error

    def network_name(self, name: str) -> str:
        """Full name of an authorised network, from its name or its architecture.

        Raises:
            UsageError: The method does not protect for such a network.
        """
        raise UsageError(f"method '{self.name}' protects for no network, got '{name}'; choose another method")

    def networks(self, info: ImagesInfo, settings: MethodSettings) -> list[ImageClassifier]:
        """θ0 of every authorised network; none by default.

        Args:
            info: The images that are to be protected.
            settings: Names, seed or files of the networks.

        Raises:
            UnknownNameError: There is no such network.
            UsageError: No training size is known, or the method does not suit the networks.
            WeightsError: A weights file does not fit.
        """
        return []

    @abstractmethod
    def perturb(self, task: Task) -> Perturbation:
        """Perturb the images of a task.

        Raises:
            UGEError: A stage failed; finished stages stay in the task's folder.
        """

    def check_adding(self, settings: MethodSettings, earlier: Earlier) -> None:
        """Refuse to perturb further images as an earlier run did; by default no method can do that.

        A method that perturbs each image alone, from what its private folder keeps, does nothing here, and has
        :meth:`add`.

        Raises:
            UsageError: Perturbations belong together, or what made them was not kept; the message names the way out.
        """
        raise UsageError(
            f"method '{self.name}' finds the perturbations of all its images together, so that none can be added; "
            f"{ANEW}"
        )

    def add(self, task: Task, earlier: Earlier) -> Perturbation:
        """Perturb the images of a task as those of an earlier run were, by the state that it kept.

        Args:
            task: Further images, with the classes and settings of the earlier run, and no folder.
            earlier: The run; :meth:`check_adding` accepts it.

        Returns:
            Perturbations of the further images, and the details of all images together.
        """
        raise NotImplementedError(f"method '{self.name}' accepts further images and does not perturb them")


def public_name(network: str) -> str:
    """Network's name for a manifest: a checkpoint is named by its content, not by its place."""
    from uge.networks.checkpoint import checkpoint_hash

    name = behind_key(network)
    if not name.startswith(CHECKPOINT):
        return network
    return network.removesuffix(name) + CHECKPOINT + checkpoint_hash(name)[:12]
