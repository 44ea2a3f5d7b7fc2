"""Files that a run reads and writes: JSON, logs of events, output folders, the code version. Needs no torch."""

from uge.files.documents import (
    JSON,
    canonical_json,
    file_sha256,
    fingerprint,
    owners_alone,
    read_json,
    stable_safetensors,
    storage_errors,
    write_atomic,
    write_json,
)
from uge.files.events import EventLog, read_events
from uge.files.folders import (
    check_output,
    check_writable,
    holds_something,
    link_folder,
    local_path,
    staged_folder,
)
from uge.files.limits import (
    LARGEST,
    WEIGHTS,
    UnreadableError,
    check_regular,
    open_regular,
    parse,
    read_bytes,
    read_text,
)
from uge.files.lock import Hold, locked, recover, writes
from uge.files.pair import Move
from uge.files.region import Region, parts_of, reader_of
from uge.files.version import code_version

__all__ = [
    "JSON",
    "LARGEST",
    "WEIGHTS",
    "EventLog",
    "Hold",
    "Move",
    "Region",
    "UnreadableError",
    "canonical_json",
    "check_output",
    "check_regular",
    "check_writable",
    "code_version",
    "file_sha256",
    "fingerprint",
    "holds_something",
    "link_folder",
    "local_path",
    "locked",
    "open_regular",
    "owners_alone",
    "parse",
    "parts_of",
    "read_bytes",
    "read_events",
    "read_json",
    "read_text",
    "reader_of",
    "recover",
    "stable_safetensors",
    "staged_folder",
    "storage_errors",
    "write_atomic",
    "write_json",
    "writes",
]
