"""One case of an audit: what it depends on, whether it is finished, and the training run itself."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from uge.attacks import Context
from uge.attacks.variants import VARIANTS
from uge.cases.case import YARDSTICK, Case, Epoch, read_case
from uge.cases.job import Job
from uge.cases.keys import key_network, key_recipe
from uge.data.store import PixelStore
from uge.errors import DataError, UsageError, WeightsError
from uge.files import fingerprint
from uge.learning.recipes import Recipe
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.learning.training import DivergedError, History, evaluate
from uge.names import CHECKPOINT
from uge.networks import ImageClassifier, build, weights_hash
from uge.networks.checkpoint import checkpoint_hash
from uge.progress import Progress
from uge.runtime import Runtime, stream_seed

log = logging.getLogger(__name__)


class Audit:
    """Everything that the cases of an audit depend on; it runs any of them.

    Args:
        folder: The audit folder; ``weights/`` is made inside.
        protected: The published images at the training size.
        clean: Their originals, row by row the same, for clean controls and for attacks that hold some; None
            where they are not at hand.
        test: Clean test images.
        public: Labelled images of another data set at the training size, if there are any.
        keys: Key files of the authorised networks.
        recipe: How everybody trains; by default the first key's own recipe.
        seed: Root seed of the audit; differs from the protector's, so the authorised network
            sees another data order.
        runtime: Device and precision.
        digests: Of the stores by name, where they are known already.
        plugins: Whether keys may name networks that are not in the table, whose code is then run.
    """

    def __init__(
        self,
        folder: Path,
        protected: PixelStore,
        clean: PixelStore | None,
        test: PixelStore,
        *,
        public: PixelStore | None = None,
        keys: Sequence[Path] = (),
        recipe: Recipe | None = None,
        seed: int = 0,
        runtime: Runtime,
        digests: Mapping[str, str | None] | None = None,
        plugins: bool = False,
    ) -> None:
        self.folder, self.seed, self.runtime, self.keys = folder, seed, runtime, tuple(keys)
        self.plugins = plugins
        self.protected, self.clean, self.test, self.public = protected, clean, test, public
        self.theta0 = [key_network(path, protected, plugins=plugins) for path in keys]
        self.recipe = recipe or (key_recipe(keys[0]) if keys else Recipe())
        self.digests = digests or {
            name: None if store is None else store.digest() for name, store in self.stores.items()
        }
        self._theta0_hashes = [weights_hash(network) for network in self.theta0]

    @property
    def stores(self) -> dict[str, PixelStore | None]:
        """The images by name."""
        return {"protected": self.protected, "clean": self.clean, "test": self.test, "public": self.public}

    @property
    def cases(self) -> Path:
        """Folder of the finished cases."""
        return self.folder / "cases"

    def finished(self, job: Job) -> Case | None:
        """The case of a job, if it was run with these very images, key and settings."""
        path = self.cases / f"{job.id}.json"
        if not path.is_file():
            return None
        try:
            case = read_case(path)
        except DataError as error:
            log.warning("%s; it is run again", error)
            return None
        if case.fingerprint != self._fingerprint(job) or (job.teaches and self._trained(job) is None):
            return None
        return case

    def run(self, job: Job, on_progress: Progress | None = None) -> Case:
        """Train and test one network; the trained authorised network is kept for those who need it.

        Args:
            job: What to do.
            on_progress: Told of every epoch.

        Raises:
            UsageError: The job needs a trained authorised network that is not there.
        """
        context, began = self.context(job, on_progress), time.perf_counter()
        start = evaluate(context.network, self.test, self.runtime) if job.teaches else None
        try:
            history = VARIANTS[job.scheme].run(context, job.seed) if job.varied else job.entry.run(context)
        except DivergedError as error:
            # A result like any other: this network, so trained, learns nothing from these images.
            log.warning("%s: %s", job.id, error)
            history = error.history
        history.seconds = time.perf_counter() - began  # What comes before training counts as well.
        if job.teaches:
            meta = {"fingerprint": self._fingerprint(job)}
            save_checkpoint(self._weights(job), {"network": context.network}, None, meta)
        return self._case(job, history, start)

    def network(self, job: Job) -> ImageClassifier:
        """The network of a job before training."""
        theta0 = None if job.key is None else self.theta0[job.key]
        return untrained(job, self.protected, self.seed, theta0)

    def context(self, job: Job, on_progress: Progress | None = None) -> Context:
        """What whoever does the job has."""
        store = self.clean if job.data == "clean" else self.protected
        assert store is not None, "clean controls are planned only where the originals are at hand"
        # A variant differs from the usual authorised training by what it is named after and by nothing else.
        order = "direct" if job.varied and not VARIANTS[job.scheme].reorders else job.scheme
        clean, public = self.clean, self.public
        given: dict[str, Any] = {"clean": lambda: clean} if clean is not None else {}
        given |= {"public": lambda: public} if public is not None else {}
        given |= {"theta0": lambda: self._start(job)} if job.key is not None else {}
        return Context(
            network=self.network(job),
            store=store,
            test=self.test,
            recipe=self.recipe,
            seed=stream_seed(self.seed, "audit", job.role, order, job.seed),
            runtime=self.runtime,
            teacher=lambda: self._teacher(job),
            progress=on_progress,
            leak_seed=stream_seed(self.seed, "leak", job.seed),
            **given,
        )

    def _fingerprint(self, job: Job) -> str:
        needs = {"clean": job.data == "clean" or "clean" in job.entry.needs, "public": "public" in job.entry.needs}
        needs |= {"protected": job.data == "protected" and job.family != YARDSTICK, "test": True}
        data = {name: self.digests.get(name) if needed else None for name, needed in needs.items()}
        theta0 = None if job.key is None else self._theta0_hashes[job.key]
        parts: dict[str, Any] = {"data": data, "job": vars(job), "theta0": theta0, "seed": self.seed}
        if job.network.startswith(CHECKPOINT):
            parts["checkpoint"] = checkpoint_hash(job.network)
        if job.entry.revision:
            parts["revision"] = job.entry.revision
        if self.runtime.device.type != "cpu":
            parts["device"] = self.runtime.device.type
        return fingerprint(parts | {"recipe": self.recipe.json_dict(), "precision": self.runtime.precision})

    def _case(self, job: Job, history: History, start: float | None) -> Case:
        variant = VARIANTS[job.scheme] if job.varied else None
        runtime = variant.runtime(self.runtime) if variant else self.runtime
        return Case(
            id=job.id,
            role=job.role,
            network=job.network,
            start=job.start,
            scheme=job.scheme,
            data=job.data,
            seed=job.seed,
            family=job.family,
            needs=sorted(job.entry.needs),
            about=job.about,
            **measured(
                history,
                history.recipe or self.recipe,
                runtime,
                classes=len(self.protected.classes),
                size=self.protected.size,
            ),
            fingerprint=self._fingerprint(job),
            start_accuracy=start,
        )

    def _start(self, job: Job) -> nn.Module:
        assert job.key is not None
        return self.runtime.place(copy.deepcopy(self.theta0[job.key]))

    def _weights(self, job: Job) -> Path:
        return self.folder / "weights" / f"{job.id}.safetensors"

    def _trained(self, job: Job) -> nn.Module | None:
        """The trained network as this very job left it, if it did."""
        return load_trained(self._weights(job), self.network(job), self._fingerprint(job))

    def _teacher(self, job: Job) -> nn.Module:
        """The authorised network trained on the published data with the same seed.

        Raises:
            UsageError: Its own case was not run, or with other settings.
        """
        assert job.key is not None
        name = self.theta0[job.key].name
        teacher = Job("authorized", name, "theta0", "direct", "protected", job.seed, job.key)
        network = self._trained(teacher)
        if network is None:
            raise UsageError(f"{job.id} needs the trained network of {teacher.id}; run that case first")
        return self.runtime.place(network)


def untrained(job: Job, store: PixelStore, seed: int, theta0: nn.Module | None) -> ImageClassifier:
    """The network of a job before training.

    Args:
        job: What is to be trained.
        store: Images of the shape and classes that it is for.
        seed: Root seed of the audit.
        theta0: Where a job starts from it, the authorised network before training.
    """
    network = build(
        job.network,
        len(store.classes),
        channels=store.channels,
        size=store.size,
        seed=stream_seed(seed, "audit-network", job.network, job.seed),
    )
    if job.start == "theta0":
        assert theta0 is not None
        network.load_state_dict(theta0.state_dict())
    return network


def measured(history: History, recipe: Recipe, runtime: Runtime, *, classes: int, size: int) -> dict[str, Any]:
    """What a case says of a tested run: what was measured, by which recipe, and where.

    Args:
        history: Of the run; at least one epoch was tested.
        recipe: By which it was trained.
        runtime: Where.
        classes: Number of classes.
        size: Side length that it was trained at.
    """
    best = history.best
    assert best is not None
    epochs = [
        Epoch(epoch=e.epoch, loss=e.loss, train_accuracy=e.train_accuracy, test_accuracy=e.test_accuracy or 0.0)
        for e in history.epochs
    ]
    return {
        "history": epochs,
        "last": history.last,
        "best": best.test_accuracy or 0.0,
        "best_epoch": best.epoch,
        "seconds": round(history.seconds, 2),
        "recipe": {**recipe.json_dict(), "classes": classes, "size": size},
        "environment": runtime.environment(),
    }


def load_trained(path: Path, network: nn.Module, wanted: str) -> nn.Module | None:
    """``network`` with the weights at ``path``; None unless they are there, fit, and have the wanted fingerprint."""
    try:
        meta = load_checkpoint(path, {"network": network})
    except WeightsError:
        return None
    return network if meta.get("fingerprint") == wanted else None
