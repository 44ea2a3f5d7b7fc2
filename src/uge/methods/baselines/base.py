"""Contract of published protections: a function from clean images to perturbations in 8-bit levels."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from uge.budget import Budget
from uge.data.loader import to_unit
from uge.data.store import PixelStore, Records
from uge.errors import UnknownNameError, UsageError
from uge.files import storage_errors
from uge.methods.authorized import public_name
from uge.methods.base import Perturbation, Task
from uge.methods.uge.refine import delta_records
from uge.progress import Progress
from uge.runtime import Runtime

Model = TypeVar("Model", bound=BaseModel)
PUBLISHED_RHO = 8 / 255
"""The L-inf budget that most of these methods were published with."""
_BATCH, _VALUES = 500, 2**24
"""Images at a time, and the values that they have at most."""


class Settings(BaseModel):
    """Base of the methods' settings; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    """

    store: PixelStore
    budget: Budget
    seed: int
    runtime: Runtime
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    progress: Progress | None = None

    def settings(self, model: type[Model]) -> Model:
        """The published settings with ``options`` put in.

        Raises:
            UsageError: A name or a value is wrong.
        """
        return read_settings(model, self.options)

    def records(self) -> Records:
        """Empty perturbations (zeros) in whole 8-bit levels, one per image: N × C × S × S."""
        return delta_records(self.store, self.budget)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(indices, uint8 pixels, labels) of all images in order, with progress."""
        count, values = len(self.store), self.store.channels * self.store.size**2
        for indices in torch.split(torch.arange(count), max(1, min(_BATCH, _VALUES // values))):
            yield indices, self.store.pixels.read(indices), self.store.labels[indices.to(self.store.device)]
            if self.progress is not None:
                self.progress(int(indices[-1]) + 1, count, {})

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
        make: Perturbations of all images in whole 8-bit levels, one record per image.
        norm: What the published method bounds: ``"Linf"``, ``"L2"`` or ``"none"``.
        rho: Default L-inf budget in [0, 1] units; 1.0 where the method bounds something else.
        scope: ``"sample"`` (a perturbation per image) or ``"class"`` (one pattern or rule per class).
        about: One sentence with the citation.
        settings: Its settings with the published defaults.
    """

    make: Callable[[Material], Records]
    norm: str
    rho: float
    scope: str
    about: str
    settings: type[BaseModel]


def read_settings(model: type[Model], options: Mapping[str, Any]) -> Model:
    """Settings from options by name; hyphens stand for underscores, and text for values.

    Raises:
        UnknownNameError: The method has no such setting.
        UsageError: A value does not fit.
    """
    given = {name.replace("-", "_"): value for name, value in options.items()}
    for name in given:
        if name not in model.model_fields:
            raise UnknownNameError("setting of the baseline", name, model.model_fields)
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise UsageError(
            f"baseline setting {name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}"
        ) from None


def unit_batches(material: Material) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(indices, uint8 pixels, the same in [0, 1], labels) of all images in order, with progress."""
    for indices, pixels, labels in material.chunks():
        yield indices, pixels, to_unit(pixels), labels


def reference_radius(radius: float, store: PixelStore) -> float:
    """An L2 length given for 32 × 32 × 3 values, at the size of ``store``: the mean change of a value stays."""
    values = store.channels * store.size**2
    return radius * float((values / (3 * 32 * 32)) ** 0.5)


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
    if material.folder is None:
        return make(material)
    sample = material.records()
    place = material.folder / f"delta.{str(sample.dtype).removeprefix('torch.')}"
    if not place.is_file():
        made = make(material)
        part = place.with_name(f"part-{place.name}")
        with storage_errors(place):
            part.unlink(missing_ok=True)
        whole = Records(made.count, made.shape, sample.dtype, device=made.device, path=part)
        whole.copy(made)
        whole.flush()
        with storage_errors(place):
            part.rename(place)
    return Records(sample.count, sample.shape, sample.dtype, device=sample.device, path=place)


def sizes(store: PixelStore, records: Records, budget: Budget) -> dict[str, float]:
    """Change of stored pixels in [0, 1] units: largest L-inf, mean and largest L2 over images."""
    largest = 0.0
    total = 0.0
    longest = 0.0
    for indices in torch.split(torch.arange(records.count), _BATCH):
        clean = store.pixels.read(indices)
        delta = (budget.add(clean, records.read(indices)).float() - clean).flatten(1) / 255
        lengths = delta.norm(dim=1)
        largest = max(largest, float(delta.abs().max()))
        longest = max(longest, float(lengths.max()))
        total += float(lengths.double().sum())
    return {"linf_max": round(largest, 6), "l2_mean": round(total / records.count, 6), "l2_max": round(longest, 6)}


def perturb(baseline: Baseline, task: Task) -> Perturbation:
    """Perturb the images of a task by a published protection.

    Raises:
        UsageError: A setting is wrong.
        UGEError: The method failed; its checkpoints stay in the folder.
    """
    options = task.settings.baseline
    with task.progress.stage(task.settings.method) as on_progress:
        material = Material(
            task.store, task.budget, task.settings.seed, task.runtime, options, task.file("run"), on_progress
        )
        delta = make_once(material, baseline.make)
    settings = read_settings(baseline.settings, options).model_dump(mode="json")
    measured = sizes(task.store, delta, task.budget)
    clipped = task.budget.levels < Budget(baseline.rho).levels
    details = {
        "about": baseline.about,
        "norm": baseline.norm,
        "scope": baseline.scope,
        "published_rho": baseline.rho if baseline.norm == "Linf" else None,
        "clipped": clipped and baseline.norm != "Linf",
        "linf_claimed": baseline.norm == "Linf" or clipped,
        "l2_mean": measured["l2_mean"],
        "l2_max": measured["l2_max"],
        "settings": {key: public_name(value) if isinstance(value, str) else value for key, value in settings.items()},
        "training_size": task.store.size,
        "channels": task.store.channels,
    }
    return Perturbation(task.budget, delta=delta, details=details)


def of_function(name: str, function: Callable[..., Any], about: str) -> Baseline:
    """Protection of a plug-in's function; see :class:`uge.methods.baselines.published.OfFunction`."""

    def make(material: Material) -> Records:
        store = material.store
        pixels = store.pixels.read(torch.arange(len(store))).permute(0, 2, 3, 1).cpu().numpy()
        levels = np.asarray(function(pixels.copy(), store.labels.cpu().numpy(), material.budget.levels, material.seed))
        if levels.shape != pixels.shape or levels.dtype.kind not in "iu":
            raise UsageError(
                f"the method '{name}' must return whole levels, integers of the shape {pixels.shape}, got "
                f"{levels.dtype} of the shape {levels.shape}; mend its function"
            )
        records = material.records()
        wanted = torch.from_numpy(levels.clip(-255, 255).astype(np.int16)).permute(0, 3, 1, 2)
        for indices, clean, _ in material.chunks():
            stored = material.budget.add(clean, wanted[indices].to(clean.device))
            records.write(indices, stored.to(torch.int16) - clean.to(torch.int16))
        return records

    return Baseline(make, norm="Linf", rho=Budget().rho, scope="sample", about=about, settings=Settings)
