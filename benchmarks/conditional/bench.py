"""The cases of the yardstick: protecting, and training every network on what was published."""

from __future__ import annotations

import ast
import copy
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from conditional.summary import finished_case
from uge.cases.case import Case, Data, Role, Start, case_id, write_case
from uge.cases.keys import key_recipe
from uge.cases.run import load_trained, measured
from uge.config import ProtectConfig, PublishConfig
from uge.data import load_images
from uge.data.store import load_pixels
from uge.errors import UsageError
from uge.files import JSON, fingerprint, read_json, write_json
from uge.learning.objectives import Objective, distillation, supervised
from uge.learning.recipes import Recipe
from uge.learning.resume import save_checkpoint
from uge.learning.training import DivergedError, fit
from uge.names import behind_key
from uge.networks import build, from_weights, weights_hash
from uge.pipeline.private_folder import key_path
from uge.pipeline.protect import ProtectRun
from uge.progress import Display, Silent
from uge.publishing import private_folder
from uge.runtime import Runtime, stream_seed
from uge.session import Session

YARDSTICK = 1
"""Goes up when the cases change; older cases are run again then."""
KINDS: dict[str, tuple[Role, Start, str, Data]] = {
    "authorized": ("authorized", "theta0", "direct", "protected"),
    "plain": ("hacker", "random", "direct", "protected"),
    "distill": ("hacker", "random", "distill", "protected"),
    "control": ("clean", "theta0", "direct", "clean"),
    "clean": ("clean", "random", "direct", "clean"),
    "variant": ("authorized", "theta0", "direct", "protected"),
}


@dataclass(frozen=True)
class Setup:
    """What a process needs to run any case: where data and results lie, how much is used of them, the seed."""

    data: str
    results: Path
    label: str
    seed: int
    limit: int
    limit_test: int | None
    epochs: int
    hackers: tuple[str, ...]
    device: str

    @property
    def published(self) -> Path:
        return self.results / "published" / self.label

    @property
    def folder(self) -> Path:
        return self.results / self.label


@dataclass(frozen=True)
class Job:
    """One case that is to be; ``kind`` is a key of ``KINDS``, ``order`` the root of data order and augmentation."""

    kind: str
    network: str
    recipe: Recipe
    order: int
    variant: str = ""


def plan(setup: Setup, authorized: str, own: Recipe) -> list[Job]:
    """Every case, the most important first; ``own`` is the authorised network's recipe."""
    standard, order = Recipe(epochs=setup.epochs), stream_seed(setup.seed, "conditional", "order")
    strangers = list(dict.fromkeys([*setup.hackers, behind_key(authorized)]))
    # The authorised architecture itself is among the hackers, if it is a keyed one with a key of its own.
    hackers = list(dict.fromkeys([*strangers, authorized]))
    jobs = [Job("authorized", authorized, own, order)]
    jobs += [Job(kind, name, standard, order) for kind in ("plain", "distill") for name in hackers]
    jobs += [Job("control", authorized, own, order)]
    jobs += [Job("clean", name, standard, order) for name in strangers]
    jobs += [Job("variant", authorized, own, stream_seed(setup.seed, "trajectory", 0), "protector-order")]
    changes: JSON = {
        "batch-x2": {"batch_size": 2 * own.batch_size},
        "lr-x0.5": {"lr": own.lr / 2},
        "lr-x2": {"lr": own.lr * 2},
    }
    jobs += [Job("variant", authorized, own.model_copy(update=new), order, name) for name, new in changes.items()]
    return jobs + [Job("plain", name, own, order, "authorized-recipe") for name in hackers if own != standard]


