"""An owner trains a requested network on the originals: what leaves, who can open it, and what is refused."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import contents, make_folder, refused, run_uge
from safetensors.torch import load_file, save_file

from uge.data import load_images
from uge.data.store import load_pixels
from uge.errors import IntegrityError, UsageError
from uge.learning.training import evaluate, fit
from uge.networks import from_weights, weights_hash
from uge.publishing.fulfilment import DOCUMENT, SEALED_WEIGHTS, open_weights, read_fulfilment
from uge.requests.request import read_request
from uge.runtime import Runtime, stream_seed
from uge.sealing.age import make_identity, read_identity

SHAPE = ("--network=lenet", "--classes=3", "--size=16", "--recipe.epochs=2", "--method=uge")


def ask(out: Path, *flags: str, to: bool = True) -> Any:
    """``uge request`` with an identity and a private key of its own beside the request."""
    key = out.with_name("alice.agekey")
    if to and not key.exists():
        assert run_uge("keygen", key).code == 0
        public = run_uge("keygen", out.with_name("other.agekey"), "--json").json["public_key"]
        assert public.startswith("age1")
    sealed = (f"--to={read_identity(key).recipient.text}",) if to else ()  # type: ignore[union-attr]
    ran = run_uge("request", out, *SHAPE, *sealed, f"--identity={out.with_name('alice.pem')}", *flags, "--json")
    assert ran.code == 0, ran.err
    return ran.json


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A request with a key to seal to; not to be changed."""
    out = tmp_path_factory.mktemp("receiver") / "alice.json"
    ask(out)
    return out


def fulfil(request: Path, toy: Path, out: Path, *flags: str | Path) -> Any:
    ran = run_uge("fulfil", request, toy, out, f"--identity={out.with_name('owner.pem')}", *flags, "--json")
    assert ran.code == 0, ran.err
    return ran.json


