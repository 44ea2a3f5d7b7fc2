"""Private keys are made once, for their owner alone; requests carry the public ones."""

from pathlib import Path

from command import TINY, contents, refused, run_uge

from uge.publishing import read_manifest
from uge.requests.configure import read_any_request
from uge.requests.originals import OriginalsRequest
from uge.sealing.age import read_identity


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    ran = run_uge("keygen", tmp_path / "me.agekey", "--json")
    assert ran.code == 0
    assert (tmp_path / "me.agekey").stat().st_mode & 0o777 == 0o600
    recipient = read_identity(tmp_path / "me.agekey").recipient
    assert recipient is not None
    assert (ran.json["public_key"], ran.json["fingerprint"]) == (recipient.text, recipient.fingerprint)
    assert "AGE-SECRET" not in ran.out
    refused(2, "existing file", "keygen", tmp_path / "me.agekey", inside=tmp_path)


def test_a_request_for_originals_names_the_key_and_no_network(tmp_path: Path) -> None:
    public = run_uge("keygen", tmp_path / "me.agekey", "--json").json["public_key"]
    out, identity = tmp_path / "alice.json", f"--identity={tmp_path / 'me.pem'}"
    assert run_uge("request", out, "--originals", "--to", public, identity, "-q").code == 0
    request = read_any_request(out)
    assert isinstance(request, OriginalsRequest)
    assert request.recipient == public
    assert sorted(contents(tmp_path)) == ["alice.json", "me.agekey", "me.pem"]
    shown = run_uge("inspect", out, "--json").json
    assert (shown["recipient"], shown["fingerprint"]) == (public, request.record.key_sha256)
    out.write_text(out.read_text().replace(public[:20], public[:19] + ("q" if public[19] != "q" else "p")))
    refused(2, "was changed after it was signed", "inspect", out, inside=tmp_path)


def test_a_request_for_originals_makes_its_sender_a_recipient(toy: Path, tmp_path: Path) -> None:
    sender, owner = tmp_path / "sender", tmp_path / "owner"
    public = run_uge("keygen", sender / "me.agekey", "--json").json["public_key"]
    request, identity = sender / "alice.json", f"--identity={sender / 'me.pem'}"
    asked = run_uge("request", request, "--originals", "--to", public, identity, "--json").json
    flags = (*TINY, f"--identity={owner / 'me.pem'}", "-q")
    ran = run_uge("protect", toy, owner / "out", "--for", request, *flags)
    assert ran.code == 0
    assert ran.err.count("is signed by the key") == 1
    assert list(read_manifest(owner / "out").sealed.recipients) == ["owner", "alice"]  # type: ignore[union-attr]
    ran = run_uge("verify", owner / "out", "--key", sender / "me.agekey", "--against", toy, "--json")
    assert (ran.code, ran.json["opened"]) == (0, 36)
    pinned = f"--expect-signer={asked['fingerprint']}"
    assert run_uge("protect", toy, owner / "two", "--for", request, pinned, *flags).err == ""
    wrong = f"--expect-signer={'0' * 64}"
    refused(2, "is signed by the key", "protect", toy, owner / "no", "--for", request, wrong, *TINY, inside=tmp_path)
    words = "asks for the originals, which --no-seal leaves out"
    refused(2, words, "protect", toy, owner / "no", "--for", request, "--no-seal", *TINY, inside=tmp_path)


def test_keys_that_nothing_can_be_sealed_to_are_refused(tmp_path: Path) -> None:
    run_uge("keygen", tmp_path / "me.agekey")
    secret = (tmp_path / "me.agekey").read_text().splitlines()[-1]
    identity = f"--identity={tmp_path / 'me.pem'}"
    out = tmp_path / "alice.json"
    refused(2, "private key", "request", out, "--originals", f"--to={secret}", identity, inside=tmp_path)
    refused(2, "private key", "request", out, "--classes=3", f"--to={secret}", identity, inside=tmp_path)
    refused(2, "give --to", "request", out, "--originals", identity, inside=tmp_path)
    refused(2, "give --classes", "request", out, identity, inside=tmp_path)
