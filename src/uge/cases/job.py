"""A case that is to be run, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from uge.attacks import find_attack
from uge.attacks.base import Entry
from uge.attacks.variants import VARIANTS
from uge.cases.case import Data, Role, Start, case_id

VARIANT = "variant"
"""Family of the authorised user's own changes."""


@dataclass(frozen=True)
class Job:
    """One case that is to be: who trains what, how, on which data."""

    role: Role
    network: str
    start: Start
    scheme: str
    data: Data
    seed: int
    key: int | None = None

    @property
    def id(self) -> str:
        """The case's id; with several keys, the second and later ones are named by number."""
        variant = f"key{self.key}" if self.key else ""
        return case_id(self.role, self.network, self.scheme, self.data, self.seed, start=self.start, variant=variant)

    @property
    def entry(self) -> Entry:
        """The attack that is run; authorised users and controls train plainly."""
        return find_attack(self.scheme if self.role == "hacker" else "direct")

    @property
    def varied(self) -> bool:
        """Whether it is the authorised user with a change of his own."""
        return self.role == "authorized" and self.scheme in VARIANTS

    @property
    def family(self) -> str:
        """Family of the attack, or :data:`VARIANT`."""
        return VARIANT if self.varied else self.entry.family

    @property
    def about(self) -> str:
        """What is done, in one plain sentence."""
        return VARIANTS[self.scheme].about if self.varied else self.entry.about

    @property
    def essential(self) -> bool:
        """Whether it is plain training: clean control, authorised network, or the hacker who tries nothing else."""
        return self.scheme == "direct"

    @property
    def taught(self) -> bool:
        """Whether it needs the authorised network of the same seed and key to be trained first."""
        return self.role == "hacker" and "key" in self.entry.needs

    @property
    def teaches(self) -> bool:
        """Whether it trains the authorised network that others of this seed and key need."""
        return self.role == "authorized" and self.scheme == "direct"
