"""Results of specifications in one folder: cases, protections, federated runs, failures. Needs no torch.

A result counts only while it has the fingerprint of its specification, of the images that are there and of the
precision in which it was computed.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.cases.case import Case
from uge.cases.ledger import Ledger
from uge.errors import DataError
from uge.files import JSON, fingerprint, read_json, storage_errors, write_json
from uge.paper.specs import Copy, Federation, Images, Unit

log = logging.getLogger(__name__)
Spec = Copy | Unit | Federation
PRECISION = "fp32"
"""Precision of results in a folder that names none."""


@dataclass(frozen=True)
class PaperLedger:
    """One folder of results.

    Attributes:
        folder: ``cases/``, ``federated/``, ``protections/``, ``pictures/``, ``failed/`` and ``data/`` are worth
            keeping; ``copies/``, ``weights/`` and ``federations/`` hold images and keys.
    """

    folder: Path

    @property
    def cases(self) -> Ledger:
        """Cases, failures and trained networks."""
        return Ledger(self.folder)

    def images(self, name: str) -> JSON:
        """Description of a data set: digests and counts, or the ``reason`` why it is not at hand."""
        path = self.folder / "data" / f"{name}.json"
        return read_json(path) if path.is_file() else {}

    def keep_images(self, name: str, description: JSON) -> None:
        """Write the description of a data set."""
        write_json(self.folder / "data" / f"{name}.json", description)

    def precision(self) -> str:
        """Precision of the results here."""
        path = self.folder / "precision.json"
        return str(read_json(path)["precision"]) if path.is_file() else PRECISION

    def keep_precision(self, precision: str) -> None:
        """Note the precision of results from now on; those in another precision do not count any more."""
        if precision != self.precision():
            write_json(self.folder / "precision.json", {"precision": precision})

    def fingerprint(self, spec: Spec) -> str:
        """sha256 of a specification, of the images that it uses and of the precision."""
        images = spec.of.images if isinstance(spec, Unit) else spec.images
        parts: JSON = {"spec": spec.digest, "images": self.images(images.name).get(variant(images), "")}
        if (precision := self.precision()) != PRECISION:
            parts["precision"] = precision
        return fingerprint(parts)

    def case(self, unit: Unit) -> Case | None:
        """Finished case of a run, if it is there."""
        return self.cases.finished(unit.id, self.fingerprint(unit))

    def result(self, spec: Copy | Federation) -> JSON | None:
        """Result of a protection or a federated run, if it is finished."""
        path = self._result_path(spec)
        if not path.is_file():
            return None
        try:
            result = read_json(path)
        except DataError as error:
            log.warning("%s", error)
            return None
        return result if result.get("fingerprint") == self.fingerprint(spec) else None

    def keep_result(self, spec: Copy | Federation, result: dict[str, Any]) -> None:
        """Write the result of a protection or a federated run."""
        marks = {"fingerprint": self.fingerprint(spec), "spec": spec.model_dump(mode="json")}
        write_json(self._result_path(spec), {**marks, **result})

    def failure(self, spec: Spec) -> str | None:
        """Reason of a failure with these images, in one sentence; None where there was none."""
        return self.cases.failure(spec.id, self.fingerprint(spec))

    def fail(self, spec: Spec, sentence: str) -> None:
        """Note the reason of a failure."""
        self.cases.fail(spec.id, sentence, fingerprint=self.fingerprint(spec))

    def mend(self, spec: Spec) -> None:
        """Remove the note of a failure."""
        self.cases.mend(spec.id)

    def forget(self, spec: Spec) -> None:
        """Remove a result, and of a copy or federation all that it was made of, so that it is made again.

        Raises:
            StorageError: It cannot be removed.
        """
        self.cases.forget(spec.id)
        if isinstance(spec, Unit):
            return
        self._result_path(spec).unlink(missing_ok=True)
        rooms = ("copies", "pictures") if isinstance(spec, Copy) else ("federations",)
        for place in (self.place(room, spec) for room in rooms):
            # With the private folder beside it, and the leftovers of a killed run: NAME.private.new, .NAME.staging-1 …
            for path in sorted(place.parent.iterdir()) if place.parent.is_dir() else ():
                if path.name == place.name or path.name.removeprefix(".").startswith(f"{place.name}."):
                    with storage_errors(path):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def place(self, room: str, spec: Spec) -> Path:
        """Folder of the images of a specification: another one for other images."""
        return self.folder / room / f"{spec.id}-{self.fingerprint(spec)[:6]}"

    def picture(self, copy: Copy) -> Path:
        """Folder of a copy's pictures."""
        return self.place("pictures", copy)

    def _result_path(self, spec: Copy | Federation) -> Path:
        room = "federated" if isinstance(spec, Federation) else "protections"
        return self.folder / room / f"{spec.id}.json"


def variant(images: Images) -> str:
    """Name under which the digest of images is noted: one data set may be used in several sizes."""
    return f"digest-{images.limit or 'all'}-{images.limit_test or 'all'}-{images.size or 'native'}"
