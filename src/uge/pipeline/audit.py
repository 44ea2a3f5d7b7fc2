"""Attacking a published folder: ``uge audit``."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.attacks import ATTACKS
from uge.attacks.variants import VARIANTS, choose_variants
from uge.auditing.checks import overlap
from uge.auditing.plan import Plan, choose, plan
from uge.auditing.quality import write_quality
from uge.auditing.schedule import Deadline, parse_budget
from uge.auditing.schedule_run import execute
from uge.auditing.summarize import summarize
from uge.auditing.summary import Summary
from uge.cases.case import YARDSTICK, Case
from uge.cases.keys import key_network, key_recipe
from uge.cases.run import Audit
from uge.config import STANDARD_ATTACKS, AuditConfig
from uge.data import ImageSet, load_images
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.files import storage_errors, write_json
from uge.learning.recipes import Recipe, with_epochs
from uge.learning.recipes import recipe as named_recipe
from uge.names import is_keyed
from uge.networks import check_name
from uge.pipeline.originals import Originals, clean_images, find_originals, hashes, pairs
from uge.pipeline.pictures import save_attacked, save_pictures
from uge.pipeline.stages import read_store
from uge.publishing import Manifest, private_folder, read_manifest
from uge.report.page import AuditedFolder, write_page
from uge.runtime import Runtime
from uge.session import Session

PAGE = "report.html"
_MEASURED = 20_000
"""Pairs of original and published image that are measured at most."""


@dataclass(frozen=True)
class AuditSources:
    """Sources of everything that an audit needs beside the published folder.

    Attributes:
        test: Clean test images; with a train split too, its images are the clean control.
        clean: The originals, if they are not the train split of ``test``.
        public: Labelled images of another data set, for attacks that need some.
        keys: Key files; those in ``OUT.private`` by default. Without one there is no authorised side and no
            distillation.
        trust_plugins: Allows keys to name code that is then run as their network.
    """

    test: str
    clean: str | None = None
    public: str | None = None
    keys: Sequence[Path] = ()
    trust_plugins: bool = False


@dataclass(frozen=True)
class _Images:
    published: ImageSet
    manifest: Manifest | None
    originals: Originals
    protected: PixelStore
    test: PixelStore
    clean: PixelStore | None
    public: PixelStore | None


def audit_folder(out: Path) -> Path:
    """Path of the audit of a published folder: ``OUT.audit`` beside it."""
    return out.with_name(f"{out.name}.audit")


class AuditRun:
    """One audit of a published folder, with its images read and its cases planned.

    Args:
        out: The published folder, or any labelled image folder, however it was made.
        sources: Test images, originals and keys.
        config: Networks, attacks, seeds, how much time there is and how many cases run at once.
        session: Device, progress; ``overwrite`` throws finished cases away first.
        folder: Audit folder; ``OUT.audit`` by default. Finished cases in it are not run again.

    Raises:
        UsageError: A setting is wrong, or an attack asked for by name needs what is not there.
        DataError: The images cannot be used, or do not belong together.
    """

    def __init__(
        self, out: Path, sources: AuditSources, config: AuditConfig, session: Session, folder: Path | None = None
    ) -> None:
        self.out = out
        self.config = config
        self.session = session
        self.deadline = Deadline.after(parse_budget(config.budget))
        self.folder = folder or audit_folder(out)
        if self.folder.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"the audit folder {self.folder} lies inside the published folder {out}; keep it outside")
        for name in config.networks:
            check_name(name)
        choice = choose(config.attacks, STANDARD_ATTACKS)
        variants = choose_variants(config.variants)
        self.keys = list(sources.keys) or sorted(private_folder(out).glob("authorized-*.key.safetensors"))
        recipe = _recipe(config, self.keys)
        self.images = _read(out, sources, config, session)
        names = [key_network(path, self.images.protected, plugins=sources.trust_plugins).name for path in self.keys]
        _check_augmentation(recipe, names)
        planned = plan(
            config.networks,
            choice,
            config.seeds,
            names,
            controls=self.images.clean is not None,
            public=self.images.public is not None,
            variants=[name for name in variants if VARIANTS[name].differs(recipe, session.runtime.precision)],
            combine=config.combine or choice.everything,
        )
        manifest = self.images.manifest
        self.planned: Plan = planned if self.keys or (manifest and manifest.authorized) else planned.without_key()
        self.audit = Audit(
            self.folder,
            self.images.protected,
            self.images.clean,
            self.images.test,
            public=self.images.public,
            keys=self.keys,
            recipe=recipe,
            seed=config.seed,
            runtime=session.runtime,
            plugins=sources.trust_plugins,
        )

    def describe(self) -> dict[str, Any]:
        """The audit folder, the cases that are not finished, and the attacks that are left out; nothing is run."""
        jobs = self.planned.jobs
        return {
            "folder": str(self.folder),
            "cases": [job.id for job in jobs if self.session.overwrite or self.audit.finished(job) is None],
            "planned": len(jobs),
            "left_out": [vars(left_out) for left_out in self.planned.left_out],
            "keys": [str(path) for path in self.keys],
        }

    def run(self) -> Summary:
        """Train the authorised network and the hackers, and judge them on the clean test images.

        Returns:
            The summary (docs/formats.md); it lies in the audit folder as well, beside the page.

        Raises:
            UsageError: The time does not even hold the essential cases.
            StorageError: The disk is full or read-only.
        """
        self._open_folder()
        try:
            executed = execute(
                self.audit,
                self.planned,
                progress=self.session.progress,
                workers=workers(self.config.workers, self.session.runtime),
                executor=self.config.executor,
                deadline=self.deadline,
            )
        except BaseException:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # Goes only if no case was finished.
            raise
        facts = self._facts() | self._measure_originals()
        save_attacked(self.folder / "attacked", self.audit, executed.cases, self.images.published)
        self._copy_records()
        summary = summarize(
            executed.cases,
            classes=len(self.images.published.classes),
            left_out=[vars(left_out) for left_out in executed.left_out],
            planned=executed.planned,
            failed=executed.failed,
            facts={name: value for name, value in facts.items() if value is not None},
        )
        return judge(self.folder, executed.cases, summary, report=str(self.folder / PAGE))

    def _open_folder(self) -> None:
        with storage_errors(self.folder):
            for part in ("cases", "failed", "weights") if self.session.overwrite else ():
                shutil.rmtree(self.folder / part, ignore_errors=True)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _facts(self) -> dict[str, Any]:
        images = self.images
        trained_on = [*hashes(images.protected), *(hashes(images.clean) if images.clean else ())]
        return {
            "test_images": len(images.test),
            "attacks": sum(entry.family != YARDSTICK for entry in ATTACKS.values()),
            "overlap": overlap(trained_on, hashes(images.test)),
            "label_agreement": images.originals.label_agreement,
            "budget_levels": images.manifest.budget.levels if images.manifest else None,
        }

    def _measure_originals(self) -> dict[str, Any]:
        """Write quality and pictures; the fact that is measured on the way."""
        originals, published, clean = self.images.originals.images, self.images.published, self.images.clean
        if originals is None or clean is None:
            return {}
        measured = pairs(originals, published, _MEASURED, clean=clean, protected=self.images.protected)
        quality = write_quality(self.folder, measured, published.classes)
        save_pictures(self.folder / "pictures", originals, published)
        return {"linf_levels": quality and quality["linf_levels"]}

    def _copy_records(self) -> None:
        for record in (self.out / "manifest.json", private_folder(self.out) / "protect.jsonl"):
            if record.is_file():
                shutil.copyfile(record, self.folder / record.name)


def workers(text: str, runtime: Runtime) -> int:
    """Number of cases that run at once: a number, or ``auto``: one for each core that this process may use.

    Several networks share a GPU as long as their launches do not wait for one another, so that there are at most
    four there.
    """
    if text != "auto":
        return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if runtime.device.type == "cpu" else min(cores, 4)


def judge(folder: Path, cases: Sequence[Case], summary: Summary, *, report: str) -> Summary:
    """Write ``summary.json`` and the page of an audit folder.

    Args:
        folder: The audit folder.
        cases: The cases that count.
        summary: Their summary.
        report: Path of the page in the summary.

    Returns:
        The summary with ``report``.
    """
    summary = summary.model_copy(update={"report": report})
    write_json(folder / "summary.json", summary.model_dump(mode="json"))
    write_page(AuditedFolder(folder, cases, summary), folder / PAGE, overwrite=True)
    return summary


def _read(out: Path, sources: AuditSources, config: AuditConfig, session: Session) -> _Images:
    published = load_images(str(out)).check_trainable()
    manifest = read_manifest(out) if (out / "manifest.json").is_file() else None
    details = manifest.model_dump(mode="json")["method_details"] if manifest else {}
    size = config.size or details.get("training_size")
    protected = read_store(published, size, int(details.get("channels") or published.channels()), session)

    def alike(images: ImageSet) -> PixelStore:
        return read_store(images, *protected.shape, session)

    test = alike(clean_images(sources.test, published, config.limit_test))
    originals = find_originals(sources.test, sources.clean, published)
    clean = None if originals.images is None else alike(originals.images)
    public = alike(load_images(sources.public)) if sources.public else None
    return _Images(published, manifest, originals, protected, test, clean, public)


def _recipe(config: AuditConfig, keys: Sequence[Path]) -> Recipe:
    """The recipe of every network in an audit: a named one, else the first key's, else the short one."""
    base = named_recipe(config.recipe) if config.recipe else key_recipe(keys[0]) if keys else named_recipe("short")
    return with_epochs(base, config.epochs)


def _check_augmentation(recipe: Recipe, authorized: Sequence[str]) -> None:
    name = next(filter(is_keyed, authorized), None)
    if name is not None and recipe.augment == "rotate-flip":
        raise UsageError(
            f"the authorised network '{name}' cannot follow rotations, got the augmentation 'rotate-flip'; give a "
            "--recipe without it, and --variants rotate to see what rotations cost"
        )
