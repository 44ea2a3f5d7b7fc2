"""Originals of a published folder as a source, ``sealed:FOLDER``, where a private key was given."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from uge.data.formats.base import Splits
from uge.errors import UsageError

SCHEME = "sealed:"


@dataclass(frozen=True)
class Opener:
    """Private key that opens the originals of published folders.

    Attributes:
        key: File that holds it.
        open: Gives the splits of the originals of a folder.
    """

    key: Path
    open: Callable[[Path], Splits]


OPENER: ContextVar[Opener | None] = ContextVar("opener", default=None)
"""Opener of the sources ``sealed:FOLDER`` that are read from now on in this thread."""


def splits(text: str) -> Splits:
    """Splits of the originals of a published folder.

    Args:
        text: Path of the folder, without the scheme.

    Raises:
        UsageError: No private key was given, it is that of no recipient, or nothing is sealed there.
        IntegrityError: The folder was changed.
    """
    opener = OPENER.get()
    if opener is None:
        raise UsageError(
            f"the originals of {text} are sealed; give the private key of a recipient by --source-key FILE (in Python: "
            f"uge.open('{text}', key=FILE))"
        )
    return opener.open(Path(text).expanduser())
