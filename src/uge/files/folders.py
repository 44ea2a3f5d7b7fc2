"""Output folders: refused where something would be lost, staged, and renamed as a whole."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uge.errors import OutputExistsError, StorageError, UsageError
from uge.files.documents import check_kind, storage_errors
from uge.files.lock import holding, locked
from uge.files.pair import Move


def local_path(text: str | Path) -> Path:
    """A path on this machine, from text that may come from a user.

    Raises:
        UsageError: It is an address such as ``s3://bucket/x`` or ``file:///x``; ``Path`` would make a local folder
            ``s3:`` of it and write keys there. Or it has a NUL character, which no path has.
    """
    if "\0" in str(text):
        raise UsageError(f"expected a path to write to, got {str(text)!r} with a NUL character; give another name")
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


def check_writable(folder: Path) -> None:
    """Refuse a read-only folder, before work that would end in it.

    Raises:
        StorageError: The folder, or one in it, is read-only.
    """
    for place, _, _ in os.walk(folder):
        if not os.access(place, os.W_OK):
            raise StorageError(
                f"{place} is read-only, so that nothing can be added to it; give yourself the right (u+w)"
            )


def link_folder(folder: Path, copy: Path) -> None:
    """Fill an empty folder with the files of another one, as hard links, or as copies where there can be no links.

    A file of the copy must not be written to afterwards, but may be replaced.

    Raises:
        StorageError: The disk is full or read-only.
    """

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    with storage_errors(copy):
        shutil.copytree(folder, copy, symlinks=True, copy_function=link, dirs_exist_ok=True)


@contextlib.contextmanager
def staged_folder(
    out: Path,
    *,
    overwrite: bool = False,
    mode: int = 0o755,
    together: Callable[[], Sequence[Move]] | None = None,
) -> Iterator[Path]:
    """New folder beside ``out`` that takes its place only if the block succeeds.

    On any error the staging folder is removed and ``out`` stays as it was. The output is locked meanwhile, unless a
    folder around it is.

    Args:
        out: Output folder.
        overwrite: Replace an existing output.
        mode: Permissions of the new folder.
        together: Called when the block has succeeded; gives more files and folders that take their places with it.

    Yields:
        The staging folder.

    Raises:
        OutputExistsError: ``out`` is not empty and ``overwrite`` is false.
        UsageError: Another process is writing ``out``.
        StorageError: The disk is full or read-only.
    """
    check_output(out, overwrite=overwrite)
    out = out.resolve()  # A link keeps pointing to its folder, and "." has a name.
    outer = holding(out)
    with storage_errors(out), contextlib.nullcontext(outer) if outer else locked(out) as hold:
        out.parent.mkdir(parents=True, exist_ok=True)
        with hold.staged(out, mode=mode) as staging:
            yield staging
            hold.exchange([(staging, out), *(together() if together else ())])
