"""Audit of a published folder: its images read, its cases planned and run, and pictures for its report."""

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from uge.attacks import ATTACKS
from uge.attacks.base import Claims
from uge.attacks.variants import VARIANTS, choose_variants
from uge.auditing.checks import overlap
from uge.auditing.plan import choose, plan
from uge.auditing.quality import write_quality
from uge.auditing.schedule import execute, forecast, parse_budget, time_left, warm_up
from uge.auditing.summarize import summarize
from uge.auditing.summary import Summary
from uge.auditing.worst_plan import plan_worst_case
from uge.cases.case import YARDSTICK, Case, Job
from uge.cases.material import CopyMaterial, key_recipe
from uge.cases.pool import threads_each
from uge.config import STANDARD_ATTACKS, AuditConfig
from uge.data import ImageSet, load_images
from uge.data.formats.sealed import SCHEME
from uge.data.images import Pixels
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.files import LARGEST, locked, read_bytes, staged_folder, storage_errors, write_atomic, write_json
from uge.learning.recipes import recipe as named_recipe
from uge.learning.recipes import with_epochs
from uge.names import is_keyed
from uge.networks import check_name
from uge.pipeline.images import read_store
from uge.pipeline.keys import is_private_key
from uge.pipeline.originals import clean_images, find_originals, hashes, labelled_images, pairs
from uge.publishing import private_folder, read_manifest
from uge.publishing.private import close_folder
from uge.publishing.verify import verify
from uge.report.page import AuditedFolder, write_report
from uge.runtime import Runtime
from uge.sealing.age import read_identity
from uge.sealing.opening import opened_by
from uge.sealing.signature import check_owner
from uge.session import Session

log = logging.getLogger(__name__)

PAGE = "report.html"
_PICTURES = 9
_ATTACKED = 3
_SAMPLE = 200  # Images that a transform may learn from, for instance where the spectrum has its peaks.
_MOST_PAIRS = 20_000  # Original and published images that quality is measured on.


