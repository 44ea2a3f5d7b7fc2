"""Measurement of specifications: reading images, protecting, training, testing, drawing."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from uge.attacks import Context
from uge.cases.material import key_network, run_case
from uge.config import ProtectConfig, PublishConfig
from uge.data import ImageSet, load_images
from uge.data.images import Pixels
from uge.data.store import PixelStore
from uge.errors import DataError, UsageError
from uge.files import fingerprint, locked, read_json, staged_folder, write_json
from uge.methods import METHODS, ImagesInfo
from uge.networks import ImageClassifier, build
from uge.paper.ledger import PaperLedger, Spec, variant
from uge.paper.scale import SEED_STRIDE
from uge.paper.specs import ORIGINAL, Copy, Federation, Images, Unit
from uge.pipeline.images import read_store
from uge.pipeline.originals import clean_images
from uge.pipeline.private_folder import key_path
from uge.pipeline.protect import ProtectRun
from uge.publishing import private_folder
from uge.runtime import stream_seed
from uge.session import Session

KINDS = ("original", "noise", "protected")
GRAY = 128


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
        session: Device, progress; resumes.
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
        known |= {
            "source": Path(source).name if Path(source).exists() else source,
            "classes": len(originals.classes),
            "train_images": len(train),
            "test_images": len(test),
            variant(images): fingerprint({"train": train.digest(), "test": test.digest()}),
        }
        self.ledger.keep_images(images.name, known)
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
        source = self.sources[copy.images.name]
        with locked(out, wait=True):  # Several processes may need the same copy.
            manifest = (
                ProtectRun(source, out, protect_config(copy), PublishConfig(seal=False), self.session).run().manifest
            )
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
            weights_to = self.ledger if unit.role == "authorized" else None
            case = run_case(unit.job, context, self.ledger.fingerprint(unit), weights=weights_to)
        self.ledger.keep(case)

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
        copy = Copy(
            images=run.images,
            method=run.method,
            authorized=(run.network,),
            rho=run.rho,
            seed=run.seed,
            settings={**run.settings, "recipe": run.recipe},
        )
        result = run_federated(
            source,
            self.ledger.place("federations", run),
            test=source,
            config=protect_config(copy),
            federation=Settings(servers=run.servers, networks=",".join(run.hackers)),
            limit_test=run.images.limit_test,
            recipes=run.recipes,
            session=self.session,
        )
        for column in result["columns"].values():
            del column["case"]
        self.ledger.keep_result(
            run,
            {
                "columns": result["columns"],
                "servers": result["servers"],
                "seconds": round(time.monotonic() - began, 2),
                "environment": self.session.runtime.environment(),
            },
        )

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
            images = load_images(str(self.protect(copy))).check_trainable()
            self._copies = {copy.digest: read_store(images, *clean.shape, self.session)}
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
        return self.ledger.load(unit.id, self._network(unit), self.ledger.fingerprint(unit))


def protect_config(copy: Copy) -> ProtectConfig:
    """Settings of ``uge protect`` that make a copy.

    Raises:
        UsageError: A setting is wrong.
    """
    fields = {"authorized": ",".join(copy.authorized), "rho": copy.rho}
    return ProtectConfig.checked(
        **{name: value for name, value in fields.items() if value},
        authorized_seed=SEED_STRIDE * copy.seed,
        method=copy.method,
        limit=copy.images.limit,
        size=copy.images.size,
        seed=copy.seed,
        **copy.settings,
    )


def amplified(original: Pixels, protected: Pixels, levels: int) -> Pixels:
    """Perturbation as a picture: gray where nothing changed, black or white where the budget is used up.

    Args:
        original: uint8, height × width × channels.
        protected: The same shape.
        levels: The budget in 8-bit levels, at least 1.
    """
    change = protected.astype(np.int16) - original.astype(np.int16)
    picture: Pixels = (GRAY + np.rint(change * (127 / levels))).clip(0, 255).astype(np.uint8)
    return picture


def save_pictures(laboratory: Laboratory, copy: Copy, count: int) -> Path:
    """Write the pictures of Figures 4 and 6: original, perturbation and protected image as PNG files.

    They are of different classes where there are, and stay as they are if they are there.

    Args:
        laboratory: Clean images and copies.
        copy: A copy that was published.
        count: Number of images.

    Returns:
        Folder with ``NN-KIND.png`` and ``pictures.json``.
    """
    folder = laboratory.ledger.place("pictures", copy)
    if (folder / "pictures.json").is_file() and len(read_json(folder / "pictures.json")["pictures"]) == count:
        return folder
    published = load_images(str(laboratory.protect(copy)))
    originals = laboratory.open(copy.images).images
    result = laboratory.ledger.result(copy)
    levels = max(1, int(result["budget"]["levels"])) if result else 1
    _, first = np.unique(originals.labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(originals)), first)
    entries = []
    with staged_folder(folder, overwrite=True) as stage:
        for number, index in enumerate(map(int, np.concatenate([np.sort(first), rest])[:count])):
            before = originals.read(index)
            after = published.read(index)
            entry = {"class": originals.classes[int(originals.labels[index])]}
            for kind, picture in zip(KINDS, (before, amplified(before, after, levels), after), strict=True):
                entry[kind] = f"{number:02d}-{kind}.png"
                Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(stage / entry[kind])
            entries.append(entry)
        write_json(stage / "pictures.json", {"levels": levels, "pictures": entries})
    return folder
