"""Attacking a published folder: ``uge audit``."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uge.attacks import ATTACKS
from uge.attacks.variants import VARIANTS, choose_variants
from uge.auditing.checks import overlap
from uge.auditing.plan import choose, plan
from uge.auditing.quality import write_quality
from uge.auditing.schedule import Deadline, parse_budget
from uge.auditing.schedule_run import execute
from uge.auditing.summarize import Summary, summarize, verdict
from uge.cases.case import YARDSTICK
from uge.cases.keys import key_network, key_recipe
from uge.cases.run import Audit
from uge.config import STANDARD_ATTACKS, AuditConfig
from uge.data import ImageSet, load_images
from uge.errors import UsageError
from uge.files import storage_errors, write_json
from uge.learning.recipes import Recipe, with_epochs
from uge.learning.recipes import recipe as named_recipe
from uge.methods.authorized import split_names
from uge.names import is_keyed
from uge.networks import check_name
from uge.pipeline.images import read_store
from uge.pipeline.originals import clean_images, find_originals, hashes, pairs
from uge.pipeline.pictures import save_attacked, save_pictures
from uge.publishing import Manifest, private_folder, read_manifest
from uge.report import write_report
from uge.runtime import Runtime
from uge.session import Session

PAGE = "report.html"
_MEASURED = 20_000
"""Pairs of original and published image that are measured at most."""


def audit_folder(out: Path) -> Path:
    """Where the results of auditing a published folder lie: ``OUT.audit`` beside it."""
    return out.with_name(f"{out.name}.audit")


def find_keys(out: Path, given: Sequence[Path]) -> list[Path]:
    """The key files: those given, else those in ``OUT.private`` beside the folder; may be none."""
    return list(given) or sorted(private_folder(out).glob("authorized-*.key.safetensors"))


def run_audit(
    out: Path,
    test_source: str,
    config: AuditConfig,
    *,
    keys: Sequence[Path] = (),
    clean_source: str | None = None,
    public_source: str | None = None,
    folder: Path | None = None,
    trust_plugins: bool = False,
    session: Session,
) -> dict[str, Any]:
    """Train the authorised network and the hackers on a published folder and judge them on clean test images.

    Args:
        out: The published folder, or any labelled image folder, however it was made.
        test_source: Clean test images; with a train split too, its images are the clean control.
        config: Networks, attacks, seeds, how much time there is and how many cases run at once.
        keys: Key files; those in ``OUT.private`` by default. Without one there is no authorised
            side and no distillation.
        clean_source: The originals, if they are not the train split of ``test_source``.
        public_source: Labelled images of another data set, for attacks that need some.
        folder: Audit folder; ``OUT.audit`` by default. Finished cases in it are not run again.
        trust_plugins: Whether keys may name code that is then run as their network.
        session: Device, progress; ``overwrite`` throws finished cases away first, ``dry_run`` only
            lists the cases that would be run.

    Returns:
        The summary as JSON values (docs/formats.md).

    Raises:
        UsageError: A setting is wrong, or an attack asked for by name needs what is not there.
        DataError: The images cannot be used, or do not belong together.
    """
    deadline = Deadline.after(parse_budget(config.budget))
    folder = folder or audit_folder(out)
    if folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"the audit folder {folder} lies inside the published folder {out}; keep it outside")
    networks = split_names(config.networks)
    choice = choose(split_names(config.attacks), STANDARD_ATTACKS)
    variants = choose_variants(split_names(config.variants))
    for name in networks:
        check_name(name)
    key_files = find_keys(out, keys)
    recipe = audit_recipe(config, key_files)
    published = load_images(str(out)).check_trainable()
    manifest = read_manifest(out) if (out / "manifest.json").is_file() else None
    size, channels = _training_shape(config, manifest, published)
    protected = read_store(published, size, channels, session)
    test = read_store(clean_images(test_source, published, config.limit_test), *protected.shape, session)
    originals = find_originals(test_source, clean_source, published)
    clean = None if originals.images is None else read_store(originals.images, *protected.shape, session)
    public = public_source and read_store(load_images(public_source), *protected.shape, session)
    key_names = [key_network(path, protected, plugins=trust_plugins).name for path in key_files]
    _check_augmentation(recipe, key_names)
    planned = plan(
        networks,
        choice,
        config.seeds,
        key_names,
        controls=clean is not None,
        public=bool(public),
        variants=[name for name in variants if VARIANTS[name].differs(recipe, session.runtime.precision)],
        combine=config.combine or choice.everything,
    )
    if not key_files and not (manifest and manifest.authorized):
        planned = planned.without_key()
    audit = Audit(
        folder,
        protected,
        clean,
        test,
        public=public or None,
        keys=key_files,
        recipe=recipe,
        seed=config.seed,
        runtime=session.runtime,
        plugins=trust_plugins,
    )
    if session.dry_run:
        left_out = [vars(one) for one in planned.left_out]
        cases = [job.id for job in planned.jobs if session.overwrite or audit.finished(job) is None]
        would = {"folder": str(folder), "cases": cases, "planned": len(planned.jobs), "left_out": left_out}
        return would | {"keys": [str(path) for path in key_files]}
    with storage_errors(folder):
        for part in ("cases", "failed", "weights") if session.overwrite else ():
            shutil.rmtree(folder / part, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        found = execute(
            audit,
            planned,
            progress=session.progress,
            workers=workers(config.workers, session.runtime),
            executor=config.executor,
            deadline=deadline,
        )
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Goes only if no case was finished.
        raise
    facts: dict[str, Any] = {
        "test_images": len(test),
        "attacks": sum(entry.family != YARDSTICK for entry in ATTACKS.loadable().values()),
        "overlap": overlap([*hashes(protected), *(hashes(clean) if clean else ())], hashes(test)),
        "label_agreement": originals.label_agreement,
        "budget_levels": manifest.budget.levels if manifest else None,
    }
    if originals.images is not None and clean is not None:
        measured = pairs(originals.images, published, _MEASURED, clean=clean, protected=protected)
        quality = write_quality(folder, measured, published.classes)
        facts["linf_levels"] = quality and quality["linf_levels"]
        save_pictures(folder / "pictures", originals.images, published)
    save_attacked(folder / "attacked", audit, found.cases, published)
    if manifest is not None:
        shutil.copyfile(out / "manifest.json", folder / "manifest.json")
    log = private_folder(out) / "protect.jsonl"
    if log.is_file():
        shutil.copyfile(log, folder / "protect.jsonl")
    summary = summarize(
        found.cases,
        classes=len(published.classes),
        left_out=[vars(one) for one in found.left_out],
        planned=found.planned,
        failed=found.failed,
        facts={name: value for name, value in facts.items() if value is not None},
    )
    return judge(folder, summary, report=str(folder / PAGE))


def workers(text: str, runtime: Runtime) -> int:
    """How many cases run at once: a number, or ``auto``: one for each core that this process may use.

    Several networks share a GPU as long as their launches do not wait for one another, so that there are at most
    four there.
    """
    if text != "auto":
        return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if runtime.device.type == "cpu" else min(cores, 4)


def judge(folder: Path, summary: Summary, *, report: str) -> dict[str, Any]:
    """Write ``summary.json`` and the page of an audit folder, and return the summary as JSON values.

    Args:
        folder: The audit folder.
        summary: What was found.
        report: How the summary names the page.
    """
    summary = summary.model_copy(update={"report": report})
    found = {**summary.model_dump(mode="json"), "verdict": verdict(summary)}
    write_json(folder / "summary.json", found)
    write_report(folder, folder / PAGE, overwrite=True)
    return found


def audit_recipe(config: AuditConfig, keys: Sequence[Path]) -> Recipe:
    """The recipe of everybody in an audit: a named one, else the first key's, else the short one."""
    base = named_recipe(config.recipe) if config.recipe else key_recipe(keys[0]) if keys else named_recipe("short")
    return with_epochs(base, config.epochs)


def _check_augmentation(recipe: Recipe, authorized: Sequence[str]) -> None:
    name = next(filter(is_keyed, authorized), None)
    if name is not None and recipe.augment == "rotate-flip":
        raise UsageError(
            f"the authorised network '{name}' cannot follow rotations, got the augmentation 'rotate-flip'; give a "
            "--recipe without it, and --variants rotate to see what rotations cost"
        )


def _training_shape(config: AuditConfig, manifest: Manifest | None, published: ImageSet) -> tuple[int | None, int]:
    details = {} if manifest is None else manifest.model_dump(mode="json")["method_details"]
    return config.size or details.get("training_size"), int(details.get("channels") or published.channels())
