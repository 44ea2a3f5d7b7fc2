"""Stages of the paper's method: trajectories, encoder, generator, refinement, imitation.

With a private folder every stage leaves its result there, so that a killed run resumes; without one all stays in
memory. The resulting bytes are the same.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uge.data.store import PixelStore, Records
from uge.encoders import FeatureSpace, Material, open_encoder
from uge.files import EventLog, read_json, write_json
from uge.learning.trajectory import Trajectory, record_trajectory
from uge.methods.apply import GENERATOR, load_generator, save_perturber
from uge.methods.authorized import public_name
from uge.methods.base import Perturbation, Task
from uge.methods.uge.generator import Generator
from uge.methods.uge.hackers import Losses, train_hackers, with_hackers
from uge.methods.uge.losses import Authorized, TotalLoss, trained_networks
from uge.methods.uge.protector import make_generator, train_generator
from uge.methods.uge.refine import delta_records, protected_store, refine_pass, start_delta
from uge.methods.uge.settings import NEED_PATH, GeneratorSettings
from uge.methods.uge.undistill import measure_statistics
from uge.networks import ImageClassifier, build
from uge.runtime import stream_seed


@dataclass
class Stages:
    """The stages of one task.

    Attributes:
        task: Images, settings, networks, folder.
        parts: Losses that are used (:data:`uge.methods.uge.settings.LOSSES`).
    """

    task: Task
    parts: frozenset[str]
    events: EventLog = field(init=False)

    def __post_init__(self) -> None:
        self.events = EventLog(self.task.file("protect.jsonl"))

    def run(self) -> Perturbation:
        """Do every stage that is not done yet.

        Raises:
            UGEError: A stage failed; finished stages stay in the folder.
        """
        task, settings = self.task, self.task.settings.generator
        space = self._feature_space() if "feature_distance" in self.parts else None
        authorized = self._authorized()
        total = TotalLoss(
            task.settings.method,
            task.settings.loss,
            authorized=authorized,
            hacker=self._hacker() if "undistill" in self.parts else None,
            space=space,
            classes=task.store.classes,
            runtime=task.runtime,
        )
        generator = make_generator(settings, task.store, task.budget, seed=task.settings.seed)
        path = task.file("run", GENERATOR) if settings.imitate else task.file(GENERATOR)
        generator = self._trained(generator, total, settings, "generator", path)
        delta = None
        if task.settings.refine:
            delta = self._refined(generator, authorized, total)
            if settings.imitate:
                path = task.file(GENERATOR)
                generator = self._trained(generator, delta, settings.imitating(), "imitation", path)
        encoder = None if space is None else space.identity()
        return Perturbation(task.budget, generator, delta, self._details(), encoder)

    def _feature_space(self) -> FeatureSpace:
        """The caller's feature space, or the one that the settings name; a local one is trained unless it is there."""
        task = self.task
        if task.space is not None:
            return task.space
        name = task.settings.encoder
        with task.progress.stage(f"{name.partition(':')[0]} encoder") as on_progress:
            material = Material(
                task.store,
                task.runtime,
                seed=task.settings.seed,
                recipe=task.settings.encoder_recipe,
                path=task.file("encoder.safetensors"),
                progress=on_progress,
            )
            return open_encoder(name, material)

    def _authorized(self) -> list[Authorized]:
        """Authorised networks with their trajectories on the clean images, where a loss needs these."""
        if not self.parts & NEED_PATH:
            return []
        given = self.task.trajectories
        if given:
            return [Authorized(network, path) for network, path in zip(self.task.networks, given, strict=True)]
        return self._recorded(self.task.store, "round-0")

    def _recorded(self, store: PixelStore, name: str) -> list[Authorized]:
        """Authorised networks with their trajectories on ``store``, recorded unless they are there."""
        task, authorized = self.task, []
        for number, theta0 in enumerate(task.networks):
            place = task.file("run", name, f"trajectory-{number}")
            if place is not None and (place / "trajectory.json").is_file():
                path = Trajectory.load(place)
            else:
                with task.progress.stage(f"trajectory of {theta0.name} ({name})") as on_progress:
                    path = record_trajectory(
                        copy.deepcopy(theta0),
                        store,
                        task.settings.recipe,
                        seed=stream_seed(task.settings.seed, "trajectory", number),
                        runtime=task.runtime,
                        snapshots=task.settings.snapshots,
                        folder=place,
                        checkpoint=task.file("run", name, f"trajectory-{number}.checkpoint.safetensors"),
                        progress=on_progress,
                    )
            authorized.append(Authorized(copy.deepcopy(theta0), path))
        return authorized

    def _hacker(self) -> ImageClassifier:
        task, store = self.task, self.task.store
        seed = stream_seed(task.settings.seed, "hacker")
        network = build(task.settings.hacker, len(store.classes), channels=store.channels, size=store.size, seed=seed)
        return measure_statistics(network, store, seed=seed, runtime=task.runtime)

    def _trained(
        self,
        generator: Generator,
        total: TotalLoss | Records,
        settings: GeneratorSettings,
        name: str,
        path: Path | None,
    ) -> Generator:
        """Train a generator, or read it from ``path`` where that was done."""
        task = self.task
        if path is not None and path.is_file():
            return load_generator(path)
        with task.progress.stage(name) as on_progress:
            train_generator(
                generator,
                task.store,
                total,
                settings,
                seed=task.settings.seed,
                runtime=task.runtime,
                checkpoint=task.file("run", f"{name}.checkpoint.safetensors"),
                events=self.events,
                progress=on_progress,
            )
        if path is None:
            return generator
        save_perturber(path, generator)
        return load_generator(path)

    def _refined(self, generator: Generator, authorized: Sequence[Authorized], total: TotalLoss) -> Records:
        """Passes of direct optimisation between two files, so that an interrupted pass starts again."""
        task, settings = self.task, self.task.settings.refinement
        state = task.file("run", "refine.json")
        files = [delta_records(task.store, task.budget, task.file("run", f"delta-{side}")) for side in (0, 1)]
        if state is not None and state.is_file():
            first = int(read_json(state)["passes"])
        else:
            first = 0
            start_delta(task.runtime.place(generator), task.store, files[0], task.runtime)
            files[0].flush()
            _note_passes(state, first)
        for done in range(first, settings.rounds * settings.passes):
            round_number, inner = divmod(done, settings.passes)
            before, after = files[done % 2], files[(done + 1) % 2]
            if authorized and round_number and (inner == 0 or done == first):
                self._follow(authorized, total, before, round_number)
            losses = self._against_hackers(total, authorized, before, (round_number, inner))
            stage = f"refine round {round_number + 1}/{settings.rounds} pass {inner + 1}"
            with task.progress.stage(stage) as on_progress:
                refine_pass(
                    task.store,
                    before,
                    after,
                    losses,
                    task.budget,
                    step=max(1, round(settings.step * (1 - inner / settings.passes))),
                    batch_size=settings.batch_size,
                    by_class=settings.batches == "class",
                    seed=task.settings.seed,
                    name=(round_number, inner),
                    events=self.events,
                    progress=on_progress,
                )
            _note_passes(state, done + 1)
        return files[max(first, settings.rounds * settings.passes) % 2]

    def _follow(self, authorized: Sequence[Authorized], total: TotalLoss, delta: Records, round_number: int) -> None:
        """Record the networks' trajectories on the current protected images (on-policy)."""
        current = protected_store(self.task.store, delta, self.task.budget)
        for network, fresh in zip(authorized, self._recorded(current, f"round-{round_number}"), strict=True):
            network.trajectory = fresh.trajectory
        total.refresh_teachers()

    def _against_hackers(
        self, total: TotalLoss, authorized: Sequence[Authorized], delta: Records, name: tuple[int, int]
    ) -> Losses:
        """The loss of a pass, with that of hackers in the loop where there are any."""
        task, settings = self.task, self.task.settings.refinement
        if not settings.hacker_names:
            return total
        seen = task.store if settings.hacker_term == "target" else protected_store(task.store, delta, task.budget)
        teachers = trained_networks(authorized, task.runtime) if settings.hacker_term == "student" else []
        with task.progress.stage(f"hackers in the loop ({', '.join(settings.hacker_names)})"):
            pool = train_hackers(
                seen, settings, teachers=teachers, seed=task.settings.seed, name=name, runtime=task.runtime
            )
        return with_hackers(
            total, pool, settings, classes=len(task.store.classes), teachers=teachers, runtime=task.runtime
        )

    def _details(self) -> dict[str, Any]:
        settings = self.task.settings
        refinement = None
        if settings.refine:
            hackers = ",".join(public_name(name) for name in settings.refinement.hacker_names)
            refinement = settings.refinement.model_dump(mode="json") | {"hackers": hackers}
        return {
            "loss": settings.loss.model_dump(mode="json"),
            "generator": settings.generator.model_dump(mode="json"),
            "refinement": refinement,
            "training_size": self.task.store.size,
            "channels": self.task.store.channels,
            "recipe": settings.recipe.json_dict(),
        }


def _note_passes(state: Path | None, passes: int) -> None:
    if state is not None:
        write_json(state, {"passes": passes})
