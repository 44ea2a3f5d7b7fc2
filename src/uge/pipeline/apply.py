"""Protecting new images by the perturber of an earlier run, or with foreign noise: ``uge apply``."""

from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.config import PublishConfig
from uge.data import ImageSet, load_images
from uge.data.depth import probed
from uge.data.formats.folder import FileReader
from uge.errors import UsageError
from uge.files import check_output, file_sha256, recover, writes
from uge.methods.apply import load_perturber, protected_images
from uge.methods.baselines.foreign import ForeignNoise, Scope, Unit, is_noise, open_noise
from uge.networks import weights_hash
from uge.pipeline.images import check_original, publish_stream
from uge.pipeline.seal import check_sealing, owners_folder, sealed_only_images
from uge.publishing import Provenance, is_private, is_published, private_folder
from uge.publishing.private import CLAIMS
from uge.session import Session


@writes("out")
def run_apply(
    noise: Path,
    source: str,
    out: Path,
    publishing: PublishConfig,
    *,
    split: str = "train",
    limit: int | None = None,
    rho: str | None = None,
    scope: Scope | None = None,
    unit: Unit | None = None,
    perturbed: bool = False,
    session: Session,
) -> dict[str, Any]:
    """Protect and publish images at their native size, by a generator or wave code, or by given noise.

    Args:
        noise: ``OUT.private/generator.safetensors`` of an earlier run, or a file of noise that was made
            elsewhere (see :func:`uge.methods.baselines.foreign.open_noise`).
        source: Anything that :func:`uge.data.load_images` takes.
        out: The folder to publish.
        publishing: Layout and codec.
        split: Which split of the source.
        limit: First N images, in the order of the source, so that noise for a part lands on its images.
        rho: Budget of foreign noise; by default its largest value.
        scope: Foreign noise per image or per class, where both have as many.
        unit: Unit of foreign noise of floats, where its values allow two readings.
        perturbed: True where ``noise`` holds whole perturbed images.
        session: Device, progress, whether to overwrite, whether to write at all.

    Raises:
        UsageError: The noise does not fit the images, a generator is given a budget, ``out`` would replace a
            folder that this package did not publish, or another process is writing it.
        DataError: No image was changed.
    """
    recover(noise.parent)
    check_sealing(publishing)
    check_original(source, again=publishing.again)
    source_images = load_images(source, split=split, labels=False)
    images = source_images if limit is None else source_images.take(limit)
    apart = sealed_only_images(source, publishing, images)
    check_output(out, source=images.root, overwrite=session.overwrite, ours=is_published)
    if publishing.seal:
        check_output(private_folder(out), source=images.root, overwrite=True, ours=is_private)
    result: dict[str, Any] = {"images": len(images), "out": str(out)}
    if is_noise(noise):
        foreign = open_noise(noise, images, scope, unit=unit, perturbed=perturbed, of=len(source_images))
        _check_apart(out, foreign.path)
        each = "one perturbation per image" if foreign.scope == "sample" else "one pattern per class"
        each = "whole perturbed images" if foreign.perturbed else each
        each = f"{each} by id" if foreign.places else each
        shape = f"{'×'.join(map(str, foreign.rows.shape))} {foreign.rows.dtype}"
        session.progress.note(
            f"{foreign.name}: {shape}, {each}, read as {foreign.unit}, largest {foreign.largest} levels"
        )
        if foreign.scope == "sample" and foreign.places is None and _is_ordered_otherwise(images):
            session.progress.note(
                "rows belong to images in the order of torchvision's ImageFolder (folder by folder, the files of a "
                "folder before its sub-folders), not of sorted paths; an array 'ids' in an .npz file settles it"
            )
        budget = Budget(foreign.largest / 255) if rho is None else Budget.parse(rho)
        pairs = foreign.pairs(images, budget)
        provenance = _foreign_provenance(foreign, images, budget)
        result |= {"scope": foreign.scope, "unit": foreign.unit}
    elif rho is not None or scope is not None or unit is not None or perturbed:
        raise UsageError(
            f"--rho, --scope, --unit and --perturbed are for foreign noise, but {noise} is a generator; leave them out"
        )
    else:
        generator = load_perturber(noise)
        _check_apart(out, noise)
        budget = generator.budget
        for _ in probed(images):
            pass
        pairs = protected_images(images, generator, session.runtime)
        provenance = Provenance(
            method="generator",
            method_details={"generator_sha256": weights_hash(generator), "channels": generator.channels},
        )
    result["rho"] = budget.rho
    if session.dry_run:
        return result
    with owners_folder(out, publishing) as (sealing, finish):
        manifest = publish_stream(
            images,
            pairs,
            out,
            budget,
            provenance,
            publishing,
            session,
            overwrite=session.overwrite,
            sealing=sealing,
            sealed_only=apart,
            together=finish,
        )
    if not publishing.seal:
        (private_folder(out) / CLAIMS).unlink(missing_ok=True)  # Of a copy that this one replaced.
    return {**result, "measured": manifest.measured.model_dump(mode="json")}


def _check_apart(out: Path, noise: Path) -> None:
    """Refuse to publish over the noise, or among secrets."""
    place = out.resolve()
    folder = noise.resolve().parent
    if folder.is_relative_to(place) or (is_private(folder) and place.is_relative_to(folder)):
        raise UsageError(f"the output {out} and the folder of {noise} overlap; choose an output outside that folder")


def _is_ordered_otherwise(images: ImageSet) -> bool:
    """True for image folders in another order than that of their sorted paths."""
    return isinstance(images.reader, FileReader) and list(images.ids) != sorted(images.ids)


def _foreign_provenance(noise: ForeignNoise, images: ImageSet, budget: Budget) -> Provenance:
    height, width = noise.size
    return Provenance(
        method="foreign",
        method_details={
            "noise_sha256": file_sha256(noise.path),
            "scope": noise.scope,
            "unit": noise.unit,
            "largest_levels": noise.largest,
            "clipped": budget.levels < noise.largest,
            "channels": images.channels(),
            **({"training_size": height} if height == width else {}),
            **({"perturbed": True} if noise.perturbed else {}),
        },
    )
