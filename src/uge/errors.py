"""Exceptions that this package raises on purpose, classed by what the user can do about them.

::

    UGEError                     exit 1   base of all
    ├── UsageError               exit 2   an argument, flag or configuration value is wrong
    │   ├── UnknownNameError     exit 2   no table has the name; the nearest one is suggested
    │   ├── MissingExtraError    exit 2   an optional library is not installed
    │   ├── OutputExistsError    exit 2   the output would replace something
    │   ├── WeightsError         exit 2   a weights file does not fit, or holds NaN
    │   └── StorageError         exit 2   the disk is full or read-only
    ├── DataError                exit 1   images or labels cannot be used
    └── IntegrityError           exit 1   a published folder deviates from its manifest

A message is one sentence: what was expected, what came, what to do.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping

# Controls, surrogates, and what reorders or hides text; joiners stay, for words of some languages need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def printable(text: str, keep: str = "") -> str:
    """Text with control, bidirectional and invisible characters in the form of JSON, such as ``\\u202e``.

    Args:
        text: Text that a file name, a class name or a manifest may be part of.
        keep: Such characters that stay, for instance the line breaks of a page.
    """
    return _HIDDEN.sub(lambda found: found[0] if found[0] in keep else json.dumps(found[0])[1:-1], text)


class UGEError(Exception):
    """Base of all exceptions of this package.

    Attributes:
        exit_code: Exit code of the command line, 1 or 2.
    """

    exit_code = 1


class UsageError(UGEError, ValueError):
    """Wrong argument, flag or configuration value; another value helps."""

    exit_code = 2


def refuse(faults: Mapping[str, bool], error: type[UGEError] = UsageError) -> None:
    """Raise the message of the first fault that is there.

    Args:
        faults: For each message, True where its fault is there.
        error: Class of the exception.

    Raises:
        UGEError: A fault is there.
    """
    for message, there in faults.items():
        if there:
            raise error(message)


class UnknownNameError(UsageError):
    """Name that no table has; the message lists the names that exist and suggests the nearest one.

    Args:
        kind: Kind of the name, for instance ``"network"``.
        name: Name that was asked for.
        known: Names that exist.
        hint: Clause at the end of the message, for instance other accepted forms.

    Example:
        >>> str(UnknownNameError("network", "resnet7", ["cnn", "resnet8"]))
        "unknown network 'resnet7'; did you mean 'resnet8'? (there are: cnn, resnet8)"
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        tail = f"; {hint}" if hint else ""
        super().__init__(f"unknown {kind} '{name}'{guess} (there are: {', '.join(names)}){tail}")


class MissingExtraError(UsageError):
    """Optional library that is not installed; the message has the command that installs it.

    Args:
        library: Name of the library, for instance ``"datasets"``.
        extra: Extra of this package that installs it, for instance ``"hf"``.
        purpose: Task that needs the library, as the subject of the message.
    """

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the library '{library}'; install it with: pip install 'uge[{extra}]'")


class OutputExistsError(UsageError):
    """Output file or non-empty output folder that exists; another name or ``--overwrite`` helps."""


class WeightsError(UsageError):
    """Weights file that does not fit the network, is no safetensors file, or holds NaN or infinity."""


class StorageError(UsageError):
    """Failed write: the disk is full or read-only, or the path cannot be written."""


class DataError(UGEError):
    """Images or labels that cannot be used; the message names the file or the image."""


class IntegrityError(UGEError):
    """Published folder that deviates from its manifest.

    Args:
        problems: One sentence for each deviation, each naming its file; at least one.

    Attributes:
        problems: The same sentences; the message is the first one and the number of the others.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
