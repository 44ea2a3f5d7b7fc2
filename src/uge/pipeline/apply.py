"""Protecting new images with a generator that was trained before: ``uge apply``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uge.config import PublishConfig
from uge.data import load_images
from uge.networks import weights_hash
from uge.pipeline.session import Session
from uge.pipeline.stages import publish_stream
from uge.protect.apply import load_perturber, protected_images
from uge.publish import Provenance
from uge.runs import check_output


def run_apply(
    generator_path: Path,
    source: str,
    out: Path,
    publishing: PublishConfig,
    *,
    split: str = "train",
    limit: int | None = None,
    session: Session,
) -> dict[str, Any]:
    """Protect and publish images that the generator has not seen, at their native size.

    Args:
        generator_path: ``OUT.private/generator.safetensors`` of an earlier run.
        source: What :func:`uge.data.load_images` takes.
        out: The folder to publish.
        publishing: Layout and codec.
        split: Which split of the source.
        limit: First N images.
        session: Device, progress, whether to overwrite, whether to write at all.
    """
    generator = load_perturber(generator_path)
    images = load_images(source, split=split, limit=limit)
    check_output(out, source=images.root, overwrite=session.overwrite)
    provenance = Provenance(
        method="generator",
        method_details={"generator_sha256": weights_hash(generator), "channels": generator.channels},
    )
    found = {"images": len(images), "out": str(out), "rho": generator.budget.rho}
    if session.dry_run:
        return found
    pairs = protected_images(images, generator, session.runtime)
    manifest = publish_stream(
        images, pairs, out, generator.budget, provenance, publishing, session, overwrite=session.overwrite
    )
    return {**found, "measured": manifest.measured.model_dump(mode="json")}
