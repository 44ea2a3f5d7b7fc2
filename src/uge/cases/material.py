"""Training runs of cases, and their material on one published copy: keys, images, networks, recipes and seeds."""

import copy
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from uge.attacks import Context
from uge.attacks.base import Claims
from uge.cases.case import YARDSTICK, Case, Epoch, Job, Ledger
from uge.data.store import PixelStore
from uge.errors import UsageError, WeightsError
from uge.files import fingerprint
from uge.learning.recipes import LONGER, Recipe, longer
from uge.learning.training import DivergedError, evaluate
from uge.names import CHECKPOINT, behind_key
from uge.networks import ImageClassifier, build, from_weights, load_weights, weights_hash
from uge.networks.checkpoint import checkpoint_hash
from uge.networks.plugins import is_plugin
from uge.progress import Progress
from uge.runtime import Runtime, stream_seed

log = logging.getLogger(__name__)


def key_network(path: Path, store: PixelStore, *, plugins: bool = False) -> ImageClassifier:
    """Network with θ0 from a key file, checked against the data that it is to be trained on.

    Args:
        path: The key.
        store: The data.
        plugins: True builds a network that is not in the table, too, which runs the code that the key names.

    Raises:
        WeightsError: The file is missing, damaged, or no key.
        UsageError: It was made for other classes, channels or another size, or for a plug-in that is not allowed.
    """
    name = load_weights(path)[1].get("network", "")
    if is_plugin(behind_key(name)) and not plugins:
        raise UsageError(
            f"the key {path} is for the plug-in network '{name}', whose code would be run; give --trust-plugins if you "
            "trust the key"
        )
    network = from_weights(path, plugins=plugins)
    expected = (len(store.classes), store.channels, store.size)
    made_for = (network.classes, network.channels, network.size)
    if made_for != expected:
        raise UsageError(
            f"the key {path} is for {made_for[0]} classes, {made_for[1]} channels and size {made_for[2]}, but the data "
            f"has {expected[0]}, {expected[1]} and {expected[2]}; give the key that was made with this folder"
        )
    return network


