"""Places where cases are run: this process, several processes that share the decoded images, or Ray."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uge import extras
from uge.cases.case import Case, Job, Ledger
from uge.cases.material import CopyMaterial
from uge.data.store import PixelStore, Records
from uge.errors import DataError, UGEError, UsageError
from uge.files import storage_errors, write_atomic
from uge.processes import Processes
from uge.progress import Display, Progress
from uge.runtime import Runtime

SHARED = ".images-"
"""Start of the name of the folder, inside the ledger's, in which decoded images lie while workers run."""
_SETTINGS = ("recipe", "keys", "recipes", "seed", "plugins", "digests", "claims")


@dataclass(frozen=True)
class StoredImages:
    """Pixel store in a file that any process can open."""

    path: Path
    shape: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def write(cls, store: PixelStore, path: Path) -> StoredImages:
        """Write a store to a file.

        Raises:
            StorageError: The disk is full or read-only.
        """
        Records(len(store), store.pixels.shape, torch.uint8, path=path).copy(store.pixels)
        return cls(path, store.pixels.shape, tuple(store.labels.tolist()), store.classes)

    def open(self, device: torch.device) -> PixelStore:
        """The store; on a CPU it reads the file, which all processes share, on another device it is copied there."""
        count = len(self.labels)
        pixels = Records(count, self.shape, torch.uint8, device=device, path=self.path)
        if device.type != "cpu":
            resident = Records(count, self.shape, torch.uint8, device=device)
            resident.copy(pixels)
            pixels = resident
        return PixelStore(pixels, torch.tensor(self.labels, device=device), self.classes)


@dataclass(frozen=True)
class HeldImages:
    """Pixel store in Ray's object store, which reaches every machine of a cluster."""

    pixels: Any
    shape: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def put(cls, stored: StoredImages) -> HeldImages:
        """Put a store into the object store."""
        values = np.fromfile(stored.path, np.uint8).reshape(len(stored.labels), *stored.shape)
        return cls(require_ray().put(values), stored.shape, stored.labels, stored.classes)

    def open(self, device: torch.device) -> PixelStore:
        """The store, in the memory of this process."""
        values = require_ray().get(self.pixels)
        pixels = Records(len(self.labels), self.shape, torch.uint8, device=device)
        for rows in torch.split(torch.arange(len(self.labels)), 1000):
            pixels.write(rows, torch.from_numpy(values[rows.numpy()]))
        return PixelStore(pixels, torch.tensor(self.labels, device=device), self.classes)


@dataclass(frozen=True)
class Setup:
    """Description of material from which another process opens it.

    Attributes:
        folder: Folder of the ledger.
        images: Images by name, :class:`StoredImages` or :class:`HeldImages`.
        settings: Recipes, keys, seed and digests.
        device: Name of the device.
        precision: As for :meth:`uge.runtime.Runtime.create`.
        threads: Threads of each process.
    """

    folder: Path
    images: Mapping[str, Any]
    settings: Mapping[str, Any]
    device: str
    precision: str
    threads: int

    def open(self) -> CopyMaterial:
        """The material, in this process, which takes its share of the threads."""
        torch.set_num_threads(self.threads)
        runtime = Runtime.create(_own(self.device), self.precision)
        stores: dict[str, Any] = {name: images.open(runtime.device) for name, images in self.images.items()}
        return CopyMaterial(self.folder, runtime=runtime, **stores, **self.settings)


