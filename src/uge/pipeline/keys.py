"""Kinds of key files by their contents: private keys of recipients, and weights of authorised networks."""

from pathlib import Path

from uge.files import UnreadableError, open_regular
from uge.sealing.age import LARGEST_KEY
from uge.sealing.content_key import KEY_BYTES


def is_private_key(path: Path) -> bool:
    """True for a file that is no weights file and may hold the private key of a recipient, or a content key.

    Such keys are text, a file that a passphrase protects, or 32 bytes. A weights file begins with the length of its
    JSON.
    """
    try:
        with open_regular(path) as handle:
            content = handle.read(LARGEST_KEY + 1)
    except UnreadableError:
        return False
    if len(content) == KEY_BYTES:
        return True
    if len(content) > LARGEST_KEY or content[8:9] == b"{":
        return False
    if content.startswith(b"age-encryption.org/"):
        return True
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False
