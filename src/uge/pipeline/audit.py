"""Attacking a published folder: ``uge audit``."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uge.audit.metrics import Summary, summarize, verdict
from uge.audit.runner import Audit, key_network, key_recipe, plan
from uge.config import AuditConfig
from uge.data import ImageSet, has_split, load_images
from uge.errors import UsageError
from uge.networks import check_name
from uge.pipeline.session import Session
from uge.pipeline.stages import clean_test, read_store, split_names
from uge.publish import Manifest, private_folder, read_manifest
from uge.recipes import Recipe
from uge.recipes import recipe as named_recipe
from uge.report import write_report
from uge.runs import staged_folder, storage_errors, write_json

_PICTURES = 9


def audit_folder(out: Path) -> Path:
    """Where the results of auditing a published folder lie: ``OUT.audit`` beside it."""
    return out.with_name(f"{out.name}.audit")


def find_keys(out: Path, given: Sequence[Path]) -> list[Path]:
    """The key files: those given, else those in ``OUT.private`` beside the folder; may be none."""
    return list(given) or sorted(private_folder(out).glob("authorized-*.key.safetensors"))


def matching_originals(source: str, published: ImageSet) -> ImageSet | None:
    """The clean originals of the published images, by sample id; None where the source has them not.

    They serve as the clean control only; no hacker ever sees them. Images of other labels, sizes or
    channels are not the originals, whatever their ids.
    """
    if not (has_split(source, "test") and has_split(source, "train")):
        return None
    originals = load_images(source, split="train")
    place = {name: number for number, name in enumerate(originals.ids)}
    if not all(name in place for name in published.ids):
        return None
    found = originals.subset([place[name] for name in published.ids])
    looked_at = np.unique(np.linspace(0, len(found) - 1, 16).astype(int))
    alike = all(found.read(index).shape == published.read(index).shape for index in looked_at)
    return found if alike and np.array_equal(found.labels, published.labels) else None


def run_audit(
    out: Path,
    test_source: str,
    config: AuditConfig,
    *,
    keys: Sequence[Path] = (),
    folder: Path | None = None,
    session: Session,
) -> dict[str, Any]:
    """Train the authorised network and the hackers on a published folder and judge them on clean test images.

    Args:
        out: The published folder, or any labelled image folder.
        test_source: Clean test images; with a train split too, its images are the clean control.
        config: Networks, attacks, seeds.
        keys: Key files; those in ``OUT.private`` by default. Without one there is no authorised
            side and no distillation.
        folder: Audit folder; ``OUT.audit`` by default. Finished cases in it are not run again.
        session: Device, progress; ``overwrite`` throws finished cases away first, ``dry_run`` only
            lists the cases that the audit has.

    Returns:
        The summary as JSON values (docs/formats.md).
    """
    folder = folder or audit_folder(out)
    if folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"the audit folder {folder} lies inside the published folder {out}; keep it outside")
    networks, attacks = split_names(config.networks), split_names(config.attacks)
    for name in networks:
        check_name(name)
    key_files = find_keys(out, keys)
    recipe = audit_recipe(config, key_files)
    published = load_images(str(out)).check_trainable()
    manifest = read_manifest(out) if (out / "manifest.json").is_file() else None
    size, channels = _training_shape(config, manifest, published)
    protected = read_store(published, size, channels, session)
    test = read_store(clean_test(test_source, published, config.limit_test), *protected.shape, session)
    originals = matching_originals(test_source, published)
    clean = None if originals is None else read_store(originals, *protected.shape, session)
    key_names = [key_network(path, protected).name for path in key_files]
    jobs = plan(networks, attacks, config.seeds, key_names, controls=clean is not None)
    if session.dry_run:
        return {"folder": str(folder), "cases": [job.id for job in jobs], "keys": [str(path) for path in key_files]}
    with storage_errors(folder):
        for part in ("cases", "weights") if session.overwrite else ():
            shutil.rmtree(folder / part, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    audit = Audit(
        folder,
        protected,
        clean,
        test,
        keys=key_files,
        recipe=recipe,
        seed=config.seed,
        runtime=session.runtime,
        progress=session.progress,
    )
    try:
        cases = audit.run(jobs)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Goes only if no case was finished.
        raise
    summary = summarize(cases, classes=len(published.classes))
    if manifest is not None:
        shutil.copyfile(out / "manifest.json", folder / "manifest.json")
    log = private_folder(out) / "protect.jsonl"
    if log.is_file():
        shutil.copyfile(log, folder / "protect.jsonl")
    if originals is not None:
        _save_pictures(folder / "pictures", originals, published)
    return _finish(folder, summary)


def _finish(folder: Path, summary: Summary) -> dict[str, Any]:
    """Write ``summary.json`` and the page, and return the summary as JSON values."""
    page = folder / "report.html"
    summary = summary.model_copy(update={"report": str(page)})
    found = {**summary.model_dump(mode="json"), "verdict": verdict(summary)}
    write_json(folder / "summary.json", found)
    write_report(folder, page, overwrite=True)
    return found


def _save_pictures(folder: Path, originals: ImageSet, published: ImageSet, count: int = _PICTURES) -> None:
    """Originals and their protected form as PNG files for the report, of different classes where there are."""
    _, first = np.unique(published.labels, return_index=True)
    chosen = [int(index) for index in first[:count]]
    entries = []
    with staged_folder(folder, overwrite=True) as stage:
        for number, index in enumerate(chosen):
            entry = {"id": published.ids[index], "class": published.classes[int(published.labels[index])]}
            for kind, images in (("original", originals), ("protected", published)):
                pixels = images.read(index)
                entry[kind] = f"{number:02d}-{kind}.png"
                Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stage / entry[kind])
            entries.append(entry)
        write_json(stage / "pictures.json", {"pictures": entries})


def audit_recipe(config: AuditConfig, keys: Sequence[Path]) -> Recipe:
    """The recipe of everybody in an audit: a named one, else the first key's, else the short one."""
    base = named_recipe(config.recipe) if config.recipe else key_recipe(keys[0]) if keys else named_recipe("short")
    return base if config.epochs is None else base.model_copy(update={"epochs": config.epochs})


def _training_shape(config: AuditConfig, manifest: Manifest | None, published: ImageSet) -> tuple[int | None, int]:
    details = {} if manifest is None else manifest.model_dump(mode="json")["method_details"]
    return config.size or details.get("training_size"), int(details.get("channels") or published.channels())
