"""Folders on other machines by fsspec: ``s3://``, ``gs://``, ``memory://`` and others.

A folder is fetched whole before it is read, and sent whole after it was made: a named file comes last, so that a
transfer that was cut off leaves no folder that looks finished. Nothing secret is ever sent from here.
"""

import atexit
import functools
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from uge import extras
from uge.errors import DataError, OutputExistsError, UsageError

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_OWN = frozenset({"hf", "file", "local"})


def is_remote(text: str | Path) -> bool:
    """True for an address such as ``s3://bucket/x`` that fsspec knows; ``hf://`` is a data set, ``file://`` a path."""
    found = _ADDRESS.match(str(text))
    return found is not None and found[1].lower() not in _OWN


def _open(address: str) -> tuple[Any, str]:
    fsspec = extras.load("fsspec", "remote", f"the address {address}")
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(f"the address {address} cannot be used ({error}); see the list of fsspec") from error
    return system, str(path).rstrip("/")


def fetch(address: str, folder: Path) -> Path:
    """Copy a folder or a file to a local folder; gives the place of the copy.

    Args:
        address: The remote place.
        folder: An existing local folder.

    Raises:
        UsageError: Nothing is there, or fsspec has no such scheme.
        DataError: It cannot be read, or a name leads out of the folder.
    """
    system, root = _open(address)
    try:
        if system.isfile(root):
            place = folder / PurePosixPath(root).name
            system.get_file(root, str(place))
            return place
        names = system.find(root)
        if not names:
            raise UsageError(f"there is nothing at {address}; check the address and your access")
        base = PurePosixPath(root)
        place = folder / (base.name or "root")
        for name in names:
            inner = PurePosixPath(str(name)).relative_to(base)
            if ".." in inner.parts or inner.is_absolute():
                raise DataError(f"the name '{name}' at {address} leads out of its folder; remove it there")
            target = place.joinpath(*inner.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(target))
    except (UsageError, DataError):
        raise
    except Exception as error:  # Network, access, credentials: every file system raises its own.
        raise DataError(f"{address} cannot be read ({type(error).__name__}: {error}); check your access") from error
    return place


@functools.cache
def fetched(address: str) -> Path:
    """Local copy of a source, fetched once in a process and removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="uge-remote-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return fetch(address, folder)


def check_free(address: str, *, overwrite: bool) -> None:
    """Refuse a remote output that exists.

    Raises:
        OutputExistsError: Files are there, and ``overwrite`` is false.
        DataError: It cannot be asked.
    """
    system, root = _open(address)
    try:
        there = bool(system.find(root)) if system.exists(root) else False
    except Exception as error:
        raise DataError(f"{address} cannot be reached ({type(error).__name__}: {error}); check your access") from error
    if there and not overwrite:
        raise OutputExistsError(f"the output {address} has files; choose another address or give --overwrite")


def send(folder: Path, address: str, *, last: str) -> None:
    """Copy a finished local folder to a remote place; what was there before goes first.

    Args:
        folder: The folder.
        address: The remote place.
        last: Name of the file by which the folder counts as finished.

    Raises:
        DataError: It cannot be written; ``last`` is not there then.
    """
    system, root = _open(address)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.relative_to(folder).as_posix() == last)
    try:
        if system.exists(f"{root}/{last}"):
            system.rm_file(f"{root}/{last}")
        if system.exists(root):
            system.rm(root, recursive=True)
        system.makedirs(root, exist_ok=True)
        for path in files:
            target = f"{root}/{path.relative_to(folder).as_posix()}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), target)
    except Exception as error:
        raise DataError(
            f"{address} cannot be written ({type(error).__name__}: {error}); the local copy is in {folder}, and the "
            "same command with --resume sends it again"
        ) from error
