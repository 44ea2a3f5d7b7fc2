"""Limits of files that are read: regular files only, no larger than stated, and no document nested without end."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from uge.errors import DataError

Text = TypeVar("Text", str, bytes)
DOCUMENT = 64 << 20  # Bytes of JSON, YAML, TOML, PEM and pages.
LARGEST = 512 << 20  # Bytes of what else is read as a whole: manifests, logs, encoded images, arrays of labels.
WEIGHTS = 4 << 30  # Bytes of a weights file.
DEPTH = 64  # Levels of lists and tables in a document.


class UnreadableError(DataError, OSError):
    """File that is missing, no regular file, or larger than its limit.

    Args:
        path: The file.
        reason: What is wrong, and what to do.

    Attributes:
        reason: The same.
    """

    __str__ = Exception.__str__

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path} cannot be read: {reason}")
        self.reason = reason


def open_regular(path: Path | str, limit: int | None = None) -> io.BufferedReader:
    """Open a regular file for reading; a pipe is not waited for.

    Args:
        path: File, or a link to one.
        limit: Largest size in bytes; None for any.

    Raises:
        UnreadableError: The file is missing, a folder, a pipe, a device or a socket, a link to itself, or too large.
    """
    try:
        _check(path, os.stat(path), limit)  # Before it is opened: that alone can do something to a device.
        handle = open(  # noqa: SIM115 (returned)
            path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        )
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name.
        reason = "it is missing" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        raise UnreadableError(path, f"{reason}; check the path") from error
    _check(path, os.fstat(handle.fileno()), limit)  # The name may stand for another file by now.
    return handle


def check_regular(path: Path | str, limit: int | None = None) -> None:
    """Refuse what :func:`open_regular` refuses, before a library opens the file by its name.

    Raises:
        UnreadableError: See :func:`open_regular`.
    """
    open_regular(path, limit).close()


def read_bytes(path: Path | str, limit: int = DOCUMENT) -> bytes:
    """Contents of a regular file.

    Raises:
        UnreadableError: See :func:`open_regular`; or the disk reports an error.
    """
    try:
        with open_regular(path, limit) as handle:
            return handle.read()
    except UnreadableError:
        raise
    except OSError as error:
        raise UnreadableError(path, f"{error.strerror}; check the disk") from error


def read_text(path: Path | str, limit: int = DOCUMENT) -> str:
    """Contents of a regular file in UTF-8.

    Raises:
        UnreadableError: See :func:`read_bytes`.
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8")


def parse(load: Callable[[Text], Any], text: Text) -> Any:
    """Value of a document.

    Args:
        load: For instance ``json.loads``.
        text: The document.

    Raises:
        ValueError: It is nested too deeply, or aliases multiply it; ``load`` may raise others.
    """
    try:
        value = load(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        level = [
            part
            for outer in level
            for part in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
        if len(level) > len(text):  # Only aliases make more of them than there are brackets.
            raise ValueError("its aliases make it larger than it is written")
    raise ValueError(f"it is nested more than {DEPTH} deep")


def _check(path: Path | str, status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(path, "it is a folder, a pipe or a device, where a regular file was expected; replace it")
    if limit is not None and status.st_size > limit:
        raise UnreadableError(
            path, f"it has {status.st_size:,} bytes, and at most {limit:,} are read; is it the right file?"
        )
