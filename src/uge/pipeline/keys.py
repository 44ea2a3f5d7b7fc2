"""Kinds of key files by their contents: private keys of recipients, and weights of authorised networks."""

import re
from pathlib import Path

from uge.files import UnreadableError, open_regular
from uge.sealing.age import LARGEST_KEY
from uge.sealing.content_key import KEY_BYTES

_MARKS = re.compile(rb"^(?:AGE-|age1|ssh-|age-encryption\.org/|-----BEGIN )", re.MULTILINE)


def is_private_key(path: Path) -> bool:
    """True for a file that holds a private key of a recipient in any form, a public one, or a content key.

    Forms that cannot be used here count as well: reading such a key says which form helps.
    """
    try:
        with open_regular(path) as handle:
            content = handle.read(LARGEST_KEY)
    except UnreadableError:
        return False
    is_weights = content[8:9] == b"{"  # Weights begin with the length of their JSON.
    return len(content) == KEY_BYTES or not (is_weights or _MARKS.search(content) is None)
