"""Output folders: refused where something would be lost, staged, and renamed as a whole."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from uge.errors import OutputExistsError, UsageError
from uge.files.documents import check_kind, storage_errors


def local_path(text: str | Path) -> Path:
    """A path on this machine, from text that may come from a user.

    Raises:
        UsageError: It is an address such as ``s3://bucket/x`` or ``file:///x``; ``Path`` would make a local folder
            ``s3:`` of it and write keys there.
    """
    if "://" in str(text) or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(text)):
        raise UsageError(f"expected a path on this machine to write to, got the address '{text}'; give a local folder")
    return Path(text)


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
        check_kind(out)
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