@pytest.fixture(scope="module")
def answered(asked: Path, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's answer; not to be changed."""
    out = tmp_path_factory.mktemp("owner") / "for-alice"
    fulfil(asked, toy, out, "--test", toy)
    return out


def opened(out: Path, asked: Path, place: Path) -> Any:
    """Network with the weights that the receiver opens."""
    place.write_bytes(open_weights(out, read_identity(asked.with_name("alice.agekey"))))
    return from_weights(place)


def test_the_weights_are_those_of_exactly_the_requested_training(
    asked: Path, answered: Path, toy: Path, tmp_path: Path
) -> None:
    runtime = Runtime.create()
    request, network = read_request(asked), from_weights(asked.with_name("alice.theta0.safetensors"))
    store, test = (load_pixels(load_images(str(toy), split=split), size=16) for split in ("train", "test"))
    fit(network, store, request.recipe, seed=stream_seed(1, "train"), runtime=runtime)
    trained = opened(answered, asked, tmp_path / "weights.safetensors")
    claims = read_fulfilment(answered)
    assert weights_hash(trained) == weights_hash(network) == claims.weights_sha256
    assert claims.test_accuracy == evaluate(trained, test, runtime)
    assert (claims.data_set, claims.images, claims.test_images) == (store.digest(), 36, 12)
    assert (claims.theta0_sha256, claims.request) == (request.theta0.weights_sha256, request.record)


def test_nothing_but_sealed_weights_and_their_card_leaves(
    asked: Path, answered: Path, toy: Path, tmp_path: Path
) -> None:
    files = contents(answered)
    assert sorted(files) == ["README.md", "fulfilment.dsse.json", DOCUMENT, SEALED_WEIGHTS]
    opened(answered, asked, tmp_path / "weights.safetensors")
    tensors = load_file(tmp_path / "weights.safetensors").values()
    pieces = [tensor.numpy().tobytes()[:32] for tensor in tensors if tensor.numel() > 8]
    pieces += [path.read_bytes()[40:72] for path in toy.rglob("*.png")]
    assert len(pieces) > 20
    assert not [piece for piece in pieces for data in files.values() if piece in data]
    assert sorted(path.name for path in answered.parent.iterdir()) == ["for-alice", "owner.pem"]


def test_the_card_says_what_was_trained_and_what_weights_give_away(asked: Path, answered: Path) -> None:
    card = (answered / "README.md").read_text()
    claims = read_fulfilment(answered)
    for words in (claims.request.id, claims.data_set, "epochs 2", f"{claims.test_accuracy:.2f} %", "cat, dog, owl"):
        assert words in card
    assert "Weights can remember images" in card


@pytest.mark.skipif(shutil.which("age") is None, reason="needs the program age")
def test_the_program_age_opens_the_weights(asked: Path, answered: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    command = ["age", "-d", "-i", asked.with_name("alice.agekey"), "-o", out, answered / SEALED_WEIGHTS]
    subprocess.run(command, check=True)
    assert weights_hash(from_weights(out)) == read_fulfilment(answered).weights_sha256


def test_another_key_does_not_open_them(answered: Path, tmp_path: Path) -> None:
    make_identity(tmp_path / "mallory.agekey")
    with pytest.raises(UsageError, match="does not belong to this recipient"):
        open_weights(answered, read_identity(tmp_path / "mallory.agekey"))
    (tmp_path / "content.key").write_bytes(bytes(32))
    with pytest.raises(UsageError, match="a content key opens originals only"):
        open_weights(answered, read_identity(tmp_path / "content.key"))


@pytest.mark.parametrize("name", [DOCUMENT, SEALED_WEIGHTS, "fulfilment.dsse.json"])
def test_a_changed_file_is_found(name: str, asked: Path, answered: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(answered, out)
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises((IntegrityError, UsageError)):
        open_weights(out, read_identity(asked.with_name("alice.agekey")))


def test_an_answer_of_somebody_else_is_found_by_the_pinned_key(
    asked: Path, answered: Path, toy: Path, tmp_path: Path
) -> None:
    """Anybody who has the request knows the receiver's public key, and can seal other weights to it."""
    forged = tmp_path / "for-alice"
    owner = fulfil(asked, toy, tmp_path / "honest")["signer"]
    ran = run_uge("fulfil", asked, toy, forged, f"--identity={tmp_path / 'mallory.pem'}", "--limit=20", "-q")
    assert ran.code == 0
    key = read_identity(asked.with_name("alice.agekey"))
    assert open_weights(forged, key)
    assert open_weights(tmp_path / "honest", key, owner)
    with pytest.raises(IntegrityError, match="is signed by the key"):
        open_weights(forged, key, owner)


def test_an_interrupted_training_goes_on_to_the_same_weights(
    asked: Path, answered: Path, toy: Path, tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    interrupt("uge.learning.training.save_checkpoint", KeyboardInterrupt, call=2)
    assert run_uge("fulfil", asked, toy, out, f"--identity={tmp_path / 'owner.pem'}").code == 130
    assert not out.exists()
    (checkpoint,) = tmp_path.glob(".out.*.checkpoint")
    assert checkpoint.stat().st_mode & 0o777 == 0o600
    found = fulfil(asked, toy, out, "--resume")
    assert found["weights_sha256"] == read_fulfilment(answered).weights_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "owner.pem"]


def test_a_run_that_was_killed_after_it_had_written_goes_on(
    asked: Path, toy: Path, tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    interrupt("uge.pipeline.fulfil.write_signature", KeyboardInterrupt)
    assert run_uge("fulfil", asked, toy, out, f"--identity={tmp_path / 'owner.pem'}").code == 130
    (checkpoint,) = tmp_path.glob(".out.*.checkpoint")
    trained = checkpoint.read_bytes()
    first = fulfil(asked, toy, out, "--resume")
    checkpoint.write_bytes(trained)  # As if the kill came between the folder and the end of its checkpoint.
    assert fulfil(asked, toy, out, "--resume")["weights_sha256"] == first["weights_sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "owner.pem"]


def test_request_and_work_are_shown_before_training(
    asked: Path, toy: Path, tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    interrupt("uge.pipeline.fulfil.fit", RuntimeError("training started"))
    ran = run_uge("fulfil", asked, toy, tmp_path / "out", f"--identity={tmp_path / 'owner.pem'}")
    shown = ran.err.partition("training started")[0]
    for words in ("asks for 'lenet' (3 classes, 3 channels, size 16), 2 epochs", "in 2 steps on 36 originals"):
        assert words in shown
    ran = run_uge("fulfil", asked, toy, tmp_path / "out", f"--identity={tmp_path / 'owner.pem'}", "-q")
    assert "is signed by the key" in ran.err.partition("training started")[0]


def test_a_dry_run_of_fulfil_writes_nothing(asked: Path, toy: Path, tmp_path: Path) -> None:
    ran = run_uge("fulfil", asked, toy, tmp_path / "out", f"--identity={tmp_path / 'me.pem'}", "--dry-run", "--json")
    assert (ran.code, ran.json["steps"], ran.json["images"]) == (0, 2, 36)
    assert not list(tmp_path.iterdir())


def test_what_is_not_fulfilled(asked: Path, answered: Path, toy: Path, tmp_path: Path) -> None:
    here = {"inside": tmp_path}
    ask(tmp_path / "bare.json", to=False)
    identity = f"--identity={tmp_path / 'owner.pem'}"
    out = tmp_path / "out"
    refused(2, "has no key to seal to", "fulfil", tmp_path / "bare.json", toy, out, identity, **here)
    refused(2, "expected 0000", "fulfil", asked, toy, out, f"--expect-signer={'0' * 64}", identity, **here)
    pigs = make_folder(tmp_path / "pigs", classes=("cat", "dog", "owl", "pig"), train=2, test=1)
    refused(2, "is for 3 classes, but pigs has 4", "fulfil", asked, pigs, out, identity, **here)
    other = tmp_path / "others"
    make_folder(other, train=1, test=1)
    refused(2, "holds what this command did not write", "fulfil", asked, toy, other, identity, "--overwrite", **here)
    refused(2, "is not empty", "fulfil", asked, toy, other, identity, **here)


def test_weights_of_another_network_beside_the_request_are_refused(asked: Path, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(asked.parent, tmp_path / "in")
    theta0 = tmp_path / "in" / "alice.theta0.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(theta0).items()}, theta0)
    request = tmp_path / "in" / "alice.json"
    refused(2, "is not the file that the request", "fulfil", request, toy, tmp_path / "out", inside=tmp_path)


def test_export_gives_the_weights_and_knows_their_owner(asked: Path, answered: Path, tmp_path: Path) -> None:
    weights, key = tmp_path / "weights.safetensors", ("--key", asked.with_name("alice.agekey"))
    assert run_uge("export", answered, weights, *key, "-q").code == 0
    assert weights.stat().st_mode & 0o777 == 0o600
    assert weights_hash(from_weights(weights)) == read_fulfilment(answered).weights_sha256
    refused(2, "existing file", "export", answered, weights, *key, inside=tmp_path)
    wrong = ("--owner", "0" * 64)
    refused(1, "is signed by the key", "export", answered, tmp_path / "no", *key, *wrong, inside=tmp_path)


def test_inspect_describes_the_answer(answered: Path) -> None:
    ran = run_uge("inspect", answered, "--json")
    assert (ran.code, ran.json["kind"], ran.json["network"]) == (0, "fulfilled request", "lenet")
