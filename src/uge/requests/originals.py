"""Requests for originals: a receiver names the key to which an owner seals them."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from uge.files import check_output, storage_errors, write_json, writes
from uge.requests.signed import SignedRequest, check_file_name, parse_request, read_raw, signed_body
from uge.sealing.age import parse_recipients
from uge.sealing.signing_key import default_identity, key_fingerprint, open_identity, public_bytes
from uge.session import Session

KIND = "uge-originals-request"


class OriginalsRequest(SignedRequest, frozen=True, extra="forbid"):
    """Request for a copy with the originals sealed to the receiver; it names no network and has no θ0."""

    kind: Literal["uge-originals-request"] = "uge-originals-request"
    recipient: Annotated[str, Field(max_length=200)]

    @property
    def words(self) -> str:
        """Sentence on the key to which the originals are to be sealed."""
        return f"request {self.id} asks for the originals, sealed to {self.recipient}"


def read_originals_request(path: Path) -> OriginalsRequest:
    """Read a request for originals and check its signature, form and key.

    Raises:
        UsageError: It is no such request, was changed after it was signed, or its key to seal to is none.
    """
    return parse_request(path, read_raw(path), OriginalsRequest)


@writes("out")
def write_originals_request(out: Path, to: str, *, identity: Path | None, session: Session) -> dict[str, Any]:
    """Write a signed request for the originals, sealed to a key.

    Args:
        out: The request, ``NAME.json``.
        to: Public key to seal to, or a file with it.
        identity: Private key that signs (PEM); made where it does not exist.
        session: Overwriting, and whether to write at all.

    Returns:
        The request with its ``fingerprint``, and the files.

    Raises:
        UsageError: A name is wrong, or ``to`` is no public key.
        OutputExistsError: The file exists.
    """
    check_file_name(out)
    check_output(out, overwrite=session.overwrite)
    (recipient,) = parse_recipients(to)
    identity = identity or default_identity()
    places = {"request": str(out), "identity": str(identity)}
    if session.dry_run:
        return {**places, "recipient": recipient.text}
    key = open_identity(identity)
    body = signed_body(KIND, key, {}, recipient)
    with storage_errors(out):
        write_json(out, body)
    return {**places, **body, "fingerprint": key_fingerprint(public_bytes(key))}
