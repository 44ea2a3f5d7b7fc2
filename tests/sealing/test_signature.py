"""Signatures of folders: the format by code of its own, and every way to make one that should not count."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from uge.errors import IntegrityError, UsageError
from uge.sealing.signature import SIGNATURE, check, read_signature, write_signature
from uge.sealing.signing_key import is_signed, key_fingerprint, pinned_fingerprint, public_bytes, spoken

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OWNER = key_fingerprint(public_bytes(KEY))
PRIME = 2**255 - 19


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a manifest, signed."""
    (tmp_path / "manifest.json").write_text('{"name": "cats"}')
    sign(tmp_path)
    return tmp_path


def sign(folder: Path, key: Ed25519PrivateKey = KEY) -> None:
    write_signature(folder, {"manifest.json": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()}, key)


def envelope(folder: Path) -> Any:
    return json.loads((folder / SIGNATURE).read_text())


def test_the_envelope_is_dsse_around_an_in_toto_statement(folder: Path) -> None:
    """DSSE version 1 and in-toto Statement v1, read and checked without our code."""
    raw = envelope(folder)
    payload = base64.b64decode(raw["payload"])
    (signature,) = raw["signatures"]
    message = b" ".join([b"DSSEv1", b"28", b"application/vnd.in-toto+json", str(len(payload)).encode(), payload])
    statement = json.loads(payload)
    public_key = bytes.fromhex(statement["predicate"]["public_key"])
    Ed25519PublicKey.from_public_bytes(public_key).verify(base64.b64decode(signature["sig"]), message)
    assert raw["payloadType"] == "application/vnd.in-toto+json"
    assert signature["keyid"] == hashlib.sha256(public_key).hexdigest() == OWNER
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert statement["subject"] == [{"name": "manifest.json", "digest": {"sha256": digest}}]


def test_equal_folders_and_keys_give_equal_bytes(folder: Path) -> None:
    before = (folder / SIGNATURE).read_bytes()
    sign(folder)
    assert (folder / SIGNATURE).read_bytes() == before


def test_a_sound_signature_gives_its_signer(folder: Path) -> None:
    for owner in (None, OWNER, spoken(OWNER).upper()):
        signed = check(folder, owner)
        assert signed is not None
        assert signed.fingerprint == OWNER


def test_a_folder_without_a_signature_is_refused_where_a_key_is_pinned(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    assert check(folder) is None
    with pytest.raises(IntegrityError, match="is not signed, expected the signature of the key"):
        check(folder, OWNER)


def test_a_folder_signed_by_another_key_is_refused_where_a_key_is_pinned(folder: Path) -> None:
    sign(folder, Ed25519PrivateKey.generate())
    assert check(folder) is not None
    with pytest.raises(IntegrityError, match="do not use this folder"):
        check(folder, OWNER)


def test_a_manifest_that_was_changed_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "dogs"}')
    with pytest.raises(IntegrityError, match=r"is not the one that manifest\.dsse\.json was made for"):
        check(folder)


def changed_payload(raw: Any) -> None:
    payload = base64.b64decode(raw["payload"]).replace(b"manifest.json", b"manifest.jsom")
    raw["payload"] = base64.b64encode(payload).decode()


def other_kind(raw: Any) -> None:
    """The owner signed something else once, in another statement."""
    payload = base64.b64decode(raw["payload"]).replace(b"urn:uge:signed-folder:1", b"urn:uge:signed-letter:1")
    raw["payload"] = base64.b64encode(payload).decode()
    resign(raw)


def other_payload_type(raw: Any) -> None:
    raw["payloadType"] = "text/plain"
    resign(raw)


