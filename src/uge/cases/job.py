"""Training run that is to be a case, as plain data."""

from dataclasses import dataclass

from uge.attacks import find_attack
from uge.attacks.base import Entry
from uge.attacks.variants import VARIANTS
from uge.cases.case import Data, Role, Start, case_id

VARIANT = "variant"
"""Family of changes to the authorised network's training."""


@dataclass(frozen=True)
class Job:
    """Network, training and data of one case; see :class:`uge.cases.case.Case`.

    Attributes:
        role: Clean control, authorised network, or hacker.
        network: Name of the architecture.
        start: Initial parameters.
        scheme: Attack or variant by name; ``direct`` is plain training.
        data: Kind of training images.
        seed: Number of the repetition.
        key: Number of the authorised network's key file; None where no key is used.
        variant: Part of the id that tells apart jobs which are alike in all the rest.
    """

    role: Role
    network: str
    start: Start
    scheme: str
    data: Data
    seed: int
    key: int | None = None
    variant: str = ""

    @property
    def id(self) -> str:
        """Id of the case; the second and later keys are named by number."""
        variant = "-".join(filter(None, [self.variant, f"key{self.key}" if self.key else ""]))
        return case_id(self.role, self.network, self.scheme, self.data, self.seed, start=self.start, variant=variant)

    @property
    def entry(self) -> Entry:
        """Attack of a hacker; plain training for authorised networks and clean controls."""
        return find_attack(self.scheme if self.role == "hacker" else "direct")

    @property
    def varied(self) -> bool:
        """True for the authorised network with a changed training."""
        return self.role == "authorized" and self.scheme in VARIANTS

    @property
    def family(self) -> str:
        """Family of the attack, or :data:`VARIANT`."""
        return VARIANT if self.varied else self.entry.family

    @property
    def about(self) -> str:
        """Description of the training in one plain sentence."""
        return VARIANTS[self.scheme].about if self.varied else self.entry.about

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
