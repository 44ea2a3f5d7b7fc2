"""Signed requests of receivers: what all kinds have in common, and their signature.

A request is signed with the receiver's identity, an Ed25519 key (RFC 8032), over its canonical JSON, so that both sides
need only compare the fingerprint of one public key over another channel.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, Field, ValidationError

from uge.config import first_problem
from uge.errors import DataError, UsageError
from uge.files import JSON, canonical_json, fingerprint, read_json, recover
from uge.publishing.manifest import RequestRecord, created_date
from uge.sealing.age import Recipient, parse_recipients
from uge.sealing.signing_key import is_signed, key_fingerprint, public_bytes, spoken

_CONTEXT = b"uge-request-1\n"  # so that the signature can be taken for nothing else


def hexadecimal(digits: int) -> Any:
    """Field of a number of hexadecimal digits."""
    return Field(pattern=rf"^[0-9a-f]{{{digits}}}$")


class SignedRequest(BaseModel, frozen=True, extra="forbid"):
    """Fields of every request (docs/formats.md, "Request").

    Attributes:
        id: First 16 digits of the fingerprint of all other fields but the signature.
        created: UTC date in ISO form.
        recipient: Public key of the receiver, ``age1…`` or ``ssh-ed25519 …``, to which the answer is sealed; None where
            nothing needs to be sealed.
        public_key: Ed25519 public key, 32 bytes in hexadecimal.
        signature: Of the canonical JSON of all other fields, 64 bytes in hexadecimal.
    """

    schema_version: Literal[1] = 1
    id: Annotated[str, hexadecimal(16)]
    created: str
    recipient: Annotated[str, Field(max_length=200)] | None = None
    public_key: Annotated[str, hexadecimal(64)]
    signature: Annotated[str, hexadecimal(128)]

    @property
    def record(self) -> RequestRecord:
        """Record of the request for a manifest."""
        return RequestRecord(id=self.id, key_sha256=key_fingerprint(bytes.fromhex(self.public_key)))

    @property
    def words(self) -> str:
        """Sentence on what is asked for, to be shown before work starts."""
        raise NotImplementedError


Kind = TypeVar("Kind", bound=SignedRequest)


def check_file_name(out: Path) -> None:
    """Refuse an output that is not named as a request.

    Raises:
        UsageError: Its name does not end in ``.json``.
    """
    if out.suffix != ".json":
        raise UsageError(f"expected a file name that ends in .json for the request, got {out}; name it {out.name}.json")


def parse_request(path: Path, raw: JSON, kind: type[Kind]) -> Kind:
    """Request of a kind from its JSON; signature, form, id and the key to seal to are checked.

    Raises:
        UsageError: It is no such request, was changed after it was signed, has a wrong id, or a key to seal to that is
            none.
    """
    check_signature(path, raw)
    try:
        request = kind.model_validate(raw)
    except ValidationError as error:
        raise UsageError(f"{path} is no request that this version knows: {first_problem(error)}") from None
    if request.id != request_id(raw):
        raise UsageError(f"the id of {path} is not the digest of its other fields; have the request made anew")
    if request.recipient is not None:
        recipient_of(path, request)
    return request


def recipient_of(path: Path, request: SignedRequest) -> Recipient:
    """Public key to which the answer of a request is sealed.

    Raises:
        UsageError: The request has none, or it is malformed.
    """
    if request.recipient is None:
        raise UsageError(f"the request {path} has no key to seal to; have it made with uge request --to KEY")
    try:
        return parse_recipients(request.recipient)[0]
    except UsageError as error:
        raise UsageError(f"the key to seal to in the request {path} cannot be used: {error}") from None


def read_raw(path: Path) -> JSON:
    """JSON of a request, not checked yet.

    Raises:
        UsageError: There is none.
    """
    recover(path)
    try:
        return read_json(path)
    except DataError as error:
        raise UsageError(f"the request {error}") from None


def signed_body(kind: str, key: Ed25519PrivateKey, fields: JSON, recipient: Recipient | None) -> JSON:
    """Request of a kind with date, id and signature.

    Args:
        kind: Its kind.
        key: The receiver's.
        fields: Fields of the kind.
        recipient: Key to which the answer is to be sealed, if any.
    """
    body = {
        "kind": kind,
        "schema_version": 1,
        "created": created_date(None) or datetime.now(UTC).date().isoformat(),
        **fields,
        **({} if recipient is None else {"recipient": recipient.text}),
        "public_key": public_bytes(key).hex(),
    }
    return sign(key, {**body, "id": request_id(body)})


def request_id(body: JSON) -> str:
    """First 16 digits of the fingerprint of all fields but id and signature."""
    return fingerprint({name: value for name, value in body.items() if name not in ("id", "signature")})[:16]


def sign(key: Ed25519PrivateKey, body: JSON) -> JSON:
    """Add the ``signature`` of the canonical JSON of ``body``, 64 bytes in hexadecimal."""
    return {**body, "signature": key.sign(_signed(body)).hex()}


def check_signature(path: Path, body: JSON) -> None:
    """Check the ``signature`` of a JSON object against its ``public_key``.

    Raises:
        UsageError: There is no such signature, or it does not fit. ``path`` names the object in messages.
    """
    try:
        public_key, signature = (bytes.fromhex(body[name]) for name in ("public_key", "signature"))
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is no signed request; give the JSON file of uge request") from None
    try:
        fits = is_signed(public_key, signature, _signed(body))
    except ValueError as error:
        raise UsageError(f"{path}: {error}; have the request signed by another identity") from None
    if not fits:
        raise UsageError(
            f"the signature of {path} does not fit its content: it was changed after it was signed; ask for it again"
        )


def check_signer(path: Path, request: SignedRequest, expected: Sequence[str]) -> None:
    """Refuse a request that none of the expected keys signed; any key may have signed it where none is expected.

    Raises:
        UsageError: Another key signed it.
    """
    signer = request.record.key_sha256
    if expected and signer not in expected:
        raise UsageError(
            f"the request {path} is signed by the key {spoken(signer)}, expected {' or '.join(map(spoken, expected))}; "
            "ask its sender"
        )


def signer_words(id: str, key_sha256: str) -> str:
    """Sentence by which owner and receiver compare a request's public key."""
    key = spoken(key_sha256)
    return f"request {id} is signed by the key {key}: compare it with the other side over another channel"


def _signed(body: JSON) -> bytes:
    return _CONTEXT + canonical_json({name: value for name, value in body.items() if name != "signature"}).encode()
