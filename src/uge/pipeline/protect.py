"""From a source to a published folder: every stage leaves a file, so that a killed run resumes."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.config import ProtectConfig, PublishConfig
from uge.data import load_images
from uge.data.store import PixelStore, Records
from uge.encoders import FeatureSpace
from uge.errors import OutputExistsError, UsageError
from uge.networks import ImageClassifier, build, save_weights, weights_hash
from uge.pipeline.stages import (
    authorized_networks,
    data_fingerprint,
    open_encoder,
    publish_stream,
    read_store,
)
from uge.progress import Progress
from uge.protect.apply import load_generator, protected_images, save_generator
from uge.protect.generator import Generator
from uge.protect.losses import Authorized, TotalLoss
from uge.protect.protector import train_generator
from uge.protect.refine import delta_records, protected_store, refine_pass, start_delta
from uge.protect.settings import METHODS
from uge.publish import Manifest, Provenance, create_private, private_folder, read_manifest
from uge.publish.manifest import Authorized as AuthorizedRecord
from uge.runs import EventLog, check_output, code_version, fingerprint, read_json, write_json
from uge.runtime import Runtime, seeded, stream_seed
from uge.trajectory import Trajectory, record_trajectory


@dataclass(frozen=True)
class ProtectResult:
    """What a protection run left behind."""

    manifest: Manifest
    out: Path
    private: Path
    keys: list[Path]
    trajectory_accuracy: list[float]


class ProtectRun:
    """One run of ``uge protect``.

    Args:
        source: What :func:`uge.data.load_images` takes.
        out: The folder to publish; secrets go to ``OUT.private`` beside it.
        config: How to protect.
        publishing: How to write.
        runtime: Device and precision.
        progress: Shows stages.
        resume: Go on with an interrupted run of the same settings.
        overwrite: Replace what is in ``out`` and its private folder.
    """

    def __init__(
        self,
        source: str,
        out: Path,
        config: ProtectConfig,
        publishing: PublishConfig,
        *,
        runtime: Runtime,
        progress: Progress,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.source, self.out, self.config, self.publishing = source, out, config, publishing
        self.runtime, self.progress, self.resume, self.overwrite = runtime, progress, resume, overwrite
        self.budget = Budget.parse(config.rho)
        self.private = private_folder(out)
        self.run_folder = self.private / "run"
        self.images = load_images(source, split="train", limit=config.limit).check_trainable()
        check_output(out, source=self.images.root, overwrite=overwrite or resume)
        self.networks = authorized_networks(config, self.images)

    def describe(self) -> dict[str, Any]:
        """What would be done, for ``--dry-run``."""
        return {
            "source": self.source,
            "images": len(self.images),
            "classes": list(self.images.classes),
            "out": str(self.out),
            "private": str(self.private),
            "authorized": [network.name for network in self.networks],
            "rho": self.budget.rho,
            "levels": self.budget.levels,
            "config": self.config.model_dump(mode="json"),
            "environment": self.runtime.environment(),
        }

    def run(self) -> ProtectResult:
        """Do every stage that is not done yet, publish, and return what was published.

        Raises:
            OutputExistsError: There is a run already and neither resume nor overwrite was asked for.
            UsageError: The run to resume has other settings.
            UGEError: A stage failed; what was finished stays for ``--resume``.
        """
        store = self._store()
        finished = self._open_run(store)
        if finished is not None:
            return finished
        events = EventLog(self.private / "protect.jsonl")
        for number in range(len(self.networks)):
            self._write_key(number)
        authorized = self._authorized(store, self.run_folder / "round-0")
        space = self._space(store)
        total = TotalLoss(
            self.config.method,
            self.config.loss,
            authorized=authorized,
            hacker=self._hacker(store),
            space=space,
            classes=store.classes,
            runtime=self.runtime,
        )
        generator = self._generator(store, total, events)
        delta = self._refine(store, generator, authorized, total, events) if self.config.refine else None
        manifest = self._publish(store, generator, delta, space)
        write_json(self.run_folder / "done.json", {"fingerprint": self._fingerprint})
        return self._result(manifest)

    def _result(self, manifest: Manifest) -> ProtectResult:
        numbers = range(len(self.networks))
        paths = [Trajectory.load(self.run_folder / "round-0" / f"trajectory-{number}") for number in numbers]
        accuracies = [path.history.epochs[-1].train_accuracy for path in paths]
        return ProtectResult(manifest, self.out, self.private, [self._key_path(n) for n in numbers], accuracies)

    # Stages, in order.

    def _store(self) -> PixelStore:
        first = self.networks[0]
        return read_store(self.images, first.size, first.channels, self.runtime, self.progress)

    def _open_run(self, store: PixelStore) -> ProtectResult | None:
        """Make or check the run folder; the result if the run to resume is finished already."""
        self._fingerprint = fingerprint(
            {
                "config": self.config.model_dump(mode="json"),
                "publishing": self.publishing.model_dump(mode="json"),
                "data": data_fingerprint(self.images, store),
                "theta0": [weights_hash(network) for network in self.networks],
                "precision": self.runtime.precision,
                "version": code_version().split("+")[0],
            }
        )
        state = self.run_folder / "run.json"
        if self.private.is_dir() and any(self.private.iterdir()):
            if self.overwrite:
                shutil.rmtree(self.private)
            elif not self.resume:
                raise OutputExistsError(
                    f"{self.private} holds an earlier run; give --resume to go on with it or --overwrite to start again"
                )
            elif not state.is_file() or read_json(state).get("fingerprint") != self._fingerprint:
                raise UsageError(
                    f"the run in {self.private} has other settings, images or precision than this one; "
                    "repeat the command as it was, or give --overwrite to start again"
                )
        create_private(self.private, published=self.out)
        if (self.run_folder / "done.json").is_file() and (self.out / "manifest.json").is_file():
            self.progress.note(f"{self.out} is finished already")
            return self._result(read_manifest(self.out))
        write_json(state, {"fingerprint": self._fingerprint, **self.describe()})
        return None

    def _key_path(self, number: int) -> Path:
        return self.private / f"authorized-{number}.key.safetensors"

    def _write_key(self, number: int) -> None:
        metadata = {"recipe": self.config.recipe.model_dump_json()}
        save_weights(self._key_path(number), self.networks[number], metadata)

    def _authorized(self, store: PixelStore, folder: Path) -> list[Authorized]:
        """Authorised networks with their trajectories on ``store``, recorded unless they are there."""
        needs_path = METHODS[self.config.method] & {"gradient_matching", "undistill"}
        found = []
        for number, theta0 in enumerate(self.networks):
            place = folder / f"trajectory-{number}"
            if not (place / "trajectory.json").is_file():
                with self.progress.stage(f"trajectory of {theta0.name} ({folder.name})") as tell:
                    record_trajectory(
                        copy.deepcopy(theta0),
                        store,
                        self.config.recipe,
                        seed=stream_seed(self.config.seed, "trajectory", number),
                        runtime=self.runtime,
                        snapshots=self.config.snapshots if needs_path else 2,
                        folder=place,
                        checkpoint=folder / f"trajectory-{number}.checkpoint.safetensors",
                        progress=tell,
                    )
            found.append(Authorized(copy.deepcopy(theta0), Trajectory.load(place)))
        return found

    def _space(self, store: PixelStore) -> FeatureSpace | None:
        if "feature_distance" not in METHODS[self.config.method]:
            return None
        return open_encoder(self.config, store, self.runtime, self.progress, self.private / "encoder.safetensors")

    def _hacker(self, store: PixelStore) -> ImageClassifier | None:
        if "undistill" not in METHODS[self.config.method]:
            return None
        seed = stream_seed(self.config.seed, "hacker")
        return build(self.config.hacker, len(store.classes), channels=store.channels, size=store.size, seed=seed)

    def _generator(self, store: PixelStore, total: TotalLoss, events: EventLog) -> Generator:
        path, settings = self.private / "generator.safetensors", self.config.generator
        if path.is_file():
            return load_generator(path)
        with seeded(self.config.seed, "generator"):
            generator = Generator(
                store.channels, self.budget, width=settings.width, blocks=settings.blocks, dropout=settings.dropout
            )
        with self.progress.stage("generator") as tell:
            train_generator(
                generator,
                store,
                total,
                settings,
                seed=self.config.seed,
                runtime=self.runtime,
                checkpoint=self.run_folder / "generator.checkpoint.safetensors",
                events=events,
                progress=tell,
            )
        save_generator(path, generator)
        return load_generator(path)

    def _refine(
        self, store: PixelStore, generator: Generator, authorized: list[Authorized], total: TotalLoss, events: EventLog
    ) -> Records:
        """Passes of direct optimisation between two files, so that an interrupted pass starts again."""
        settings, state_path = self.config.refinement, self.run_folder / "refine.json"
        files = [delta_records(store, self.run_folder / f"delta-{side}.int8") for side in (0, 1)]
        if not state_path.is_file():
            start_delta(self.runtime.place(generator), store, files[0], self.runtime)
            files[0].flush()
            write_json(state_path, {"passes": 0})
        done = int(read_json(state_path)["passes"])
        for number in range(done, settings.rounds * settings.passes):
            round_number, inner = divmod(number, settings.passes)
            if round_number and (inner == 0 or number == done):
                current = protected_store(store, files[number % 2], self.budget)
                for one, fresh in zip(
                    authorized, self._authorized(current, self.run_folder / f"round-{round_number}"), strict=True
                ):
                    one.trajectory = fresh.trajectory
                total.refresh_teachers()
            step = max(1, round(settings.step * (1 - inner / settings.passes)))
            with self.progress.stage(f"refine round {round_number + 1}/{settings.rounds} pass {inner + 1}") as tell:
                refine_pass(
                    store,
                    files[number % 2],
                    files[(number + 1) % 2],
                    total,
                    self.budget,
                    step=step,
                    batch_size=settings.batch_size,
                    seed=self.config.seed,
                    name=(round_number, inner),
                    events=events,
                    progress=tell,
                )
            write_json(state_path, {"passes": number + 1})
        return files[settings.rounds * settings.passes % 2]

    def _publish(
        self, store: PixelStore, generator: Generator, delta: Records | None, space: FeatureSpace | None
    ) -> Manifest:
        config = self.config
        details: dict[str, Any] = {
            "loss": config.loss.model_dump(mode="json"),
            "generator": config.generator.model_dump(mode="json"),
            "refinement": config.refinement.model_dump(mode="json") if delta is not None else None,
            "training_size": store.size,
            "channels": store.channels,
            "recipe": config.recipe.json_dict(),
        }
        provenance = Provenance(
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
        return publish_stream(
            self.images,
            protected_images(self.images, generator, self.runtime, delta=delta),
            self.out,
            self.budget,
            provenance,
            self.publishing,
            self.progress,
            overwrite=self.overwrite or self.resume,
        )
