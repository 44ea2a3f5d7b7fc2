"""Contract of published protections: a function from clean images to perturbations in 8-bit levels."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from uge.budget import Budget
from uge.data.loader import to_unit
from uge.data.store import PixelStore, Records
from uge.errors import UnknownNameError, UsageError
from uge.files import storage_errors
from uge.methods.base import Earlier, Perturbation, Task, public_name
from uge.methods.uge.generator import delta_records, level_type
from uge.progress import Progress
from uge.runtime import Runtime, stream

PUBLISHED_RHO = 8 / 255
"""The L-inf budget that most of these methods were published with."""
_BATCH = 500  # Images at a time.
_VALUES = 2**24  # Values that they have at most.


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Base of the methods' settings; unknown names are errors."""


@dataclass(frozen=True)
class Material:
    """Images and means of one protection.

    Attributes:
        store: Clean images at the training size.
        budget: L-inf bound on the change of a stored pixel.
        seed: Root seed; with equal images it gives equal bytes.
        runtime: Device and precision.
        options: Settings by name that differ from the published ones, as values or as text.
        folder: Private folder for records and checkpoints; None keeps them in memory.
        progress: Called with (done, total, figures).
        first: Number of images that were perturbed before these by the same seed.
    """

    store: PixelStore
    budget: Budget
    seed: int
    runtime: Runtime
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    progress: Progress = lambda done, total, figures: None
    first: int = 0

    def stream(self, name: str, indices: Tensor) -> torch.Generator:
        """Random numbers of a batch, which no other batch has, not even one of images that are added later."""
        return stream(self.seed, name, self.first + int(indices[0]))

    def records(self) -> Records:
        """Empty perturbations (zeros) in whole 8-bit levels, one per image: N × C × S × S."""
        return delta_records(self.store, self.budget)

    def chunks(self) -> Iterator[Tensor]:
        """Indices of all images in order, with progress."""
        count = len(self.store)
        size = min(_BATCH, _VALUES // (self.store.channels * self.store.size**2))
        for indices in torch.split(torch.arange(count), max(1, size)):
            yield indices
            self.progress(int(indices[-1]) + 1, count, {})

    def filled(
        self, change: Callable[[Tensor, Tensor, Tensor], Tensor], batches: Iterable[Tensor] | None = None
    ) -> Records:
        """Perturbations of all images as they are stored.

        Args:
            change: From indices, pixels in [0, 1] and labels of a batch to its perturbation in [0, 1] units.
            batches: Indices of every batch; by default all images in order, with progress.
        """
        records = self.records()
        for indices in self.chunks() if batches is None else batches:
            pixels = self.store.pixels.read(indices)
            labels = self.store.labels[indices.to(self.store.device)]
            records.write(indices, self.stored(pixels, change(indices, to_unit(pixels), labels)))
        return records

    def stored(self, pixels: Tensor, wanted: Tensor) -> Tensor:
        """Change that remains of a wanted one when pixels are stored.

        Args:
            pixels: uint8 pixels.
            wanted: Perturbation in [0, 1] units, float, same shape.

        Returns:
            Whole 8-bit levels, within the budget, and with ``pixels`` within 0..255.
        """
        levels = (wanted * 255).round().clamp(-255, 255).to(torch.int16)
        return self.budget.add(pixels, levels).to(torch.int16) - pixels.to(torch.int16)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Baseline:
    """One published protection.

    Attributes:
        function: Called with the material and its settings; gives :meth:`make`'s perturbations.
        norm: What the published method bounds: ``"Linf"``, ``"L2"`` or ``"none"``.
        rho: Default L-inf budget in [0, 1] units; 1.0 where the method bounds something else.
        scope: ``"sample"`` (a perturbation per image) or ``"class"`` (one pattern or rule per class).
        about: One sentence with the citation.
        settings: Its settings with the published defaults.
        alone: True where a perturbation follows from seed, class and image alone, so that images can be added.
    """

    function: Callable[[Material, Any], Records]
    norm: str
    rho: float
    scope: str
    about: str
    settings: type[BaseModel]
    alone: bool = False

    def read_settings(self, options: Mapping[str, Any]) -> BaseModel:
        """The published settings with ``options`` put in; hyphens stand for underscores, and text for values.

        Raises:
            UnknownNameError: The method has no such setting.
            UsageError: A value does not fit.
        """
        given = {name.replace("-", "_"): value for name, value in options.items()}
        for name in given:
            if name not in self.settings.model_fields:
                raise UnknownNameError("setting of the baseline", name, self.settings.model_fields)
        try:
            return self.settings(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"])) or "settings"
            raise UsageError(
                f"baseline setting {name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}"
            ) from None

    def make(self, material: Material) -> Records:
        """Perturbations of all images in whole 8-bit levels, one record per image.

        Raises:
            UsageError: A setting is wrong.
        """
        return self.function(material, self.read_settings(material.options))

    def perturb(self, task: Task) -> Perturbation:
        """Perturb the images of a task.

        Raises:
            UsageError: A setting is wrong.
            UGEError: The method failed; its checkpoints stay in the folder.
        """
        options = task.settings.baseline
        with task.progress.stage(task.settings.method) as on_progress:
            material = Material(
                task.store, task.budget, task.settings.seed, task.runtime, options, task.file("run"), on_progress
            )
            delta = make_once(material, self.make)
        settings = self.read_settings(options).model_dump(mode="json")
        lengths = l2_lengths(task.store, delta, task.budget)
        clipped = task.budget.levels < Budget(self.rho).levels
        return Perturbation(
            task.budget,
            delta=delta,
            details={
                "about": self.about,
                "norm": self.norm,
                "scope": self.scope,
                "published_rho": self.rho if self.norm == "Linf" else None,
                "clipped": clipped and self.norm != "Linf",
                "linf_claimed": self.norm == "Linf" or clipped,
                "l2_mean": round(float(lengths.double().mean()), 6),
                "l2_max": round(float(lengths.max()), 6),
                "settings": {
                    key: public_name(value) if isinstance(value, str) else value for key, value in settings.items()
                },
                "training_size": task.store.size,
                "channels": task.store.channels,
            },
        )

    def add(self, task: Task, earlier: Earlier) -> Perturbation:
        """Perturb further images by the seed of an earlier run; see :meth:`uge.methods.base.Method.add`."""
        settings = task.settings
        with task.progress.stage(settings.method) as on_progress:
            material = Material(
                task.store,
                task.budget,
                settings.seed,
                task.runtime,
                settings.baseline,
                progress=on_progress,
                first=earlier.count,
            )
            delta = self.make(material)
        lengths = l2_lengths(task.store, delta, task.budget).double()
        total = earlier.details["l2_mean"] * earlier.count + float(lengths.sum())
        l2 = {
            "l2_mean": round(total / (earlier.count + len(lengths)), 6),
            "l2_max": max(earlier.details["l2_max"], round(float(lengths.max()), 6)),
        }
        return Perturbation(task.budget, delta=delta, details={**earlier.details, **l2})


def reference_radius(radius: float, store: PixelStore) -> float:
    """An L2 length given for 32 × 32 × 3 values, at the size of ``store``: the mean change of a value stays."""
    return radius * float((store.channels * store.size**2 / (3 * 32 * 32)) ** 0.5)


def scaled(noise: Tensor, radius: float) -> Tensor:
    """Noise (batch × channels × height × width) brought to one L2 length per image."""
    length: Tensor = torch.linalg.vector_norm(noise, dim=(1, 2, 3), keepdim=True)
    return noise * (radius / length.clamp_min(1e-12))


def make_once(material: Material, make: Callable[[Material], Records]) -> Records:
    """Perturbations of ``make``, stored in the material's folder so that they are made only once.

    They are written under another name and renamed when complete; a file that is there is taken as it is.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder = material.folder
    if folder is None:
        return make(material)
    place = folder / f"delta.{str(level_type(material.budget)).removeprefix('torch.')}"
    if not place.is_file():
        made = make(material)
        part = delta_records(material.store, material.budget, folder / "part-delta")
        part.copy(made)
        part.flush()
        with storage_errors(place):
            place.with_name(f"part-{place.name}").rename(place)
    return delta_records(material.store, material.budget, place)


def l2_lengths(store: PixelStore, records: Records, budget: Budget) -> Tensor:
    """L2 length of the change of every image's stored pixels, in [0, 1] units."""
    lengths = []
    for indices in torch.split(torch.arange(records.count), _BATCH):
        clean = store.pixels.read(indices)
        delta = budget.add(clean, records.read(indices)).float() - clean
        lengths.append((delta.flatten(1) / 255).norm(dim=1))
    return torch.cat(lengths)


def of_function(name: str, function: Callable[..., Any], about: str) -> Baseline:
    """Protection of a plug-in's function; see :class:`uge.methods.baselines.OfFunction`."""

    def make(material: Material, settings: Settings) -> Records:
        store = material.store
        pixels = store.pixels.read(torch.arange(len(store))).permute(0, 2, 3, 1).cpu().numpy()
        levels = np.asarray(function(pixels.copy(), store.labels.cpu().numpy(), material.budget.levels, material.seed))
        if levels.shape != pixels.shape or levels.dtype.kind not in "iu":
            raise UsageError(
                f"the method '{name}' must return whole levels, integers of the shape {pixels.shape}, got "
                f"{levels.dtype} of the shape {levels.shape}; mend its function"
            )
        wanted = torch.from_numpy(levels.clip(-255, 255).astype(np.int16)).permute(0, 3, 1, 2)
        return material.filled(lambda indices, x, labels: wanted[indices].to(x.device) / 255)

    return Baseline(make, norm="Linf", rho=Budget().rho, scope="sample", about=about, settings=Settings)
