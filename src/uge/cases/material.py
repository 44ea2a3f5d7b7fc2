"""Material of all cases on one published copy: images, networks, recipes and seeds."""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from uge.attacks import Context
from uge.attacks.variants import VARIANTS
from uge.cases.case import YARDSTICK, Case, Job
from uge.cases.keys import key_network
from uge.cases.ledger import Ledger
from uge.cases.run import run_case
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.files import fingerprint
from uge.learning.recipes import Recipe
from uge.names import CHECKPOINT
from uge.networks import ImageClassifier, build, weights_hash
from uge.networks.checkpoint import checkpoint_hash
from uge.progress import Progress
from uge.runtime import Runtime, stream_seed


@dataclass
class CopyMaterial:
    """Material of all cases on one published copy.

    Attributes:
        folder: Folder of the ledger.
        protected: Published images at the training size.
        test: Clean test images.
        runtime: Device and precision.
        recipe: Recipe of all networks without one of their own.
        clean: Originals, row by row the same, for clean controls and for attacks that hold some; None where
            they are not at hand.
        public: Labelled images of another data set at the training size, if there are any.
        keys: Key files of the authorised networks.
        recipes: Recipes by network, for networks that do not start from θ0.
        seed: Root seed; differs from the protector's, so that the authorised network sees another data order.
        plugins: True allows keys for networks that are not in the table, whose code is then run.
        digests: sha256 of the images by name; computed where empty.
        part_tests: Parts of the test images that are measured at the end; empty for none.
        checkpoints: True lets plain training and distillation write a checkpoint after every epoch, to go on from.
    """

    folder: Path
    protected: PixelStore
    test: PixelStore
    runtime: Runtime
    recipe: Recipe
    clean: PixelStore | None = None
    public: PixelStore | None = None
    keys: Sequence[Path] = ()
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    seed: int = 0
    plugins: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    part_tests: Sequence[PixelStore | None] = ()
    checkpoints: bool = False

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)
        self.theta0 = [key_network(path, self.protected, plugins=self.plugins) for path in self.keys]
        self.digests = self.digests or {name: store.digest() for name, store in self.stores.items()}
        self._theta0_hashes = [weights_hash(network) for network in self.theta0]

    @property
    def stores(self) -> dict[str, PixelStore]:
        """Images by name; those that are not at hand are missing."""
        stores = {"protected": self.protected, "clean": self.clean, "test": self.test, "public": self.public}
        return {name: store for name, store in stores.items() if store is not None}

    def run(self, job: Job, on_progress: Progress | None = None) -> Case:
        """Case of a job, which is run; see :func:`uge.cases.run.run_case`."""
        weights = self.ledger if job.teaches else None
        context = self.context(job, on_progress)
        return run_case(job, context, self.fingerprint(job), weights=weights, part_tests=self.part_tests)

    def finished(self, job: Job) -> Case | None:
        """Finished case of a job with these very images, key and settings; None where it must be run."""
        case = self.ledger.finished(job.id, self.fingerprint(job))
        return None if case is not None and job.teaches and self._trained(job) is None else case

    def fingerprint(self, job: Job) -> str:
        """sha256 of everything that determines a case; images count only for jobs that depend on them."""
        needs = {"clean": job.data == "clean" or "clean" in job.entry.needs, "public": "public" in job.entry.needs}
        needs |= {"protected": job.data == "protected" and job.family != YARDSTICK, "test": True}
        parts: dict[str, Any] = {
            "data": {name: self.digests.get(name) if needed else None for name, needed in needs.items()},
            "job": {name: value for name, value in vars(job).items() if name != "variant"},
            "theta0": None if job.key is None else self._theta0_hashes[job.key],
            "seed": self.seed,
            "recipe": self._recipe(job).json_dict(),
            "precision": self.runtime.precision,
        }
        if job.network.startswith(CHECKPOINT):
            parts["checkpoint"] = checkpoint_hash(job.network)
        if job.entry.revision:
            parts["revision"] = job.entry.revision
        if self.runtime.device.type != "cpu":
            parts["device"] = self.runtime.device.type
        return fingerprint(parts)

    def context(self, job: Job, on_progress: Progress | None = None) -> Context:
        """Network, images, recipe, seed and knowledge of a job, for its attack.

        Raises:
            UsageError: Its teacher was not trained with these settings; raised when the attack asks for it.
        """
        store = self.clean if job.data == "clean" else self.protected
        assert store is not None, "clean controls are planned only where the originals are at hand"
        # A variant differs from the usual authorised training in nothing but the change that it is named after.
        order = "direct" if job.varied and not VARIANTS[job.scheme].reorders else job.scheme
        stores = self.stores
        given: dict[str, Any] = {
            name: functools.partial(stores.__getitem__, name) for name in ("clean", "public") if name in stores
        }
        if job.key is not None:
            theta0 = self.theta0[job.key]
            given["theta0"] = lambda: self.runtime.place(copy.deepcopy(theta0))
        if self.checkpoints and job.scheme in ("direct", "distill"):
            given["checkpoint"] = self.ledger.checkpoint(job.id, self.fingerprint(job))
        return Context(
            network=self.network(job),
            store=store,
            test=self.test,
            recipe=self._recipe(job),
            seed=stream_seed(self.seed, "audit", job.role, order, job.seed),
            runtime=self.runtime,
            teacher=lambda: self._teacher(job),
            progress=on_progress,
            leak_seed=stream_seed(self.seed, "leak", job.seed),
            **given,
        )

    def network(self, job: Job) -> ImageClassifier:
        """Network of a job before training."""
        network = build(
            job.network,
            len(self.protected.classes),
            channels=self.protected.channels,
            size=self.protected.size,
            seed=stream_seed(self.seed, "audit-network", job.network, job.seed),
        )
        if job.start == "theta0":
            assert job.key is not None
            network.load_state_dict(self.theta0[job.key].state_dict())
        return network

    def _recipe(self, job: Job) -> Recipe:
        return self.recipe if job.start == "theta0" else self.recipes.get(job.network, self.recipe)

    def _trained(self, job: Job) -> nn.Module | None:
        network = self.network(job)
        return network if self.ledger.load(job.id, network, self.fingerprint(job)) else None

    def _teacher(self, job: Job) -> nn.Module:
        """Authorised network of the same seed and key, trained on the published data."""
        assert job.key is not None
        teacher = Job("authorized", self.theta0[job.key].name, "theta0", "direct", "protected", job.seed, job.key)
        network = self._trained(teacher)
        if network is None:
            raise UsageError(f"{job.id} needs the trained network of {teacher.id}; run that case first")
        return self.runtime.place(network)
