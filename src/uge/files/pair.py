"""Journals of outputs: places that change together, and the leftovers of killed runs."""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from uge.files.limits import parse, read_bytes

Move: TypeAlias = tuple[Path, Path]
"""A finished file or folder, and the place that it takes."""
_TOKEN = re.compile(r"[0-9a-f]{8}")
_PART = re.compile(r"\..+\.\d+\.part")
_IMAGES = re.compile(r"\.images-\d+")
_SOCKETS = re.compile(r"pymp-\w+")
_MANY = 1000
"""Files of a folder above which the whole system is flushed instead of each file."""


@dataclass
class Journal:
    """Record of the run that holds an output, in a file beside it.

    Everything temporary beside a place of the run has one of its tokens in the name: ``.NAME.staging-TOKEN`` (new),
    ``.NAME.retired-TOKEN`` (old). The next run on the output completes ``moves`` and removes the rest.

    Attributes:
        path: The file.
        process: Number of the process.
        began: Start of the run, in ISO form.
        tokens: Tokens of the run (the last one) and of killed ones whose leftovers are not removed yet.
        places: Outputs of the run.
        moves: Finished files and folders that take their places together.
        temporary: Folders of the operating system that a killed run would leave.
    """

    path: Path
    process: int = field(default_factory=os.getpid)
    began: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    tokens: list[str] = field(default_factory=lambda: [secrets.token_hex(4)])
    places: list[Path] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    temporary: list[Path] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Journal | None":
        """Journal in a file; None where there is none, or the file has other content."""
        try:
            return cls._parsed(path, parse(json.loads, read_bytes(path))) if path.is_file() else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    @classmethod
    def _parsed(cls, path: Path, raw: dict[str, Any]) -> "Journal | None":
        if raw["kind"] != "uge-journal" or not all(_TOKEN.fullmatch(token) for token in raw["tokens"]):
            return None

        def place(text: str) -> Path:
            return Path(os.path.normpath(path.parent / text))

        moves = [(place(new), place(old)) for new, old in raw["moves"]]
        journal = cls(
            path,
            int(raw["process"]),
            str(raw["began"]),
            list(raw["tokens"]),
            [place(text) for text in raw["places"]],
            moves,
            [Path(text) for text in raw["temporary"]],
        )
        return journal if all(journal._is_ours(*move) for move in moves) else None

    def _is_ours(self, new: Path, place: Path) -> bool:
        """True for moves that this tool makes, so that a journal from elsewhere renames nothing else."""
        staged = {self.beside(other, "staging", token) for other in self.places for token in self.tokens}
        beside = new in staged or new == place.with_name(f"{place.name}.new")
        return (beside and new.parent == place.parent) or new.parent in staged

    def write(self) -> None:
        """Write the journal so that it is on the disk when this returns."""
        part = self.path.with_name(f"{self.path.name}.part")

        def text(path: Path) -> str:
            return os.path.relpath(path, self.path.parent)

        value = {
            "kind": "uge-journal",
            "process": self.process,
            "began": self.began,
            "tokens": self.tokens,
            "places": [text(place) for place in self.places],
            "moves": [[text(new), text(place)] for new, place in self.moves],
            "temporary": [str(path) for path in self.temporary],
        }
        with part.open("w", encoding="utf-8") as handle:
            json.dump(value, handle, indent=1)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(self.path)
        sync_folder(self.path.parent)

    def remove(self) -> None:
        """Remove the file, after everything that it names is in order."""
        self.path.with_name(f"{self.path.name}.part").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def beside(self, place: Path, kind: str, token: str = "") -> Path:
        """Temporary name beside a place; ``kind`` is ``staging`` or ``retired``."""
        return place.with_name(f".{place.name}.{kind}-{token or self.tokens[-1]}")

    def exchange(self, moves: Sequence[Move]) -> None:
        """Let finished files and folders take their places together.

        Raises:
            OSError: The system refuses; everything is as it was.
        """
        for new, place in moves:
            discard(self.beside(place, "retired"))
            sync(new)
        self.moves = list(moves)
        self.places += [place for _, place in moves if place not in self.places]
        self.write()
        self.complete()

    def complete(self) -> None:
        """Finish the moves, from whatever step; undo them where the system refuses one.

        Raises:
            OSError: The system refuses; everything is as it was.
        """
        if not self.moves:
            return
        try:
            for new, place in self.moves:
                if os.path.lexists(new):
                    if os.path.lexists(place):
                        place.rename(self._retired(place))
                    new.rename(place)
        except OSError:
            for new, place in reversed(self.moves):
                if os.path.lexists(place) and not os.path.lexists(new):
                    place.rename(new)
                if os.path.lexists(self._retired(place)) and not os.path.lexists(place):
                    self._retired(place).rename(place)
            self.moves = []
            self.write()
            raise
        for folder in {place.parent for _, place in self.moves}:
            sync_folder(folder)
        for _, place in self.moves:
            discard(self._retired(place))
        self.moves = []
        self.write()

    def _retired(self, place: Path) -> Path:
        """Name of the old content of a place, by the token of the run that began to move it."""
        for token in self.tokens:
            if os.path.lexists(self.beside(place, "retired", token)):
                return self.beside(place, "retired", token)
        return self.beside(place, "retired")

    def clear(self) -> None:
        """Remove everything temporary that the runs of this journal made."""
        for place in self.places:
            for token in self.tokens:
                discard(self.beside(place, "staging", token))
                discard(self.beside(place, "retired", token))
            for part in _parts_of(place) if place not in self.path.parents else ():
                discard(part)
        for folder in self.temporary:
            if _SOCKETS.fullmatch(folder.name) and folder.parent == Path(tempfile.gettempdir()):
                discard(folder)


def _parts_of(place: Path) -> list[Path]:
    """Half-written files and decoded images inside a folder, or half-written files beside a file."""
    if place.is_dir() and not place.is_symlink():
        hidden = [path for path in place.rglob(".*") if not path.is_symlink()]
        return [path for path in hidden if (_IMAGES if path.is_dir() else _PART).fullmatch(path.name)]
    own = re.compile(rf"\.{{1,2}}{re.escape(place.name)}(\.[0-9a-f]{{12}}\.checkpoint)?\.\d+\.part")
    with contextlib.suppress(OSError):
        return [path for path in place.parent.iterdir() if own.fullmatch(path.name) and path.is_file()]
    return []


def discard(path: Path) -> None:
    """Remove a file or a whole folder, if the system lets it; a link goes, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, to the disk."""
    if path.is_dir():
        entries = [entry for entry in path.rglob("*") if not entry.is_symlink()]
        files = [entry for entry in entries if entry.is_file()]
        if len(files) > _MANY and hasattr(os, "sync"):
            os.sync()
            return
        for entry in files:
            _sync_file(entry)
        for entry in (*(entry for entry in entries if entry.is_dir()), path):
            sync_folder(entry)
    else:
        _sync_file(path)
    sync_folder(path.parent)


def _sync_file(path: Path) -> None:
    # A file that is linked from a published folder may be read-only.
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, where the system can do that (Windows cannot)."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):  # Some network file systems refuse it.
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
