"""Private folder beside a published one: keys, trajectories and the generator, which are never published."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from uge.errors import UsageError, refuse
from uge.files import fingerprint, read_json, storage_errors, write_json
from uge.publishing.manifest import MANIFEST, Manifest

log = logging.getLogger(__name__)
MODE = 0o700
OWNER_KEY = "owner.agekey"
PUBLIC_KEYS = "recipients.json"
"""File in a private folder by which the owner opens sealed originals."""
STATE = Path("run", "run.json")
"""Settings of a run, in a private folder."""
DONE = Path("run", "done.json")
"""Mark of a run that ended."""
CLAIMS = "published.json"
"""Digests of the published manifest in a private folder: of the whole, and of every field."""


def private_folder(out: Path) -> Path:
    """Path of the private folder of an output: ``OUT.private`` beside it.

    Raises:
        UsageError: ``out`` is the root of the file system, which has no place beside it.
    """
    named = out if out.name and out.name != ".." else out.resolve()
    if not named.name:
        raise UsageError(f"the output cannot be {out}; name a folder inside it")
    return named.with_name(f"{named.name}.private")


def is_private(folder: Path) -> bool:
    """True for a private folder of this package: it holds the state of a run, a key, or digests of a manifest."""
    files = (folder / STATE, folder / CLAIMS, folder / OWNER_KEY)
    return any(path.is_file() for path in files) or any(folder.glob("authorized-*.key.safetensors"))


def create_private(path: Path, *, published: Path | None = None) -> Path:
    """Create a folder that only its owner may enter, or close an existing one.

    Args:
        path: The folder; parents are created.
        published: The published folder that it must not lie inside.

    Raises:
        UsageError: ``path`` lies inside ``published``, is a link, or is a file.
        StorageError: It cannot be created, or its mode cannot be set.
    """
    refuse(
        {
            f"the private folder {path} lies inside the published folder {published}; keep it outside": (
                published is not None and path.resolve().is_relative_to(published.resolve())
            ),
            f"the private folder {path} must be a folder, but a file or link has its name; remove that": (
                path.is_symlink() or (path.exists() and not path.is_dir())
            ),
        }
    )
    close_folder(path)
    return path


def close_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, or close an existing one.

    Raises:
        StorageError: It cannot be created, or its mode cannot be set.
    """
    with storage_errors(path):
        path.mkdir(mode=MODE, parents=True, exist_ok=True)
        if path.stat().st_mode & 0o777 != MODE:
            path.chmod(MODE)
            log.warning("%s was open to others; its mode is now 0700", path)
        if path.stat().st_mode & 0o077:
            log.warning("%s: the file system does not keep modes, so others may read your keys; move it", path)


def close_contents(folder: Path) -> None:
    """Close every file (0600) and folder (0700) in a private folder, whatever the umask.

    Raises:
        StorageError: A mode cannot be set.
    """
    with storage_errors(folder):
        for path in folder.rglob("*"):
            if not path.is_symlink():
                path.chmod(MODE if path.is_dir() else 0o600)


def keep_claims(private: Path, manifest: Manifest) -> None:
    """Write the digests of a new copy's manifest into its private folder, and close all that is in there.

    Raises:
        StorageError: The disk is full or read-only.
    """
    claims = json.loads(manifest.model_dump_json())
    write_json(private / CLAIMS, {"sha256": fingerprint(claims), "fields": _digests(claims)})
    close_contents(private)


def changed_claims(private: Path, out: Path) -> list[str] | None:
    """One sentence for each field of a manifest that is not as it was published; None without its digests.

    Raises:
        DataError: One of the files is damaged.
    """
    if not os.path.isfile(private / CLAIMS):  # False also for a folder that only its owner may enter.
        return None
    kept = read_json(private / CLAIMS)
    claims = read_json(out / MANIFEST)
    before = dict(kept.get("fields", {}))
    now = _digests(claims)
    changed = [
        f"{MANIFEST}: {name} {'is missing' if name not in now else 'was changed' if name in before else 'was added'} "
        "since the copy was published; fetch the folder again"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if not changed and kept.get("sha256") != fingerprint(claims):
        return [f"{MANIFEST} is not the one that was published; fetch the folder again"]
    return changed


def was_added_to(private: Path) -> bool:
    """True where images were added to a copy after its first publication (``uge protect --append``).

    Args:
        private: Its private folder.

    Raises:
        DataError: The digests in it are damaged.
    """
    if not os.path.isfile(private / CLAIMS):
        return False
    none = fingerprint([])
    return bool(read_json(private / CLAIMS).get("fields", {}).get("additions", none) != none)


def _digests(value: dict[str, Any], place: str = "") -> dict[str, str]:
    """Digest of every field by its dotted name; a list is one field."""
    digests: dict[str, str] = {}
    for name, part in value.items():
        if isinstance(part, dict) and part:
            digests |= _digests(part, f"{place}{name}.")
        else:
            digests[place + name] = fingerprint(part)
    return digests
