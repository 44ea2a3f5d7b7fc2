"""Doing one specification: reading images, protecting, training, testing."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from uge.attacks import Context, find_attack
from uge.cases.case import Case, write_case
from uge.cases.keys import key_network
from uge.cases.run import load_trained, measured
from uge.config import ProtectConfig, PublishConfig
from uge.data import ImageSet, load_images
from uge.data.store import PixelStore
from uge.errors import DataError, UsageError
from uge.files import fingerprint
from uge.learning.resume import save_checkpoint
from uge.learning.training import DivergedError, History
from uge.methods import METHODS, ImagesInfo
from uge.networks import build
from uge.paper.kept_cases import Kept, variant
from uge.paper.scale import SEED_STRIDE
from uge.paper.specs import ORIGINAL, Copy, Images, Unit
from uge.pipeline.images import read_store
from uge.pipeline.originals import clean_images
from uge.pipeline.private_folder import key_path
from uge.pipeline.protect import ProtectRun
from uge.publishing import private_folder
from uge.runtime import stream_seed
from uge.session import Session

log = logging.getLogger(__name__)


class NotAtHandError(DataError):
    """A data set cannot be had here; cells that need it stay missing."""


@dataclass
class _Sets:
    """Clean images of one specification, read once."""

    train: ImageSet
    stores: dict[str, PixelStore]


@dataclass
class Workshop:
    """Does specifications, and keeps what was read between them.

    Attributes:
        kept: Where results lie.
        sources: Data set to where its images are; empty where nobody said.
        session: Device, progress.
    """

    kept: Kept
    sources: dict[str, str]
    session: Session
    _sets: dict[str, _Sets] = field(default_factory=dict)
    _absent: dict[str, str] = field(default_factory=dict)
    _copies: dict[str, PixelStore] = field(default_factory=dict)

    def open(self, images: Images) -> _Sets:
        """Read the clean images of a specification.

        Raises:
            NotAtHandError: They are not here; the reason is noted.
        """
        if images.digest in self._sets:
            return self._sets[images.digest]
        if images.name in self._absent:
            raise NotAtHandError(self._absent[images.name])
        source = self.sources.get(images.name, "")
        known = self.kept.images(images.name)
        try:
            if not source:
                raise UsageError(f"no source is known for {images.name}; give --data {images.name}=SOURCE")
            train = load_images(source, split="train", limit=images.limit).check_trainable()
            size, channels = images.size or train.native_size(), train.channels()
            stores = {
                "train": read_store(train, size, channels, self.session),
                "test": read_store(clean_images(source, train, images.limit_test), size, channels, self.session),
            }
        except (DataError, UsageError) as error:
            self._absent[images.name] = str(error)  # A hub is not asked again for every case.
            self.kept.keep_images(images.name, {**known, "reason": str(error)})
            raise NotAtHandError(str(error)) from error
        digest = fingerprint({name: store.digest() for name, store in stores.items()})
        known.pop("reason", None)
        counts = {"source": Path(source).name if Path(source).exists() else source, "classes": len(train.classes)}
        counts |= {"train_images": len(stores["train"]), "test_images": len(stores["test"])}
        self.kept.keep_images(images.name, {**known, **counts, variant(images): digest})
        self._sets = {images.digest: _Sets(train, stores)}  # One data set at a time: memory must not grow.
        return self._sets[images.digest]

    def protect(self, copy: Copy) -> Path:
        """Publish a protected copy unless it is there; returns its folder.

        Raises:
            UGEError: The images are not at hand, or protecting them failed.
        """
        self.open(copy.images)
        out = self.kept.place("copies", copy)
        if self.kept.result(copy) is not None and (out / "manifest.json").is_file():
            return out
        began = time.monotonic()
        session = replace(self.session, resume=True, overwrite=False)
        result = ProtectRun(self._source(copy.images), out, protect_config(copy), PublishConfig(), session).run()
        self.kept.keep_result(
            copy,
            {
                "seconds": round(time.monotonic() - began, 2),
                "measured": result.manifest.measured.model_dump(mode="json"),
                "budget": result.manifest.budget.model_dump(mode="json"),
                "environment": self.session.runtime.environment(),
            },
        )
        return out

    def train(self, unit: Unit, *, weights: bool = False) -> Case:
        """Train and test one network unless its case is there; a teacher is trained first where it must be.

        Args:
            unit: What to do.
            weights: Whether the trained network itself is wanted, not only its case.

        Raises:
            UGEError: The images are not at hand, or something failed.
        """
        sets = self.open(unit.of.images)
        done = self.kept.case(unit)
        if done is not None and not (weights and not self._weights(unit).is_file()):
            return done
        network = self._fresh(unit)
        with self.session.progress.stage(unit.id) as on_progress:
            context = Context(
                network=network,
                store=self._store(unit.of),
                test=sets.stores["test"],
                recipe=unit.recipe,
                seed=stream_seed(unit.seed, "reproduce", unit.role, unit.scheme, unit.number),
                runtime=self.session.runtime,
                teacher=lambda: self._teacher(unit),
                progress=on_progress,
            )
            try:
                history = find_attack(unit.scheme).run(context)
            except DivergedError as error:  # A result like any other.
                log.warning("%s: %s", unit.id, error)
                history = error.history
        if unit.role == "authorized":
            meta = {"fingerprint": self.kept.fingerprint(unit)}
            save_checkpoint(self._weights(unit), {"network": network}, None, meta)
        return self._keep(unit, history, sets.stores["train"])

    def _keep(self, unit: Unit, history: History, store: PixelStore) -> Case:
        case = Case(
            id=unit.id,
            role=unit.case_role,
            network=unit.network,
            start=unit.start,
            scheme=unit.scheme,
            data=unit.data,
            seed=unit.seed,
            **measured(history, unit.recipe, self.session.runtime, classes=len(store.classes), size=store.size),
            fingerprint=self.kept.fingerprint(unit),
        )
        write_case(self.kept.folder / "cases", case)
        return case

    def _store(self, copy: Copy) -> PixelStore:
        """The images of a copy at the training size."""
        clean = self.open(copy.images).stores["train"]
        if copy.method == ORIGINAL:
            return clean
        if copy.digest not in self._copies:
            published = load_images(str(self.protect(copy))).check_trainable()
            self._copies = {copy.digest: read_store(published, clean.size, clean.channels, self.session)}
        return self._copies[copy.digest]

    def _fresh(self, unit: Unit) -> nn.Module:
        """The network before training: a stranger's own, or θ0."""
        store = self.open(unit.of.images).stores["train"]
        if unit.role == "authorized":
            return self._theta0(unit, store)
        seed = stream_seed(unit.seed, "reproduce-network", unit.network)
        return build(unit.network, len(store.classes), channels=store.channels, size=store.size, seed=seed)

    def _theta0(self, unit: Unit, store: PixelStore) -> nn.Module:
        if unit.of.method != ORIGINAL:
            return key_network(key_path(private_folder(self.protect(unit.of)), unit.number), store)
        config = ProtectConfig(
            authorized=unit.network,
            authorized_seed=SEED_STRIDE * unit.seed + unit.number,
            method="undistill",
            size=unit.of.images.size,
        )
        return METHODS[config.method].networks(ImagesInfo.of(self.open(unit.of.images).train), config)[0]

    def _teacher(self, unit: Unit) -> nn.Module:
        assert unit.teacher is not None, "a distilling hacker names whom it asks"
        self.train(unit.teacher, weights=True)
        wanted = self.kept.fingerprint(unit.teacher)
        network = load_trained(self._weights(unit.teacher), self._fresh(unit.teacher), wanted)
        if network is None:
            raise UsageError(f"{self._weights(unit.teacher)} does not fit {unit.teacher.id}; delete it")
        return self.session.runtime.place(network)

    def _weights(self, unit: Unit) -> Path:
        place = self.kept.place("weights", unit)
        return place.with_name(f"{place.name}.safetensors")

    def _source(self, images: Images) -> str:
        return self.sources[images.name]


def protect_config(copy: Copy) -> ProtectConfig:
    """The settings of ``uge protect`` that make a copy.

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
