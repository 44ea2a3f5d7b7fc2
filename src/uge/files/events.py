"""Append-only logs of events, one JSON object a line."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from uge.files.documents import JSON, storage_errors
from uge.files.limits import LARGEST, parse, read_text


class EventLog:
    """Append-only log, one event a line, each with its time in seconds since the epoch.

    Args:
        path: File of the log; None writes nothing.

    Raises:
        StorageError: The disk is full or read-only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists() and (lines := path.read_bytes()) and not lines.endswith(b"\n"):
                    # A crash cut the last line off; the next event must not be glued to it.
                    with path.open("a") as handle:
                        handle.write("\n")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Raises:
            StorageError: The disk is full or read-only.
        """
        if self._path is not None:
            with storage_errors(self._path), self._path.open("a") as handle:
                handle.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n")


def read_events(path: Path) -> list[JSON]:
    """All complete events of a log; a last line cut off by a crash is skipped, and a missing file has none."""
    events = []
    for line in read_text(path, LARGEST).splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            events.append(parse(json.loads, line))
    return events
