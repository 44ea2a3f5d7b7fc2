"""Weights, keys and generators that are damaged, dangerous, or for something else: one sentence each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import refused, run_uge, tiny

from uge.networks import build, save_weights


def nan_weights(file: Path) -> None:
    network = build("lenet", 3, seed=0, size=16)
    with torch.no_grad():
        next(network.parameters())[0] = float("nan")
    save_weights(file, network)


def other_architecture(file: Path) -> None:
    save_weights(file, build("cnn", 3, seed=0, size=16))


def other_classes(file: Path) -> None:
    save_weights(file, build("lenet", 5, seed=0, size=16))


def no_key(file: Path) -> None:
    save_weights(file, build("lenet", 3, seed=0, size=16))


def too_strong(file: Path) -> None:
    network = build("keyed:lenet", 3, seed=0, size=16)
    network.get_buffer("key.levels").fill_(200)
    save_weights(file, network)


def other_size(file: Path) -> None:
    save_weights(file, build("lenet", 3, seed=0, size=32))


def pickled(file: Path) -> None:
    torch.save(build("lenet", 3, seed=0, size=16).state_dict(), file)


def cut_off(file: Path) -> None:
    other_size(file)
    file.write_bytes(file.read_bytes()[:-100])


WEIGHTS = [
    (nan_weights, "holds NaN or infinity"),
    (other_architecture, "expected weights for 'lenet' (classes 3, channels 3, size 16), got weights for 'cnn'"),
    (other_classes, "got weights for 'lenet' (classes 5"),
    (pickled, "is a pickle (torch.save), which can run code when it is opened; convert it to safetensors first"),
    (cut_off, "no readable safetensors file"),
]


@pytest.mark.parametrize(("make", "words"), WEIGHTS, ids=lambda value: getattr(value, "__name__", ""))
def test_authorized_weights(make: Callable[[Path], None], words: str, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    make(file)
    flags = tiny(method="uge", authorized_weights=file)
    refused(2, words, "protect", toy, tmp_path / "out", *flags, inside=tmp_path)


KEYED_WEIGHTS = [
    (nan_weights, "holds NaN or infinity"),
    (no_key, "expected weights for 'keyed:lenet' (classes 3, channels 3, size 16), got weights for 'lenet'"),
    (cut_off, "no readable safetensors file"),
    (too_strong, "the key's patterns must be 1 to 64 levels strong, got 200; make the key anew"),
]


@pytest.mark.parametrize(("make", "words"), KEYED_WEIGHTS, ids=lambda value: getattr(value, "__name__", ""))
def test_keyed_weights(make: Callable[[Path], None], words: str, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    make(file)
    refused(2, words, "protect", toy, tmp_path / "out", *tiny(authorized_weights=file), inside=tmp_path)


def test_networks_with_different_keys(toy: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, file in enumerate(files):
        save_weights(file, build("keyed:lenet", 3, seed=seed, size=16))
    flags = [f"--authorized-weights={file}" for file in files]
    arguments = ("protect", toy, tmp_path / "out", *tiny(authorized="lenet,lenet"), *flags)
    refused(2, "needs authorised networks with one wave key, got 2 keys for 2 networks", *arguments, inside=tmp_path)
    save_weights(files[1], build("keyed:lenet", 3, seed=0, size=16))
    assert run_uge(*arguments, "-q").code == 0


def test_as_many_weights_as_networks(toy: Path, key: Path, tmp_path: Path) -> None:
    flags = tiny(authorized="lenet,lenet", authorized_weights=key)
    refused(2, "2 authorised networks need as many", "protect", toy, tmp_path / "out", *flags, inside=tmp_path)


KEYS = [
    (nan_weights, "holds NaN or infinity"),
    (other_classes, "is for 5 classes, 3 channels and size 16, but the data has 3, 3 and 16"),
    (pickled, "is a pickle"),
    (lambda file: file.write_text("no weights"), "no readable safetensors file"),
    (lambda file: None, "expected a safetensors file"),
]


@pytest.mark.parametrize("verb", ["train", "audit"])
@pytest.mark.parametrize(("make", "words"), KEYS, ids=["NaN", "classes", "pickle", "text", "missing"])
def test_keys(verb: str, make: Callable[[Path], None], words: str, toy: Path, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "key.safetensors"
    make(file)
    more = ("--save", tmp_path / "new") if verb == "train" else ("--networks", "lenet", "--folder", tmp_path / "new")
    refused(2, words, verb, finished, "--key", file, "--test", toy, *more, inside=tmp_path)


def test_a_key_of_another_size(toy: Path, finished: Path, tmp_path: Path) -> None:
    other_size(tmp_path / "key")
    arguments = ("--key", tmp_path / "key", "--test", toy, "--networks", "lenet", "--folder", tmp_path / "new")
    refused(2, "size 32, but the data has 3, 3 and 16", "audit", finished, *arguments, inside=tmp_path)


def test_files_taken_for_one_another(toy: Path, finished: Path, key: Path, tmp_path: Path) -> None:
    generator = key.with_name("generator.safetensors")
    words = "holds no generator of this project; give OUT.private/generator.safetensors"
    refused(2, words, "apply", key, toy, tmp_path / "out", inside=tmp_path)
    refused(2, "is no key file", "train", finished, "--key", generator, "--test", toy, inside=tmp_path)
    pickled(tmp_path / "pickle")
    refused(2, "is a pickle", "apply", tmp_path / "pickle", toy, tmp_path / "out", inside=tmp_path)