class Bench:
    """Runs cases on a published folder, read from disk."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.runtime = setup, Runtime.create(setup.device)
        key = key_path(private_folder(setup.published), 0)
        self.theta0, self.own = from_weights(key), key_recipe(key)
        sets = {
            "protected": load_images(setup.published),
            "clean": load_images(setup.data, "train", setup.limit),
            "test": load_images(setup.data, "test", setup.limit_test),
        }
        shape: JSON = {"size": self.theta0.size, "channels": self.theta0.channels, "device": self.runtime.device}
        self.stores = {name: load_pixels(images, **shape) for name, images in sets.items()}
        if list(sets["protected"].ids) != list(sets["clean"].ids) or len({one.classes for one in sets.values()}) != 1:
            raise UsageError(f"{setup.published} was not made from these images; choose another results folder")
        self.digests = {name: store.digest() for name, store in self.stores.items()}
        self.start = [weights_hash(self.theta0), code_digest(self.theta0)]
        self.jobs = plan(setup, self.theta0.name, self.own)

    def fingerprint(self, job: Job) -> str:
        _, start, scheme, data = KINDS[job.kind]
        parts = {"yardstick": YARDSTICK, "seed": self.setup.seed, "precision": self.runtime.precision}
        parts |= {"job": {**vars(job), "recipe": job.recipe.json_dict()}, "theta0": self.start}
        parts |= {"data": self.digests[data], "test": self.digests["test"]}
        if start == "random":
            parts["theta0"] = self.fingerprint(self.jobs[0]) if scheme == "distill" else None
        return fingerprint(parts)

    def id(self, job: Job) -> str:
        """Clean controls of several methods share a folder, so part of their fingerprint is in their name."""
        role, start, scheme, data = KINDS[job.kind]
        variant = self.fingerprint(job)[:8] if data == "clean" else job.variant
        return case_id(role, job.network, scheme, data, self.setup.seed, start=start, variant=variant)

    def cases(self, job: Job) -> Path:
        return (self.setup.results / "clean" if KINDS[job.kind][3] == "clean" else self.setup.folder) / "cases"

    def finished(self, job: Job) -> bool:
        found = finished_case(self.cases(job), self.id(job), self.fingerprint(job)) is not None
        return found and (job.kind != "authorized" or self._trained(job) is not None)

    def run(self, job: Job, progress: Display | None = None) -> Case:
        """Train and test one network, write its case, and return it."""
        role, start, scheme, data = KINDS[job.kind]
        network, recipe = self._network(job), job.recipe
        objective: Objective = supervised
        if scheme == "distill":
            teacher = self._trained(self.jobs[0])
            if teacher is None:
                raise UsageError(f"{self.id(job)} needs the trained authorised network; run that case first")
            teacher = self.runtime.place(teacher)
            objective = distillation(teacher, temperature=recipe.temperature, alpha=recipe.alpha)
        with (progress or Silent()).stage(self.id(job)) as on_progress:
            try:
                history = fit(
                    network,
                    self.stores[data],
                    recipe,
                    seed=job.order,
                    runtime=self.runtime,
                    objective=objective,
                    test=self.stores["test"],
                    progress=on_progress,
                )
            except DivergedError as error:  # A result like any other.
                history = error.history
        if job.kind == "authorized":
            save_checkpoint(self._weights(job), {"network": network}, None, {"fingerprint": self.fingerprint(job)})
        case = Case(
            id=self.id(job),
            role=role,
            network=job.network,
            start=start,
            scheme=scheme,
            data=data,
            seed=self.setup.seed,
            **measured(history, recipe, self.runtime, classes=self.theta0.classes, size=self.theta0.size),
            fingerprint=self.fingerprint(job),
        )
        write_case(self.cases(job), case)
        return case

    def _network(self, job: Job) -> nn.Module:
        if KINDS[job.kind][1] == "theta0":
            return copy.deepcopy(self.theta0)
        seed, one = stream_seed(self.setup.seed, "conditional", "network", job.network), self.theta0
        return build(job.network, one.classes, channels=one.channels, size=one.size, seed=seed)

    def _weights(self, job: Job) -> Path:
        return self.setup.folder / "weights" / f"{self.id(job)}.safetensors"

    def _trained(self, job: Job) -> nn.Module | None:
        return load_trained(self._weights(job), self._network(job), self.fingerprint(job))


def code_digest(network: nn.Module) -> str:
    """Digest of the modules that this package's layers in a network come from, comments and blanks aside.

    What a keyed network does can change while its weights do not; its cases are then run again.
    """
    names = {type(layer).__module__ for layer in network.modules()}
    return fingerprint(
        {name: ast.dump(ast.parse(inspect.getsource(sys.modules[name]))) for name in names if name.startswith("uge.")}
    )


_BENCH: list[Bench] = []


def start_worker(setup: Setup) -> None:
    torch.set_num_threads(1)
    _BENCH[:] = [Bench(setup)]


def run_in_worker(job: Job) -> Case:
    return _BENCH[0].run(job)


def run_jobs(bench: Bench, jobs: Sequence[Job], workers: int, progress: Display) -> Iterator[Case]:
    """Run the jobs in order, the teacher before its students; gives every case when it is finished."""
    if workers == 1:
        yield from (bench.run(job, progress) for job in jobs)
        return
    pending, running = list(jobs), dict[Future[Case], Job]()
    options: JSON = {"mp_context": get_context("spawn"), "initializer": start_worker, "initargs": (bench.setup,)}
    with ProcessPoolExecutor(workers, **options) as pool:
        while pending or running:
            untaught = any(job.kind == "authorized" for job in (*pending, *running.values()))
            ready = [job for job in pending if job.kind != "distill" or not untaught]
            for job in ready[: workers - len(running)]:
                pending.remove(job)
                running[pool.submit(run_in_worker, job)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                case = future.result()
                progress.note(f"{case.id}: last {case.last:.2f}, best {case.best:.2f}, {case.seconds:.0f} s")
                yield case


def protect(setup: Setup, fields: JSON, session: Session) -> JSON:
    """Protect, unless it is done; how long that took in seconds, and whether a part was done by an earlier call.

    Raises:
        UsageError: The folder was made with other settings.
    """
    record, asked = setup.folder / "protect.json", {"data": Path(setup.data).name, **fields}
    if record.is_file() and (setup.published / "manifest.json").is_file():
        found = read_json(record)
        if found["asked"] != asked:
            raise UsageError(f"{setup.published} was protected with other settings; give another --label")
        return found
    resumed, began = private_folder(setup.published).exists(), time.perf_counter()
    ProtectRun(setup.data, setup.published, ProtectConfig.checked(**fields), PublishConfig(), session).run()
    found = {"asked": asked, "seconds": round(time.perf_counter() - began, 1), "resumed": resumed}
    write_json(record, found | {"environment": session.runtime.environment()})
    return read_json(record)
