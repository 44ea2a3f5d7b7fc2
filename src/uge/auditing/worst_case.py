"""The worst case of a published copy: the largest accuracy that any attack gets from it (docs/worst-case.md).

The attacker has the copy, this tool, public images of other data sets, and a few labelled clean images, by which epoch
and names of outputs are chosen. Needs no torch.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import BaseModel, Field

from uge.learning.naming import Naming
from uge.names import CHECKPOINT

APART = frozenset({"clean", "key"})
"""Possessions that the attacker of the worst case has not: originals, and the authorised network."""


class Mean(BaseModel):
    """Mean over seeds, in percent; ``std`` is the sample standard deviation, ``None`` with one seed."""

    value: float
    std: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Mean of at least one value."""
        return cls(value=statistics.fmean(values), std=statistics.stdev(values) if len(values) > 1 else None)


class Attacked(BaseModel):
    """One attack with one network, means over the seeds, in percent on the clean test images.

    Attributes:
        network: Name of the architecture.
        scheme: Name of the attack.
        about: The attack in one plain sentence; may be empty.
        needs: Possessions beyond the published folder.
        last: After the last epoch, outputs as they are.
        best: At the best epoch, outputs as they are.
        chosen: At the epoch and with the names that the labelled images choose.
        reached: The larger of ``last`` and ``chosen``: the accuracy that counts.
        naming: The naming of ``reached``; of ``chosen``, that of most seeds.
        as_is: At the epoch that the labelled images choose, outputs as they are.
        one_to_one: The same with outputs renamed one to one.
        many_to_one: The same with outputs renamed many to one.
        labelled: Accuracy on the labelled images at the choice; ``None`` where these were trained on.
        oracle: Best epoch and best names, chosen by the test images: an upper bound.
        clean: Clean control of the network: plain training on the originals, reached alike; ``None`` without originals.
        control: The same attack on clean images; ``None`` where that was not run.
        seeds: Number of seeds.
    """

    network: str
    scheme: str
    about: str = ""
    needs: list[str] = Field(default_factory=list)
    last: float
    best: float
    chosen: Mean
    reached: Mean
    naming: Naming
    as_is: float
    one_to_one: float
    many_to_one: float
    labelled: float | None
    oracle: float
    clean: Mean | None
    control: Mean | None
    seeds: int

    @property
    def name(self) -> str:
        """``jpeg10 on cnn, renamed one to one``."""
        return f"{self.scheme} on {self.network}" + ("" if self.naming == "as is" else f", renamed {self.naming}")


class Form(BaseModel):
    """The worst case at one length of training.

    Attributes:
        epochs: Epochs of plain training.
        attacks: Attacks that count, the strongest first; at least one.
        apart: Attacks that need more than the attacker of the worst case has, the strongest first.
        no_copy: The best training on the labelled images without the copy; ``None`` where that was not run.
        clean: Clean control of each network.
    """

    epochs: int
    attacks: list[Attacked]
    apart: list[Attacked] = Field(default_factory=list)
    no_copy: Attacked | None = None
    clean: dict[str, Mean] = Field(default_factory=dict)

    @property
    def worst(self) -> Attacked:
        """The strongest attack; its ``reached`` is the number."""
        return self.attacks[0]

    @property
    def picked(self) -> Attacked:
        """The attack that the labelled images choose: that of the largest accuracy on them."""
        return max(self.attacks, key=lambda row: row.labelled or 0.0)

    @property
    def oracle(self) -> float:
        """Largest upper bound of any attack, in percent."""
        return max(row.oracle for row in self.attacks)


class WorstCase(BaseModel):
    """The worst case of a published copy.

    Attributes:
        labelled: Number of labelled clean images that the attacker has.
        short: The number, at the usual length of training.
        long: The same at three times the epochs; ``None`` where that was not run.
        opened: Number of sealed originals that were all opened and compared with the copy, so that authorised training
            is training on the originals; ``None`` for a copy that is not sealed.
    """

    labelled: int | None = None
    short: Form
    long: Form | None = None
    opened: int | None = None


def is_apart(needs: Iterable[str], network: str) -> bool:
    """True for an attack with more than the attacker of the worst case has: originals, a key, or a checkpoint."""
    return bool(APART & {*needs}) or network.startswith(CHECKPOINT)
