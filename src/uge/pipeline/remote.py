"""Published folders on other machines: made here, then sent; their private folders stay here."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from uge.errors import UsageError
from uge.files import local_path
from uge.files.remote import check_free, fetch, is_remote, send
from uge.publishing.manifest import MANIFEST, is_published


@contextlib.contextmanager
def output(out: str, private: Path | None, *, overwrite: bool, trial: bool = False) -> Iterator[Path]:
    """Local place of an output, which is sent to its address at the end where it has one.

    Args:
        out: Path, or address such as ``s3://bucket/photos``.
        private: Local folder of a remote output: the copy is made in ``private/photos`` and stays there, its keys in
            ``private/photos.private``.
        overwrite: Replace what is at the address.
        trial: Send nothing.

    Raises:
        UsageError: A remote output has no ``private``, or a local one has.
        OutputExistsError: Files are at the address, and ``overwrite`` is false.
        DataError: The address cannot be reached or written.
    """
    if not is_remote(out):
        if private is not None:
            raise UsageError(f"--private is for an OUT on another machine, got {out}; leave it out")
        yield local_path(out)
        return
    if private is None:
        raise UsageError(f"{out} is on another machine, and keys stay on this one; give --private FOLDER for them")
    check_free(out, overwrite=overwrite)
    place = private / (PurePosixPath(out.partition("://")[2]).name or "copy")
    yield place
    if not trial and is_published(place):
        send(place, out, last=MANIFEST)


@contextlib.contextmanager
def folder_of(out: str) -> Iterator[Path]:
    """Local folder of a published one: itself, or a copy of a remote one for as long as the block lasts."""
    if not is_remote(out):
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="uge-remote-") as place:
        yield fetch(out, Path(place))
