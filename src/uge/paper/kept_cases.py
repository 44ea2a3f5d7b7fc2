"""What a folder of results holds, by specification: cases, federated runs, failures. Needs no torch.

A result counts only while it has the fingerprint of its specification, of the images that are there and of how it is
computed.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.cases.case import Case, read_case
from uge.errors import DataError
from uge.files import JSON, fingerprint, read_json, storage_errors, write_json
from uge.paper.specs import Copy, Federation, Images, Unit

log = logging.getLogger(__name__)
Spec = Copy | Unit | Federation
PRECISION = "fp32"
"""What results were measured in unless the folder says otherwise."""
REVISIONS = {"ntga": 2}
"""Baselines that make other perturbations than they first did, and how often that changed; results of earlier ones
do not count any more."""


@dataclass(frozen=True)
class Kept:
    """One folder of results.

    Attributes:
        folder: ``cases/``, ``federated/``, ``protections/``, ``pictures/``, ``failures/`` and ``data/`` are worth
            keeping; ``copies/``, ``weights/`` and ``federations/`` hold images and keys.
    """

    folder: Path

    def images(self, name: str) -> JSON:
        """What is known of a data set: ``digest`` and counts, or the ``reason`` why it is not at hand."""
        path = self.folder / "data" / f"{name}.json"
        return read_json(path) if path.is_file() else {}

    def keep_images(self, name: str, found: JSON) -> None:
        """Note what is known of a data set."""
        write_json(self.folder / "data" / f"{name}.json", found)

    def precision(self) -> str:
        """What results here are measured in."""
        path = self.folder / "precision.json"
        return str(read_json(path)["precision"]) if path.is_file() else PRECISION

    def keep_precision(self, precision: str) -> None:
        """Note what results here are measured in from now on; those in another precision do not count any more."""
        if precision != self.precision():
            write_json(self.folder / "precision.json", {"precision": precision})

    def fingerprint(self, spec: Spec) -> str:
        """Of a specification, the images that it uses, how they are protected and what it is computed in."""
        copy = spec.of if isinstance(spec, Unit) else spec
        parts: JSON = {"spec": spec.digest, "images": self.images(copy.images.name).get(variant(copy.images), "")}
        if copy.method in REVISIONS:
            parts["revision"] = REVISIONS[copy.method]
        if (precision := self.precision()) != PRECISION:
            parts["precision"] = precision
        return fingerprint(parts)

    def case(self, unit: Unit) -> Case | None:
        """The finished case of a run, if it is there."""
        path = self.folder / "cases" / f"{unit.id}.json"
        if not path.is_file():
            return None
        try:
            case = read_case(path)
        except DataError as error:
            log.warning("%s", error)
            return None
        return case if case.fingerprint == self.fingerprint(unit) else None

    def result(self, spec: Copy | Federation) -> JSON | None:
        """What a protection or a federated run left, if it is finished."""
        path = self._result_path(spec)
        if not path.is_file():
            return None
        try:
            found = read_json(path)
        except DataError as error:
            log.warning("%s", error)
            return None
        return found if found.get("fingerprint") == self.fingerprint(spec) else None

    def keep_result(self, spec: Copy | Federation, found: dict[str, Any]) -> None:
        """Write what a protection or federated run left."""
        write_json(
            self._result_path(spec),
            {"fingerprint": self.fingerprint(spec), "spec": spec.model_dump(mode="json"), **found},
        )

    def failure(self, spec: Spec) -> str | None:
        """Why it failed, in one sentence; None where it did not, or not with these images."""
        path = self._failure_path(spec)
        if not path.is_file():
            return None
        found = read_json(path)
        return str(found["sentence"]) if found.get("fingerprint") == self.fingerprint(spec) else None

    def keep_failure(self, spec: Spec, sentence: str | None) -> None:
        """Note why something failed; None: it did not."""
        if sentence is None:
            self._failure_path(spec).unlink(missing_ok=True)
        else:
            write_json(self._failure_path(spec), {"fingerprint": self.fingerprint(spec), "sentence": sentence})

    def forget(self, spec: Spec) -> None:
        """Remove a result, and of a copy or federation all that it was made of, so that it is made again.

        Raises:
            StorageError: It cannot be removed.
        """
        self.keep_failure(spec, None)
        path = self.folder / "cases" / f"{spec.id}.json" if isinstance(spec, Unit) else self._result_path(spec)
        path.unlink(missing_ok=True)
        rooms = {Copy: ("copies", "pictures"), Federation: ("federations",), Unit: ()}[type(spec)]
        for place in (self.place(room, spec) for room in rooms):
            # With the private folder beside it, and what a killed run left: NAME.private.new, .NAME.staging-1 …
            for there in sorted(place.parent.iterdir()) if place.parent.is_dir() else ():
                if there.name == place.name or there.name.removeprefix(".").startswith(f"{place.name}."):
                    with storage_errors(there):
                        shutil.rmtree(there)

    def place(self, room: str, spec: Spec) -> Path:
        """Where the images or weights of a specification are: another place for other images."""
        return self.folder / room / f"{spec.id}-{self.fingerprint(spec)[:6]}"

    def picture(self, copy: Copy) -> Path:
        """The folder of a copy's pictures."""
        return self.place("pictures", copy)

    def _result_path(self, spec: Copy | Federation) -> Path:
        room = "federated" if isinstance(spec, Federation) else "protections"
        return self.folder / room / f"{spec.id}.json"

    def _failure_path(self, spec: Spec) -> Path:
        return self.folder / "failures" / f"{spec.id}.json"


def variant(images: Images) -> str:
    """Under which name the digest of images is noted: one data set may be used in several sizes."""
    return f"digest-{images.limit or 'all'}-{images.limit_test or 'all'}-{images.size or 'native'}"
