"""Single files: atomic writes, canonical bytes, fingerprints, and failed writes as one sentence."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uge.errors import DataError, StorageError, UsageError
from uge.files.limits import DOCUMENT, UnreadableError, open_regular, parse, read_bytes

JSON = dict[str, Any]

_FREE_SPACE = "free some space and run again, with --resume where the command has it"
# Error number → message, in which {place} is the file that the system names: maybe one that was read.
_REASONS = {
    errno.ENOSPC: f"the disk is full; {_FREE_SPACE}",
    errno.EDQUOT: f"the disk quota is used up; {_FREE_SPACE}",
    errno.EROFS: "the file system is read-only; choose another output folder",
    errno.EACCES: "permission is denied; choose another output folder",
    errno.EPERM: "the operation is not permitted; choose another output folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another output folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EEXIST: "a file or folder of that name is in the way; choose another output folder",
    errno.EISDIR: "it is a folder, where a file was expected; choose another name",
    errno.ENOENT: "{place} is missing; put it back, or choose another output folder",
    errno.EIO: "the disk reports an error at {place}; check it, or choose another output folder",
}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def fingerprint(value: Any) -> str:
    """Hexadecimal sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in blocks."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stable_safetensors(data: bytes) -> bytes:
    """Bytes of a safetensors file with its metadata in sorted order: equal contents give equal bytes.

    The library writes the metadata in a new order every time.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Tensors stay aligned.
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def write_atomic(path: Path, content: bytes | str, *, secret: bool = False) -> None:
    """Write a whole file or nothing: a sibling is written and renamed.

    Args:
        path: The file; its folder is made where there is none.
        content: Bytes, or text for UTF-8.
        secret: Give it mode 0600 from the start, whatever the umask.

    Raises:
        UsageError: ``path`` is a device, a pipe or a socket.
        StorageError: The disk is full or read-only.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with storage_errors(path):
        check_kind(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch(0o600 if secret else 0o666)
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def owners_alone(path: str, flags: int) -> int:
    """Opener for ``open``: a new file can be read by its owner alone, whatever the umask."""
    return os.open(path, flags, 0o600)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; values that JSON does not know become text."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path, limit: int = DOCUMENT) -> JSON:
    """JSON object of a file.

    Args:
        path: The file.
        limit: Largest size in bytes.

    Raises:
        DataError: The file is missing, no regular file, too large, nested too deeply, or holds no JSON object.
    """
    try:
        value = parse(json.loads, read_bytes(path, limit))
    except (UnreadableError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as JSON: {getattr(error, 'reason', f'{error}; it is damaged')}"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} should hold a JSON object, but holds a {type(value).__name__}")
    return value


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "disk full", "read-only", "permission denied" and the like into one sentence.

    Args:
        path: Output that the message names.

    Raises:
        StorageError: With the path, the reason and what to do. Other system errors pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        reason = _REASONS[error.errno].format(place=error.filename or path)
        raise StorageError(f"cannot write {path}: {reason}") from error


def check_kind(out: Path) -> None:
    """Refuse an output that is a device, a pipe or a socket.

    Raises:
        UsageError: ``out`` exists and is neither a file nor a folder.
    """
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UsageError(f"the output {out} is no regular file or folder; choose another")
