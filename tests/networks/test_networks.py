import copy
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import uge
from uge.errors import MissingExtraError, UnknownNameError, UsageError
from uge.networks import NETWORKS, ImageClassifier, build, check_name, from_weights, save_weights, weights_hash
from uge.networks.standalone import has_standalone

# trainable parameters at 3 channels, as the specification counts them
PARAMETERS = [
    ("cnn", 10, 357_514),
    ("cnn", 100, 369_124),
    ("resnetc20", 10, 272_282),
    ("resnetc20", 100, 278_132),
    ("resnetc32", 10, 466_714),
    ("resnetc32", 100, 472_564),
    ("resnet18", 10, 11_173_962),
    ("resnet18", 100, 11_220_132),
    ("resnet18", 200, 11_271_432),
    ("mobilenetv2", 10, 2_254_090),
    ("mobilenetv2", 100, 2_369_380),
    ("mobilenetv2", 200, 2_497_480),
    ("shufflenetv2", 10, 1_268_646),
    ("shufflenetv2", 100, 1_360_896),
    ("shufflenetv2", 200, 1_463_396),
    ("lenet", 10, 62_006),
    ("keyed:cnn", 10, 357_514),
]
EVERY = [*NETWORKS, "keyed:cnn"]


def images(batch: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "classes", "expected"), PARAMETERS)
def test_parameter_counts_of_the_specification(name: str, classes: int, expected: int) -> None:
    with torch.device("meta"):
        network = build(name, classes, seed=0)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (28, 1), (32, 3), (64, 3)])
def test_logits_features_and_gradients(name: str, size: int, channels: int) -> None:
    network = build(name, 7, seed=3, channels=channels, size=size)
    x = images(2, channels, size).requires_grad_()
    features = network.features(x)
    assert features.shape == (2, NETWORKS[name].width)
    logits = network.head(features)
    assert logits.shape == (2, 7)
    assert (network.name, network.classes, network.channels, network.size) == (name, 7, channels, size)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert x.grad is not None
    assert x.grad.abs().amax() > 0


@pytest.mark.parametrize("name", EVERY)
def test_forward_is_the_head_of_the_features(name: str) -> None:
    network = build(name, 4, seed=0).eval()
    with torch.no_grad():
        head = getattr(network, "base", network).head
        torch.testing.assert_close(network(images()), head(network.features(images())))


@pytest.mark.parametrize("name", EVERY)
def test_weights_depend_on_the_seed_only(name: str) -> None:
    torch.manual_seed(1)
    first = weights_hash(build(name, 4, seed=5))
    state = torch.get_rng_state()
    assert weights_hash(build(name, 4, seed=5)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_hash(build(name, 4, seed=6)) != first


@pytest.mark.parametrize("name", EVERY)
def test_bf16_autocast_and_channels_last_agree_with_fp32(name: str) -> None:
    network = build(name, 4, seed=0)
    x = images(4)
    with torch.no_grad():
        expected = copy.deepcopy(network)(x)
        network = network.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(x.contiguous(memory_format=torch.channels_last)).float()
    assert mixed.isfinite().all()
    assert (mixed - expected).abs().mean() < 0.1 * (1 + expected.abs().mean())


@pytest.mark.parametrize("name", EVERY)
def test_a_matching_loss_reaches_the_pixels_through_parameter_gradients(name: str) -> None:
    network = build(name, 4, seed=0, size=16)
    x = images(3, 3, 16).requires_grad_()
    parameters = dict(network.named_parameters())

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(network, weights, (x,)), torch.tensor([0, 1, 2]))

    gradients = torch.autograd.grad(loss(parameters), list(parameters.values()), create_graph=True)
    (pixels,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), x)
    assert pixels.isfinite().all()
    assert pixels.abs().amax() > 0


def test_normalises_inside_with_saved_buffers() -> None:
    network = build("lenet", 3, seed=0).eval()
    state = network.state_dict()
    assert state["mean"].shape == state["std"].shape == (1, 3, 1, 1)
    torch.testing.assert_close(network.features(images()), network.body((images() - 0.5) / 0.25))
    assert not {"mean", "std"} & {name for name, _ in network.named_parameters()}


def test_resnetc_convolutions_start_with_he_fan_out() -> None:
    network = build("resnetc32", 10, seed=0)
    conv = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_large_images() -> None:
    for name in ("lenet", "cnn"):
        assert build(name, 3, seed=0, size=256).eval()(images(1, 3, 256)).shape == (1, 3)


def test_unknown_name_is_guessed() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'") as caught:
        build("resnet_18", 10, seed=0)
    assert "timm:name" in str(caught.value)
    with pytest.raises(UnknownNameError):
        check_name("vgg")
    check_name("cnn")
    check_name("package:function")


@pytest.mark.parametrize("wrong", [{"size": 15}, {"channels": 0}, {"classes": 1}, {"size": 32.5}])
def test_numbers_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"needs {next(iter(wrong))}"):
        build("cnn", **{"classes": 10, "seed": 0, **wrong})


