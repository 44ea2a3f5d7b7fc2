"""A named receiver asks, the owner protects for him: what is signed, what is refused, and what stays secret."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import CLASSES, contents, make_folder, refused, run_uge
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from safetensors.torch import load_file

from uge.data import load_images
from uge.files import canonical_json, fingerprint
from uge.networks import build, from_weights, save_weights, weights_hash
from uge.publishing import read_manifest
from uge.requests.request import read_request
from uge.requests.signed import check_signature, sign
from uge.sealing.signing_key import default_identity, key_fingerprint, open_identity, public_bytes

SHAPE = ("--network=lenet", "--classes=3", "--size=16", "--recipe.epochs=2")


def ask(out: Path, *flags: str | Path) -> Any:
    """``uge request`` with an identity of its own beside the request."""
    ran = run_uge("request", out, *SHAPE, f"--identity={out.parent / 'me.pem'}", *flags, "--json")
    assert ran.code == 0, ran.err
    return ran.json


def resign(path: Path, **changes: Any) -> None:
    """Change a request as its own author would, who signs it again."""
    key = open_identity(path.parent / "me.pem")
    body = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("id", "signature")}
    body |= changes
    path.write_text(json.dumps(sign(key, {"id": fingerprint(body)[:16], **body})))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A request, its θ0 and the identity; not to be changed."""
    out = tmp_path_factory.mktemp("receiver") / "alice.json"
    ask(out)
    return out


@pytest.fixture(scope="module")
def served(asked: Path, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that was made for it; not to be changed."""
    out = tmp_path_factory.mktemp("owner") / "copy"
    ran = run_uge("protect", toy, out, "--for", asked, "-q")
    assert ran.code == 0, ran.err
    return out


def test_inspect_shows_a_request_and_refuses_a_changed_one(asked: Path, tmp_path: Path) -> None:
    ran = run_uge("inspect", asked, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["kind"], ran.json["network"]) == ("uge-request", json.loads(asked.read_text())["network"])
    changed = tmp_path / "changed.json"
    changed.write_text(asked.read_text().replace('"classes": 3', '"classes": 4'))
    assert run_uge("inspect", changed).code == 2


@pytest.fixture
def request_file(asked: Path, tmp_path: Path) -> Path:
    """A copy of the request's files that a test may change."""
    folder = tmp_path / "in"
    shutil.copytree(asked.parent, folder)
    return folder / asked.name


def theta0(path: Path) -> Path:
    return path.with_name(path.stem + ".theta0.safetensors")


def test_a_request_says_what_is_asked_for(asked: Path) -> None:
    raw, network = json.loads(asked.read_text()), from_weights(theta0(asked))
    assert (raw["kind"], raw["network"], raw["classes"], raw["channels"], raw["size"]) == (
        *("uge-request", "keyed:lenet"),
        *(3, 3, 16),
    )
    assert raw["recipe"]["epochs"] == 2
    assert raw["theta0"]["weights_sha256"] == weights_hash(network)
    assert raw["theta0"]["bytes"] == theta0(asked).stat().st_size
    assert not set(raw["theta0"]) & {"seed", "tensors"}
    assert asked.stat().st_size < 2000


def test_the_signature_covers_every_other_field(asked: Path) -> None:
    """RFC 8032 by the library itself, over the JSON that docs/formats.md describes."""
    raw = json.loads(asked.read_text())
    rest = {name: value for name, value in raw.items() if name != "signature"}
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw["public_key"]))
    public.verify(bytes.fromhex(raw["signature"]), b"uge-request-1\n" + canonical_json(rest).encode())
    for name in rest:
        with pytest.raises(Exception, match=r"changed after it was signed|no signed request|small order"):
            check_signature(asked, raw | {name: "0" * 64})


