"""From clean images and θ0 to a perturbation: trajectories, encoder, generator, refinement.

With a folder every stage leaves its result there, so that a killed run resumes; without one all
stays in memory. The bytes that come out are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.config import ProtectConfig
from uge.data.store import PixelStore, Records
from uge.encoders import FeatureSpace
from uge.errors import UsageError
from uge.files import EventLog, fingerprint, read_json, write_atomic, write_json
from uge.learning.recipes import Recipe
from uge.learning.trajectory import Trajectory, record_trajectory
from uge.methods.apply import GENERATOR, Perturber, load_generator, save_perturber
from uge.methods.keyed.wave_code import WaveCode, shared_key
from uge.methods.uge.generator import Generator
from uge.methods.uge.hackers import Losses, train_hackers, with_hackers
from uge.methods.uge.losses import Authorized, TotalLoss, trained_networks
from uge.methods.uge.protector import make_generator, train_generator
from uge.methods.uge.refine import delta_records, protected_store, refine_pass, start_delta
from uge.methods.uge.settings import BASELINE_NAMES, METHODS, NEED_PATH, GeneratorSettings
from uge.methods.uge.undistill import measure_statistics
from uge.names import CHECKPOINT, behind_key
from uge.networks import ImageClassifier, build, save_weights, weights_hash
from uge.networks.checkpoint import checkpoint_hash
from uge.networks.standalone import has_standalone, standalone_source
from uge.pipeline.stages import budget_of, open_encoder
from uge.publishing import Provenance
from uge.publishing.manifest import Authorized as AuthorizedRecord
from uge.runtime import stream_seed
from uge.session import Session


@dataclass(frozen=True)
class Noise:
    """What protects a data set.

    Attributes:
        generator: Gives the perturbation of any image: a trained generator, or a wave code.
        delta: Refined perturbations of the images themselves, if they were asked for.
        provenance: How it came about, for the manifest.
    """

    generator: Perturber
    delta: Records | None
    provenance: Provenance


@dataclass
class NoiseRun:
    """The stages that make a perturbation for one data set.

    Attributes:
        config: How to protect.
        store: Clean images at the training size.
        networks: θ0 of every authorised network.
        session: Device, precision, progress.
        folder: Private folder where stages keep their results; None keeps them in memory.
    """

    config: ProtectConfig
    store: PixelStore
    networks: Sequence[ImageClassifier]
    session: Session
    folder: Path | None = None
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        self.budget = budget_of(self.config)

    def run(self, authorized: Sequence[Authorized] | None = None, space: FeatureSpace | None = None) -> Noise:
        """Do every stage that is not done yet.

        Args:
            authorized: Authorised networks with recorded trajectories; recorded here by default. Not
                used by a method without a loss that needs them.
            space: The feature space; by default the one that the configuration names.

        Raises:
            UsageError: The method is a baseline, which has no authorised networks.
            UGEError: A stage failed; what was finished stays in the folder.
        """
        if self.config.method in BASELINE_NAMES:
            raise UsageError(
                f"method '{self.config.method}' is a baseline, which protects for no network; run it with "
                f"uge protect --method {self.config.method}"
            )
        if self.config.method == "keyed":
            return self._coded()
        parts, encoder_file = METHODS[self.config.method], self._file("encoder.safetensors")
        if space is None and "feature_distance" in parts:
            space = open_encoder(self.config, self.store, self.session, encoder_file)
        needs_path = bool(parts & NEED_PATH)
        authorized = list(authorized or self._authorized(self.store, "round-0")) if needs_path else []
        total = TotalLoss(
            self.config.method,
            self.config.loss,
            authorized=authorized,
            hacker=self._hacker() if "undistill" in parts else None,
            space=space,
            classes=self.store.classes,
            runtime=self.session.runtime,
        )
        events = EventLog(self._file("protect.jsonl"))
        settings = self.config.generator
        path = self._file("run", GENERATOR) if settings.imitate else self._file(GENERATOR)
        generator = make_generator(settings, self.store, self.budget, seed=self.config.seed)
        generator = self._trained(generator, total, settings, "generator", path, events)
        delta = self._refine(generator, authorized, total, events) if self.config.refine else None
        if delta is not None and settings.imitate:
            path = self._file(GENERATOR)
            generator = self._trained(generator, delta, settings.imitating(), "imitation", path, events)
        return Noise(generator, delta, self._provenance(space))

    def _coded(self) -> Noise:
        code, path = WaveCode(shared_key(self.networks), self.budget, self.store.classes), self._file(GENERATOR)
        if path is not None:
            save_perturber(path, code)
        return Noise(code, None, self._provenance(None))

    def _file(self, *names: str) -> Path | None:
        return None if self.folder is None else self.folder.joinpath(*names)

    def _authorized(self, store: PixelStore, name: str) -> list[Authorized]:
        """Authorised networks with their trajectories on ``store``, recorded unless they are there."""
        config, found = self.config, []
        for number, theta0 in enumerate(self.networks):
            place = self._file("run", name, f"trajectory-{number}")
            if place is not None and (place / "trajectory.json").is_file():
                path = Trajectory.load(place)
            else:
                with self.session.progress.stage(f"trajectory of {theta0.name} ({name})") as on_progress:
                    path = record_trajectory(
                        copy.deepcopy(theta0),
                        store,
                        config.recipe,
                        seed=stream_seed(config.seed, "trajectory", number),
                        runtime=self.session.runtime,
                        snapshots=config.snapshots,
                        folder=place,
                        checkpoint=self._file("run", name, f"trajectory-{number}.checkpoint.safetensors"),
                        progress=on_progress,
                    )
            found.append(Authorized(copy.deepcopy(theta0), path))
        return found

    def _hacker(self) -> ImageClassifier:
        size, channels = self.store.shape
        seed = stream_seed(self.config.seed, "hacker")
        network = build(self.config.hacker, len(self.store.classes), channels=channels, size=size, seed=seed)
        return measure_statistics(network, self.store, seed=seed, runtime=self.session.runtime)

    def _trained(
        self,
        generator: Generator,
        total: TotalLoss | Records,
        settings: GeneratorSettings,
        name: str,
        path: Path | None,
        events: EventLog,
    ) -> Generator:
        """Train a generator, or read it from ``path`` where that was done."""
        if path is not None and path.is_file():
            return load_generator(path)
        with self.session.progress.stage(name) as on_progress:
            train_generator(
                generator,
                self.store,
                total,
                settings,
                seed=self.config.seed,
                runtime=self.session.runtime,
                checkpoint=self._file("run", f"{name}.checkpoint.safetensors"),
                events=events,
                progress=on_progress,
            )
        if path is None:
            return generator
        save_perturber(path, generator)
        return load_generator(path)

    def _refine(
        self, generator: Generator, authorized: Sequence[Authorized], total: TotalLoss, events: EventLog
    ) -> Records:
        """Passes of direct optimisation between two files, so that an interrupted pass starts again."""
        settings, state, runtime = self.config.refinement, self._file("run", "refine.json"), self.session.runtime
        files = [delta_records(self.store, self.budget, self._file("run", f"delta-{side}")) for side in (0, 1)]
        done = int(read_json(state)["passes"]) if state is not None and state.is_file() else None
        if done is None:
            start_delta(runtime.place(generator), self.store, files[0], runtime)
            files[0].flush()
            done = _keep(state, 0)
        first = done
        while done < settings.rounds * settings.passes:
            round_number, inner = divmod(done, settings.passes)
            if authorized and round_number and (inner == 0 or done == first):
                current = protected_store(self.store, files[done % 2], self.budget)
                for one, fresh in zip(authorized, self._authorized(current, f"round-{round_number}"), strict=True):
                    one.trajectory = fresh.trajectory
                total.refresh_teachers()
            name = f"refine round {round_number + 1}/{settings.rounds} pass {inner + 1}"
            losses = self._against_hackers(total, authorized, files[done % 2], (round_number, inner))
            with self.session.progress.stage(name) as on_progress:
                refine_pass(
                    self.store,
                    files[done % 2],
                    files[(done + 1) % 2],
                    losses,
                    self.budget,
                    step=max(1, round(settings.step * (1 - inner / settings.passes))),
                    batch_size=settings.batch_size,
                    by_class=settings.batches == "class",
                    seed=self.config.seed,
                    name=(round_number, inner),
                    events=events,
                    progress=on_progress,
                )
            done = _keep(state, done + 1)
        return files[done % 2]

    def _against_hackers(
        self, total: TotalLoss, authorized: Sequence[Authorized], delta: Records, name: tuple[int, int]
    ) -> Losses:
        """The loss of a pass: with hackers in the loop, theirs is part of it."""
        settings, runtime = self.config.refinement, self.session.runtime
        if not settings.hacker_names:
            return total
        seen = self.store if settings.hacker_term == "target" else protected_store(self.store, delta, self.budget)
        teachers = trained_networks(authorized, runtime) if settings.hacker_term == "student" else []
        with self.session.progress.stage(f"hackers in the loop ({', '.join(settings.hacker_names)})"):
            pool = train_hackers(seen, settings, teachers=teachers, seed=self.config.seed, name=name, runtime=runtime)
        classes = len(self.store.classes)
        return with_hackers(total, pool, settings, classes=classes, teachers=teachers, runtime=runtime)

    def _provenance(self, space: FeatureSpace | None) -> Provenance:
        config, details = self.config, dict[str, Any]()
        if METHODS[config.method]:
            details = {
                "loss": config.loss.model_dump(mode="json"),
                "generator": config.generator.model_dump(mode="json"),
                "refinement": None,
            }
        if config.refine:
            hackers = ",".join(public_name(name) for name in config.refinement.hacker_names)
            details["refinement"] = config.refinement.model_dump(mode="json") | {"hackers": hackers}
        details |= {
            "training_size": self.store.size,
            "channels": self.store.channels,
            "recipe": config.recipe.json_dict(),
        }
        return Provenance(
            method=config.method,
            seeds={"seed": config.seed},
            authorized=tuple(
                AuthorizedRecord(id=f"authorized-{number}", network=network.name, weights_sha256=weights_hash(network))
                for number, network in enumerate(self.networks)
            ),
            encoder=None if space is None else space.identity(),
            config_sha256=fingerprint(config.model_dump(mode="json")),
            method_details=details,
        )


def public_name(network: str) -> str:
    """A network's name as a manifest may tell it: of a checkpoint what is in it, not where it lies."""
    name = behind_key(network)
    if not name.startswith(CHECKPOINT):
        return network
    return network.removesuffix(name) + CHECKPOINT + checkpoint_hash(name)[:12]


def _keep(state: Path | None, passes: int) -> int:
    """Note how many passes are done, if there is a file for it; returns the number."""
    if state is not None:
        write_json(state, {"passes": passes})
    return passes


def key_path(folder: Path, number: int) -> Path:
    """Where the key of an authorised network lies in a private folder."""
    return folder / f"authorized-{number}.key.safetensors"


def write_keys(folder: Path, networks: Sequence[ImageClassifier], recipe: Recipe) -> None:
    """Write θ0 of every authorised network with its recipe, and its definition in plain PyTorch where that is ours."""
    for number, network in enumerate(networks):
        save_weights(key_path(folder, number), network, {"recipe": recipe.model_dump_json()})
        if has_standalone(network.name):
            write_atomic(folder / f"authorized-{number}.network.py", standalone_source(network))