class Averaging(nn.Module):
    """Ends in a 1×1 convolution on maps; registers its layers in another order than it runs them."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, classes, 1)
        self.first = nn.Conv2d(channels, 8, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.first(x).relu())).mean((2, 3))


def plain(classes: int, channels: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, 5), nn.ReLU(), nn.Linear(5, classes))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_plugin")
    module.plain = plain
    module.averaging = lambda classes, channels, size: Averaging(classes, channels)
    module.number = lambda classes, channels, size: 3
    module.wrong = lambda classes, channels, size: plain(classes + 1, channels, size)
    module.crashing = lambda classes, channels, size: plain(classes, channels, size + 1)
    module.headless = lambda classes, channels, size: nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d())
    module.constant = 3
    monkeypatch.setitem(sys.modules, "a_plugin", module)


@pytest.mark.usefixtures("plugin")
def test_plugin_function() -> None:
    network = build("a_plugin:plain", 4, seed=0, size=16)
    assert isinstance(network, ImageClassifier)
    x = images(3, 3, 16)
    layers = network.module
    torch.testing.assert_close(network(x), layers(x))  # takes [0, 1] as it comes
    torch.testing.assert_close(network.features(x), layers[:3](x))
    assert weights_hash(network) == weights_hash(build("a_plugin:plain", 4, seed=0, size=16))
    assert (network.name, network.classes, network.size) == ("a_plugin:plain", 4, 16)


@pytest.mark.usefixtures("plugin")
def test_plugin_with_a_convolution_as_its_head() -> None:
    network = build("a_plugin:averaging", 4, seed=0)
    assert all(module.training for module in network.modules())
    network.eval()
    features = network.features(images())
    assert features.shape == (2, 8)
    weight, bias = network.module.last.weight[:, :, 0, 0], network.module.last.bias
    torch.testing.assert_close(network(images()), features @ weight.T + bias)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of networks, put back after a test that registers one."""
    monkeypatch.setattr(NETWORKS, "_rows", dict(NETWORKS._rows))


@pytest.mark.usefixtures("table")
def test_a_registered_function_is_a_network_by_name(tmp_path: Path) -> None:
    def perceptron(classes: int, channels: int, size: int) -> nn.Module:
        """One linear layer on pixels."""
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))

    assert uge.network("perceptron")(perceptron) is perceptron
    assert NETWORKS["perceptron"].about == "One linear layer on pixels"
    check_name("keyed:perceptron")
    first, again, other = (build("perceptron", 4, seed=seed) for seed in (0, 0, 1))
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
    assert first.features(images()).shape == (2, 3 * 32 * 32)
    assert build("keyed:perceptron", 4, seed=0)(images()).shape == (2, 4)
    assert not has_standalone("perceptron")
    save_weights(tmp_path / "w", first)
    assert weights_hash(from_weights(tmp_path / "w")) == weights_hash(first)


@pytest.mark.usefixtures("table")
def test_functions_that_cannot_be_registered() -> None:
    with pytest.raises(UsageError, match="'cnn', which UGE has itself"):
        uge.network("cnn")(plain)
    for name, maker in (("a:b", plain), ("mine", 7)):
        with pytest.raises(
            UsageError, match=f"the network '{name}' must have a name without a colon and be a function"
        ):
            uge.network(name)(maker)  # type: ignore[type-var]
    uge.network("none")(lambda classes, channels, size: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match=r"'none' must return a torch\.nn\.Module, got NoneType"):
        build("none", 4, seed=0)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("error", [RuntimeError("no weights"), SystemExit(0)])
def test_a_function_that_fails_or_leaves_is_one_sentence(error: BaseException) -> None:
    def failing(classes: int, channels: int, size: int) -> nn.Module:
        raise error

    uge.network("failing")(failing)
    with pytest.raises(UsageError, match=rf"the network 'failing' failed for 4 classes.*{type(error).__name__}"):
        build("failing", 4, seed=0)


def test_a_module_that_leaves_when_imported_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="'leaving:make' must name an importable"):
        build("leaving:make", 4, seed=0)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_plugin:absent", "PYTHONPATH"),
        ("no_such_module:f", "PYTHONPATH"),
        (":f", "PYTHONPATH"),
        ("a_plugin:constant", "got 3"),
        ("a_plugin:number", "got int"),
        ("a_plugin:wrong", r"logits \(B, 4\)"),
        ("a_plugin:crashing", "trial batch of 2×3×32×32"),
        ("a_plugin:headless", "logits"),
    ],
)
def test_plugins_that_do_not_fit(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, 4, seed=0)


def test_plugin_without_a_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pooling")
    module.f = lambda classes, channels, size: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    monkeypatch.setitem(sys.modules, "pooling", module)
    with pytest.raises(UsageError, match="must end in a Linear"):
        build("pooling:f", 3, seed=0)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"uge\[timm\]"):
        build("timm:resnet10t", 4, seed=0)


def test_timm_models_are_normalised_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int, **more: int) -> nn.Module:
        assert not pretrained
        if name == "convolutional" and more:
            raise TypeError("unexpected keyword argument 'img_size'")
        if name not in ("convolutional", "transformer"):
            raise RuntimeError("Unknown model")
        return plain(num_classes, in_chans, more.get("img_size", 32))

    module = types.ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    network = build("timm:convolutional", 4, seed=0)
    torch.testing.assert_close(network(images()), network.module((images() - 0.5) / 0.25))
    assert build("timm:transformer", 4, seed=0, size=48)(images(size=48)).shape == (2, 4)
    with pytest.raises(UsageError, match="cannot make the model 'absent'"):
        build("timm:absent", 4, seed=0)
