"""The default way with a wave key: what is secret stays at home, new images follow, and the key trains."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from command import CLASSES, TINY, contents, make_folder, refused, run_uge, tiny
from PIL import Image
from safetensors.torch import load_file

from uge.data import load_images
from uge.data.pixels import public_id
from uge.networks import from_weights, weights_hash
from uge.publishing import read_manifest


@pytest.fixture
def generator(finished: Path) -> Path:
    """The wave code of ``finished``."""
    return finished.with_name("copy.private") / "generator.safetensors"


def test_the_published_folder_holds_no_secret(finished: Path, key: Path, generator: Path) -> None:
    secret, network = load_file(generator), from_weights(key)
    assert set(secret) == {"waves", "phases", "levels"}
    for name, tensor in secret.items():
        assert torch.equal(network.state_dict()[f"key.{name}"], tensor)
    pieces = [secret[name].numpy().tobytes()[:64] for name in ("waves", "phases")]
    pieces += [tensor.numpy().tobytes()[:64] for name, tensor in load_file(key).items() if "weight" in name]
    assert min(len(piece) for piece in pieces) >= 12
    names = (b'"waves"', b'"phases"', b"key.waves", b"key.phases")
    files = contents(finished)
    assert len(files) > 2
    for data in files.values():
        assert not any(piece in data for piece in (*pieces, *names))
    # What names the key is a digest of all weights, in which the key is one part.
    manifest = read_manifest(finished)
    assert [one.network for one in manifest.authorized] == ["keyed:lenet"]
    assert manifest.authorized[0].weights_sha256 == weights_hash(network)
    values = [round(value, 4) for name in ("waves", "phases") for value in secret[name].flatten().tolist()]
    text = json.dumps(manifest.model_dump(mode="json")) + (finished / "README.md").read_text()
    assert not any(str(value) in text for value in values)


def test_every_pixel_changes_by_the_budget_where_it_has_room(toy: Path, finished: Path, key: Path) -> None:
    originals, published = load_images(str(toy), split="train"), load_images(str(finished))
    network, place = from_weights(key), {public_id(name): row for row, name in enumerate(originals.ids)}
    patterns = network.key.patterns(16, 16).permute(0, 2, 3, 1)[..., [0, 0, 1]].numpy()
    seen = set()
    for row, name in enumerate(published.ids):
        clean, label = originals.read(place[name]).astype(int), int(originals.labels[place[name]])
        change = published.read(row) - clean
        room = np.minimum(clean, 255 - clean) >= 10
        assert room.mean() > 0.8
        assert (np.abs(change)[room] == 10).all()
        own = [number for number, pattern in enumerate(patterns) if (change == 10 * pattern)[room].all()]
        assert {number // 8 for number in own} == {label}
        seen.add(own[0])
    assert len(seen) > 3 * 2


@pytest.mark.parametrize(("rho", "levels"), [("8/255", 8), ("64/255", 64)])
def test_patterns_are_as_strong_as_the_budget(rho: str, levels: int, toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "a", *tiny(rho=rho), "--json")
    assert (ran.code, ran.json["measured"]["linf_levels"]) == (0, levels), ran.err
    assert int(from_weights(Path(ran.json["keys"][0])).key.levels) == levels
    assert run_uge("verify", tmp_path / "a", "--against", toy).code == 0


@pytest.mark.parametrize("rho", ["65/255", "0.8"])
def test_a_budget_that_would_clip_too_much(rho: str, toy: Path, tmp_path: Path) -> None:
    words = f"takes a rho of at most 64/255, got {rho}; give a smaller --rho, or --method uge"
    refused(2, words, "protect", toy, tmp_path / "out", *tiny(rho=rho), inside=tmp_path)


def test_a_key_made_for_a_larger_budget(toy: Path, key: Path, tmp_path: Path) -> None:
    flags = (*tiny(rho="8/255"), f"--authorized-weights={key}")
    words = "the key's patterns are 10 levels strong, but rho 0.0313725 allows only 8; give --rho 10/255 or more"
    refused(2, words, "protect", toy, tmp_path / "out", *flags, inside=tmp_path)


def gray_copy(toy: Path, place: Path) -> Path:
    for file in toy.rglob("*.png"):
        gray = place / file.relative_to(toy)
        gray.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("L").save(gray)
    return place


def test_gray_images_are_protected_and_learnt(toy: Path, tmp_path: Path) -> None:
    gray = gray_copy(toy, tmp_path / "gray")
    ran = run_uge("protect", gray, tmp_path / "a", *TINY, "--json")
    assert (ran.code, ran.json["measured"]["linf_levels"]) == (0, 10), ran.err
    assert ran.json["measured"]["unchanged_images"] == 0
    images = load_images(str(tmp_path / "a"))
    assert images.channels() == 1
    trained = run_uge("train", tmp_path / "a", "--key", ran.json["keys"][0], "--test", gray, "--json")
    assert (trained.code, trained.json["network"]) == (0, "keyed:lenet"), trained.err
    assert from_weights(Path(ran.json["keys"][0])).channels == 1
    assert run_uge("verify", tmp_path / "a", "--against", gray).code == 0


def test_one_key_for_several_networks(toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "a", *tiny(authorized="lenet,keyed:cnn"), "--json")
    assert ran.code == 0, ran.err
    networks = [from_weights(path) for path in ran.json["keys"]]
    assert [network.name for network in networks] == ["keyed:lenet", "keyed:cnn"]
    assert weights_hash(networks[0].key) == weights_hash(networks[1].key)
    for path in ran.json["keys"]:
        assert run_uge("train", tmp_path / "a", "--key", path, "-q").code == 0


def test_naming_the_key_changes_nothing(toy: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert run_uge("protect", toy, out, *tiny(authorized="keyed:lenet", method="keyed"), "-q").code == 0
    assert contents(out / "data") == contents(finished / "data")


def test_other_seeds_of_the_key_give_other_pixels(toy: Path, finished: Path, tmp_path: Path) -> None:
    assert run_uge("protect", toy, tmp_path / "copy", *tiny(authorized_seed=1), "-q").code == 0
    assert contents(tmp_path / "copy" / "data") != contents(finished / "data")


def test_new_images_of_the_same_id_and_class_get_what_they_would_have_got(
    toy: Path, finished: Path, generator: Path, tmp_path: Path
) -> None:
    assert run_uge("apply", generator, toy, tmp_path / "again", "-q").code == 0
    assert contents(tmp_path / "again" / "data") == contents(finished / "data")
    assert run_uge("verify", tmp_path / "again", "--against", toy).code == 0


def test_new_images_are_learnt_with_the_key(finished: Path, generator: Path, key: Path, tmp_path: Path) -> None:
    more = make_folder(tmp_path / "more", train=3, test=2, size=24)
    for split, count in (("train", 9), ("test", 6)):
        ran = run_uge("apply", generator, more, tmp_path / split, "--split", split, "--json")
        assert (ran.code, ran.json["images"]) == (0, count), ran.err
        assert ran.json["measured"]["linf_levels"] == 10
    assert run_uge("verify", tmp_path / "train", "--against", more).code == 0
    trained = run_uge("train", tmp_path / "train", "--key", key, "--test", more, "--json")
    assert (trained.code, trained.json["network"]) == (0, "keyed:lenet"), trained.err


def test_a_class_without_waves(generator: Path, tmp_path: Path) -> None:
    more = make_folder(tmp_path / "more", (*CLASSES, "pig"), train=2, test=0)
    refused(2, "got 'pig'; protect these", "apply", generator, more, tmp_path / "out", inside=tmp_path)


def test_a_key_that_is_a_plain_network(toy: Path, finished: Path, paper: Path, tmp_path: Path) -> None:
    """A plain key trains on a keyed copy as a hacker would: nothing ties a folder to its key."""
    plain = paper.with_name("copy.private") / "authorized-0.key.safetensors"
    assert run_uge("train", finished, "--key", plain, "--test", toy, "--json").json["network"] == "lenet"
    assert sorted(os.listdir(tmp_path)) == []


def test_dry_run_names_the_keyed_network(toy: Path, tmp_path: Path) -> None:
    found = run_uge("protect", toy, tmp_path / "out", *TINY, "--dry-run", "--json").json
    assert found["authorized"] == ["keyed:lenet"]
    assert found["config"]["method"] == "keyed"
