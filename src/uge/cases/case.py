"""Case: one training run of one network as a JSON file, the unit of every audit; its job, and the ledger that keeps it.

Needs no torch before an attack is looked up or a network loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from uge.errors import DataError, UsageError, WeightsError
from uge.files import parse, read_json, read_text, write_json
from uge.learning.naming import NAMINGS, Naming, Renamed

if TYPE_CHECKING:
    from torch import nn

    from uge.attacks.base import Entry
    from uge.attacks.variants import Variant

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Network = TypeVar("Network", bound="nn.Module")
Role = Literal["clean", "authorized", "hacker"]
Start = Literal["theta0", "random"]
Data = Literal["clean", "protected"]
YARDSTICK = "yardstick"
"""Family of cases that are no attack: training on originals or labelled images without the copy."""
STILL_IMPROVING = 2.0
"""Smallest rise, in percent points from one tenth of the epochs to the next, that means "not converged"."""


class Epoch(BaseModel):
    """Measurements after one epoch.

    Attributes:
        epoch: Counted from 1.
        loss: Mean training loss; ``None`` when it was not finite.
        train_accuracy: Percent, on the (augmented) training batches; ``None`` when not measured.
        test_accuracy: Percent, on the clean test set.
        renamed: Accuracies with outputs named by labelled images; ``None`` without these.
        other_accuracy: Percent, on the clean test set in the form that ``Case.tested`` does not name; ``None`` where it
            has one form only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int = Field(ge=0)
    loss: float | None = None
    train_accuracy: float | None = Field(default=None, ge=0, le=100)
    test_accuracy: float = Field(ge=0, le=100)
    renamed: Renamed | None = None
    other_accuracy: float | None = Field(default=None, ge=0, le=100)

    @field_validator("loss", "train_accuracy", mode="before")
    @classmethod
    def _finite_or_none(cls, value: Any) -> Any:
        # JSON has no NaN: a diverged run is written as null and stays readable everywhere.
        return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Choice:
    """Epoch and naming of outputs that the labelled images choose, and the test accuracy there.

    Attributes:
        epoch: Counted from 1.
        naming: Names of the outputs.
        labelled: Accuracy on the labelled images, in percent, by which the choice was made.
        test: Accuracy on the clean test set, in percent.
    """

    epoch: int
    naming: Naming
    labelled: float | None
    test: float


