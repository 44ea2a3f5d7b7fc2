"""Recipients and rows for tests of sealed folders."""

from dataclasses import dataclass
from pathlib import Path

from uge.sealing import Identity, Recipient, SealedRow


@dataclass(frozen=True)
class KeyPair:
    """Both keys of a recipient."""

    public: Recipient
    identity: Identity
    path: Path


def row(number: int, length: int = 50) -> SealedRow:
    """A row whose image is recognised by its number."""
    return SealedRow(
        f"image {number} ".encode() * length, number % 3, f"train/{number:08d}", bytes([number % 256]) * 32
    )
