"""Stages of the paper's method: trajectories, encoder, generator, refinement, imitation.

With a private folder every stage leaves its result there, so that a killed run resumes; without one all stays in
memory. The resulting bytes are the same.
"""

import copy
from pathlib import Path
from typing import Any

from uge.data.store import PixelStore, Records
from uge.encoders import FeatureSpace, Material, open_encoder
from uge.files import EventLog, read_json, write_json
from uge.learning.trajectory import Trajectory, record_trajectory
from uge.methods.apply import GENERATOR, load_generator, save_perturber
from uge.methods.base import Perturbation, Task, public_name
from uge.methods.uge.generator import Generator, delta_records
from uge.methods.uge.hackers import Losses, train_hackers, with_hackers
from uge.methods.uge.losses import Authorized, TotalLoss, trained_networks
from uge.methods.uge.protector import make_generator, protected_store, refine_pass, start_delta, train_generator
from uge.methods.uge.settings import NEED_PATH, GeneratorSettings
from uge.methods.uge.undistill import measure_statistics
from uge.networks import ImageClassifier, build
from uge.runtime import stream_seed


class Stages:
    """The stages of one task.

    Args:
        task: Images, settings, networks, folder.
        parts: Losses that are used (:data:`uge.methods.uge.settings.LOSSES`).
    """

    def __init__(self, task: Task, parts: frozenset[str]) -> None:
        self.task = task
        self.parts = parts
        self.events = EventLog(task.file("protect.jsonl"))

    def run(self) -> Perturbation:
        """Do every stage that is not done yet.

        Raises:
            UGEError: A stage failed; finished stages stay in the folder.
        """
        task = self.task
        settings = task.settings.generator
        space = self._feature_space() if "feature_distance" in self.parts else None
        total = TotalLoss(
            task.settings.method,
            task.settings.loss,
            authorized=self._authorized(),
            hacker=self._hacker(stream_seed(task.settings.seed, "hacker")) if "undistill" in self.parts else None,
            fresh_hacker=self._hacker,
            space=space,
            classes=task.store.classes,
            runtime=task.runtime,
        )
        generator = make_generator(settings, task.store, task.budget, seed=task.settings.seed)
        path = task.file("run", GENERATOR) if settings.imitate else task.file(GENERATOR)
        generator = self._trained(generator, total, settings, "generator", path)
        delta = self._refined(generator, total) if task.settings.refine else None
        if delta is not None and settings.imitate:
            settings = settings.model_copy(update={"max_steps": settings.imitate})
            generator = self._trained(generator, delta, settings, "imitation", task.file(GENERATOR))
        return Perturbation(task.budget, generator, delta, self._details(), None if space is None else space.identity())

    def _feature_space(self) -> FeatureSpace:
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
        if not self.parts & NEED_PATH:
            return []
        if self.task.trajectories:
            return [Authorized(*pair) for pair in zip(self.task.networks, self.task.trajectories, strict=True)]
        return self._recorded(self.task.store, "round-0")

    def _recorded(self, store: PixelStore, name: str) -> list[Authorized]:
        """Authorised networks with their trajectories on ``store``, recorded unless they are there."""
        task = self.task
        authorized = []
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

    def _hacker(self, seed: int) -> ImageClassifier:
        store = self.task.store
        network = build(
            self.task.settings.hacker, len(store.classes), channels=store.channels, size=store.size, seed=seed
        )
        return measure_statistics(network, store, seed=seed, runtime=self.task.runtime)

    def _trained(
        self,
        generator: Generator,
        total: TotalLoss | Records,
        settings: GeneratorSettings,
        name: str,
        path: Path | None,
    ) -> Generator:
        if path is None or not path.is_file():
            with self.task.progress.stage(name) as on_progress:
                train_generator(
                    generator,
                    self.task.store,
                    total,
                    settings,
                    seed=self.task.settings.seed,
                    runtime=self.task.runtime,
                    checkpoint=self.task.file("run", f"{name}.checkpoint.safetensors"),
                    events=self.events,
                    progress=on_progress,
                )
            if path is not None:
                save_perturber(path, generator)
        return generator if path is None else load_generator(path)

    def _refined(self, generator: Generator, total: TotalLoss) -> Records:
        """Passes of direct optimisation between two files, so that an interrupted pass starts again."""
        task = self.task
        settings = task.settings.refinement
        state = task.file("run", "refine.json")
        files = [delta_records(task.store, task.budget, task.file("run", f"delta-{side}")) for side in (0, 1)]
        first = 0
        if state is not None and state.is_file():
            first = int(read_json(state)["passes"])
        else:
            start_delta(task.runtime.place(generator), task.store, files[0], task.runtime)
            files[0].flush()
            _note_passes(state, first)
        for done in range(first, settings.rounds * settings.passes):
            round_number, inner = divmod(done, settings.passes)
            before = files[done % 2]
            if total.authorized and round_number and (inner == 0 or done == first):
                # On-policy: the networks' trajectories on the current protected images are matched.
                current = protected_store(task.store, before, task.budget)
                total.follow(self._recorded(current, f"round-{round_number}"))
            losses = self._against_hackers(total, before, (round_number, inner))
            name = f"refine round {round_number + 1}/{settings.rounds} pass {inner + 1}"
            with task.progress.stage(name) as on_progress:
                refine_pass(
                    task.store,
                    before,
                    files[(done + 1) % 2],
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

    def _against_hackers(self, total: TotalLoss, delta: Records, name: tuple[int, int]) -> Losses:
        """The loss of a pass, with that of hackers in the loop where there are any."""
        task = self.task
        settings = task.settings.refinement
        if not settings.hacker_names:
            return total
        seen = task.store if settings.hacker_term == "target" else protected_store(task.store, delta, task.budget)
        teachers = trained_networks(total.authorized, task.runtime) if settings.hacker_term == "student" else []
        with task.progress.stage(f"hackers in the loop ({', '.join(settings.hacker_names)})"):
            pool = train_hackers(
                seen, settings, teachers=teachers, seed=task.settings.seed, name=name, runtime=task.runtime
            )
        return with_hackers(
            total, pool, settings, classes=len(task.store.classes), teachers=teachers, runtime=task.runtime
        )

    def _details(self) -> dict[str, Any]:
        settings = self.task.settings
        hackers = map(public_name, settings.refinement.hacker_names)
        refinement = settings.refinement.model_dump(mode="json") | {"hackers": ",".join(hackers)}
        return {
            "loss": settings.loss.model_dump(mode="json"),
            "generator": settings.generator.model_dump(mode="json"),
            "refinement": refinement if settings.refine else None,
            "training_size": self.task.store.size,
            "channels": self.task.store.channels,
            "recipe": settings.recipe.json_dict(),
        }


def _note_passes(state: Path | None, passes: int) -> None:
    if state is not None:
        write_json(state, {"passes": passes})