def key_recipe(path: Path) -> Recipe:
    """Recipe of the authorised network from a key file.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    text = load_weights(path)[1].get("recipe")
    try:
        return Recipe.model_validate_json(text) if text else Recipe()
    except ValidationError as error:
        raise WeightsError(f"the recipe in the key {path} cannot be read; name one with --recipe") from error


def run_case(
    job: Job,
    context: Context,
    digest: str,
    *,
    weights: Ledger | None = None,
    part_tests: Sequence[PixelStore | None] = (),
) -> Case:
    """Train and test one network.

    The case is left to the caller to write (:meth:`uge.cases.case.Ledger.keep`). A training that diverges is a
    result.

    Args:
        job: Network, attack, data and repetition.
        context: Network, images, recipe, seed and knowledge.
        digest: sha256 of everything that determines the case.
        weights: Ledger that takes the trained network; None where no later job needs it.
        part_tests: Parts of the test images that are measured at the end; empty for none.

    Returns:
        The case, with accuracies in percent on the clean test images.

    Raises:
        UsageError: The job needs a trained authorised network that is not there.
    """
    runtime = context.runtime
    variant = job.variation
    began = time.perf_counter()
    start = evaluate(context.network, context.test, runtime) if job.teaches else None
    try:
        history = variant.run(context, job.seed) if variant else job.entry.run(context)
    except DivergedError as error:  # This network, so trained, learns nothing from these images.
        log.warning("%s: %s", job.id, error)
        history = error.history
    history = history.by_larger()
    seconds = time.perf_counter() - began
    if weights:
        weights.save(job.id, context.network, digest)
    best = history.best
    assert best is not None, "every epoch was tested"
    recipe = (history.recipe or context.recipe).json_dict()
    return Case(
        id=job.id,
        role=job.role,
        network=job.network,
        start=job.start,
        scheme=job.scheme,
        data=job.data,
        seed=job.seed,
        key=job.key or 0,
        recipe={**recipe, "classes": len(context.store.classes), "size": context.store.size},
        history=[
            Epoch(
                epoch=e.epoch,
                loss=e.loss,
                train_accuracy=e.train_accuracy,
                test_accuracy=e.test_accuracy or 0.0,
                renamed=e.renamed,
                other_accuracy=e.other_accuracy,
            )
            for e in history.epochs
        ],
        last=history.last,
        best=best.test_accuracy or 0.0,
        best_epoch=best.epoch,
        # Preparations before training count as well, and epochs of an earlier, interrupted run.
        seconds=round(max(history.seconds, seconds), 2),
        environment=(variant.runtime(runtime) if variant else runtime).environment(),
        fingerprint=digest,
        family=job.family,
        needs=sorted(job.entry.needs),
        about=job.about,
        start_accuracy=start,
        parts=[None if part is None else evaluate(context.network, part, runtime) for part in part_tests],
        figures={name: round(value, 4) for name, value in context.figures.items()},
        long=job.long,
        tested=history.tested,
    )


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
        few: A few labelled clean images, in none of the other sets, by which outputs are renamed and epochs are chosen;
            None for none.
        keys: Key files of the authorised networks.
        recipes: Recipes by network, for networks that do not start from θ0.
        seed: Root seed; differs from the protector's, so that the authorised network sees another data order.
        plugins: True allows keys for networks that are not in the table, whose code is then run.
        digests: sha256 of the images by name; computed where empty.
        part_tests: Parts of the test images that are measured at the end; empty for none.
        claims: Public claims of the copy, for attacks that use them; None without a manifest.
        checkpoints: True lets plain training and distillation write a checkpoint after every epoch, to go on from.
    """

    folder: Path
    protected: PixelStore
    test: PixelStore
    runtime: Runtime
    recipe: Recipe
    clean: PixelStore | None = None
    public: PixelStore | None = None
    few: PixelStore | None = None
    keys: Sequence[Path] = ()
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    seed: int = 0
    plugins: bool = False
    digests: Mapping[str, str] = field(default_factory=dict)
    part_tests: Sequence[PixelStore | None] = ()
    claims: Claims | None = None
    checkpoints: bool = False

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)
        self.theta0 = [key_network(path, self.protected, plugins=self.plugins) for path in self.keys]
        self.digests = self.digests or {name: store.digest() for name, store in self.stores.items()}
        self._theta0_hashes = [weights_hash(network) for network in self.theta0]

    @property
    def stores(self) -> dict[str, PixelStore]:
        """Images by name; those that are not at hand are missing."""
        stores = {name: getattr(self, name) for name in ("protected", "clean", "test", "public", "few")}
        return {name: store for name, store in stores.items() if store is not None}

    def run(self, job: Job, on_progress: Progress | None = None) -> Case:
        """Case of a job, which is run; see :func:`run_case`."""
        return run_case(
            job,
            self.context(job, on_progress),
            self.fingerprint(job),
            weights=self.ledger if job.teaches else None,
            part_tests=self.part_tests,
        )

    def finished(self, job: Job) -> Case | None:
        """Finished case of a job with these very images, key and settings; None where it must be run."""
        case = self.ledger.finished(job.id, self.fingerprint(job))
        return None if case is not None and job.teaches and self._trained(job) is None else case

    def fingerprint(self, job: Job) -> str:
        """sha256 of everything that determines a case; images count only for jobs that depend on them."""
        entry = job.entry
        public = "public" in entry.needs | entry.uses
        needs = {"clean": job.data == "clean" or "clean" in entry.needs, "public": public}
        needs |= {"protected": job.data == "protected" and job.family != YARDSTICK, "test": True}
        optional = {
            "checkpoint": checkpoint_hash(job.network) if job.network.startswith(CHECKPOINT) else "",
            "revision": entry.revision,
            "claims": self.claims.json_dict() if self.claims and "claims" in entry.uses else None,
            "device": "" if self.runtime.device.type == "cpu" else self.runtime.device.type,
            "few": self.digests.get("few"),
            # Labelled images are repeated up to the number of published ones.
            "count": len(self.protected) if job.family == YARDSTICK and "few" in job.entry.needs else 0,
        }
        always = {
            "data": {name: self.digests.get(name) if needed else None for name, needed in needs.items()},
            "job": {name: value for name, value in vars(job).items() if name not in ("variant", "long")},
            "theta0": None if job.key is None else self._theta0_hashes[job.key],
            "seed": self.seed,
            "recipe": self._recipe(job).json_dict(),
            "precision": self.runtime.precision,
        }
        return fingerprint(always | {name: value for name, value in optional.items() if value})

    def context(self, job: Job, on_progress: Progress | None = None) -> Context:
        """Network, images, recipe, seed and knowledge of a job, for its attack.

        Raises:
            UsageError: Its teacher was not trained with these settings; raised when the attack asks for it.
        """
        store = self.clean if job.data == "clean" else self.protected
        assert store is not None, "clean controls are planned only where the originals are at hand"
        # A variant differs from the usual authorised training in nothing but the change that it is named after.
        order = "direct" if job.variation and not job.variation.reorders else job.scheme
        stores = self.stores
        given: dict[str, Any] = {
            name: functools.partial(stores.__getitem__, name) for name in ("clean", "public", "few") if name in stores
        }
        if self.claims is not None:
            claims = self.claims
            given["claims"] = lambda: claims
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
            chooses=self.few is not None,
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
        recipe = self.recipe if job.start == "theta0" else self.recipes.get(job.network, self.recipe)
        return longer(recipe, LONGER) if job.long else recipe

    def _trained(self, job: Job) -> nn.Module | None:
        return self.ledger.load(job.id, self.network(job), self.fingerprint(job))

    def _teacher(self, job: Job) -> nn.Module:
        """Authorised network of the same seed and key, trained on the published data."""
        assert job.key is not None
        teacher = Job("authorized", self.theta0[job.key].name, "theta0", "direct", "protected", job.seed, job.key)
        network = self._trained(teacher)
        if network is None:
            raise UsageError(f"{job.id} needs the trained network of {teacher.id}; run that case first")
        return self.runtime.place(network)
