import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from uge.errors import UnknownNameError, UsageError, WeightsError
from uge.networks import build, from_weights, load_weights, restore, save_weights, weights_hash


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "deep" / "key.safetensors"
    save_weights(file, build("lenet", 4, seed=2, channels=1, size=28), {"recipe": "plain", "network": "overruled"})
    return file


def test_comes_back_as_saved(path: Path) -> None:
    original = build("lenet", 4, seed=2, channels=1, size=28)
    network = from_weights(path)
    assert (network.name, network.classes, network.channels, network.size) == ("lenet", 4, 1, 28)
    assert weights_hash(network) == weights_hash(original)
    state, metadata = load_weights(str(path))
    assert metadata == {"network": "lenet", "classes": "4", "channels": "1", "size": "28", "recipe": "plain"}
    other = build("lenet", 4, seed=9, channels=1, size=28)
    restore(other, state)
    assert weights_hash(other) == weights_hash(original) == weights_hash(state)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_hash_is_that_of_names_types_shapes_and_bytes() -> None:
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3)}
    expected = b'["a", "torch.int64", []]' + (3).to_bytes(8, "little")
    expected += b'["b", "torch.float32", [1, 2]]' + state["b"].numpy().tobytes()
    assert weights_hash(state) == hashlib.sha256(expected).hexdigest()


def test_hash_does_not_depend_on_the_layout_and_notices_one_bit() -> None:
    network = build("cnn", 4, seed=0)
    before = weights_hash(network)
    assert weights_hash(network.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        network.head.bias[0] = torch.nextafter(network.head.bias[0], torch.tensor(9.0))
    assert weights_hash(network) != before


def test_saves_channels_last_networks(tmp_path: Path) -> None:
    network = build("resnet8", 4, seed=0).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w", network)
    assert weights_hash(from_weights(tmp_path / "w")) == weights_hash(network)


def test_absent_file(tmp_path: Path) -> None:
    for wrong in (tmp_path / "absent", tmp_path):
        with pytest.raises(WeightsError, match="there is none"):
            load_weights(wrong)


@pytest.mark.parametrize("new", [True, False])
def test_pickles_are_never_opened(tmp_path: Path, new: bool) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match="pickle"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_file_cut_off(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="no readable safetensors"):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_name_their_tensor(tmp_path: Path, value: float) -> None:
    network = build("lenet", 4, seed=0)
    with torch.no_grad():
        network.head.weight[1, 2] = value
    save_weights(tmp_path / "w", network)
    with pytest.raises(WeightsError, match=r"'head\.weight'.*NaN or infinity"):
        load_weights(tmp_path / "w")
    with pytest.raises(WeightsError, match=r"'head\.weight'"):
        restore(build("lenet", 4, seed=0), network.state_dict())


def test_another_architecture_is_one_sentence(path: Path) -> None:
    state, metadata = load_weights(path)
    with pytest.raises(WeightsError) as caught:
        restore(build("cnn", 10, seed=0), state, metadata)
    text = str(caught.value)
    assert "expected weights for 'cnn' (classes 10, channels 3, size 32)" in text
    assert "got weights for 'lenet' (classes 4, channels 1, size 28)" in text
    assert "'body.0.weight'" in text or "'mean'" in text
    assert "\n" not in text


def test_missing_and_unexpected_tensors() -> None:
    network = build("lenet", 4, seed=0)
    state = network.state_dict()
    with pytest.raises(WeightsError, match=r"an unnamed network: tensor 'extra' is not part"):
        restore(network, {**state, "extra": torch.zeros(1)})
    del state["head.bias"]
    with pytest.raises(WeightsError, match=r"'head\.bias' is missing"):
        restore(network, state)


def write(path: Path, **metadata: str) -> Path:
    state = {name: tensor.clone() for name, tensor in build("lenet", 4, seed=0).state_dict().items()}
    safetensors.torch.save_file(state, path, metadata)
    return path


def test_metadata_that_lies_costs_no_memory(tmp_path: Path) -> None:
    file = write(tmp_path / "w", network="lenet", classes="1000000000000", channels="3", size="32")
    with pytest.raises(
        WeightsError, match=r"does not fit: tensor 'head\.weight' must have shape \(1000000000000, 84\)"
    ):
        from_weights(file)


def test_metadata_that_says_too_little(tmp_path: Path) -> None:
    for metadata in ({}, {"network": "lenet", "classes": "many", "channels": "3", "size": "32"}):
        with pytest.raises(WeightsError, match="must give network, classes"):
            from_weights(write(tmp_path / "w", **metadata))
    with pytest.raises(UnknownNameError):
        from_weights(write(tmp_path / "w", network="vgg", classes="4", channels="3", size="32"))


def test_a_file_may_not_choose_code_to_run(tmp_path: Path) -> None:
    file = write(tmp_path / "w", network="no_such_module:f", classes="4", channels="3", size="32")
    with pytest.raises(WeightsError, match="code would be run"):
        from_weights(file)
    with pytest.raises(UsageError):
        from_weights(file, plugins=True)


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    network = build("lenet", 3, seed=0, size=16)
    for number in range(4):  # the order of the metadata is random in the library that writes it
        save_weights(tmp_path / f"{number}", network, {"recipe": "ä", "note": "b", "more": "c"})
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(4)}) == 1
    assert load_weights(tmp_path / "0")[1]["recipe"] == "ä"
