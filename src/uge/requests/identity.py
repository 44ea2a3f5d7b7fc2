"""Identities of receivers: Ed25519 keys (RFC 8032), signatures over canonical JSON, fingerprints to compare."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uge.errors import MissingExtraError, UsageError
from uge.files import canonical_json, locked, recover, storage_errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_CONTEXT = b"uge-request-1\n"  # so that the signature can be taken for nothing else


def key_fingerprint(public_key: str) -> str:
    """Hexadecimal sha256 of a public key's 32 bytes, which are given in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()


def default_identity() -> Path:
    """Default file of a receiver's private key: ``uge/identity.pem`` in the user's settings folder."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "uge" / "identity.pem"


def open_identity(path: Path) -> Ed25519PrivateKey:
    """Receiver's private key; a new one, readable by its owner alone, where the file does not exist.

    Raises:
        MissingExtraError: The library ``cryptography`` is not installed.
        UsageError: The file holds no Ed25519 key, or others may read it.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise MissingExtraError("cryptography", "sign", "signing a request") from None
    recover(path)
    with storage_errors(path):
        if not path.exists():
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
        data = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the identity {path} holds no private key in PEM form ({error}); give another file") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"the identity {path} holds a {type(key).__name__}, not an Ed25519 key; give another file")
    return key


def public_key_of(key: Ed25519PrivateKey) -> str:
    """Public key, 32 bytes in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def sign(key: Ed25519PrivateKey, body: dict[str, Any]) -> dict[str, Any]:
    """Add the ``signature`` of the canonical JSON of ``body``, 64 bytes in hexadecimal."""
    return {**body, "signature": key.sign(_signed(body)).hex()}


def check_signature(path: Path, body: dict[str, Any]) -> None:
    """Check the ``signature`` of a JSON object against its ``public_key``.

    Raises:
        MissingExtraError: The library ``cryptography`` is not installed.
        UsageError: There is no such signature, or it does not fit. ``path`` names the object in messages.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise MissingExtraError("cryptography", "sign", "checking a request") from None
    try:
        public_key, signature = (bytes.fromhex(body[name]) for name in ("public_key", "signature"))
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _signed(body))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is no signed request; give the JSON file of uge request") from None
    except InvalidSignature:
        raise UsageError(
            f"the signature of {path} does not fit its content: it was changed after it was signed; ask for it again"
        ) from None


def _signed(body: dict[str, Any]) -> bytes:
    return _CONTEXT + canonical_json({name: value for name, value in body.items() if name != "signature"}).encode()
