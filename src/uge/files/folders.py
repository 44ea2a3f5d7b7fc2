"""Output folders: refused where something would be lost, staged, and renamed as a whole."""

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
    """Refuse an output that would destroy something.

    Args:
        out: Output folder or file.
        source: Folder or file that is read; the two must not overlap.
        overwrite: Allow to replace an existing output.
        ours: True for folders that this package wrote; other folders are not replaced. None lets any be replaced.

    Raises:
        OutputExistsError: ``out`` is not empty and ``overwrite`` is false.
        UsageError: ``out`` lies inside ``source`` or the other way round, holds what is not ``ours``, or is a device,
            a pipe or a socket.
        StorageError: ``out`` cannot be read.
    """
    with storage_errors(out):
        check_kind(out)
        if source is not None and source.exists():
            target = out.resolve()
            origin = source.resolve()
            if target == origin or origin in target.parents or (target in origin.parents and out.exists()):
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
    """True for a folder that is not empty."""
    return folder.is_dir() and any(folder.iterdir())


@contextlib.contextmanager
def staged_folder(out: Path, *, overwrite: bool = False, mode: int = 0o755) -> Iterator[Path]:
    """New folder beside ``out`` that takes its place only if the block succeeds.

    On any error the staging folder is removed and ``out`` stays as it was. Staging folders of ``out`` from processes
    that were killed are removed, too.

    Args:
        out: Output folder.
        overwrite: Replace an existing output.
        mode: Permissions of the new folder.

    Yields:
        The staging folder.

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
            if start == f".{out.name}.staging" and process.isdecimal() and not _runs(int(process)):
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


def _runs(process: int) -> bool:
    if os.name == "posix":
        try:
            os.kill(process, 0)
        except (OSError, OverflowError) as error:  # Another user's process and no process number count as running.
            return not isinstance(error, ProcessLookupError)
    return True