def resign(raw: Any) -> None:
    payload = base64.b64decode(raw["payload"])
    kind = raw["payloadType"].encode()
    signature = KEY.sign(b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    raw["signatures"][0]["sig"] = base64.b64encode(signature).decode()


def foreign_key(raw: Any) -> None:
    """Another public key in the statement, which the signature was not made by."""
    payload = json.loads(base64.b64decode(raw["payload"]))
    payload["predicate"]["public_key"] = public_bytes(Ed25519PrivateKey.generate()).hex()
    raw["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


def any_signature_fits(raw: Any) -> None:
    """The neutral element as public key: this signature would fit any message."""
    payload = json.loads(base64.b64decode(raw["payload"]))
    payload["predicate"]["public_key"] = (1).to_bytes(32, "little").hex()
    raw["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    sig = base64.b64encode(b"\x01" + bytes(63)).decode()
    raw["signatures"] = [{"keyid": key_fingerprint((1).to_bytes(32, "little")), "sig": sig}]


def two_digests(raw: Any) -> None:
    payload = json.loads(base64.b64decode(raw["payload"]))
    payload["subject"].append({"name": "manifest.json", "digest": {"sha256": "0" * 64}})
    raw["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    resign(raw)


BAD: list[tuple[Callable[[Any], Any], str]] = [
    (changed_payload, "does not fit"),
    (foreign_key, "does not fit"),
    (other_kind, "statement of another kind"),
    (other_payload_type, "statement of another kind"),
    (any_signature_fits, "small order"),
    (two_digests, "not one digest for each file"),
    (lambda raw: raw.update(signatures=[]), "does not fit"),
    (lambda raw: raw.update(signatures=[{"keyid": OWNER}]), "no signature of this tool"),
    (lambda raw: raw["signatures"][0].update(keyid="0" * 64), "does not fit"),
    (lambda raw: raw.update(payload="*"), "no signature of this tool"),
    (lambda raw: raw.pop("payload"), "no signature of this tool"),
    (lambda raw: raw.update(payload=base64.b64encode(b"[]").decode()), "no signature of this tool"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_signatures_that_are_none(spoil: Callable[[Any], Any], words: str, folder: Path) -> None:
    raw = envelope(folder)
    spoil(raw)
    (folder / SIGNATURE).write_text(json.dumps(raw))
    for owner in (None, OWNER):
        with pytest.raises(IntegrityError, match=words):
            check(folder, owner)


def test_every_byte_of_the_envelope_counts(folder: Path) -> None:
    """No flipped bit is overlooked, not even in the key's id or in the last digits of base64."""
    content = (folder / SIGNATURE).read_bytes()
    for place in range(len(content.rstrip())):
        changed = bytearray(content)
        changed[place] ^= 1
        (folder / SIGNATURE).write_bytes(changed)
        with pytest.raises(IntegrityError):
            read_signature(folder)


@pytest.mark.parametrize("height", [0, 1, PRIME - 1, PRIME, PRIME + 1, PRIME + 3, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 2**255])
def test_public_keys_of_small_order_or_in_a_second_form_are_refused(height: int, sign: int) -> None:
    with pytest.raises(ValueError, match="small order or not in its only form"):
        is_signed((height + sign).to_bytes(32, "little"), b"\x01" + bytes(63), b"message")


def test_a_public_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="has 31 bytes"):
        is_signed(bytes(31), bytes(64), b"message")


def test_a_key_is_pinned_by_its_fingerprint_or_a_file(tmp_path: Path) -> None:
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "owner.pem").write_bytes(pem)
    (tmp_path / "owner.txt").write_text(spoken(OWNER) + "\n")
    found = {pinned_fingerprint(text) for text in (OWNER, str(tmp_path / "owner.pem"), str(tmp_path / "owner.txt"))}
    assert found == {OWNER}


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff\xfe", b"-----BEGIN PUBLIC KEY-----\n"])
def test_what_pins_no_key(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "owner").write_bytes(content)
    with pytest.raises(UsageError, match="neither a fingerprint nor an Ed25519 public key"):
        pinned_fingerprint(str(tmp_path / "owner"))
    with pytest.raises(UsageError, match="expected a fingerprint of 64 hexadecimal digits or a file"):
        pinned_fingerprint("12ab")
