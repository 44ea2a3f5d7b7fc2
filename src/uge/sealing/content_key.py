"""Content key of a published folder, and the keys that are derived from it.

Every derivation is HKDF-SHA256 (RFC 5869) without salt, 32 bytes long. Its ``info`` is the version, the purpose and
the inputs, each as UTF-8 or bytes behind its length in 4 bytes (big-endian), so that no two lists of inputs are alike.
"""

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass, field

VERSION = "uge-sealed-1"
KEY_BYTES = 32


@dataclass(frozen=True)
class ContentKey:
    """The secret of a published folder's originals: 32 bytes, which no ``repr`` shows.

    Attributes:
        secret: The bytes.

    Example:
        >>> ContentKey(bytes(32))
        ContentKey()
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"expected {KEY_BYTES} bytes, got {len(self.secret)}")

    @classmethod
    def new(cls) -> "ContentKey":
        """Key drawn by the operating system."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def file_key(self, data_set: str, path: str, salt: bytes) -> bytes:
        """AES-256 key of one writing of one shard.

        AES-GCM gives away its content where one key meets one nonce twice. Every writing therefore draws a salt of
        16 bytes: a resumed run, a second worker or a shard that is made again has another key.

        Args:
            data_set: Id of the published folder.
            path: Path of the shard in it.
            salt: Salt of this writing.
        """
        return self._derived("file", data_set, path, salt)

    def commitment(self, data_set: str) -> str:
        """Hexadecimal digest that belongs to this key alone; it is public and gives nothing of the key away."""
        return self._derived("commitment", data_set).hex()

    def mac(self, data_set: str, message: bytes) -> str:
        """Hexadecimal HMAC-SHA256 of a message under a key of its own."""
        return hmac.new(self._derived("mac", data_set), message, hashlib.sha256).hexdigest()

    def _derived(self, purpose: str, *inputs: str | bytes) -> bytes:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        parts = [part.encode() if isinstance(part, str) else part for part in (VERSION, purpose, *inputs)]
        info = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self.secret)
