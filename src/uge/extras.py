"""Libraries of the optional extras, imported where they are used."""

import importlib
from typing import Any

from uge.errors import MissingExtraError, UsageError


def load(module: str, extra: str, purpose: str, *, library: str | None = None) -> Any:
    """The module of an optional library.

    Args:
        module: Its import name, for instance ``"flwr.simulation"``.
        extra: Extra of this package that installs it.
        purpose: Task that needs it, as the subject of a sentence.
        library: Its name for pip, if other than the module's.

    Raises:
        MissingExtraError: It is not installed.
        UsageError: It is installed, and its import fails, in whatever way.

    Example:
        >>> load("json", "hf", "reading JSON").loads("[1]")
        [1]
    """
    name = library or module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise MissingExtraError(name, extra, purpose) from None
        raise broken(name, purpose, error) from error
    except Exception as error:  # A library beside another of which it does not fit may raise anything.
        raise broken(name, purpose, error) from error


def broken(library: str, purpose: str, error: BaseException) -> UsageError:
    """The error of a library that is installed and does not work."""
    reason = (str(error).strip().splitlines() or [""])[0]
    hint = "; is a torchvision installed that was built for another torch? Remove it, this package needs none"
    return UsageError(
        f"{purpose} needs the library '{library}', which is installed but cannot be imported "
        f"({type(error).__name__}: {reason}){hint if 'torchvision' in str(error) else '; install it anew'}"
    )
