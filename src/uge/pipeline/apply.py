"""Protecting new images by the perturber of an earlier run, or with foreign noise: ``uge apply``."""

from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.config import PublishConfig
from uge.data import ImageSet, load_images
from uge.errors import UsageError
from uge.files import check_output, file_sha256
from uge.methods.apply import load_perturber, protected_images
from uge.methods.baselines.foreign import ForeignNoise, Scope, is_noise, open_noise
from uge.networks import weights_hash
from uge.pipeline.images import publish_stream
from uge.publishing import Provenance, is_private, is_published, private_folder
from uge.publishing.private import CLAIMS
from uge.session import Session


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
        limit: First N images.
        rho: Budget of foreign noise; by default its largest value.
        scope: Foreign noise per image or per class, where both have as many.
        session: Device, progress, whether to overwrite, whether to write at all.

    Raises:
        UsageError: The noise does not fit the images, a generator is given a budget, or ``out`` would replace a
            folder that this package did not publish.
        DataError: No image was changed.
    """
    images = load_images(source, split=split, limit=limit)
    check_output(out, source=images.root, overwrite=session.overwrite, ours=is_published)
    result: dict[str, Any] = {"images": len(images), "out": str(out)}
    if is_noise(noise):
        foreign = open_noise(noise, images, scope)
        _check_apart(out, foreign.path)
        each = "one perturbation per image" if foreign.scope == "sample" else "one pattern per class"
        shape = f"{'×'.join(map(str, foreign.rows.shape))} {foreign.rows.dtype}"
        session.progress.note(
            f"{foreign.name}: {shape}, {each}, read as {foreign.unit}, largest {foreign.largest} levels"
        )
        budget = Budget(foreign.largest / 255) if rho is None else Budget.parse(rho)
        pairs = foreign.pairs(images, budget)
        provenance = _foreign_provenance(foreign, images, budget)
        result |= {"scope": foreign.scope, "unit": foreign.unit}
    elif rho is not None or scope is not None:
        raise UsageError(f"--rho and --scope are for foreign noise, but {noise} is a generator; leave them out")
    else:
        generator = load_perturber(noise)
        _check_apart(out, noise)
        budget = generator.budget
        pairs = protected_images(images, generator, session.runtime)
        provenance = Provenance(
            method="generator",
            method_details={"generator_sha256": weights_hash(generator), "channels": generator.channels},
        )
    result["rho"] = budget.rho
    if session.dry_run:
        return result
    manifest = publish_stream(images, pairs, out, budget, provenance, publishing, session, overwrite=session.overwrite)
    (private_folder(out) / CLAIMS).unlink(missing_ok=True)  # Of a copy that this one replaced.
    return {**result, "measured": manifest.measured.model_dump(mode="json")}


def _check_apart(out: Path, noise: Path) -> None:
    """Refuse to publish over the noise, or among secrets."""
    place = out.resolve()
    folder = noise.resolve().parent
    if folder.is_relative_to(place) or (is_private(folder) and place.is_relative_to(folder)):
        raise UsageError(f"the output {out} and the folder of {noise} overlap; choose an output outside that folder")


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
        },
    )
