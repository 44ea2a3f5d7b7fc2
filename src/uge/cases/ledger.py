"""Results of cases in one folder: finished ones, failures, and trained networks. Needs no torch before a network."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from uge.cases.case import Case, read_case, write_case
from uge.errors import DataError, WeightsError
from uge.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def readable(path: Path, read: Callable[[Path], Result]) -> Result | None:
    """Contents of a result file; None where it is missing or damaged, which is logged."""
    try:
        return read(path) if path.is_file() else None
    except DataError as error:
        log.warning("%s", error)
        return None


@dataclass(frozen=True)
class Ledger:
    """Results in ``cases/ID.json`` and ``failed/ID.json``, and trained networks in ``weights/``.

    A result counts only for the fingerprint that it was written with, so that changed images or settings make a case
    unfinished again.

    Attributes:
        folder: Place of the three folders, which are made when needed.
    """

    folder: Path

    def finished(self, name: str, fingerprint: str) -> Case | None:
        """Case with an id and a fingerprint; None where it is missing, damaged or of another fingerprint."""
        case = readable(self.folder / "cases" / f"{name}.json", read_case)
        return case if case is not None and case.fingerprint == fingerprint else None

    def keep(self, case: Case) -> None:
        """Write a case; remove its checkpoint and the note of an earlier failure.

        Raises:
            StorageError: The disk is full or read-only.
        """
        write_case(self.folder / "cases", case)
        self.checkpoint(case.id, case.fingerprint).unlink(missing_ok=True)
        self.mend(case.id)

    def fail(self, name: str, error: str, **about: Any) -> None:
        """Note the reason of a failure, one sentence, with more JSON values about it.

        Raises:
            StorageError: The disk is full or read-only.
        """
        write_json(self._failed(name), {"id": name, "error": error, **about})

    def failure(self, name: str, fingerprint: str) -> str | None:
        """Reason of a failure that was noted with a fingerprint; None where there is none."""
        note = readable(self._failed(name), read_json) or {}
        return str(note["error"]) if note.get("fingerprint") == fingerprint else None

    def mend(self, name: str) -> None:
        """Remove the note of a failure."""
        self._failed(name).unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Remove the case, the trained network and the failure of an id."""
        for path in (self.folder / "cases" / f"{name}.json", self.weights(name), self._failed(name)):
            path.unlink(missing_ok=True)

    def weights(self, name: str) -> Path:
        """File of a trained network."""
        return self.folder / "weights" / f"{name}.safetensors"

    def checkpoint(self, name: str, fingerprint: str) -> Path:
        """File of a training that is not over yet."""
        return self.folder / "run" / f"{name}.{fingerprint[:12]}.safetensors"

    def save(self, name: str, network: nn.Module, fingerprint: str) -> None:
        """Write a trained network.

        Raises:
            StorageError: The disk is full or read-only.
        """
        from uge.learning.resume import save_checkpoint

        save_checkpoint(self.weights(name), {"network": network}, None, {"fingerprint": fingerprint})

    def load(self, name: str, network: nn.Module, fingerprint: str) -> bool:
        """Put trained weights into a network; False where they are missing, do not fit, or have another fingerprint."""
        from uge.learning.resume import load_checkpoint

        try:
            meta = load_checkpoint(self.weights(name), {"network": network})
        except WeightsError:
            return False
        return bool(meta.get("fingerprint") == fingerprint)

    def _failed(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"
