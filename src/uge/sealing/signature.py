"""Signature of a folder's owner: a DSSE envelope around an in-toto statement of digests.

The envelope is the file ``manifest.dsse.json`` (https://github.com/secure-systems-lab/dsse, version 1), its payload a
statement of https://in-toto.io/Statement/v1. Subjects are ``manifest.json``, which has the digests of all other files,
and every recipient's file. The predicate holds the public key, so that a receiver who knows its fingerprint needs no
other file.
"""

import base64
import binascii
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from uge.errors import IntegrityError
from uge.files import (
    JSON,
    UnreadableError,
    canonical_json,
    file_sha256,
    parse,
    read_bytes,
    recover,
    write_json,
)
from uge.sealing.signing_key import is_signed, key_fingerprint, pinned_fingerprint, public_bytes, spoken

log = logging.getLogger(__name__)
SIGNED = "manifest.json"
SIGNATURE = "manifest.dsse.json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "urn:uge:signed-folder:1"
"""Kind of the statement, so that the signature can be taken for nothing else."""


@dataclass(frozen=True)
class Signed:
    """Contents of a signature that fits its public key; the files themselves may have changed since.

    Attributes:
        fingerprint: sha256 of the public key, hexadecimal.
        digests: sha256 of every signed file by its path in the folder.
    """

    fingerprint: str
    digests: Mapping[str, str]

    def covers(self, folder: Path, name: str) -> bool:
        """True where the file of that name in the folder is the one that was signed."""
        try:
            return self.digests.get(name) == file_sha256(folder / name)
        except UnreadableError:
            return False


def write_signature(folder: Path, digests: Mapping[str, str], key: Ed25519PrivateKey, name: str = SIGNATURE) -> str:
    """Sign the digests of a folder's files; equal digests and keys give equal bytes.

    Args:
        folder: Where to write.
        digests: sha256 of every file by its path in the folder, hexadecimal.
        key: The owner's.
        name: Name of the signature's file.

    Returns:
        The fingerprint of the public key.

    Raises:
        StorageError: The disk is full or read-only.
    """
    public_key = public_bytes(key)
    fingerprint = key_fingerprint(public_key)
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": path, "digest": {"sha256": digest}} for path, digest in sorted(digests.items())],
        "predicateType": _PREDICATE,
        "predicate": {"public_key": public_key.hex()},
    }
    payload = canonical_json(statement).encode()
    signature = key.sign(_encoded(_PAYLOAD_TYPE, payload))
    write_json(
        folder / name,
        {
            "payloadType": _PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": fingerprint, "sig": base64.b64encode(signature).decode()}],
        },
    )
    return fingerprint


def signature_of(document: str) -> str:
    """Name of the signature beside a JSON document: ``manifest.dsse.json`` of ``manifest.json``."""
    return f"{document.removesuffix('.json')}.dsse.json"


def read_signature(folder: Path, name: str = SIGNATURE) -> Signed | None:
    """Signer and signed digests of a folder; None where there is no signature.

    Raises:
        IntegrityError: The file is no such signature, or the signature does not fit.
    """
    recover(folder)
    path = folder / name
    if not path.exists():
        return None
    try:
        envelope = parse(json.loads, read_bytes(path))
        payload = _decoded(envelope["payload"])
        statement = parse(json.loads, payload)
        public_key = bytes.fromhex(statement["predicate"]["public_key"])
        fingerprint = key_fingerprint(public_key)
        known = (envelope["payloadType"], statement["_type"], statement["predicateType"])
        if known != (_PAYLOAD_TYPE, _STATEMENT, _PREDICATE):
            raise ValueError(f"it is a statement of another kind, {statement['predicateType']!r}")
        digests = _digests(statement["subject"])
        message = _encoded(_PAYLOAD_TYPE, payload)
        signatures = [_decoded(each["sig"]) for each in envelope["signatures"] if each["keyid"] == fingerprint]
        fits = bool(signatures) and is_signed(public_key, signatures[0], message)
    except UnreadableError as error:
        raise IntegrityError([f"{name} cannot be read: {error.reason}"]) from None
    except (ValueError, LookupError, TypeError, AttributeError, binascii.Error) as error:
        raise IntegrityError([f"{name} is no signature of this tool ({error}); fetch the folder again"]) from None
    if not fits:
        raise IntegrityError([f"the signature in {name} does not fit: it was changed; fetch the folder again"])
    return Signed(fingerprint, digests)


def check(folder: Path, owner: str | None = None, document: str = SIGNED) -> Signed | None:
    """Check that a folder's manifest is the one that was signed; None where the folder is not signed.

    Args:
        folder: Published folder.
        owner: Fingerprint or file of the key that must have signed it (:func:`pinned_fingerprint`).
        document: File in the folder that has the digests of the others.

    Raises:
        UsageError: ``owner`` is neither.
        IntegrityError: The signature or the manifest was changed; or ``owner`` is given, and the folder is not signed,
            or by another key.
    """
    wanted = None if owner is None else pinned_fingerprint(owner)
    signed = read_signature(folder, signature_of(document))
    if signed is None:
        if wanted is not None:
            raise IntegrityError(
                [f"{folder} is not signed, expected the signature of the key {spoken(wanted)}; do not use this folder"]
            )
        return None
    if not signed.covers(folder, document):
        raise IntegrityError(
            [f"{document} is not the one that {signature_of(document)} was made for; fetch the folder again"]
        )
    if wanted not in (None, signed.fingerprint):
        raise IntegrityError(
            [
                f"{folder} is signed by the key {spoken(signed.fingerprint)}, expected {spoken(wanted or '')}; do not "
                "use this folder"
            ]
        )
    return signed


def check_owner(folder: Path, owner: str | None = None, document: str = SIGNED) -> None:
    """Check the signature of a folder that is opened, and warn where no key was pinned.

    Args:
        folder: Published folder.
        owner: As for :func:`check`.
        document: As for :func:`check`.

    Raises:
        UsageError: As for :func:`check`.
        IntegrityError: As for :func:`check`.
    """
    signed = check(folder, owner, document)
    if owner is None:
        log.warning(unpinned(folder, signed, "--owner"))


def unpinned(folder: Path, signed: Signed | None, flag: str) -> str:
    """Sentence on a signature that no pinned key was compared with."""
    if signed is None:
        return f"{folder} is not signed: anybody may have made it; ask its owner for a signed one"
    return (
        f"{folder} is signed by the key {spoken(signed.fingerprint)}, which is trusted on first use: compare it with "
        f"the owner over another channel, and give it as {flag} from then on"
    )


def _encoded(kind: str, payload: bytes) -> bytes:
    """Pre-authentication encoding of DSSE."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def _decoded(text: str) -> bytes:
    """Bytes of base64 in its only form."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("its base64 is not in the usual form")
    return data


def _digests(subjects: Any) -> dict[str, str]:
    digests: JSON = {each["name"]: each["digest"]["sha256"] for each in subjects}
    if len(digests) != len(subjects) or not all(isinstance(text, str) for pair in digests.items() for text in pair):
        raise ValueError("its subjects are not one digest for each file")
    return digests