def _own(device: str) -> str:
    """Device of this process: workers, which have successive numbers, take the GPUs of a machine in turn."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{os.getpid() % count}" if count > 1 else device


@contextlib.contextmanager
def shared(material: CopyMaterial, workers: int) -> Iterator[Setup]:
    """Describe material for other processes, with its images in files for as long as the block lasts.

    The files are read, not copied: the system keeps for all processes the parts that one of them has read. Those that
    a killed run left are removed when the next one takes the lock of the folder (:mod:`uge.files.pair`).

    Args:
        material: The material.
        workers: Processes; they divide this process's threads among them.

    Raises:
        StorageError: The disk is full or read-only.
    """
    place = material.folder / f"{SHARED}{os.getpid()}"
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    try:
        yield Setup(
            material.folder,
            {name: StoredImages.write(store, place / f"{name}.uint8") for name, store in material.stores.items()},
            {name: getattr(material, name) for name in _SETTINGS},
            str(material.runtime.device),
            material.runtime.precision,
            threads_each(workers),
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def threads_each(workers: int) -> int:
    """Threads of each of several processes, out of those of this one."""
    return max(1, torch.get_num_threads() // workers)


@dataclass(frozen=True)
class Outcome:
    """End of a job.

    Attributes:
        job: The job.
        case: Its case; None where there is none.
        seconds: Duration, with the preparations of the attack.
        error: Reason of a failure, in one sentence.
        killed: True where the process that ran the job died.
        exit_code: Exit code of an error that ends the whole audit; 0 for any other.
    """

    job: Job
    case: Case | None = None
    seconds: float = 0.0
    error: str = ""
    killed: bool = False
    exit_code: int = 0


class Serial:
    """Runs one job after the other in this process, with a progress bar for each."""

    size = 1

    def __init__(self, material: CopyMaterial, progress: Display) -> None:
        self.running = list[Job]()
        self._material = material
        self._progress = progress
        self._name = ""

    def start(self, job: Job, name: str) -> None:
        """Note a job, only where none is running; ``name`` is for the progress."""
        self.running.append(job)
        self._name = name

    def wait(self) -> list[Outcome]:
        """Run the job.

        Raises:
            UGEError: A setting, a file or the disk is wrong, so that going on makes no sense.
        """
        with self._progress.stage(self._name) as on_progress:
            return [attempt(self.running.pop(), self._material, on_progress)]


class Workers:
    """Runs jobs in other processes, with a line for each case; a process that dies takes only its own job with it."""

    def __init__(self, remote: LocalProcesses | RayActors, progress: Display) -> None:
        self.size = remote.size
        self._remote = remote
        self._progress = progress
        self._names: dict[Job, str] = {}

    @property
    def running(self) -> list[Job]:
        """Jobs that were started and are not over."""
        return self._remote.running

    def start(self, job: Job, name: str) -> None:
        """Start a job, only where fewer than ``size`` are running; ``name`` is for the progress."""
        self._names[job] = name
        self._remote.start(job)

    def wait(self) -> list[Outcome]:
        """Wait for at least one running job.

        Raises:
            UGEError: A setting, a file or the disk is wrong, so that going on makes no sense.
        """
        outcomes = list[Outcome]()
        for job, answer in self._remote.wait():
            outcome = answer or Outcome(job, error="the process that ran it died", killed=True)
            if outcome.exit_code:
                raise (UsageError if outcome.exit_code == UsageError.exit_code else DataError)(outcome.error)
            if (case := outcome.case) is not None:
                figures = f"last {case.last:.2f}  best {case.best:.2f}"
                self._progress.note(f"{self._names[job]}: done in {outcome.seconds:.1f} s  {figures}")
            outcomes.append(outcome)
        return outcomes


def attempt(job: Job, material: CopyMaterial, on_progress: Progress | None = None) -> Outcome:
    """Outcome of a job; an unexpected error becomes one, too.

    Raises:
        UGEError: A setting, a file or the disk is wrong.
    """
    began = time.perf_counter()
    try:
        case = material.run(job, on_progress)
    except UGEError:
        raise
    except Exception as error:
        sentence = " ".join(f"unexpected {type(error).__name__}: {error}".split())
        return Outcome(job, seconds=time.perf_counter() - began, error=sentence)
    return Outcome(job, case, time.perf_counter() - began)


class Trainer:
    """Runs jobs in a process of its own, which opens the material once; all errors become outcomes, to be sent."""

    def __init__(self, setup: Setup) -> None:
        self._open = functools.cache(setup.open)

    def run(self, job: Job) -> Outcome:
        """Outcome of a job."""
        try:
            return attempt(job, self._open())
        except UGEError as error:
            return Outcome(job, error=str(error), exit_code=error.exit_code)

    __call__ = run


class LocalProcesses(Processes[Job, Outcome]):
    """Processes of this machine.

    Args:
        setup: Material that every process opens.
        size: Processes.
    """

    def __init__(self, setup: Setup, size: int) -> None:
        super().__init__(functools.partial(Trainer, setup), size, preload=__name__)


def require_ray() -> Any:
    """The library Ray.

    Raises:
        MissingExtraError: It is not installed.
    """
    return extras.load("ray", "ray", "the executor 'ray'")


class Away:
    """Runs jobs on a machine of a cluster, which need not see a file of the one that asks.

    Keys and trained networks come as bytes, and lie in a folder of this process, which its user alone may read.

    Args:
        setup: Material; its images are in the object store.
        keys: Key files.
    """

    def __init__(self, setup: Setup, keys: Sequence[bytes]) -> None:
        self._ledger = Ledger(Path(tempfile.mkdtemp(prefix="uge-")))
        paths = [self._ledger.folder / f"key-{number}.safetensors" for number in range(len(keys))]
        for path, content in zip(paths, keys, strict=True):
            write_atomic(path, content, secret=True)
        settings = {**setup.settings, "keys": paths}
        self._trainer = Trainer(replace(setup, folder=self._ledger.folder, settings=settings))

    def run(self, job: Job, networks: Mapping[str, bytes]) -> tuple[Outcome, dict[str, bytes]]:
        """Outcome of a job, and the network that it trained where later jobs need it.

        Args:
            job: The job.
            networks: Trained networks by id, for a job that learns from one.
        """
        for name, content in networks.items():
            write_atomic(self._ledger.weights(name), content, secret=True)
        outcome = self._trainer.run(job)
        path = self._ledger.weights(job.id)
        return outcome, {job.id: path.read_bytes()} if job.teaches and path.is_file() else {}


class RayActors:
    """Runs jobs in actors of Ray (extra ``ray``), on the cluster of ``RAY_ADDRESS`` or on one that is started here.

    Images reach the actors through the object store; keys and trained networks go with the jobs. A GPU is divided among
    as many actors as come to it.

    Args:
        setup: Material that every actor opens.
        size: Actors.
    """

    def __init__(self, setup: Setup, size: int) -> None:
        ray = require_ray()
        self.size = size
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(**cluster(size * setup.threads))
        images = {name: HeldImages.put(stored) for name, stored in setup.images.items()}
        self._setup = replace(setup, images=images)
        self._keys = [Path(path).read_bytes() for path in setup.settings["keys"]]
        self._ledger = Ledger(setup.folder)
        gpus = {"num_gpus": gpu_share(size)} if setup.device.startswith("cuda") else {}
        self._class = ray.remote(num_cpus=setup.threads, max_restarts=0, **gpus)(Away)
        self._idle = list[Any]()
        self._busy = dict[Any, tuple[Job, Any]]()

    @property
    def running(self) -> list[Job]:
        """Jobs that were started and are not over."""
        return [job for job, _ in self._busy.values()]

    def start(self, job: Job) -> None:
        """Hand a job to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._class.remote(self._setup, self._keys)
        known = (self._ledger.folder / "weights").glob("*.safetensors") if job.taught else ()
        networks = {path.stem: path.read_bytes() for path in known}
        self._busy[actor.run.remote(job, networks)] = (job, actor)

    def wait(self) -> list[tuple[Job, Outcome | None]]:
        """Wait for a job; its outcome is None where its actor died."""
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        job, actor = self._busy.pop(ready[0])
        try:
            outcome, networks = self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError:
            return [(job, None)]
        for name, content in networks.items():
            write_atomic(self._ledger.weights(name), content, secret=True)
        self._idle.append(actor)
        return [(job, outcome)]

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        for actor in [*self._idle, *(actor for _, actor in self._busy.values())]:
            self._ray.kill(actor)
        self._idle.clear()
        self._busy.clear()
        if self._started:
            self._ray.shutdown()


