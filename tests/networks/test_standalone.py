"""A network as one file of plain PyTorch: it needs nothing of this package and answers as the original does."""

import ast
import sys

import pytest
import torch

from uge.errors import UsageError
from uge.networks import NETWORKS, build
from uge.networks.standalone import has_standalone, standalone_source

NAMES = [*NETWORKS, "keyed:cnn", "keyed:resnetc20"]


@pytest.mark.parametrize("name", NAMES)
def test_source_stands_alone(name: str) -> None:
    tree = ast.parse(standalone_source(build(name, 4, seed=0, size=32)))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    assert {module.partition(".")[0] for module in modules} <= {"torch", "safetensors", *sys.stdlib_module_names}


@pytest.mark.parametrize("name", NAMES)
def test_files_joined_are_those_of_the_network_and_clash_in_no_name(name: str) -> None:
    tree = ast.parse(standalone_source(build(name, 4, seed=0, size=32)))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names += [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert len(names) == len(set(names))
    assert ("WaveKey" in names) == name.startswith("keyed:")
    assert len({"cnn", "lenet", "mobilenetv2", "resnet18", "resnetc", "shufflenetv2"} & set(names)) == 1


@pytest.mark.parametrize(("name", "channels"), [*((name, 3) for name in NAMES), ("keyed:cnn", 1)])
def test_answers_are_those_of_the_original(name: str, channels: int) -> None:
    original = build(name, 3, seed=1, channels=channels, size=20).eval()
    module = type(sys)("network")
    sys.modules["network"] = module  # dataclasses look their module up
    try:
        exec(standalone_source(original), module.__dict__)
        copy = module.network().eval()
    finally:
        del sys.modules["network"]
    assert list(copy.state_dict()) == list(original.state_dict())
    copy.load_state_dict(original.state_dict())
    x = torch.rand(2, channels, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy(x), original(x))
    assert torch.equal(copy.features(x), original.features(x))


def test_the_source_holds_no_secret() -> None:
    first, second = (standalone_source(build("keyed:cnn", 3, seed=seed)) for seed in (1, 2))
    assert first == second


def test_plug_ins_are_refused() -> None:
    network = build("cnn", 3, seed=0)
    network.name = "mine.networks:make"
    assert not has_standalone(network.name)
    assert not has_standalone("keyed:timm:resnet18")
    with pytest.raises(UsageError, match="is not of this package"):
        standalone_source(network)
