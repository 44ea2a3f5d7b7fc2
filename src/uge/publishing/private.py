"""Private folder beside a published one: keys, trajectories and the generator, which are never published."""

import logging
from pathlib import Path

from uge.errors import UsageError, refuse
from uge.files import storage_errors

log = logging.getLogger(__name__)
MODE = 0o700


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
    """True for a private folder of this package, which holds the state of a run or a key."""
    return (folder / "run" / "run.json").is_file() or any(folder.glob("authorized-*.key.safetensors"))


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
