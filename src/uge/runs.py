"""Files of a run: fingerprints, atomic writes, staged folders, JSONL events, code version."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from uge.errors import DataError, OutputExistsError, StorageError, UsageError

JSON = dict[str, Any]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def fingerprint(value: Any) -> str:
    """Hexadecimal sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: to a sibling first, then renamed.

    Raises:
        UsageError: ``path`` is a device, a pipe or a socket.
        StorageError: The disk is full or read-only.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with storage_errors(path):
        _check_kind(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def stable_safetensors(data: bytes) -> bytes:
    """A safetensors file with its metadata in sorted order: the library writes it in a new order every time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Tensors stay aligned.
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> JSON:
    """Read a JSON object.

    Raises:
        DataError: The file is missing or no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); it is damaged or missing") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} should hold a JSON object, but holds a {type(value).__name__}")
    return value


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "disk full", "read-only", "permission denied" and the like into one sentence.

    Raises:
        StorageError: With the path and what to do.
    """
    again = "free some space and run again, with --resume where the command has it"
    reasons = {
        errno.ENOSPC: f"the disk is full; {again}",
        errno.EDQUOT: f"the disk quota is used up; {again}",
        errno.EROFS: "the file system is read-only; choose another output folder",
        errno.EACCES: "permission is denied; choose another output folder",
        errno.EPERM: "the operation is not permitted; choose another output folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder; choose another output folder",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.EEXIST: "a file or folder of that name is in the way; choose another output folder",
        errno.EISDIR: "it is a folder, where a file was expected; choose another name",
    }
    try:
        yield
    except OSError as error:
        place = error.filename or path  # It may be something that was read.
        reasons[errno.ENOENT] = f"{place} is missing; put it back, or choose another output folder"
        reasons[errno.EIO] = f"the disk reports an error at {place}; check it, or choose another output folder"
        if error.errno in reasons:
            raise StorageError(f"cannot write {path}: {reasons[error.errno]}") from error
        raise


def _check_kind(out: Path) -> None:
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UsageError(f"the output {out} is no regular file or folder; choose another")


def check_output(
    out: Path, *, source: Path | None = None, overwrite: bool = False, ours: Callable[[Path], bool] | None = None
) -> None:
    """Refuse an output folder that would destroy something.

    Args:
        out: The output.
        source: What is read; the two must not overlap.
        overwrite: Whether what is there may be replaced.
        ours: Whether this package wrote a folder; of others nothing is replaced. None lets any be replaced.

    Raises:
        OutputExistsError: ``out`` is not empty and ``overwrite`` is false.
        UsageError: ``out`` lies inside ``source`` or the other way round, holds what is not ``ours``, or is a device,
            a pipe or a socket.
        StorageError: ``out`` cannot be looked at.
    """
    with storage_errors(out):
        _check_kind(out)
        if source is not None and source.exists():
            a, b = out.resolve(), source.resolve()
            if a == b or b in a.parents or (a in b.parents and out.exists()):
                raise UsageError(
                    f"the output {out} and the source {source} overlap; choose an output outside the source"
                )
        if out.is_file() and not overwrite:
            raise OutputExistsError(f"the output {out} is an existing file; choose another name or give --overwrite")
        if not holds_something(out):
            return
        if not overwrite:
            raise OutputExistsError(f"the output folder {out} is not empty; choose another name or give --overwrite")
        if ours is not None and not ours(out):
            raise UsageError(
                f"the folder {out} holds what this command did not write, so that it is not replaced; choose another "
                "name, or remove it yourself"
            )


def holds_something(folder: Path) -> bool:
    """Whether it is a folder that is not empty."""
    return folder.is_dir() and any(folder.iterdir())


@contextlib.contextmanager
def staged_folder(out: Path, *, overwrite: bool = False, mode: int = 0o755) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place only if the block succeeds.

    On any error the staging folder is removed and ``out`` stays as it was. What a process that was killed left of its
    own staging folder goes, too.

    Raises:
        OutputExistsError: ``out`` is not empty and ``overwrite`` is false.
        StorageError: The disk is full or read-only.
    """
    check_output(out, overwrite=overwrite)
    out = out.resolve()  # A link keeps pointing to its folder, and "." has a name.
    staging = out.with_name(f".{out.name}.staging-{os.getpid()}")
    retired = out.with_name(f".{out.name}.retired-{os.getpid()}")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in out.parent.glob(".*"):
            start, _, process = path.name.rpartition("-")
            if start == f".{out.name}.staging" and process.isdecimal() and not _lives(int(process)):
                shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=mode)
        try:
            yield staging
            if out.exists():
                out.rename(retired)
            staging.rename(out)
            if retired.is_dir():
                shutil.rmtree(retired)
            else:
                retired.unlink(missing_ok=True)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            if retired.exists() and not out.exists():
                retired.rename(out)
            raise


def _lives(process: int) -> bool:
    """Whether a process of that number runs; where that cannot be asked, yes."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no number of a process
        return True
    return True


class EventLog:
    """Append-only JSON lines; one event a line, each with its time in seconds since the epoch."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and (lines := path.read_bytes()) and not lines.endswith(b"\n"):
                    # A crash cut the last line off; the next event must not be glued to it.
                    with path.open("a") as handle:
                        handle.write("\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; without a path, do nothing."""
        if self._path is not None:
            with storage_errors(self._path), self._path.open("a") as handle:
                handle.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n")


def read_events(path: Path) -> list[JSON]:
    """All complete lines of an event log; a last line cut off by a crash is skipped."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


@functools.cache
def code_version() -> str:
    """This package's version, with the git commit when it runs from a checkout."""
    version = metadata.version("uge")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return version
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return version
    return f"{version}+g{commit.stdout.strip()}" if commit.returncode == 0 else version
