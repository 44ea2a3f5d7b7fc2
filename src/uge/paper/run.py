"""Doing what an experiment needs and is not there yet, in this process or in several."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uge.config import ProtectConfig
from uge.errors import StorageError, UGEError
from uge.paper.kept_cases import Kept, Spec
from uge.paper.material import NotAtHandError, Workshop
from uge.paper.pictures import save_pictures
from uge.paper.plan import Plan
from uge.paper.scale import SEED_STRIDE
from uge.paper.specs import Copy, Federation, Unit
from uge.processes import Processes
from uge.progress import Silent
from uge.runtime import Runtime
from uge.session import Session

log = logging.getLogger(__name__)
_DIED = "the process that ran it died, twice; is there enough memory?"


def carry_out(
    todo: Plan, folder: Path, sources: dict[str, str], session: Session, *, workers: int = 1, overwrite: bool = False
) -> None:
    """Do what is not there yet. What fails is noted and stops nothing but a full disk does.

    Args:
        todo: What is wanted.
        folder: Where results are kept.
        sources: Data set to its source.
        session: Device, progress.
        workers: Processes.
        overwrite: Throw away what is there of it first.

    Raises:
        StorageError: Results cannot be written.
    """
    kept = Kept(folder)
    kept.keep_precision(session.runtime.precision)
    if overwrite:
        for spec in (spec for stage in todo.stages for spec in stage):
            kept.forget(spec)
    workshop = Workshop(kept, sources, session)
    stages = [sorted((spec for spec in stage if _pending(kept, todo, spec)), key=_by_data) for stage in todo.stages]
    if workers > 1:
        _side_by_side(stages, workshop, workers)
    else:
        for spec in (spec for stage in stages for spec in stage):
            attempt(workshop, spec, _ACTIONS[type(spec)])
    for copy, count in todo.pictured:
        if kept.result(copy) is not None:
            attempt(workshop, copy, functools.partial(_show, count=count))


def _pending(kept: Kept, todo: Plan, spec: Spec) -> bool:
    """Whether it may have to be done: a copy that nobody is going to train on is not made again."""
    if not isinstance(spec, Copy):
        return True
    pictured = any(copy == spec and not (kept.picture(copy) / "pictures.json").is_file() for copy, _ in todo.pictured)
    return pictured or any(kept.case(unit) is None for unit in (*todo.alone, *todo.taught) if unit.of == spec)


def attempt(workshop: Workshop, spec: Spec, action: Action) -> None:
    """Do one thing unless it is there, and note whether it failed.

    Raises:
        StorageError: Results cannot be written.
    """
    kept, progress = workshop.kept, workshop.session.progress
    try:
        action(workshop, spec)
    except StorageError:
        raise
    except NotAtHandError as error:
        progress.note(f"{spec.id}: left out, {error}")
    except UGEError as error:
        kept.keep_failure(spec, str(error))
        progress.note(f"{spec.id}: failed, {error}")
    except Exception as error:
        # One broken case must not cost the others a night; the traceback is in the log, the sentence in the table.
        log.exception("%s failed", spec.id)
        sentence = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        kept.keep_failure(spec, sentence)
        progress.note(f"{spec.id}: failed, {sentence}")
    else:
        kept.keep_failure(spec, None)


def _show(workshop: Workshop, spec: Spec, *, count: int) -> None:
    assert isinstance(spec, Copy)
    save_pictures(workshop, spec, count)


def _protect(workshop: Workshop, spec: Spec) -> None:
    assert isinstance(spec, Copy)
    workshop.protect(spec)


def _train(workshop: Workshop, spec: Spec) -> None:
    assert isinstance(spec, Unit)
    workshop.train(spec)


def _federate(workshop: Workshop, spec: Spec) -> None:
    """A federated run, its clean and its protected columns.

    Raises:
        UGEError: The images are not at hand, or a server failed.
    """
    from uge.federated.settings import Federation as Settings
    from uge.pipeline.federated import run_federated

    assert isinstance(spec, Federation)
    workshop.open(spec.images)
    if workshop.kept.result(spec) is not None:
        return
    source, began = workshop.sources[spec.images.name], time.monotonic()
    config = ProtectConfig.checked(
        **{
            **spec.settings,
            "authorized": spec.network,
            "authorized_seed": SEED_STRIDE * spec.seed,
            "method": spec.method,
            "rho": spec.rho,
            "limit": spec.images.limit,
            "size": spec.images.size,
            "seed": spec.seed,
            "recipe": spec.recipe,
        }
    )
    found = run_federated(
        source,
        workshop.kept.place("federations", spec),
        test=source,
        config=config,
        federation=Settings(servers=spec.servers, networks=",".join(spec.hackers)),
        limit_test=spec.images.limit_test,
        recipes=spec.recipes,
        session=replace(workshop.session, resume=True, overwrite=False),
    )
    columns = {name: {k: v for k, v in column.items() if k != "case"} for name, column in found["columns"].items()}
    about = {"seconds": round(time.monotonic() - began, 2), "environment": workshop.session.runtime.environment()}
    workshop.kept.keep_result(spec, {"columns": columns, "servers": found["servers"], **about})


Action = Callable[[Workshop, Spec], None]
_ACTIONS: dict[type[Spec], Action] = {Copy: _protect, Unit: _train, Federation: _federate}


def _by_data(spec: Spec) -> tuple[str, str]:
    """Cases of one copy follow one another, so that its images are read once."""
    copy = spec.of if isinstance(spec, Unit) else spec
    return copy.images.digest, copy.digest


def _side_by_side(stages: Sequence[Sequence[Spec]], workshop: Workshop, workers: int) -> None:
    """Every stage in several processes; each keeps the images that it read."""
    from uge.cases.shared_images import threads_each

    session, threads = workshop.session, threads_each(workers)
    args = (workshop.kept.folder, workshop.sources, str(session.runtime.device), session.runtime.precision, threads)
    opened = functools.partial(_opened, *args)
    with contextlib.closing(Processes[Spec, _Said](opened, workers, preload=__name__)) as processes:
        for number, stage in enumerate(stages):
            with session.progress.stage(f"stage {number + 1} of {len(stages)}") as on_progress:
                for done, (spec, said) in enumerate(processes.map(stage)):
                    if said is None:
                        workshop.kept.keep_failure(spec, _DIED)
                        session.progress.note(f"{spec.id}: failed, {_DIED}")
                        continue
                    for note in said.notes:
                        session.progress.note(note)
                    if said.full:
                        raise StorageError(said.full)
                    on_progress(done + 1, len(stage), {})


class _Notes(Silent):
    """Collects notes in a process that has no terminal."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@dataclass(frozen=True)
class _Said:
    """What another process tells of a specification: notes, and why the disk took no result."""

    notes: list[str]
    full: str = ""


def _opened(
    folder: Path, sources: dict[str, str], device: str, precision: str, threads: int
) -> Callable[[Spec], _Said]:
    import torch

    torch.set_num_threads(threads)
    notes = _Notes()
    workshop = Workshop(Kept(folder), sources, Session(Runtime.create(device, precision), notes))

    def do(spec: Spec) -> _Said:
        notes.texts = []
        try:
            attempt(workshop, spec, _ACTIONS[type(spec)])
        except StorageError as error:
            return _Said(notes.texts, str(error))
        return _Said(notes.texts)

    return do
