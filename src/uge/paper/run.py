"""Measurement of everything that an experiment lacks, in this process or in several."""

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.util import get_temp_dir
from pathlib import Path

import torch

from uge.cases.pool import threads_each
from uge.errors import StorageError, UGEError
from uge.files import locked, writes
from uge.paper.laboratory import Laboratory, NotAtHandError, save_pictures
from uge.paper.ledger import PaperLedger, Spec
from uge.paper.plan import Plan
from uge.paper.specs import Copy, Unit
from uge.processes import Processes
from uge.progress import Silent
from uge.runtime import Runtime
from uge.session import Session

log = logging.getLogger(__name__)


@writes("folder")
def carry_out(
    todo: Plan, folder: Path, sources: dict[str, str], session: Session, *, workers: int = 1, overwrite: bool = False
) -> None:
    """Measure everything that is not there yet. Failures are noted; only a full disk ends the run.

    Args:
        todo: The wanted specifications.
        folder: Folder of results.
        sources: Source of the images by data set.
        session: Device, progress.
        workers: Processes.
        overwrite: True throws the wanted results away first.

    Raises:
        StorageError: Results cannot be written.
        UsageError: Another process is writing the folder.
    """
    ledger = PaperLedger(folder)
    ledger.keep_precision(session.runtime.precision)
    if overwrite:
        for spec in (spec for stage in todo.stages for spec in stage):
            ledger.remove(spec)
    laboratory = Laboratory(ledger, sources, replace(session, resume=True, overwrite=False))
    stages = [sorted((spec for spec in stage if _pending(ledger, todo, spec)), key=_by_data) for stage in todo.stages]
    if workers > 1:
        _side_by_side(stages, laboratory, workers)
    else:
        for spec in (spec for stage in stages for spec in stage):
            attempt(laboratory, spec)
    for copy, count in todo.pictured:
        if ledger.result(copy) is not None:
            attempt(laboratory, copy, functools.partial(save_pictures, laboratory, copy, count))


def _pending(ledger: PaperLedger, todo: Plan, spec: Spec) -> bool:
    """True where it may have to be measured: a copy on which no network is to be trained is not made again."""
    if not isinstance(spec, Copy):
        return True
    pictured = any(
        copy == spec and not (ledger.place("pictures", copy) / "pictures.json").is_file() for copy, _ in todo.pictured
    )
    return pictured or any(ledger.case(unit) is None for unit in (*todo.alone, *todo.taught) if unit.of == spec)


def _by_data(spec: Spec) -> tuple[str, str]:
    """Sort key by which cases of one copy follow one another, so that its images are read once."""
    copy = spec.of if isinstance(spec, Unit) else spec
    return copy.images.digest, copy.digest


def attempt(laboratory: Laboratory, spec: Spec, action: Callable[[], object] | None = None) -> None:
    """Measure one specification unless it is there, and note a failure.

    Args:
        laboratory: Images, results, progress.
        spec: The specification.
        action: Does something else for it, for instance draws its pictures.

    Raises:
        StorageError: Results cannot be written.
    """
    try:
        action() if action else laboratory.measure(spec)
    except StorageError:
        raise
    except NotAtHandError as error:
        laboratory.session.progress.note(f"{spec.id}: left out, {error}")
    except UGEError as error:
        _fail(laboratory, spec, str(error))
    except Exception as error:
        # One broken case must not cost the others a night; the traceback is in the log, the sentence in the table.
        log.exception("%s failed", spec.id)
        _fail(laboratory, spec, f"unexpected {type(error).__name__}: {' '.join(str(error).split())}")
    else:
        laboratory.ledger.mend(spec.id)


def _fail(laboratory: Laboratory, spec: Spec, sentence: str) -> None:
    laboratory.ledger.fail(spec.id, sentence, fingerprint=laboratory.ledger.fingerprint(spec))
    laboratory.session.progress.note(f"{spec.id}: failed, {sentence}")


def _side_by_side(stages: Sequence[Sequence[Spec]], laboratory: Laboratory, workers: int) -> None:
    """Measure every stage in several processes; each keeps the images that it read."""
    progress = laboratory.session.progress
    runtime = laboratory.session.runtime
    settings = (laboratory.sources, str(runtime.device), runtime.precision, threads_each(workers))
    opened = functools.partial(_opened, laboratory.ledger.folder, *settings)
    with locked(laboratory.ledger.folder) as hold:
        hold.note(Path(get_temp_dir()))
    with contextlib.closing(Processes[Spec, tuple[list[str], str]](opened, workers, preload=__name__)) as processes:
        for number, stage in enumerate(stages):
            with progress.stage(f"stage {number + 1} of {len(stages)}") as on_progress:
                for done, (spec, answer) in enumerate(processes.map(stage)):
                    if answer is None:
                        _fail(laboratory, spec, "the process that ran it died, twice; is there enough memory?")
                        continue
                    notes, disk_error = answer
                    for note in notes:
                        progress.note(note)
                    if disk_error:
                        raise StorageError(disk_error)
                    on_progress(done + 1, len(stage), {})


class _Notes(Silent):
    texts: list[str]

    def note(self, text: str) -> None:
        self.texts.append(text)


def _opened(
    folder: Path, sources: dict[str, str], device: str, precision: str, threads: int
) -> Callable[[Spec], tuple[list[str], str]]:
    """Make the measurement of one specification: it returns notes, and the reason why the disk took no result."""
    torch.set_num_threads(threads)
    notes = _Notes()
    laboratory = Laboratory(
        PaperLedger(folder), sources, Session(Runtime.create(device, precision), notes, resume=True)
    )

    def answer(spec: Spec) -> tuple[list[str], str]:
        notes.texts = []
        try:
            attempt(laboratory, spec)
        except StorageError as error:
            return notes.texts, str(error)
        return notes.texts, ""

    return answer