class AuditRun:
    """One audit of a published folder, with its images read and its cases planned.

    Args:
        out: The published folder, or any labelled image folder, however it was made.
        config: Networks, attacks, seeds, how much time there is and how many cases run at once.
        session: Device, progress; ``overwrite`` throws finished cases away first.
        test: Clean test images; with a train split too, its images are the clean control.
        clean: The originals, if they are not the train split of ``test``.
        public: Labelled images of another data set, for attacks that need some.
        keys: Key files; those in ``OUT.private`` by default. Without one there is no authorised side and no
            distillation. The private key of a recipient among them opens the sealed originals, which are ``clean``
            then by default.
        trust_plugins: Allows keys to name code that is then run as their network.
        folder: Audit folder; ``OUT.audit`` by default. Finished cases in it are not run again.
        owner: Key that must have signed ``out``; without one, opening originals warns.

    Raises:
        UsageError: A setting is wrong, an attack asked for by name needs what is not there, or another process is
            writing the audit folder.
        DataError: The images cannot be used, or do not belong together.
        IntegrityError: ``owner`` did not sign the folder, or the originals are not those that were sealed.
    """

    def __init__(
        self,
        out: Path,
        config: AuditConfig,
        session: Session,
        *,
        test: str,
        clean: str | None = None,
        public: str | None = None,
        keys: Sequence[Path] = (),
        trust_plugins: bool = False,
        folder: Path | None = None,
        owner: str | None = None,
    ) -> None:
        self.out = out
        self.config = config
        self.session = session
        self.left = time_left(parse_budget(config.budget))
        self.folder = folder or out.with_name(f"{out.name}.audit")
        if self.folder.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"the audit folder {self.folder} lies inside the published folder {out}; keep it outside")
        with contextlib.ExitStack() as lock:
            if not session.dry_run:
                lock.enter_context(locked(self.folder))
            private = [path for path in keys if is_private_key(path)]
            if len(private) > 1:
                raise UsageError(f"expected one private key that opens the originals, got {len(private)}; give one")
            if private and clean is None:
                clean = f"{SCHEME}{out}"
            if owner is not None:
                check_owner(out, owner)
            self.identity = private[0] if private else None
            with opened_by(private[0] if private else None, owner):
                self._plan(test, clean, public, [path for path in keys if path not in private], trust_plugins)
            self._lock = lock.pop_all()

    def _plan(
        self, test: str, clean: str | None, public: str | None, keys: Sequence[Path], trust_plugins: bool
    ) -> None:
        out, config, session = self.out, self.config, self.session
        for name in config.networks:
            check_name(name)
        choice = choose(config.attacks, STANDARD_ATTACKS)
        variants = choose_variants(config.variants)
        self.published = load_images(str(out)).check_trainable()
        self.manifest = read_manifest(out) if (out / "manifest.json").is_file() else None
        keys = list(keys) or sorted(private_folder(out).glob("authorized-*.key.safetensors"))
        base = named_recipe(config.recipe) if config.recipe else key_recipe(keys[0]) if keys else named_recipe("short")
        recipe = with_epochs(base, config.epochs)
        details = self.manifest.model_dump(mode="json")["method_details"] if self.manifest else {}
        channels = int(details.get("channels") or self.published.channels())
        protected = read_store(self.published, config.size or details.get("training_size"), channels, session)

        def alike(images: ImageSet) -> PixelStore:
            return read_store(images, *protected.shape, session)

        test_images = clean_images(test, self.published, config.limit_test)
        few = None
        if config.worst_case:
            few, test_images = labelled_images(test, self.published, test_images, config.seed)
        additions = len(self.manifest.additions) if self.manifest else 0
        self.originals = find_originals(test, clean, self.published, additions)
        self.material = CopyMaterial(
            self.folder,
            protected,
            alike(test_images),
            session.runtime,
            recipe,
            clean=None if self.originals.images is None else alike(self.originals.images),
            public=alike(load_images(public)) if public else None,
            few=None if few is None else alike(few),
            keys=keys,
            seed=config.seed,
            plugins=trust_plugins,
            claims=Claims.of(self.manifest) if self.manifest else None,
        )
        names = [network.name for network in self.material.theta0]
        rotated = next(filter(is_keyed, names), None) if recipe.augment == "rotate-flip" else None
        if rotated is not None:
            raise UsageError(
                f"the authorised network '{rotated}' cannot follow rotations, got the augmentation 'rotate-flip'; give "
                "a --recipe without it, and --variants rotate to see what rotations cost"
            )
        given: dict[str, Any] = {
            "controls": self.material.clean is not None,
            "public": self.material.public is not None,
            "variants": [name for name in variants if VARIANTS[name].differs(recipe, session.runtime.precision)],
            "authorized": bool(names or (self.manifest and self.manifest.authorized)),
            "claims": self.manifest is not None,
        }
        for name in config.networks:  # A network that cannot be built is said before hours of training, not after.
            self.material.network(Job("hacker", name, "random", "direct", "protected", 0))
        if config.worst_case:
            self.planned = plan_worst_case(
                config.networks, choice, config.seeds, names, strongest=config.strongest, **given
            )
        else:
            combine = config.combine or choice.everything
            self.planned = plan(config.networks, choice, config.seeds, names, combine=combine, **given)

    def describe(self) -> dict[str, Any]:
        """The audit folder, the cases that are not finished with their time, and what is left out; nothing is run.

        The time is estimated from a few steps of every network; later stages, which depend on the first, are not in it.
        """
        jobs = self.planned.jobs
        pending = [job for job in jobs if self.session.overwrite or self.material.finished(job) is None]
        count = workers(self.config.workers, self.session.runtime)
        expected = forecast(
            pending,
            lambda network: warm_up(self.material, network, threads_each(count)),
            workers=count,
            limit=parse_budget(self.config.budget),
        )
        return {
            "folder": str(self.folder),
            "cases": [job.id for job in pending],
            "seconds": {name: round(value, 1) for name, value in expected.seconds.items()},
            "total_seconds": round(expected.total, 1),
            "no_time_for": expected.left_out,
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
        with storage_errors(self.folder):
            for part in ("cases", "failed", "weights") if self.session.overwrite else ():
                shutil.rmtree(self.folder / part, ignore_errors=True)
            close_folder(self.folder)
        opened = None if self.identity is None else opened_originals(self.out, self.identity)
        try:
            executed = execute(
                self.material,
                self.planned,
                progress=self.session.progress,
                workers=workers(self.config.workers, self.session.runtime),
                executor=self.config.executor,
                left=self.left,
            )
        except BaseException:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # Goes only if no case was finished.
            raise
        facts = self._facts(opened)
        save_attacked(self.folder / "attacked", self.material, executed.cases, self.published)
        for record in (self.out / "manifest.json", private_folder(self.out) / "protect.jsonl"):
            if record.is_file():
                write_atomic(self.folder / record.name, read_bytes(record, LARGEST))
        summary = summarize(
            executed.cases,
            classes=len(self.published.classes),
            chance=majority(self.material.test),
            left_out=[vars(left_out) for left_out in executed.left_out],
            planned=executed.planned,
            failed=executed.failed,
            facts=facts,
        )
        return judge(self.folder, executed.cases, summary, report=str(self.folder / PAGE))

    def _facts(self, opened: int | None) -> dict[str, Any]:
        """Facts for the checks; where there are originals, quality and pictures are written on the way."""
        material = self.material
        originals = self.originals.images
        quality = None
        if originals is not None and material.clean is not None:
            measured = pairs(originals, self.published, _MOST_PAIRS, clean=material.clean, protected=material.protected)
            quality = write_quality(self.folder, measured, self.published.classes)
            save_pictures(self.folder / "pictures", originals, self.published)
        trained_on = [*hashes(material.protected), *(hashes(material.clean) if material.clean else ())]
        facts = {
            "test_images": len(material.test),
            "attacks": sum(entry.family != YARDSTICK for entry in ATTACKS.loadable().values()),
            "overlap": overlap(trained_on, hashes(material.test)),
            "label_agreement": self.originals.label_agreement,
            "budget_levels": self.manifest.budget.levels if self.manifest else None,
            "linf_levels": quality["linf_levels"] if quality else None,
            "labelled": None if material.few is None else len(material.few),
            "originals_opened": opened,
        }
        if material.few is not None:
            claimed = self.manifest.measured.model_dump() if self.manifest else {}
            facts |= {name: (quality or claimed).get(name) for name in ("psnr_db", "ssim")}
        return {name: value for name, value in facts.items() if value is not None}


def opened_originals(out: Path, identity: Path) -> int | None:
    """Number of sealed originals, if all were opened and compared with their public images; else None.

    Raises:
        UsageError: The key is that of no recipient, or nothing is sealed.
    """
    found = verify(out, key=read_identity(identity))
    if found.ok:
        return found.opened
    log.warning(
        "%s: the clean control is not called the authorised accuracy, since a check of the folder deviates: %s",
        out,
        found.problems[0],
    )
    return None


def majority(store: PixelStore) -> float:
    """Accuracy of guessing in percent: the share of the largest class; classes without an image do not count."""
    counts = store.labels.bincount()
    return 100 * int(counts.max()) / int(counts.sum())


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


def save_pictures(folder: Path, originals: ImageSet, published: ImageSet) -> None:
    """Save originals and their protected form as PNG files for the report, of different classes where there are."""
    entries = []
    with staged_folder(folder, overwrite=True) as stage:
        for number, index in enumerate(_first_of_classes(published, _PICTURES)):
            entry = {"id": published.ids[index], "class": published.classes[int(published.labels[index])]}
            for kind, images in (("original", originals), ("protected", published)):
                entry[kind] = f"{number:02d}-{kind}.png"
                _save(images.read(index), stage / entry[kind])
            entries.append(entry)
        write_json(stage / "pictures.json", {"pictures": entries})


def save_attacked(folder: Path, material: CopyMaterial, cases: Iterable[Case], published: ImageSet) -> None:
    """Save what the preprocessing attacks of the cases make of some published images, at the training size.

    Args:
        folder: The new folder, which takes the place of an older one.
        material: Images, recipe and seeds of the audit.
        cases: Its finished cases.
        published: The published images, in the order of the audit's.
    """
    schemes = dict.fromkeys(case.scheme for case in cases if case.role == "hacker" and case.family == "preprocess")
    chosen = _first_of_classes(published, _ATTACKED)
    others = [row for row in range(min(len(published), _SAMPLE)) if row not in chosen]
    sample = material.protected.subset(torch.tensor(chosen + others))
    job = Job("hacker", "lenet", "random", "direct", "protected", 0)
    context = replace(material.context(job), store=sample, test=sample)
    prepares = ((name, ATTACKS[name].prepare) for name in schemes if name in ATTACKS)
    attacked = ((name, prepare(context).store) for name, prepare in prepares if prepare is not None)
    entries = []
    with staged_folder(folder, overwrite=True) as stage:
        for name, store in itertools.chain([("published", sample)], attacked):
            shown = store.pixels.read(torch.arange(len(chosen))).permute(0, 2, 3, 1).cpu().numpy()
            for number, (index, pixels) in enumerate(zip(chosen, shown, strict=True)):
                file = f"{name}-{number:02d}.png"
                _save(pixels, stage / file)
                label = published.classes[int(published.labels[index])]
                entries.append({"attack": name, "file": file, "class": label, "id": published.ids[index]})
        write_json(stage / "attacked.json", {"pictures": entries})


def _first_of_classes(images: ImageSet, count: int) -> list[int]:
    return [int(index) for index in np.unique(images.labels, return_index=True)[1][:count]]


def _save(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