def test_secret_files_are_for_their_owner_alone(asked: Path) -> None:
    for path in (theta0(asked), asked.parent / "me.pem"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_seeds_give_equal_theta0_and_none_gives_others(tmp_path: Path) -> None:
    hashes = [ask(tmp_path / f"{n}.json", *flags)["theta0"] for n, flags in enumerate([["--seed=1"]] * 2 + [[]] * 2)]
    found = [one["weights_sha256"] for one in hashes]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert len({json.loads((tmp_path / f"{n}.json").read_text())["public_key"] for n in range(4)}) == 1


@pytest.mark.parametrize(("flags", "told"), [(["--seed=7"], True), ([f"--seed={2**60}"], False), ([], False)])
def test_a_seed_that_can_be_guessed_is_told(flags: list[str], told: bool, tmp_path: Path) -> None:
    ran = run_uge("request", tmp_path / "a.json", *SHAPE, f"--identity={tmp_path / 'me.pem'}", *flags)
    assert ran.code == 0
    assert ("can be guessed" in ran.err) == told


def test_the_identity_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    one, other = (
        run_uge("request", tmp_path / f"{name}.json", *SHAPE, "--json").json["fingerprint"] for name in ("a", "b")
    )
    assert one == other == key_fingerprint(public_bytes(open_identity(default_identity())))
    assert default_identity() == tmp_path / "settings" / "uge" / "identity.pem"


def test_weights_of_ones_own(tmp_path: Path) -> None:
    """Whole keyed weights stay as they are; weights of the architecture behind the key get a fresh key."""
    plain, keyed = build("lenet", 3, seed=5, size=16), build("keyed:lenet", 3, seed=5, size=16)
    for name, network in (("plain", plain), ("keyed", keyed)):
        save_weights(tmp_path / f"{name}.safetensors", network)
        ask(tmp_path / f"{name}.json", f"--weights={tmp_path / name}.safetensors")
    found = from_weights(tmp_path / "plain.theta0.safetensors")
    assert weights_hash(found.base) == weights_hash(plain)
    assert weights_hash(found.key) != weights_hash(keyed.key)
    assert weights_hash(from_weights(tmp_path / "keyed.theta0.safetensors")) == weights_hash(keyed)
    asked = ask(tmp_path / "paper.json", "--method=uge", f"--weights={tmp_path / 'plain.safetensors'}")
    assert (asked["network"], asked["theta0"]["weights_sha256"]) == ("lenet", weights_hash(plain))


def test_the_copy_is_for_that_network(asked: Path, served: Path, toy: Path) -> None:
    manifest, raw = read_manifest(served), json.loads(asked.read_text())
    (one,) = manifest.authorized
    assert (one.network, one.weights_sha256) == ("keyed:lenet", raw["theta0"]["weights_sha256"])
    assert one.request is not None
    assert (one.request.id, one.request.key_sha256) == (raw["id"], key_fingerprint(bytes.fromhex(raw["public_key"])))
    assert manifest.method_details["recipe"]["epochs"] == 2
    key = load_file(served.with_name("copy.private") / "authorized-0.key.safetensors")
    assert all(torch.equal(key[name], tensor) for name, tensor in load_file(theta0(asked)).items())
    assert run_uge("verify", served, "--against", toy).code == 0
    assert raw["id"] in (served / "README.md").read_text()


def test_both_sides_see_the_same_fingerprint(asked: Path, toy: Path, tmp_path: Path) -> None:
    digest = key_fingerprint(bytes.fromhex(json.loads(asked.read_text())["public_key"]))
    spoken = " ".join(digest[start : start + 4] for start in range(0, 64, 4))
    owner = run_uge("protect", toy, tmp_path / "out", "--for", asked, "--dry-run")
    receiver = run_uge("request", tmp_path / "new.json", *SHAPE, f"--identity={asked.parent / 'me.pem'}")
    assert spoken in owner.err
    assert spoken in receiver.out
    assert f"wrote {tmp_path / 'new.json'} and {tmp_path / 'new.theta0.safetensors'}: send both" in receiver.out


def test_the_receiver_trains_with_his_own_file(asked: Path, served: Path, toy: Path) -> None:
    ran = run_uge("train", served, "--key", theta0(asked), "--test", toy, "--json")
    assert (ran.code, ran.json["network"], len(ran.json["epochs"])) == (0, "keyed:lenet", 2)
    assert "WARNING" not in ran.err


def test_another_key_is_told(asked: Path, served: Path, finished: Path, key: Path) -> None:
    for out, file in ((served, key), (finished, theta0(asked))):
        ran = run_uge("train", out, "--key", file)
        assert ran.code == 0
        assert ran.err.count("WARNING") == 1
        assert "was made for keyed:lenet" in ran.err
        assert "expect it to learn as a hacker does" in ran.err


def test_two_receivers_of_the_papers_method(toy: Path, tmp_path: Path) -> None:
    flags = [f"--for={tmp_path / name}.json" for name in "ab"]
    for name in "ab":
        ask(tmp_path / f"{name}.json", "--method=uge")
    small = (
        "--generator.width=8",
        "--generator.blocks=1",
        "--generator.lr=0.02",
        "--max-steps=6",
        "--encoder-recipe.epochs=1",
    )
    out = tmp_path / "out" / "copy"
    ran = run_uge("protect", toy, out, *flags, "--method=uge", "--hacker=lenet", *small, "-q")
    assert ran.code == 0, ran.err
    found = [one.request.id for one in read_manifest(out).authorized if one.request]
    assert found == [json.loads((tmp_path / f"{name}.json").read_text())["id"] for name in "ab"]
    assert run_uge("verify", out, "--against", toy).code == 0


def test_one_wave_key_for_each_copy(toy: Path, asked: Path, tmp_path: Path) -> None:
    ask(tmp_path / "b.json")
    words = "each of these requests has its own; publish one copy for each receiver"
    refused(2, words, "protect", toy, tmp_path / "out", "--for", asked, "--for", tmp_path / "b.json", inside=tmp_path)


# What the published folder must not hold.


@pytest.mark.parametrize(
    ("fixture", "format"), [("served", "parquet"), ("served", "imagefolder"), ("paper", "parquet")]
)
def test_no_secret_and_no_clean_image_is_published(
    fixture: str, format: str, asked: Path, toy: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(fixture)
    if format == "imagefolder":
        out = tmp_path / "copy"
        assert run_uge("protect", toy, out, "--for", asked, "--format", format, "-q").code == 0
    private = out.with_name("copy.private")
    pieces = dict[str, bytes]()
    for file in sorted(private.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if len(set(data)) > 8:  # zeros and ones are everywhere
                pieces[f"{file.name}:{name}"] = data[:32]
    assert any("key.safetensors" in name for name in pieces)
    for file in sorted(toy.rglob("*.png")):
        pieces[str(file)] = file.read_bytes()[40:]
    clean = load_images(str(toy), split="train")
    originals = {clean.read(row).tobytes() for row in range(len(clean))}
    pieces |= {f"pixels {number}": pixels[:48] for number, pixels in enumerate(originals)}
    for name, data in contents(out).items():
        found = [piece for piece, secret in pieces.items() if secret in data]
        assert not found, (name, found)
    published = load_images(str(out))
    assert not originals & {published.read(row).tobytes() for row in range(len(published))}


def test_the_scan_would_find_a_key(served: Path, tmp_path: Path) -> None:
    """The test above can fail: the same pieces are in the key file itself."""
    key = served.with_name("copy.private") / "authorized-0.key.safetensors"
    (name, tensor), *_ = sorted(load_file(key).items(), key=lambda item: -item[1].numel())
    assert tensor.contiguous().numpy().tobytes()[:32] in key.read_bytes(), name


# What the owner refuses, in one sentence, leaving everything as it was.


def changed_recipe(path: Path) -> None:
    raw = json.loads(path.read_text())
    raw["recipe"]["epochs"] = 3
    path.write_text(json.dumps(raw))


def foreign_signature(path: Path) -> None:
    raw = json.loads(path.read_text())
    other_key = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    path.write_text(json.dumps(raw | {"public_key": other_key}))


def no_signature(path: Path) -> None:
    raw = json.loads(path.read_text())
    del raw["signature"]
    path.write_text(json.dumps(raw))


def other_file(path: Path) -> None:
    save_weights(theta0(path), build("keyed:lenet", 3, seed=9, size=16))


def signed_for(path: Path, network: Any, **changes: Any) -> None:
    """Put other weights beside the request and sign for their bytes."""
    from uge.files import file_sha256

    save_weights(theta0(path), network)
    record = json.loads(path.read_text())["theta0"] | {
        "bytes": theta0(path).stat().st_size,
        "sha256": file_sha256(theta0(path)),
        "weights_sha256": weights_hash(network),
    }
    resign(path, theta0=record | changes)


def other_architecture(path: Path) -> None:
    signed_for(path, build("keyed:cnn", 3, seed=0, size=16))


def wrong_digest(path: Path) -> None:
    signed_for(path, build("keyed:lenet", 3, seed=0, size=16), weights_sha256="0" * 64)


def nan_weights(path: Path) -> None:
    network = build("keyed:lenet", 3, seed=0, size=16)
    with torch.no_grad():
        network.base.head.weight[0, 0] = float("nan")
    signed_for(path, network)


def key_with(name: str, values: Any) -> Callable[[Path], None]:
    """Spoils a request by a wave key whose ``name`` holds ``values``."""

    def spoil(path: Path) -> None:
        network = build("keyed:lenet", 3, seed=0, size=16)
        tensor = getattr(network.key, name)
        tensor.copy_(torch.tensor(values, dtype=tensor.dtype).expand_as(tensor))
        signed_for(path, network)

    return spoil


def elsewhere(path: Path) -> None:
    resign(path, theta0=json.loads(path.read_text())["theta0"] | {"file": "../alice.theta0.safetensors"})


REFUSED: list[tuple[Callable[[Path], Any], str]] = [
    (changed_recipe, "was changed after it was signed"),
    (foreign_signature, "was changed after it was signed"),
    (no_signature, "is no signed request"),
    (lambda path: path.write_text("{"), "cannot be read as JSON"),
    (lambda path: path.unlink(), "cannot be read as JSON"),
    (lambda path: resign(path, kind="letter"), "is no request that this version knows: kind"),
    (lambda path: resign(path, more=1), "is no request that this version knows: more"),
    (elsewhere, "is no request that this version knows: theta0.file"),
    (lambda path: theta0(path).unlink(), "which is not beside it; get it too"),
    (other_file, "is not the file that the request alice.json was signed for"),
    (lambda path: theta0(path).write_bytes(theta0(path).read_bytes()[:-9]), "is not the file that the request"),
    (
        other_architecture,
        "asks for 'keyed:lenet' (3 classes, 3 channels, size 16), but alice.theta0.safetensors is for",
    ),
    (wrong_digest, "but alice.theta0.safetensors is for"),
    (nan_weights, "holds NaN or infinity"),
    (key_with("waves", 0), "must have waves of about 2 to 4 cycles"),
    (key_with("waves", 6.5), "must have waves of about 2 to 4 cycles"),
    (key_with("waves", float("nan")), "holds NaN or infinity"),
    (key_with("waves", 3), "must give every class waves of its own"),
    (key_with("phases", float("inf")), "holds NaN or infinity"),
    (key_with("levels", 0), "must have patterns of 1 to 64 levels"),
    (key_with("levels", 65), "must have patterns of 1 to 64 levels"),
    (lambda path: resign(path, id="0" * 16), "is not the digest of its other fields"),
    (lambda path: resign(path, network="keyed:lennet"), "did you mean 'lenet'"),
    (lambda path: resign(path, network="os:system"), "whose code the data's owner would have to run"),
    (lambda path: resign(path, network="keyed:os:system"), "whose code the data's owner would have to run"),
]


@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_refused_requests(
    spoil: Callable[[Path], Any], words: str, request_file: Path, toy: Path, tmp_path: Path
) -> None:
    spoil(request_file)
    refused(2, words, "protect", toy, tmp_path / "out", "--for", request_file, inside=tmp_path)


DATA = [
    ({"classes": (*CLASSES, "pig")}, (), "is for 3 classes, but"),
    ({"size": 24}, (), "is for size 16 and 3 channels, but"),
    ({"size": 24}, ("--size=24",), "give --size 16 if only the size differs"),
]


@pytest.mark.parametrize(("changes", "flags", "words"), DATA, ids=["classes", "size", "given size"])
def test_requests_for_other_data(
    changes: dict[str, Any], flags: tuple[str, ...], words: str, asked: Path, tmp_path: Path
) -> None:
    data = make_folder(tmp_path / "data", train=3, test=0, **changes)
    refused(2, words, "protect", data, tmp_path / "out", "--for", asked, *flags, inside=tmp_path)


def test_a_larger_image_may_be_trained_at_the_requests_size(asked: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", train=3, test=0, size=24)
    assert run_uge("protect", data, tmp_path / "out", "--for", asked, "--size=16", "-q").code == 0


def test_gray_images_are_not_what_was_asked_for(asked: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "gray.npz", x_train=pixels, y_train=np.arange(12) % 3)
    words = "is for size 16 and 3 channels, but gray has size 16 and 1"
    refused(2, words, "protect", tmp_path / "gray.npz", tmp_path / "out", "--for", asked, inside=tmp_path)


def test_gray_images_can_be_asked_for(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (12, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "gray.npz", x_train=pixels, y_train=np.arange(12) % 3)
    assert ask(tmp_path / "a.json", "--channels=1")["channels"] == 1
    ran = run_uge("protect", tmp_path / "gray.npz", tmp_path / "out", "--for", tmp_path / "a.json", "--json")
    assert (ran.code, ran.json["measured"]["linf_levels"]) == (0, 10), ran.err


@pytest.mark.parametrize(("rho", "code"), [("9/255", 2), ("10/255", 0), ("20/255", 0)])
def test_the_requests_key_says_how_strong_patterns_are(
    rho: str, code: int, asked: Path, toy: Path, tmp_path: Path
) -> None:
    ran = run_uge("protect", toy, tmp_path / "out", "--for", asked, f"--rho={rho}", "--json")
    assert ran.code == code
    if code:
        assert "allows only 9; give --rho 10/255 or more" in ran.err
    else:
        assert ran.json["measured"]["linf_levels"] == 10


FLAGS = [
    (("--method=uge",), "'keyed:lenet', which does not go with method 'uge'; give --method keyed"),
    (("--method=random",), "method 'random' protects for no network; leave out --for"),
    (("--recipe.epochs=4",), "the request names network and recipe; leave out --recipe"),
    (("--authorized=lenet",), "the request names network and recipe; leave out --authorized"),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_flags_that_contradict_a_request(
    flags: tuple[str, ...], words: str, asked: Path, toy: Path, tmp_path: Path
) -> None:
    refused(2, words, "protect", toy, tmp_path / "out", "--for", asked, *flags, inside=tmp_path)


def test_a_plain_request_needs_another_method(toy: Path, tmp_path: Path) -> None:
    ask(tmp_path / "a.json", "--method=uge")
    words = "is for 'lenet', which does not go with method 'keyed'; give --method uge"
    flags = ("--for", tmp_path / "a.json", "--method=keyed")
    refused(2, words, "protect", toy, tmp_path / "out", *flags, inside=tmp_path)


def test_the_request_says_which_method_goes_with_it(toy: Path, tmp_path: Path) -> None:
    ask(tmp_path / "a.json", "--method=uge")
    ran = run_uge("protect", toy, tmp_path / "out", "--for", tmp_path / "a.json", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["config"]["method"] == "uge"


ASKED = [
    (("out.txt",), "expected a file name that ends in .json"),
    (("a.json", "--network=lennet"), "did you mean 'lenet'"),
    (("a.json", "--network=os:system"), "whose code the data's owner would have to run"),
    (("a.json", "--network=keyed:lenet", "--method=uge"), "got 'keyed:lenet'; give lenet, or --method keyed"),
    (("a.json", "--network=lenet", "--method=em"), "method 'em' protects for no network, got 'lenet'"),
    (("a.json", "--network=lenet", "--method=uge-noud"), "unknown method 'uge-noud'; did you mean 'uge-no-ud'?"),
    (("a.json", "--channels=2"), "Choose from: 1, 3"),
    (("a.json", "--classes=1"), "needs classes as a whole number of at least 2"),
    (("a.json", "--weights=none.safetensors"), "expected a safetensors file"),
    (("a.json", "--weights=none.safetensors", "--seed=1"), "got both; leave one out"),
    (("a.json", "--recipe.epochs=0"), "greater than or equal to 1"),
]


@pytest.mark.parametrize(("arguments", "words"), ASKED, ids=lambda value: value[-1] if isinstance(value, tuple) else "")
def test_what_cannot_be_asked_for(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = [flag for flag in SHAPE if not any(flag.partition("=")[0] in given for given in arguments)]
    refused(2, words, "request", *arguments, *shape, "--identity=me.pem", inside=tmp_path)


IDENTITIES = [
    (b"no key", 0o600, "holds no private key in PEM form"),
    (b"", 0o644, "can be read by others; run chmod 600"),
]


@pytest.mark.parametrize(("content", "mode", "words"), IDENTITIES, ids=["text", "mode"])
def test_identities_that_are_none(content: bytes, mode: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "me.pem").write_bytes(content)
    (tmp_path / "me.pem").chmod(mode)
    arguments = ("request", tmp_path / "a.json", *SHAPE, f"--identity={tmp_path / 'me.pem'}")
    refused(2, words, *arguments, inside=tmp_path)


def test_nothing_is_overwritten_or_written_in_a_dry_run(request_file: Path, tmp_path: Path) -> None:
    identity = f"--identity={request_file.parent / 'me.pem'}"
    refused(2, "--overwrite", "request", request_file, *SHAPE, identity, inside=tmp_path)
    before = contents(tmp_path)
    assert run_uge("request", tmp_path / "b.json", *SHAPE, f"--identity={tmp_path / 'new.pem'}", "--dry-run").code == 0
    assert contents(tmp_path) == before
    first = read_request(request_file).id
    assert run_uge("request", request_file, *SHAPE, identity, "--overwrite").code == 0
    assert read_request(request_file).id != first