class Case(BaseModel):
    """One training run of one network (docs/formats.md, "Case").

    Attributes:
        version: Version of this layout; the key is ``schema`` in JSON.
        id: File name without ``.json``; see :func:`case_id`.
        role: ``clean`` is the control on unprotected data, ``authorized`` starts from the secret θ0.
        network: Name of the architecture.
        start: ``theta0`` (the key) or ``random`` initial parameters.
        scheme: Way of training: ``direct`` on the labels, ``distill`` from the authorised network,
            or the name of another attack.
        data: Kind of training images.
        seed: Number of the repetition.
        key: Number of the authorised network's key file, from 0; 0 as well where no key is used.
        recipe: All settings of the training.
        history: One entry per epoch, in order.
        last: Test accuracy after the last epoch, in percent on the clean test set.
        best: Largest test accuracy of any epoch, in percent.
        best_epoch: The epoch of ``best``.
        seconds: Duration of the run.
        environment: Versions, device and precision.
        fingerprint: sha256 of everything that determines the case.
        family: Kind of attack, for instance ``plain`` or ``preprocess``.
        needs: Things that the hacker needs besides the published folder: ``key``, ``clean``, ``public``.
        about: The training in one plain sentence, for the report.
        start_accuracy: Accuracy of the authorised network before any training, in percent; ``None`` where not measured.
        parts: Accuracies after the last epoch on parts of the test images, in percent: one per server of a
            federation, ``None`` for classes of other servers; empty elsewhere.
        figures: Measurements of the attack itself by name; empty where it makes none.
        long: True for the long form of the worst case, with three times the epochs.
        tested: Form of the test images of all accuracies: ``changed`` by the attack, or ``original``, whichever gives
            the larger one after the last epoch; ``None`` where the attack leaves them as they are.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)

    version: Literal[1] = Field(default=1, alias="schema")
    id: str = Field(min_length=1)
    role: Role
    network: str = Field(min_length=1)
    start: Start
    scheme: str = Field(default="direct", min_length=1)
    data: Data
    seed: int
    key: int = Field(ge=0)
    recipe: dict[str, Any] = Field(default_factory=dict)
    history: list[Epoch] = Field(default_factory=list)
    last: float = Field(ge=0, le=100)
    best: float = Field(ge=0, le=100)
    best_epoch: int = Field(ge=0)
    seconds: float = Field(default=0.0, ge=0)
    environment: dict[str, Any] = Field(default_factory=dict)
    fingerprint: str = ""
    family: str = "plain"
    needs: list[str] = Field(default_factory=list)
    about: str = ""
    start_accuracy: float | None = Field(default=None, ge=0, le=100)
    parts: list[float | None] = Field(default_factory=list)
    figures: dict[str, float] = Field(default_factory=dict)
    long: bool = False
    tested: Literal["changed", "original"] | None = None

    def as_json(self) -> dict[str, Any]:
        """Fields of the case by their names in files, ready for ``json.dumps``; some only where they say something."""
        empty = {name for name in ("long", "figures", "tested") if not getattr(self, name)}
        fields = self.model_dump(by_alias=True, exclude=empty)
        for epoch in fields["history"]:
            for name in ("renamed", "other_accuracy"):
                if epoch[name] is None:
                    del epoch[name]
        return fields

    def choice(self, *namings: Naming) -> Choice:
        """Epoch and naming with the highest accuracy on the labelled images; of equal ones the simplest, then the last.

        Where nothing was measured on labelled images this is the last epoch with outputs as they are.

        Args:
            namings: Namings to choose from; all by default.
        """
        choices = [
            Choice(epoch.epoch, naming, epoch.renamed.labelled[place], epoch.renamed.test[place])
            for place, naming in enumerate(NAMINGS)
            if naming in (namings or NAMINGS)
            for epoch in reversed(self.history)
            if epoch.renamed is not None
        ]
        fallback = Choice(self.history[-1].epoch if self.history else 0, NAMINGS[0], None, self.last)
        return max(choices, key=lambda choice: choice.labelled or 0.0, default=fallback)

    @property
    def oracle(self) -> float:
        """Largest test accuracy of any epoch and any naming, chosen by the test images: an upper bound, in percent."""
        measured = (epoch.renamed for epoch in self.history if epoch.renamed is not None)
        return max([self.last, self.best, *(max(*renamed.test, *renamed.oracle) for renamed in measured)])

    @property
    def still_improving(self) -> bool:
        """True where the last tenth of the epochs holds the best one and lies 2 points above the tenth before it."""
        values = [epoch.test_accuracy for epoch in self.history]
        tenth = max(1, len(values) // 10)
        if len(values) < 3 or self.best_epoch <= self.history[-1].epoch - tenth:
            return False
        return fmean(values[-tenth:]) - fmean(values[-2 * tenth : -tenth]) > STILL_IMPROVING


def case_id(
    role: Role,
    network: str,
    scheme: str,
    data: Data,
    seed: int,
    *,
    start: Start | None = None,
    variant: str = "",
) -> str:
    """Name of a case, safe as a file name on every system.

    Args:
        role: See :class:`Case`.
        network: See :class:`Case`; characters unfit for file names are replaced,
            and a short hash keeps different names apart.
        scheme: See :class:`Case`.
        data: See :class:`Case`.
        seed: See :class:`Case`.
        start: Appended only where it is unusual for the role (θ0 is usual for ``authorized``, random otherwise).
        variant: Anything more that tells two cases apart, for instance ``key1``.

    Returns:
        For instance ``hacker-resnetc20-distill-protected-s0``.
    """
    unusual = "" if start == ("theta0" if role == "authorized" else "random") else start
    parts = [_slug(part) for part in (role, network, scheme, data, unusual, variant) if part]
    return "-".join([*parts, f"s{seed}"])


def _slug(text: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", text)
    return slug if slug == text else f"{slug}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def write_case(folder: Path, case: Case) -> Path:
    """Write ``folder/ID.json`` atomically; returns its path.

    Raises:
        StorageError: The disk is full or read-only.
    """
    path = folder / f"{case.id}.json"
    write_json(path, case.as_json())
    return path


def read_case(path: Path) -> Case:
    """Read one case.

    Raises:
        DataError: The file is no JSON, or not a case; the message names the file and the field.
    """
    try:
        return Case.model_validate(parse(json.loads, read_text(path)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DataError(
            f"{path} is no audit case: at '{place}': {first['msg'].lower()}; delete the file to train it again"
        ) from error
    except ValueError as error:
        raise DataError(f"expected a case in JSON in {path}, got {error}; delete the file to train it again") from error


def read_cases(folder: Path) -> list[Case]:
    """Read all cases of an audit folder, sorted by file name.

    Args:
        folder: The audit folder, or its ``cases`` folder.

    Raises:
        UsageError: The folder does not exist.
        DataError: A file is no JSON, or not a case; the message names it.
    """
    if not folder.is_dir():
        raise UsageError(f"expected an audit folder at {folder}, found none; run the audit first or check the path")
    inner = folder / "cases"
    return [read_case(path) for path in sorted((inner if inner.is_dir() else folder).glob("*.json")) if path.is_file()]


@dataclass(frozen=True)
class Job:
    """Network, training and data of one case; see :class:`Case`.

    Attributes:
        role: Clean control, authorised network, or hacker.
        network: Name of the architecture.
        start: Initial parameters.
        scheme: Attack or variant by name; ``direct`` is plain training.
        data: Kind of training images.
        seed: Number of the repetition.
        key: Number of the authorised network's key file; None where no key is used.
        variant: Part of the id that tells apart jobs which are alike in all the rest.
        long: True for three times the epochs; see :class:`Case`.
    """

    role: Role
    network: str
    start: Start
    scheme: str
    data: Data
    seed: int
    key: int | None = None
    variant: str = ""
    long: bool = False

    @property
    def id(self) -> str:
        """Id of the case; the second and later keys are named by number."""
        variant = "-".join(filter(None, [self.variant, f"key{self.key}" if self.key else "", "long" * self.long]))
        return case_id(self.role, self.network, self.scheme, self.data, self.seed, start=self.start, variant=variant)

    @property
    def title(self) -> str:
        """Attack or variant, with the rest that makes it another row of a report: ``jpeg10, on clean images``."""
        control = self.role == "hacker" and self.data == "clean"
        return ", ".join([self.scheme, *["on clean images"] * control, *["long form"] * self.long])

    @property
    def entry(self) -> Entry:
        """Attack of a hacker; plain training for authorised networks and clean controls."""
        from uge.attacks import find_attack

        return find_attack(self.scheme if self.role == "hacker" else "direct")

    @property
    def variation(self) -> Variant | None:
        """Change to the authorised network's training; None for usual trainings and for all other networks."""
        from uge.attacks.variants import VARIANTS

        return VARIANTS.get(self.scheme) if self.role == "authorized" else None

    @property
    def family(self) -> str:
        """Family of the attack; ``variant`` for changes to the authorised network's training."""
        return "variant" if self.variation else self.entry.family

    @property
    def about(self) -> str:
        """Description of the training in one plain sentence."""
        return (self.variation or self.entry).about

    @property
    def essential(self) -> bool:
        """True for plain training: clean controls, the authorised network, and the hacker without another attack."""
        return self.scheme == "direct"

    @property
    def taught(self) -> bool:
        """True where the authorised network of the same seed and key must be trained first."""
        return self.role == "hacker" and "key" in self.entry.needs

    @property
    def teaches(self) -> bool:
        """True for the authorised network that students of this seed and key need."""
        return self.role == "authorized" and self.scheme == "direct"


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

    def load(self, name: str, network: Network, fingerprint: str) -> Network | None:
        """Network with trained weights; None where they are missing, do not fit, or have another fingerprint."""
        from uge.learning.resume import load_checkpoint

        try:
            meta = load_checkpoint(self.weights(name), {"network": network})
        except WeightsError:
            return None
        return network if meta.get("fingerprint") == fingerprint else None

    def _failed(self, name: str) -> Path:
        return self.folder / "failed" / f"{name}.json"
