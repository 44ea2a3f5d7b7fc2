"""One lock for each output, held while a command writes it, and recovery of what a killed command left."""

import contextlib
import functools
import hashlib
import inspect
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import process as processes
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from uge.errors import StorageError, UsageError
from uge.files.documents import check_kind, storage_errors
from uge.files.pair import Journal, Move, discard

Params = ParamSpec("Params")
Result = TypeVar("Result")
log = logging.getLogger(__name__)
_PATIENCE = 10.0
"""Seconds that a reader waits while another process lets a new output take its place."""
_UNNAMED = 2.0
"""Seconds until a lock counts as held although its holder has not written its name yet."""


class Hold:
    """The lock of an output in this process.

    Attributes:
        place: The output, without links.
        journal: Record of this run beside it.
    """

    def __init__(self, place: Path, journal: Journal) -> None:
        self.place = place
        self.journal = journal
        self.process = os.getpid()

    def covers(self, *places: Path) -> None:
        """Add outputs of this run, so that their leftovers are removed after a kill."""
        new = [place for place in map(_unlinked, places) if place not in self.journal.places]
        if new:
            self.journal.places += new
            self.journal.write()

    def note(self, folder: Path) -> None:
        """Add a temporary folder of the operating system that a kill would leave."""
        if folder not in self.journal.temporary:
            self.journal.temporary.append(folder)
            self.journal.write()

    @contextlib.contextmanager
    def staged(self, place: Path, *, mode: int = 0o755) -> Iterator[Path]:
        """New folder beside a place; it is removed after the block unless it was moved."""
        place = _unlinked(place)
        self.covers(place)
        staging = self.journal.beside(place, "staging")
        discard(staging)
        staging.mkdir(mode=mode)
        try:
            yield staging
        finally:
            if not self.journal.moves:  # An interrupted exchange is completed when the lock is released.
                discard(staging)

    def exchange(self, moves: Sequence[Move]) -> None:
        """Let finished files and folders take their places together: all of them, whenever this process is killed.

        Args:
            moves: What is finished, and its place. It is a folder of :meth:`staged`, a file in one, or ``PLACE.new``.
        """
        self.journal.exchange([(_unlinked(new), _unlinked(place)) for new, place in moves])

    def remove(self, folder: Path) -> None:
        """Remove a folder so that no part of it stays in its place, whenever this process is killed."""
        folder = _unlinked(folder)
        if folder.exists():
            self.covers(folder)
            retired = self.journal.beside(folder, "retired")
            folder.rename(retired)
            discard(retired)


class _Held(threading.local):
    def __init__(self) -> None:
        self.holds: dict[Path, Hold] = {}


_HELD = _Held()


@contextlib.contextmanager
def locked(out: Path, *, wait: bool = False) -> Iterator[Hold]:
    """Hold the lock of an output for a block; what a killed run left there is completed or removed first.

    A block inside another one on the same output holds the same lock. The lock is a file beside the output, or in a
    folder of the user for temporary files where no file can be made there. It is bound to the process: a kill frees it.

    Args:
        out: Output file or folder.
        wait: Wait for a process that holds the lock instead of refusing.

    Raises:
        UsageError: Another process, or another thread of this one, holds the lock; or ``out`` can be no output.
        StorageError: The disk is full or read-only.
    """
    with storage_errors(out):
        check_kind(out)
        place = _unlinked(out)
    if not place.name:
        raise UsageError(f"the output cannot be {out}; name a folder inside it")
    hold = _HELD.holds.get(place)
    if hold is not None and hold.process == os.getpid():
        yield hold
        return
    made: list[Path] = []
    with storage_errors(out):
        lock = _acquire(out, place, -1 if wait else 0, made)
    try:
        with storage_errors(out):
            hold = Hold(place, _taken_over(place))
        _HELD.holds[place] = hold
        yield hold
    finally:
        _HELD.holds.pop(place, None)
        try:
            if hold is not None:
                with storage_errors(out):
                    hold.journal.complete()
                hold.journal.remove()
        finally:
            _release(lock, made)


