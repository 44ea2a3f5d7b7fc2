"""Keys of recipients in the age format (age-encryption.org/v1), and the content key wrapped to them.

The standard program ``age`` opens what is wrapped here. ``pyrage`` takes keys that it should not (ssh-rsa) and drops
the second key of a text silently, so every line is read and judged here before that library sees it.
"""

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from uge.errors import DataError, UsageError, refuse
from uge.files import UnreadableError, check_output, read_bytes, write_atomic
from uge.sealing.content_key import KEY_BYTES, ContentKey

Kind: TypeAlias = Literal["x25519", "ssh-ed25519"]
LARGEST_KEY = 64 << 10
"""Bytes of a file of keys or of a wrapped content key, at most."""
_SSH = "ssh-ed25519"
_SECRET = "AGE-SECRET-KEY-1"
_BECH32 = re.compile(r"age(?:1[a-z0-9-]+)?1[02-9ac-hj-np-z]+")
_OPENSSH = b"openssh-key-v1\0"
_ARMOUR = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_OPEN_BY_AGE = (
    "open it with that program (age -d -i KEYFILE -o content.key OUT/recipients/NAME.age) and give content.key"
)


@dataclass(frozen=True)
class Recipient:
    """Public key to which a content key can be wrapped.

    Attributes:
        text: The key as it is exchanged: ``age1…``, or ``ssh-ed25519 AAAA…`` without its comment.
        kind: ``"x25519"`` or ``"ssh-ed25519"``.
    """

    text: str
    kind: Kind

    @property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of :attr:`text`, to compare over another channel."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """Private key that opens what was wrapped to it, or the content key itself; its secret is in no ``repr``.

    Attributes:
        kind: ``"x25519"``, ``"ssh-ed25519"``, or ``"content-key"`` for the 32 bytes that ``age -d`` gives.
        recipient: Its public key; None for a content key.
    """

    kind: Kind | Literal["content-key"]
    recipient: Recipient | None
    _secret: bytes = field(repr=False)


def parse_recipients(source: str | Path) -> list[Recipient]:
    """Public key of a text or of a file, as a list of one.

    Lines that are empty or start with ``#`` are skipped.

    Args:
        source: ``age1…``, ``ssh-ed25519 …``, or the path of a file with one such line.

    Raises:
        UsageError: There is no key or more than one, it is a private key, of a kind that is not taken (ssh-rsa,
            plug-ins), or malformed; or the file cannot be read.

    Example:
        >>> import tempfile
        >>> key = make_identity(Path(tempfile.mkdtemp()) / "me.agekey")
        >>> parse_recipients(key.text) == [key]
        True
    """
    text = str(source)
    if isinstance(source, Path) or not _is_key(text):
        place = f"the file {source}"
        try:
            text = read_bytes(Path(source), LARGEST_KEY).decode()
        except UnreadableError as error:
            raise UsageError(
                f"expected a public key (age1… or ssh-ed25519 …) or a file with one, got '{source}': {error.reason}"
            ) from None
        except UnicodeDecodeError:
            raise UsageError(f"expected a public key in {place}, got bytes that are no text; give age1…") from None
    else:
        place = "the text"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if "-----BEGIN" in text:
        raise UsageError(f"{place} is a private key; give the public one, and keep this one to yourself")
    if len(lines) != 1:
        raise UsageError(f"expected one public key in {place}, got {len(lines)}; give each key by an option of its own")
    return [_recipient(lines[0], place)]


def read_identity(path: Path) -> Identity:
    """Private key of a file: one of ``uge keygen`` or ``age-keygen``, an ssh-ed25519 key, or a content key.

    Args:
        path: The file; a content key is 32 bytes, as ``age -d`` gives them.

    Raises:
        UsageError: The file cannot be read, holds no private key or several, or one that is protected by a
            passphrase, belongs to a plug-in, or is of a kind that is not taken.
    """
    try:
        content = read_bytes(path, LARGEST_KEY)
    except UnreadableError as error:
        raise UsageError(f"expected a private key, got {path}: {error.reason}") from None
    if len(content) == KEY_BYTES:
        return Identity("content-key", None, content)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    refuse(
        {
            f"{path} is protected by a passphrase, for which only the program age asks; {_OPEN_BY_AGE}": (
                text.startswith("age-encryption.org/") or "AGE ENCRYPTED FILE" in text
            )
        }
    )
    if block := _ARMOUR.search(text):
        return _ssh_identity(path, block, content)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    plugin = next((line for line in lines if line.upper().startswith("AGE-PLUGIN-")), None)
    refuse(
        {
            f"{path} is an identity of a plug-in of age, which only that program can use; {_OPEN_BY_AGE}": (
                plugin is not None
            ),
            f"{path} is a public key; give the private key that belongs to it": any(map(_is_public, lines)),
            f"expected one private key in {path}, got {len(lines)} lines; keep each key in a file of its own": (
                len(lines) != 1
            ),
        }
    )
    if lines[0].startswith("AGE-SECRET-KEY-PQ-"):
        raise UsageError(f"{path} is a post-quantum key, which only the program age can use; {_OPEN_BY_AGE}")
    age = library()
    try:
        identity = age.x25519.Identity.from_str(lines[0])
    except age.IdentityError:
        raise UsageError(
            f"expected {path} to hold {_SECRET}…, an ssh-ed25519 private key or a content key of {KEY_BYTES} bytes, "
            "got another text; give the file that uge keygen made"
        ) from None
    return Identity("x25519", Recipient(str(identity.to_public()), "x25519"), lines[0].encode())


def make_identity(path: Path) -> Recipient:
    """Make a private key (X25519) in a new file of mode 0600; gives its public key.

    Args:
        path: The file, which must not exist.

    Raises:
        OutputExistsError: The file exists.
        StorageError: It cannot be written.
    """
    check_output(path)
    identity = library().x25519.Identity.generate()
    public = str(identity.to_public())
    write_atomic(path, f"# public key: {public}\n{identity}\n", secret=True)
    return Recipient(public, "x25519")


def wrap(content_key: ContentKey, recipient: Recipient) -> bytes:
    """Age file (binary, version 1) with a content key for one recipient."""
    return encrypt(content_key.secret, recipient)


def encrypt(data: bytes, recipient: Recipient) -> bytes:
    """Age file (binary, version 1) with any data for one recipient."""
    age = library()
    kind = age.ssh if recipient.kind == _SSH else age.x25519
    return bytes(age.encrypt(data, [kind.Recipient.from_str(recipient.text)]))


def unwrap(data: bytes, identity: Identity) -> bytes:
    """Content key, 32 bytes, of an age file.

    Args:
        data: The file's bytes, binary or armoured.
        identity: Private key; of a content key its own bytes come back.

    Raises:
        UsageError: The file is for other keys.
        DataError: It is damaged, or holds something else.
    """
    if identity.kind == "content-key":
        return identity._secret
    content = decrypt(data, identity)
    if len(content) != KEY_BYTES:
        raise DataError(f"expected a content key of {KEY_BYTES} bytes, got {len(content)}; fetch the folder again")
    return content


def decrypt(data: bytes, identity: Identity) -> bytes:
    """Contents of an age file.

    Args:
        data: The file's bytes, binary or armoured.
        identity: Private key of a recipient.

    Raises:
        UsageError: The file is for other keys, or the identity is a content key.
        DataError: It is damaged.
    """
    if identity.kind == "content-key":
        raise UsageError("a content key opens originals only; give the private key of the recipient")
    age = library()
    if identity.kind == _SSH:
        opener = age.ssh.Identity.from_buffer(identity._secret)
    else:
        opener = age.x25519.Identity.from_str(identity._secret.decode())
    try:
        return bytes(age.decrypt(data, [opener]))
    except age.DecryptError as error:
        if "No matching keys" in str(error):
            raise UsageError("the key does not belong to this recipient; give another private key") from None
        raise DataError(f"the sealed file is damaged ({error}); fetch the folder again") from None


def library() -> Any:
    """The library ``pyrage``.

    Raises:
        UsageError: It is not installed; musl systems have no wheels of it.
    """
    try:
        import pyrage
    except ImportError:
        raise UsageError(
            "sealing needs the library 'pyrage', which has no wheels for systems with musl (Alpine); use one with "
            "glibc, or install Rust and then: pip install pyrage; uge protect --no-seal works without it"
        ) from None
    return pyrage


def _is_key(text: str) -> bool:
    """True for a text that is meant as a key, right or wrong, and not as the path of a file."""
    start = text.lstrip()
    known = ("age1", "AGE-", "ssh-", "ecdsa-", "sk-", "-----BEGIN")
    return start.startswith(known) and not Path(text.strip()).is_file()


def _is_public(line: str) -> bool:
    return line.startswith(("age1", "ssh-"))


def _recipient(line: str, place: str) -> Recipient:
    word = line.split()[0]
    if word.startswith(("ssh-", "ecdsa-", "sk-")):
        if word != _SSH:
            raise UsageError(f"keys of kind '{word}' are not taken; give age1… (uge keygen) or ssh-ed25519")
        return Recipient(_ssh_text(line, place), "ssh-ed25519")
    refuse(
        {
            f"{place} is a private key; give the public one (age1…), and keep this one to yourself": (
                word.upper().startswith(("AGE-SECRET-KEY-", "AGE-PLUGIN-"))
            ),
            f"{place} is no public key: expected age1… or ssh-ed25519 …, got '{word[:12]}…'; see uge keygen": (
                _BECH32.fullmatch(line) is None
            ),
        }
    )
    prefix, _, _ = line.rpartition("1")
    if prefix != "age":
        raise UsageError(
            f"{place} is a key of age's plug-in '{prefix.removeprefix('age1')}', which only the program age can use; "
            "wrap the content key with it and give the result to uge grant --wrapped"
        )
    age = library()
    try:
        return Recipient(str(_parsed(age, line)), "x25519")
    except age.RecipientError:
        raise UsageError(f"the key {line[:12]}… is malformed or cut off; copy it again") from None


def _parsed(age: Any, line: str) -> Any:
    return age.x25519.Recipient.from_str(line)


def _ssh_text(line: str, place: str) -> str:
    malformed = UsageError(f"the ssh-ed25519 key in {place} is malformed or cut off; copy the whole line again")
    try:
        blob = base64.b64decode(line.split()[1], validate=True)
        if not _is_ed25519(blob):
            raise malformed
    except (IndexError, binascii.Error, ValueError):
        raise malformed from None
    text = f"{_SSH} {base64.b64encode(blob).decode()}"
    age = library()
    try:
        age.ssh.Recipient.from_str(text)
    except age.RecipientError:
        raise malformed from None
    return text


def _is_ed25519(blob: bytes) -> bool:
    name = _SSH.encode()
    head = struct.pack(">I", len(name)) + name + struct.pack(">I", 32)
    return blob.startswith(head) and len(blob) == len(head) + 32


def _ssh_identity(path: Path, block: re.Match[str], content: bytes) -> Identity:
    title = block[1]
    passphrase = f"{path} is protected by a passphrase, for which only the program age asks; {_OPEN_BY_AGE}"
    other = f"expected an ssh-ed25519 private key in {path}, got {{}}; give such a key, or one of uge keygen"
    if "ENCRYPTED" in title or "ENCRYPTED" in block[2]:
        raise UsageError(passphrase)
    if title != "OPENSSH PRIVATE KEY":
        raise UsageError(other.format(f"'{title.lower()}'"))
    try:
        blob = base64.b64decode("".join(block[2].split()), validate=True)
        if not blob.startswith(_OPENSSH):
            raise ValueError
        cipher, _, _, rest = _strings(blob[len(_OPENSSH) :], 3)
        public, _ = _strings(rest[4:], 1)
        kind, _ = _strings(public, 1)
    except (ValueError, struct.error):
        raise UsageError(other.format("a damaged file")) from None
    if cipher != b"none":
        raise UsageError(passphrase)
    if kind != _SSH.encode() or not _is_ed25519(public):
        raise UsageError(other.format(f"one of kind '{kind.decode(errors='replace')}'"))
    age = library()
    try:
        age.ssh.Identity.from_buffer(content)
    except age.IdentityError:
        raise UsageError(other.format("a damaged file")) from None
    return Identity("ssh-ed25519", Recipient(f"{_SSH} {base64.b64encode(public).decode()}", "ssh-ed25519"), content)


def _strings(data: bytes, count: int) -> list[bytes]:
    """The first ``count`` length-prefixed strings of SSH's format, and what follows them.

    Raises:
        ValueError: The data end before.
    """
    parts = []
    for _ in range(count):
        (length,) = struct.unpack_from(">I", data)
        if len(data) < 4 + length:
            raise ValueError("cut off")
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    return [*parts, data]
