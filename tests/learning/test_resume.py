import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from uge.errors import WeightsError
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.runtime import Runtime

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 2))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    network(torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(number))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_resumed_training_is_the_same_training(name: str, precision: str, tmp_path: Path) -> None:
    path, place = tmp_path / "file", Runtime(torch.device("cpu"), precision).place
    network = place(make_network())
    optimizer = OPTIMIZERS[name](network.parameters())
    for number in range(3):
        step(network, optimizer, number)
    save_checkpoint(path, {"network": network}, optimizer, {"epoch": 3, "name": "ü"})
    other = place(make_network())
    fresh = OPTIMIZERS[name](other.parameters())
    assert load_checkpoint(path, {"network": other}, fresh) == {"epoch": 3, "name": "ü"}
    for number in range(3, 6):
        step(network, optimizer, number)
        step(other, fresh, number)
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
        assert value.stride() == other.state_dict()[key].stride()


def test_optimizer_state_gets_the_layout_of_its_parameter(tmp_path: Path) -> None:
    network = Runtime(torch.device("cpu"), "bf16-mixed").place(make_network())
    optimizer = OPTIMIZERS["momentum"](network.parameters())
    step(network, optimizer, 0)
    save_checkpoint(tmp_path / "file", {"network": network}, optimizer, {})
    fresh = OPTIMIZERS["momentum"](network.parameters())
    load_checkpoint(tmp_path / "file", {"network": network}, fresh)
    weight = network[0].weight
    assert fresh.state[weight]["momentum_buffer"].stride() == weight.stride() != weight.contiguous().stride()


def test_several_modules(tmp_path: Path) -> None:
    a, b = nn.Linear(2, 3), nn.Linear(4, 5)
    kept = copy.deepcopy(a.state_dict()), copy.deepcopy(b.state_dict())
    save_checkpoint(tmp_path / "file", {"a": a, "b": b}, None, {})
    nn.init.zeros_(a.weight)
    nn.init.zeros_(b.weight)
    load_checkpoint(tmp_path / "file", {"b": b, "a": a})
    assert torch.equal(a.weight, kept[0]["weight"])
    assert torch.equal(b.weight, kept[1]["weight"])


def test_what_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(WeightsError, match="--overwrite"):
        load_checkpoint(path, {})
    save_checkpoint(path, {"network": nn.Linear(2, 3)}, None, {})
    for other in (nn.Linear(2, 4), nn.Conv2d(1, 1, 1), nn.BatchNorm1d(3)):
        with pytest.raises(WeightsError, match="cannot be used"):
            load_checkpoint(path, {"network": other})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="cannot be used"):
        load_checkpoint(path, {"network": nn.Linear(2, 3)})