def writes(parameter: str) -> Callable[[Callable[Params, Result]], Callable[Params, Result]]:
    """Decorate a function that writes an output: it holds the output's lock while it runs.

    There is no second lock inside a folder that this thread holds already.

    Args:
        parameter: Parameter with the output's path; where it is None, or the parameter ``session`` says that nothing
            is written, there is no lock.
    """

    def decorate(function: Callable[Params, Result]) -> Callable[Params, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def under_lock(*args: Params.args, **kwargs: Params.kwargs) -> Result:
            arguments = signature.bind(*args, **kwargs).arguments
            out = arguments.get(parameter)
            if out is None or getattr(arguments.get("session"), "dry_run", False) or holding(out):
                return function(*args, **kwargs)
            with locked(out):
                return function(*args, **kwargs)

        return under_lock

    return decorate


def holding(place: Path) -> Hold | None:
    """Innermost lock of this thread on an output or on a folder that it lies in; None without one."""
    place = _unlinked(place)
    for parent in (place, *place.parents):
        hold = _HELD.holds.get(parent)
        if hold is not None and hold.process == os.getpid():
            return hold
    return None


def recover(path: Path) -> None:
    """Complete or remove what a killed run left at a file or folder, before it is read.

    Nothing happens where no run was killed, or where another run is at work.

    Args:
        path: Output, or its private folder.

    Raises:
        StorageError: A killed run left the output half exchanged, and it cannot be completed here.
        UsageError: Another process has been exchanging the output for too long.
    """
    name = path.name.removesuffix(".new").removesuffix(".private")
    try:
        place = _unlinked(path.with_name(name) if name else path)
        lock, journal = _beside(place)
        if not place.name or not (journal.exists() or lock.exists()) or place in _HELD.holds:
            return
    except (OSError, ValueError):
        return  # Such a path has no output; the reader says so.
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with locked(place):
                return
        except UsageError as error:
            record = Journal.read(journal)
            if record is None or not record.moves:
                return
            if isinstance(error, StorageError) or time.monotonic() > until:
                raise
            time.sleep(0.05)


def _unlinked(path: Path) -> Path:
    return Path(os.path.realpath(path))  # path.resolve() fails for a link to itself.


def _beside(place: Path) -> tuple[Path, Path]:
    """Files of the lock and of the journal of an output."""
    parent = place.parent
    if parent.is_dir() and not os.access(parent, os.W_OK):
        user = getattr(os, "getuid", lambda: "user")()
        parent = Path(tempfile.gettempdir(), f"uge-{user}")
        name = hashlib.sha256(str(place).encode(errors="surrogateescape")).hexdigest()[:32]
    else:
        name = place.name
    return parent / f".{name}.uge-lock", parent / f".{name}.uge-journal"


def _acquire(out: Path, place: Path, timeout: float, made: list[Path]) -> Any:
    from filelock import FileLock, Timeout

    path, journal = _beside(place)
    until = time.monotonic() + _UNNAMED
    while True:
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(mode=0o777 if path.parent == place.parent else 0o700, parents=True, exist_ok=True)
        made += [folder for folder in missing if folder not in made]
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            record = Journal.read(journal)
            if record is None and time.monotonic() < until:
                time.sleep(0.01)  # It ends just now, or has only just begun.
                continue
            holder = "another process" if record is None else f"process {record.process}, begun {record.began},"
            raise UsageError(f"{holder} is writing {out}; wait until it has ended, or choose another output") from None
        except FileNotFoundError:
            continue  # Another process has just removed the empty folder.
        if _is_current(lock, path):
            return lock
        lock.release()


def _is_current(lock: Any, path: Path) -> bool:
    """False where the process that held the lock removed its file while this one waited."""
    number = lock._context.lock_file_fd
    try:
        return os.name != "posix" or os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _taken_over(place: Path) -> Journal:
    """Journal of this run, after that of a killed one was completed."""
    path = _beside(place)[1]
    journal = Journal(path)
    temporary = getattr(processes.current_process(), "_config", {}).get("tempdir")
    killed = Journal.read(path)
    if killed is not None:
        # A command that ended inside this process left its folder to the commands after it.
        killed.temporary = [folder for folder in killed.temporary if str(folder) != temporary]
        log.info("%s: an earlier run (process %d) was killed; its leftovers are removed", place, killed.process)
        killed.process = journal.process
        killed.began = journal.began
        killed.write()  # Named now, since clearing may take a while.
        killed.complete()
        killed.clear()
    journal.places.append(place)
    if temporary:
        journal.temporary.append(Path(temporary))
    journal.write()
    return journal


def _release(lock: Any, made: Sequence[Path]) -> None:
    path = Path(lock.lock_file)
    try:
        if os.name == "posix":
            path.unlink(missing_ok=True)  # While it is held: nobody else can have it.
    finally:
        lock.release()
    if os.name != "posix":
        with contextlib.suppress(OSError):
            path.unlink()
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()  # Only if nothing was written.
