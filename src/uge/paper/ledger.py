"""Results of specifications in one folder: cases, protections, federated runs, failures. Needs no torch.

A result counts only while it has the fingerprint of its specification, of the images that are there and of the
precision in which it was computed.
"""

import shutil
from pathlib import Path
from typing import Any

from uge.cases.case import Case, Ledger, readable
from uge.files import JSON, fingerprint, read_json, storage_errors, write_json
from uge.methods import METHODS
from uge.paper.specs import ORIGINAL, Copy, Federation, Images, Unit

Spec = Copy | Unit | Federation
PRECISION = "fp32"
"""Precision of results in a folder that names none."""


class PaperLedger(Ledger):
    """Cases, failures and trained networks of specifications by their ids, and all other results.

    Attributes:
        folder: ``cases/``, ``federated/``, ``protections/``, ``pictures/``, ``failed/`` and ``data/`` are worth
            keeping; ``copies/``, ``weights/`` and ``federations/`` hold images and keys.
    """

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
        """sha256 of a specification, of its method's revision, of the images that it uses and of the precision."""
        made = spec.of if isinstance(spec, Unit) else spec
        parts: JSON = {"spec": spec.digest, "images": self.images(made.images.name).get(variant(made.images), "")}
        revision = METHODS[made.method].revision if made.method != ORIGINAL else 0
        if revision:
            parts["revision"] = revision
        if self.precision() != PRECISION:
            parts["precision"] = self.precision()
        return fingerprint(parts)

    def case(self, unit: Unit) -> Case | None:
        """Finished case of a run, if it is there."""
        return self.finished(unit.id, self.fingerprint(unit))

    def result(self, spec: Copy | Federation) -> JSON | None:
        """Result of a protection or a federated run, if it is finished."""
        result = readable(self._result_path(spec), read_json) or {}
        return result if result.get("fingerprint") == self.fingerprint(spec) else None

    def keep_result(self, spec: Copy | Federation, result: dict[str, Any]) -> None:
        """Write the result of a protection or a federated run."""
        spec_json = spec.model_dump(mode="json")
        write_json(self._result_path(spec), {"fingerprint": self.fingerprint(spec), "spec": spec_json, **result})

    def remove(self, spec: Spec) -> None:
        """Remove a result, and of a copy or federation all that it was made of, so that it is made again.

        Raises:
            StorageError: It cannot be removed.
        """
        self.forget(spec.id)
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

    def _result_path(self, spec: Copy | Federation) -> Path:
        room = "federated" if isinstance(spec, Federation) else "protections"
        return self.folder / room / f"{spec.id}.json"


def variant(images: Images) -> str:
    """Name under which the digest of images is noted: one data set may be used in several sizes."""
    return f"digest-{images.limit or 'all'}-{images.limit_test or 'all'}-{images.size or 'native'}"