def cluster(cpus: int) -> dict[str, Any]:
    """Arguments of ``ray.init``: a running cluster has its own counts, one that is started here is given them."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    return quiet if os.environ.get("RAY_ADDRESS") else {**quiet, "num_cpus": cpus, "include_dashboard": False}


def gpu_share(actors: int) -> float:
    """GPUs of each of several actors, so that these use all that the cluster has, and at most one each."""
    return min(1.0, float(require_ray().cluster_resources().get("GPU", 0.0)) / actors)


EXECUTORS: dict[str, type[LocalProcesses | RayActors]] = {"local": LocalProcesses, "ray": RayActors}
"""Kinds of processes by name."""


Pool = Serial | Workers


@contextlib.contextmanager
def open_pool(material: CopyMaterial, executor: str, workers: int, progress: Display) -> Iterator[Pool]:
    """Open the place where jobs run, for as long as the block lasts.

    Args:
        material: Material of all jobs.
        executor: A name in :data:`EXECUTORS`.
        workers: Jobs that run at the same time; 1 with ``local`` runs them in this process.
        progress: Shows jobs.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
        StorageError: The shared images cannot be written.
    """
    if executor == "local" and workers == 1:
        yield Serial(material, progress)
    else:
        with shared(material, workers) as setup, contextlib.closing(EXECUTORS[executor](setup, workers)) as remote:
            yield Workers(remote, progress)
