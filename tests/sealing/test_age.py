"""Keys of recipients: taken, refused with a reason, and opened by the standard program."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from uge.errors import DataError, OutputExistsError, UsageError
from uge.sealing import ContentKey, make_identity, parse_recipients, read_identity, unwrap, wrap

X25519 = "age1x9z53t8rk43v330q3ys22tvddr3m6z6apz76qyqjqkkqahdwup5s542gxe"


def ssh_pair(folder: Path, key: Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> tuple[str, Path]:
    path = folder / "id"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(), path


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_a_made_key_opens_what_was_wrapped_to_it_and_no_other_does(tmp_path: Path) -> None:
    path = tmp_path / "me.agekey"
    public = make_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = ContentKey.new()
    data = wrap(key, public)
    assert data.startswith(b"age-encryption.org/v1\n")
    assert unwrap(data, read_identity(path)) == key.secret
    make_identity(tmp_path / "other.agekey")
    with pytest.raises(UsageError, match="does not belong to this recipient"):
        unwrap(data, read_identity(tmp_path / "other.agekey"))
    with pytest.raises(OutputExistsError):
        make_identity(path)
    assert parse_recipients(str(public.text)) == [public] == [read_identity(path).recipient]
    assert "AGE-SECRET" not in repr(read_identity(path))


def test_ssh_keys_are_taken_with_and_without_a_comment(tmp_path: Path) -> None:
    public, path = ssh_pair(tmp_path, Ed25519PrivateKey.generate())
    (tmp_path / "id.pub").write_text(f"# mine\n{public} somebody@somewhere\n\n")
    (plain,) = parse_recipients(public)
    assert parse_recipients(tmp_path / "id.pub") == [plain] == [read_identity(path).recipient]
    key = ContentKey.new()
    assert unwrap(wrap(key, plain), read_identity(path)) == key.secret


@pytest.mark.skipif(shutil.which("age") is None, reason="the program age is not installed")
@pytest.mark.parametrize("kind", ["x25519", "ssh"])
def test_the_program_age_opens_a_wrapped_key_which_is_then_a_key_file(tmp_path: Path, kind: str) -> None:
    if kind == "x25519":
        path = tmp_path / "me.agekey"
        public = make_identity(path)
    else:
        text, path = ssh_pair(tmp_path, Ed25519PrivateKey.generate())
        path.chmod(0o600)
        (public,) = parse_recipients(text)
    key = ContentKey.new()
    (tmp_path / "me.age").write_bytes(wrap(key, public))
    opened = tmp_path / "content.key"
    subprocess.run(["age", "-d", "-i", path, "-o", opened, tmp_path / "me.age"], check=True)
    assert opened.read_bytes() == key.secret == unwrap(b"", read_identity(opened))


@pytest.mark.skipif(shutil.which("age-keygen") is None, reason="the program age is not installed")
def test_keys_of_age_keygen_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "me.txt"
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True).stdout
    (tmp_path / "me.pub").write_text(public)
    assert parse_recipients(tmp_path / "me.pub") == [read_identity(path).recipient]


REFUSED = {
    "ssh-rsa AAAAB3NzaC1yc2E": "'ssh-rsa' are not taken",
    "ecdsa-sha2-nistp256 AAAA": "'ecdsa-sha2-nistp256' are not taken",
    "sk-ssh-ed25519@openssh.com AAAA": "'sk-ssh-ed25519@openssh.com' are not taken",
    "ssh-ed25519 AAAA": "malformed or cut off",
    "ssh-ed25519": "malformed or cut off",
    X25519[:-1]: "malformed or cut off",
    X25519.replace("z5", "zz"): "malformed or cut off",
    X25519.upper(): "expected a public key",
    "age1yubikey1qwz42fepaaaaaaaaaaaaaaaaaa": "age's plug-in 'yubikey'",
    "age1pq1qwz42fepaaaaaaaaaaaaaaaaaa": "age's plug-in 'pq'",
    "AGE-SECRET-KEY-1QQQQ": "is a private key",
    "AGE-PLUGIN-YUBIKEY-1QQQ": "is a private key",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "is a private key",
    f"{X25519}\n{X25519}": "expected one public key in the text, got 2",
    f"{X25519} {X25519}": "is no public key",
    "no key at all": "expected a public key",
}


@pytest.mark.parametrize("text", REFUSED)
def test_other_public_keys_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[text]):
        parse_recipients(text)


@pytest.mark.parametrize("text", [text for text in REFUSED if text not in ("no key at all", X25519.upper())])
def test_other_public_keys_in_a_file_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.pub").write_text(text)
    with pytest.raises(UsageError, match=REFUSED[text].replace("the text", "the file .*")):
        parse_recipients(tmp_path / "key.pub")


def test_two_keys_in_one_file_and_files_that_are_no_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.pub"
    path.write_text(f"{X25519}\n{X25519}\n")
    with pytest.raises(UsageError, match=r"expected one public key in the file .*, got 2"):
        parse_recipients(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no text"):
        parse_recipients(path)
    make_identity(tmp_path / "me.agekey")
    with pytest.raises(UsageError, match="is a private key"):
        parse_recipients(tmp_path / "me.agekey")
    secret = (tmp_path / "me.agekey").read_text()
    path.write_text(secret + secret)
    with pytest.raises(UsageError, match="expected one private key"):
        read_identity(path)


def refused_identities(folder: Path) -> dict[str, bytes]:
    ssh_rsa = ssh_pair(folder, rsa_key())[1].read_bytes()
    ecdsa = ssh_pair(folder, ec.generate_private_key(ec.SECP256R1()))[1].read_bytes()
    ed25519 = ssh_pair(folder, Ed25519PrivateKey.generate())[1].read_bytes()
    pem = rsa_key().private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return {
        "of kind 'ssh-rsa'": ssh_rsa,
        "of kind 'ecdsa-sha2-nistp256'": ecdsa,
        "'rsa private key'": pem,
        "a damaged file": ed25519.replace(b"b3BlbnNzaC1r", b"AAAAAAAAAAAA"),
        "plug-in": b"AGE-PLUGIN-YUBIKEY-1Q8FRWQVZ7AAAA\n",
        "post-quantum": b"AGE-SECRET-KEY-PQ-1QQQQQ\n",
        "passphrase": b"age-encryption.org/v1\n-> scrypt 123 18\n",
        "protected by a passphrase": b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n-----END AGE ENCRYPTED FILE-----\n",
        "is a public key": X25519.encode(),
        "got 0 lines": b"# nothing\n",
        "got another text": b"AGE-SECRET-KEY-1QQQQQQ\n",
        "got 2 lines": b"a\nb\n",
    }


def test_other_private_keys_are_refused_with_the_way_that_works(tmp_path: Path) -> None:
    for expected, content in refused_identities(tmp_path).items():
        path = tmp_path / "key"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=expected):
            read_identity(path)
    with pytest.raises(UsageError, match="it is missing"):
        read_identity(tmp_path / "nothing")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="the program ssh-keygen is not installed")
def test_an_ssh_key_with_a_passphrase_is_refused_with_the_command_that_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", path], check=True)
    with pytest.raises(UsageError, match=r"passphrase.*age -d -i"):
        read_identity(path)
    assert parse_recipients(tmp_path / "id.pub")[0].kind == "ssh-ed25519"


def test_a_damaged_or_foreign_age_file_is_refused(tmp_path: Path) -> None:
    import pyrage

    public = make_identity(tmp_path / "me.agekey")
    identity = read_identity(tmp_path / "me.agekey")
    data = wrap(ContentKey.new(), public)
    with pytest.raises(DataError, match="damaged"):
        unwrap(data[:-1] + bytes([data[-1] ^ 1]), identity)
    other = pyrage.encrypt(b"too short", [pyrage.x25519.Recipient.from_str(public.text)])
    with pytest.raises(DataError, match="expected a content key of 32 bytes, got 9"):
        unwrap(other, identity)
