"""Checking a published folder from disk: ``uge verify``."""

from pathlib import Path
from typing import Any

from uge.data import load_images
from uge.errors import IntegrityError
from uge.progress import Display
from uge.publishing import read_manifest
from uge.publishing.verify import verify


def run_verify(out: Path, against: str | None, progress: Display) -> dict[str, Any]:
    """Re-read a published folder and check everything that its manifest claims.

    Args:
        out: The published folder.
        against: The originals; None leaves out the checks that need them.
        progress: Shows images.

    Returns:
        ``count``, ``measured`` and ``problems``: one sentence per deviation, each naming its file.
    """
    try:
        manifest = read_manifest(out)
    except IntegrityError as error:
        return {"count": 0, "measured": None, "problems": error.problems}
    originals = None if against is None else load_images(against, split=manifest.split)
    with progress.stage("verify") as on_progress:
        result = verify(out, against=originals, progress=lambda done: on_progress(done, manifest.count, {}))
    measured = None if result.measured is None else result.measured.model_dump(mode="json")
    return {"count": result.images, "measured": measured, "problems": list(result.problems)}
