"""Keys derived from a content key: the formula, and that no two inputs give one key."""

import hashlib
import hmac

import pytest

from uge.sealing import ContentKey

ID = "00112233445566778899aabbccddeeff"


def derived(secret: bytes, *parts: bytes) -> bytes:
    """HKDF-SHA256 of RFC 5869 for 32 bytes without salt, written out."""
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_derivations_are_hkdf_of_length_prefixed_inputs() -> None:
    key = ContentKey(bytes(range(32)))
    version, id = b"uge-sealed-1", ID.encode()
    assert key.file_key(ID, "sealed/a.parquet", b"s" * 16) == derived(
        key.secret, version, b"file", id, b"sealed/a.parquet", b"s" * 16
    )
    assert key.commitment(ID) == derived(key.secret, version, b"commitment", id).hex()
    mac_key = derived(key.secret, version, b"mac", id)
    assert key.mac(ID, b"message") == hmac.new(mac_key, b"message", hashlib.sha256).hexdigest()


def test_no_two_inputs_give_one_key() -> None:
    key = ContentKey.new()
    keys = [key.file_key(*inputs, salt) for inputs in (("ab", "c"), ("a", "bc")) for salt in (b"", b"1")]
    keys += [ContentKey.new().file_key("ab", "c", b"")]
    assert len(set(keys)) == len(keys)


def test_a_content_key_has_32_bytes_and_shows_none_of_them() -> None:
    key = ContentKey.new()
    assert key != ContentKey.new()
    assert repr(key) == "ContentKey()"
    with pytest.raises(ValueError, match="expected 32 bytes, got 16"):
        ContentKey(bytes(16))
