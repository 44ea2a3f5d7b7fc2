"""Ed25519 keys (RFC 8032) that sign folders and requests, and the fingerprints by which people compare them."""

import hashlib
import os
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from uge.errors import UsageError
from uge.files import UnreadableError, locked, read_bytes, recover, storage_errors

_PRIME = 2**255 - 19
_EIGHTH = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = (0, 1, _PRIME - 1, _EIGHTH, _PRIME - _EIGHTH)
"""y coordinates of the eight points of Ed25519 whose order divides 8."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def default_identity() -> Path:
    """Default file of a user's private key: ``uge/identity.pem`` in the user's settings folder."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "uge" / "identity.pem"


def open_identity(path: Path | None = None) -> Ed25519PrivateKey:
    """Private key of a file; a new one, readable by its owner alone, where the file does not exist.

    Args:
        path: File in PEM form (PKCS 8, not encrypted); :func:`default_identity` by default.

    Raises:
        UsageError: The file holds no Ed25519 key, or others may read it.
    """
    path = path or default_identity()
    recover(path)
    with storage_errors(path):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            pem = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            with locked(path, wait=True) as hold, hold.staged(path, mode=0o700) as folder:
                made = folder / path.name
                with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                    handle.write(pem)
                if not path.exists():  # Another process may have made one meanwhile.
                    hold.exchange([(made, path)])
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise UsageError(f"the identity {path} can be read by others; run chmod 600 on it, or make a new one")
        data = read_bytes(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the identity {path} holds no private key in PEM form ({error}); give another file") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"the identity {path} holds a {type(key).__name__}, not an Ed25519 key; give another file")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public key of a private one."""
    return key.public_key().public_bytes_raw()


def key_fingerprint(public_key: bytes) -> str:
    """Hexadecimal sha256 of a public key's 32 bytes."""
    return hashlib.sha256(public_key).hexdigest()


def spoken(fingerprint: str) -> str:
    """Fingerprint in groups of four digits, to be read aloud."""
    return " ".join(fingerprint[start : start + 4] for start in range(0, len(fingerprint), 4))


def is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """True where a signature of a message fits a public key.

    Raises:
        ValueError: The public key has not 32 bytes, is a point of small order, for which a signature proves nothing,
            or is not written in its only form.
    """
    if len(public_key) != 32:
        raise ValueError(f"the public key has {len(public_key)} bytes instead of 32")
    height = int.from_bytes(public_key, "little") % 2**255  # The y coordinate; the last bit is the sign of x.
    if height >= _PRIME or height in _SMALL_ORDER:
        raise ValueError(
            "the public key is a point of small order or not in its only form, so that a signature proves nothing"
        )
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def pinned_fingerprint(text: str) -> str:
    """Fingerprint that a user gives, as such or by a file.

    Args:
        text: 64 hexadecimal digits, with or without spaces between them; or a file that holds them, or an Ed25519
            public key in PEM form.

    Raises:
        UsageError: It is neither.

    Example:
        >>> pinned_fingerprint("AB12 " * 16)[:8]
        'ab12ab12'
    """
    digits = "".join(text.split()).lower()
    if _FINGERPRINT.fullmatch(digits):
        return digits
    try:
        data = read_bytes(Path(text))
    except UnreadableError as error:
        raise UsageError(
            f"expected a fingerprint of 64 hexadecimal digits or a file with a public key, got '{text}' "
            f"({error.reason}); copy the fingerprint from the other side"
        ) from None
    digits = "".join(data.decode(errors="replace").split()).lower()
    if _FINGERPRINT.fullmatch(digits):
        return digits
    try:
        key = serialization.load_pem_public_key(data)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{text} holds neither a fingerprint nor an Ed25519 public key in PEM form; give another file")
    return key_fingerprint(key.public_bytes_raw())
