"""Every error that this package raises on purpose, classed by what the user can do about it.

::

    UGEError                     exit 1
    ├── UsageError               exit 2   an argument, flag or configuration value is wrong
    │   ├── UnknownNameError     exit 2   no such network, data format, encoder ... (did you mean)
    │   ├── MissingExtraError    exit 2   an optional library is not installed
    │   ├── OutputExistsError    exit 2   the output folder holds something already
    │   ├── WeightsError         exit 2   a weights file does not fit, or holds NaN
    │   └── StorageError         exit 2   the disk is full or read-only
    ├── DataError                exit 1   the images or labels cannot be used
    └── IntegrityError           exit 1   a published folder deviates from its manifest

A message is one sentence: what was expected, what came, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UGEError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(UGEError, ValueError):
    """An argument, flag or configuration value is wrong."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no table; the message lists what there is and the nearest one.

    Args:
        kind: What was looked up, for instance ``"network"``.
        name: What was asked for.
        known: The names that exist.
        hint: A sentence added at the end, for instance other accepted forms.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        guess = f"; did you mean '{near[0]}'?" if near else ""
        tail = f"; {hint}" if hint else ""
        super().__init__(f"unknown {kind} '{name}'{guess} (there are: {', '.join(names)}){tail}")


class MissingExtraError(UsageError):
    """An optional library is not installed; the message names the extra that brings it."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the library '{library}'; install it with: pip install 'uge[{extra}]'")


class OutputExistsError(UsageError):
    """The output folder or file exists and is not empty."""


class WeightsError(UsageError):
    """A weights file does not fit the network, is no safetensors file, or holds NaN."""


class StorageError(UsageError):
    """The disk is full, read-only, or the folder may not be written."""


class DataError(UGEError):
    """The images or labels cannot be used."""


class IntegrityError(UGEError):
    """A published folder deviates from its manifest.

    Attributes:
        problems: One sentence per deviation, each naming its file.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
