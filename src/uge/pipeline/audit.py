"""Attacking a published folder: ``uge audit``."""

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
from uge.auditing.plan import choose, plan
from uge.auditing.quality import write_quality
from uge.auditing.schedule import Deadline, execute, parse_budget
from uge.auditing.summarize import summarize
from uge.auditing.summary import Summary
from uge.cases.case import YARDSTICK, Case
from uge.cases.keys import key_recipe
from uge.cases.material import CopyMaterial
from uge.config import STANDARD_ATTACKS, AuditConfig
from uge.data import ImageSet, load_images
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.files import locked, storage_errors, write_json
from uge.learning.recipes import Recipe, with_epochs
from uge.learning.recipes import recipe as named_recipe
from uge.names import is_keyed
from uge.networks import check_name
from uge.pipeline.images import read_store
from uge.pipeline.originals import clean_images, find_originals, hashes, pairs
from uge.pipeline.pictures import save_attacked, save_pictures
from uge.publishing import private_folder, read_manifest
from uge.report.page import AuditedFolder, write_report
from uge.runtime import Runtime
from uge.session import Session

PAGE = "report.html"
_MOST_PAIRS = 20_000  # Original and published images that quality is measured on.


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


class AuditRun:
    """One audit of a published folder, with its images read and its cases planned.

    Args:
        out: The published folder, or any labelled image folder, however it was made.
        sources: Test images, originals and keys.
        config: Networks, attacks, seeds, how much time there is and how many cases run at once.
        session: Device, progress; ``overwrite`` throws finished cases away first.
        folder: Audit folder; ``OUT.audit`` by default. Finished cases in it are not run again.

    Raises:
        UsageError: A setting is wrong, an attack asked for by name needs what is not there, or another process is
            writing the audit folder.
        DataError: The images cannot be used, or do not belong together.
    """

    def __init__(
        self, out: Path, sources: AuditSources, config: AuditConfig, session: Session, folder: Path | None = None
    ) -> None:
        self.out = out
        self.config = config
        self.session = session
        self.deadline = Deadline.after(parse_budget(config.budget))
        self.folder = folder or out.with_name(f"{out.name}.audit")
        if self.folder.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"the audit folder {self.folder} lies inside the published folder {out}; keep it outside")
        with contextlib.ExitStack() as lock:
            if not session.dry_run:
                lock.enter_context(locked(self.folder))
            self._plan(sources)
            self._lock = lock.pop_all()

    def _plan(self, sources: AuditSources) -> None:
        out, config, session = self.out, self.config, self.session
        for name in config.networks:
            check_name(name)
        choice = choose(config.attacks, STANDARD_ATTACKS)
        variants = choose_variants(config.variants)
        self.published = load_images(str(out)).check_trainable()
        self.manifest = read_manifest(out) if (out / "manifest.json").is_file() else None
        self.material = self._read(sources)
        recipe = self.material.recipe
        names = [network.name for network in self.material.theta0]
        _check_augmentation(recipe, names)
        planned = plan(
            config.networks,
            choice,
            config.seeds,
            names,
            controls=self.material.clean is not None,
            public=self.material.public is not None,
            variants=[name for name in variants if VARIANTS[name].differs(recipe, session.runtime.precision)],
            combine=config.combine or choice.everything,
        )
        meant = names or (self.manifest and self.manifest.authorized)
        self.planned = planned if meant else planned.without_key()

    def _read(self, sources: AuditSources) -> CopyMaterial:
        config, published, session = self.config, self.published, self.session
        keys = list(sources.keys) or sorted(private_folder(self.out).glob("authorized-*.key.safetensors"))
        recipe = _recipe(config, keys)
        details = self.manifest.model_dump(mode="json")["method_details"] if self.manifest else {}
        channels = int(details.get("channels") or published.channels())
        protected = read_store(published, config.size or details.get("training_size"), channels, session)

        def alike(images: ImageSet) -> PixelStore:
            return read_store(images, *protected.shape, session)

        test = alike(clean_images(sources.test, published, config.limit_test))
        self.originals = find_originals(sources.test, sources.clean, published)
        return CopyMaterial(
            self.folder,
            protected,
            test,
            session.runtime,
            recipe,
            clean=None if self.originals.images is None else alike(self.originals.images),
            public=alike(load_images(sources.public)) if sources.public else None,
            keys=keys,
            seed=config.seed,
            plugins=sources.trust_plugins,
        )

    def describe(self) -> dict[str, Any]:
        """The audit folder, the cases that are not finished, and the attacks that are left out; nothing is run."""
        jobs = self.planned.jobs
        return {
            "folder": str(self.folder),
            "cases": [job.id for job in jobs if self.session.overwrite or self.material.finished(job) is None],
            "planned": len(jobs),
            "left_out": [vars(left_out) for left_out in self.planned.left_out],
            "keys": [str(path) for path in self.material.keys],
        }

    def run(self) -> Summary:
        """Train the authorised network and the hackers, and judge them on the clean test images.

        Returns:
            The summary (docs/formats.md); it lies in the audit folder as well, beside the page.

        Raises:
            UsageError: The time does not even hold the essential cases.
            StorageError: The disk is full or read-only.
        """
        with self._lock:
            return self._run()

    def _run(self) -> Summary:
        self._open_folder()
        try:
            executed = execute(
                self.material,
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
        facts = self._facts()
        save_attacked(self.folder / "attacked", self.material, executed.cases, self.published)
        self._copy_records()
        summary = summarize(
            executed.cases,
            classes=len(self.published.classes),
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
        material = self.material
        trained_on = [*hashes(material.protected), *(hashes(material.clean) if material.clean else ())]
        return {
            "test_images": len(material.test),
            "attacks": sum(entry.family != YARDSTICK for entry in ATTACKS.loadable().values()),
            "overlap": overlap(trained_on, hashes(material.test)),
            "label_agreement": self.originals.label_agreement,
            "budget_levels": self.manifest.budget.levels if self.manifest else None,
            "linf_levels": self._measure_originals(),
        }

    def _measure_originals(self) -> int | None:
        """Largest change in levels, if there are originals; quality and pictures are written on the way."""
        originals, clean = self.originals.images, self.material.clean
        if originals is None or clean is None:
            return None
        measured = pairs(originals, self.published, _MOST_PAIRS, clean=clean, protected=self.material.protected)
        quality = write_quality(self.folder, measured, self.published.classes)
        save_pictures(self.folder / "pictures", originals, self.published)
        return quality["linf_levels"] if quality else None

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
    write_report(AuditedFolder(folder, cases, summary), folder / PAGE, overwrite=True)
    return summary


def _recipe(config: AuditConfig, keys: Sequence[Path]) -> Recipe:
    base = named_recipe(config.recipe) if config.recipe else key_recipe(keys[0]) if keys else named_recipe("short")
    return with_epochs(base, config.epochs)


def _check_augmentation(recipe: Recipe, authorized: Sequence[str]) -> None:
    name = next(filter(is_keyed, authorized), None)
    if name is not None and recipe.augment == "rotate-flip":
        raise UsageError(
            f"the authorised network '{name}' cannot follow rotations, got the augmentation 'rotate-flip'; give a "
            "--recipe without it, and --variants rotate to see what rotations cost"
        )
