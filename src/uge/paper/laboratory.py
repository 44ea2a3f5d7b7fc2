"""Measurement of specifications: reading images, protecting, training, testing."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from uge.attacks import Context
from uge.cases.job import Job
from uge.cases.keys import key_network
from uge.cases.run import Training, run_case
from uge.config import ProtectConfig, PublishConfig
from uge.data import ImageSet, load_images
from uge.data.store import PixelStore
from uge.errors import DataError, UsageError
from uge.files import fingerprint, locked
from uge.methods import METHODS, ImagesInfo
from uge.networks import ImageClassifier, build
from uge.paper.ledger import PaperLedger, Spec, variant
from uge.paper.scale import SEED_STRIDE
from uge.paper.specs import ORIGINAL, Copy, Federation, Images, Unit
from uge.pipeline.images import read_store
from uge.pipeline.originals import clean_images
from uge.pipeline.private_folder import key_path
from uge.pipeline.protect import ProtectRun
from uge.progress import Progress
from uge.publishing import private_folder
from uge.runtime import stream_seed
from uge.session import Session


class NotAtHandError(DataError):
    """A data set cannot be had here; cells that need it stay missing."""


@dataclass
class CleanImages:
    """Clean images of one specification, read once.

    Attributes:
        images: Training images.
        train: The same at the training size.
        test: Test images at the training size.
    """

    images: ImageSet
    train: PixelStore
    test: PixelStore


@dataclass
class Laboratory:
    """Measures specifications, and keeps images between them.

    Attributes:
        ledger: Results.
        sources: Source of the images by data set; empty where none is known.
        session: Device, progress.
    """

    ledger: PaperLedger
    sources: dict[str, str]
    session: Session
    _clean: dict[str, CleanImages] = field(default_factory=dict)
    _absent: dict[str, str] = field(default_factory=dict)
    _copies: dict[str, PixelStore] = field(default_factory=dict)

    def measure(self, spec: Spec) -> None:
        """Publish, train or federate, unless the result is there.

        Raises:
            UGEError: The images are not at hand, or something failed.
        """
        if isinstance(spec, Copy):
            self.protect(spec)
        elif isinstance(spec, Unit):
            self.train(spec)
        else:
            self.federate(spec)

    def open(self, images: Images) -> CleanImages:
        """Read the clean images of a specification.

        Raises:
            NotAtHandError: They are not here; the reason is noted.
        """
        if images.digest in self._clean:
            return self._clean[images.digest]
        if images.name in self._absent:
            raise NotAtHandError(self._absent[images.name])
        source = self.sources.get(images.name, "")
        known = self.ledger.images(images.name)
        try:
            if not source:
                raise UsageError(f"no source is known for {images.name}; give --data {images.name}=SOURCE")
            originals = load_images(source, split="train", limit=images.limit).check_trainable()
            train = read_store(originals, images.size or originals.native_size(), originals.channels(), self.session)
            test = read_store(clean_images(source, originals, images.limit_test), *train.shape, self.session)
        except (DataError, UsageError) as error:
            self._absent[images.name] = str(error)  # A hub is not asked again for every case.
            self.ledger.keep_images(images.name, {**known, "reason": str(error)})
            raise NotAtHandError(str(error)) from error
        known.pop("reason", None)
        description = {
            "source": Path(source).name if Path(source).exists() else source,
            "classes": len(originals.classes),
            "train_images": len(train),
            "test_images": len(test),
            variant(images): fingerprint({"train": train.digest(), "test": test.digest()}),
        }
        self.ledger.keep_images(images.name, {**known, **description})
        # One data set at a time: memory must not grow.
        self._clean = {images.digest: CleanImages(originals, train, test)}
        return self._clean[images.digest]

    def protect(self, copy: Copy) -> Path:
        """Publish a protected copy unless it is there; returns its folder.

        Raises:
            UGEError: The images are not at hand, or protecting them failed.
        """
        self.open(copy.images)
        out = self.ledger.place("copies", copy)
        if self.ledger.result(copy) is not None and (out / "manifest.json").is_file():
            return out
        began = time.monotonic()
        session = replace(self.session, resume=True, overwrite=False)
        source = self.sources[copy.images.name]
        with locked(out, wait=True):  # Several processes may need the same copy.
            manifest = ProtectRun(source, out, protect_config(copy), PublishConfig(), session).run().manifest
        self.ledger.keep_result(
            copy,
            {
                "seconds": round(time.monotonic() - began, 2),
                "measured": manifest.measured.model_dump(mode="json"),
                "budget": manifest.budget.model_dump(mode="json"),
                "environment": self.session.runtime.environment(),
            },
        )
        return out

    def train(self, unit: Unit, *, weights: bool = False) -> None:
        """Train and test one network unless its case is there, its teacher first.

        Args:
            unit: The network and its training.
            weights: True where the trained network itself is wanted, not only its case.

        Raises:
            UGEError: The images are not at hand, or something failed.
        """
        self.open(unit.of.images)
        if self.ledger.case(unit) is not None and not (weights and self._trained(unit) is None):
            return
        if unit.teacher is not None:
            self.train(unit.teacher, weights=True)
        with self.session.progress.stage(unit.id) as on_progress:
            case = run_case(job_of(unit), self._training(unit, on_progress))
        self.ledger.cases.keep(case)

    def federate(self, run: Federation) -> None:
        """Do a federated run, its clean and its protected columns, unless its result is there.

        Raises:
            UGEError: The images are not at hand, or a server failed.
        """
        from uge.federated.settings import Federation as Settings
        from uge.pipeline.federated import run_federated

        self.open(run.images)
        if self.ledger.result(run) is not None:
            return
        source = self.sources[run.images.name]
        began = time.monotonic()
        config = ProtectConfig.checked(
            **{
                **run.settings,
                "authorized": run.network,
                "authorized_seed": SEED_STRIDE * run.seed,
                "method": run.method,
                "rho": run.rho,
                "limit": run.images.limit,
                "size": run.images.size,
                "seed": run.seed,
                "recipe": run.recipe,
            }
        )
        result = run_federated(
            source,
            self.ledger.place("federations", run),
            test=source,
            config=config,
            federation=Settings(servers=run.servers, networks=",".join(run.hackers)),
            limit_test=run.images.limit_test,
            recipes=run.recipes,
            session=replace(self.session, resume=True, overwrite=False),
        )
        columns = {name: {k: v for k, v in column.items() if k != "case"} for name, column in result["columns"].items()}
        about = {"seconds": round(time.monotonic() - began, 2), "environment": self.session.runtime.environment()}
        self.ledger.keep_result(run, {"columns": columns, "servers": result["servers"], **about})

    def _training(self, unit: Unit, on_progress: Progress) -> Training:
        context = Context(
            network=self._network(unit),
            store=self._store(unit.of),
            test=self.open(unit.of.images).test,
            recipe=unit.recipe,
            seed=stream_seed(unit.seed, "reproduce", unit.role, unit.scheme, unit.number),
            runtime=self.session.runtime,
            teacher=lambda: self._teacher(unit),
            progress=on_progress,
        )
        # Every network that starts from θ0 may have students, those on the originals, too.
        return Training(context, self.ledger.fingerprint(unit), self.ledger.cases, keeps=unit.role == "authorized")

    def _teacher(self, unit: Unit) -> nn.Module:
        network = None if unit.teacher is None else self._trained(unit.teacher)
        assert network is not None, "teachers are trained before their students"
        return self.session.runtime.place(network)

    def _store(self, copy: Copy) -> PixelStore:
        """Images of a copy at the training size; it is published if it is not there."""
        clean = self.open(copy.images).train
        if copy.method == ORIGINAL:
            return clean
        if copy.digest not in self._copies:
            published = load_images(str(self.protect(copy))).check_trainable()
            self._copies = {copy.digest: read_store(published, *clean.shape, self.session)}
        return self._copies[copy.digest]

    def _network(self, unit: Unit) -> ImageClassifier:
        """Network of a run before training: θ0, or initial parameters of its own."""
        clean = self.open(unit.of.images)
        store = clean.train
        if unit.role != "authorized":
            seed = stream_seed(unit.seed, "reproduce-network", unit.network)
            return build(unit.network, len(store.classes), channels=store.channels, size=store.size, seed=seed)
        if unit.of.method != ORIGINAL:
            return key_network(key_path(private_folder(self.protect(unit.of)), unit.number), store)
        config = ProtectConfig(
            authorized=unit.network,
            authorized_seed=SEED_STRIDE * unit.seed + unit.number,
            method="undistill",
            size=unit.of.images.size,
        )
        return METHODS[config.method].networks(ImagesInfo.of(clean.images), config)[0]

    def _trained(self, unit: Unit) -> ImageClassifier | None:
        """Trained network of a run; None where it is not there."""
        network = self._network(unit)
        return network if self.ledger.cases.load(unit.id, network, self.ledger.fingerprint(unit)) else None


def job_of(unit: Unit) -> Job:
    """Job of a specification, with the same id."""
    number = unit.teacher.number if unit.teacher else unit.number
    return Job(
        unit.case_role,
        unit.network,
        unit.start,
        unit.scheme,
        unit.data,
        unit.seed,
        key=number if unit.teacher or unit.role == "authorized" else None,
        variant=f"{unit.of.images.name}-{unit.of.method}-{unit.digest[:8]}",
    )


def protect_config(copy: Copy) -> ProtectConfig:
    """Settings of ``uge protect`` that make a copy.

    Raises:
        UsageError: A setting is wrong.
    """
    fields = {} if not copy.authorized else {"authorized": ",".join(copy.authorized)}
    fields |= {} if copy.rho is None else {"rho": copy.rho}
    return ProtectConfig.checked(
        **fields,
        authorized_seed=SEED_STRIDE * copy.seed,
        method=copy.method,
        limit=copy.images.limit,
        size=copy.images.size,
        seed=copy.seed,
        **copy.settings,
    )
