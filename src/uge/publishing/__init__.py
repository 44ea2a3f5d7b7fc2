"""Publishing: a protected data set as an ordinary folder of images that any program can load.

``publish`` writes it, ``verify`` checks it from disk, ``read_manifest`` reads its claims;
secrets go to ``private_folder`` beside it.
"""

from uge.publishing.manifest import (
    Authorized,
    Codec,
    Format,
    Manifest,
    Measured,
    Provenance,
    is_published,
    read_manifest,
)
from uge.publishing.private import create_private, is_private, private_folder
from uge.publishing.verify import Verification, is_complete, verify
from uge.publishing.writer import Protected, publish

__all__ = [
    "Authorized",
    "Codec",
    "Format",
    "Manifest",
    "Measured",
    "Protected",
    "Provenance",
    "Verification",
    "create_private",
    "is_complete",
    "is_private",
    "is_published",
    "private_folder",
    "publish",
    "read_manifest",
    "verify",
]
