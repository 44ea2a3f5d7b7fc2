"""Private keys are made once, for their owner alone; requests carry the public ones."""

from pathlib import Path

from command import contents, refused, run_uge

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


def test_keys_that_nothing_can_be_sealed_to_are_refused(tmp_path: Path) -> None:
    run_uge("keygen", tmp_path / "me.agekey")
    secret = (tmp_path / "me.agekey").read_text().splitlines()[-1]
    identity = f"--identity={tmp_path / 'me.pem'}"
    out = tmp_path / "alice.json"
    refused(2, "private key", "request", out, "--originals", f"--to={secret}", identity, inside=tmp_path)
    refused(2, "private key", "request", out, "--classes=3", f"--to={secret}", identity, inside=tmp_path)
    refused(2, "give --to", "request", out, "--originals", identity, inside=tmp_path)
    refused(2, "give --classes", "request", out, identity, inside=tmp_path)
