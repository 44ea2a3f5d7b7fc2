"""Originals of published folders, opened by their owners' keys: equal after any kill; each sealing draws keys anew."""

from pathlib import Path

from uge.sealing import SealedRow, open_folder, read_identity


def originals(place: Path) -> tuple[dict[str, list[SealedRow]], set[str]]:
    """Sealed originals of every published folder below a place, and the salts of their shards."""
    rows: dict[str, list[SealedRow]] = {}
    salts: set[str] = set()
    for key in sorted(place.rglob("*.private/owner.agekey")):
        folder = key.parent.with_name(key.parent.name.removesuffix(".private"))
        sealed = open_folder(folder, read_identity(key))
        rows[str(folder.relative_to(place))] = list(sealed.rows())
        salts |= {shard.salt for shard in sealed.record.shards}
    return rows, salts
