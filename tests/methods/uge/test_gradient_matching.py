import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from uge.methods.uge.matching import gradient_matching
from uge.networks import build, weights_hash
from uge.runtime import Runtime

READINGS = list(itertools.product(["batch", "sample"], ["layer", "flat", "row"]))
Make = Callable[..., nn.Module]
Batch = tuple[Tensor, Tensor, Tensor]


def naive_gradient(network: nn.Module, x: np.ndarray, y: int) -> list[list[float]]:
    """∇ of cross-entropy of a linear classifier in closed form: (p - 1_y) xᵀ and p - 1_y."""
    weight, bias = (parameter.detach().numpy() for parameter in network.parameters())
    image = x.reshape(-1)
    logits = [sum(w * v for w, v in zip(row, image, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
    powers = [math.exp(value) for value in logits]
    error = [power / sum(powers) - (k == y) for k, power in enumerate(powers)]
    return [[e * v for e in error for v in image], error]


def naive_distance(a: list[float], b: list[float]) -> float:
    dot, aa, bb = (sum(p * q for p, q in zip(u, v, strict=True)) for u, v in ((a, b), (a, a), (b, b)))
    return 1 - dot / math.sqrt(aa * bb)


def naive_loss(network: nn.Module, batch: Batch, reduction: str, layout: str) -> float:
    x, x_u, y = (tensor.numpy() for tensor in batch)
    pairs = [[naive_gradient(network, images[n], y[n]) for images in (x, x_u)] for n in range(len(y))]
    if reduction == "batch":
        mean = [[np.mean([pair[side][layer] for pair in pairs], 0).tolist() for layer in (0, 1)] for side in (0, 1)]
        pairs = [mean]
    distances = []
    for clean, protected in pairs:
        if layout == "row":
            width = len(clean[0]) // len(clean[1])  # The bias is a vector, which does not count.
            rows = [[side[0][k : k + width] for k in range(0, len(side[0]), width)] for side in (clean, protected)]
            distances.append(sum(naive_distance(a, b) for a, b in zip(*rows, strict=True)))
            continue
        if layout == "flat":
            clean, protected = [[*clean[0], *clean[1]]], [[*protected[0], *protected[1]]]
        distances += [naive_distance(a, b) for a, b in zip(clean, protected, strict=True)]
    return sum(distances) / len(distances)


def loss(networks: list[nn.Module], batch: Batch, reduction: str, layout: str) -> Tensor:
    return gradient_matching(networks, *batch, reduction=reduction, layout=layout)


@pytest.mark.parametrize(("reduction", "layout"), READINGS)
class TestEveryReading:
    def test_is_the_formula(self, linear: Make, batch: Batch, reduction: str, layout: str) -> None:
        network = linear()
        expected = naive_loss(network, batch, reduction, layout)
        assert loss([network], batch, reduction, layout).item() == pytest.approx(expected)
        assert expected > 0.001

    def test_is_zero_without_perturbation(self, smooth: Make, batch: Batch, reduction: str, layout: str) -> None:
        x, _, y = batch
        assert loss([smooth()], (x, x, y), reduction, layout).item() == pytest.approx(0, abs=1e-12)

    def test_order_of_the_batch_does_not_matter(self, smooth: Make, batch: Batch, reduction: str, layout: str) -> None:
        order = torch.tensor([3, 0, 4, 1, 2])
        shuffled = tuple(tensor[order] for tensor in batch)
        assert loss([smooth()], shuffled, reduction, layout).item() == pytest.approx(
            loss([smooth()], batch, reduction, layout).item()
        )

    def test_names_of_classes_do_not_matter(self, linear: Make, batch: Batch, reduction: str, layout: str) -> None:
        network, (x, x_u, y), order = linear(), batch, torch.tensor([2, 0, 1])
        renamed = copy.deepcopy(network)
        with torch.no_grad():
            renamed[1].weight[order] = network[1].weight
            renamed[1].bias[order] = network[1].bias
        assert loss([renamed], (x, x_u, order[y]), reduction, layout).item() == pytest.approx(
            loss([network], batch, reduction, layout).item()
        )

    def test_gradient_is_that_of_finite_differences(
        self, smooth: Make, batch: Batch, reduction: str, layout: str
    ) -> None:
        x, x_u, y = batch
        networks = [smooth(0), smooth(1)]
        assert torch.autograd.gradcheck(
            lambda moved: loss(networks, (x, moved, y), reduction, layout), x_u.requires_grad_(True), atol=1e-6
        )

    def test_several_networks_are_averaged(self, smooth: Make, batch: Batch, reduction: str, layout: str) -> None:
        first, second = (loss([smooth(seed)], batch, reduction, layout).item() for seed in (0, 1))
        both = loss([smooth(0), smooth(1)], batch, reduction, layout).item()
        assert both == pytest.approx((first + second) / 2)
        assert first != pytest.approx(second)

    def test_networks_stay_as_they_were(self, smooth: Make, batch: Batch, reduction: str, layout: str) -> None:
        network = smooth().eval().requires_grad_(False)
        network[1].momentum = None
        network[4].weight.requires_grad_(True)
        network[2].train()
        before, modes = weights_hash(network), [module.training for module in network.modules()]
        x, x_u, y = batch
        loss([network], (x, x_u.requires_grad_(True), y), reduction, layout).backward()
        assert weights_hash(network) == before
        assert [module.training for module in network.modules()] == modes
        assert [name for name, p in network.named_parameters() if p.requires_grad] == ["4.weight"]
        assert all(p.grad is None for p in network.parameters())
        assert (network[1].momentum, network[1].track_running_stats) == (None, True)
        assert x_u.grad.abs().sum() > 0
        # ... and training it afterwards records statistics again
        network.train()(x)
        assert weights_hash(network) != before


def test_the_size_of_gradients_does_not_matter(linear: Make, batch: Batch) -> None:
    """Twice the inputs, half the weights: every gradient of the weights is twice as long."""
    network, (x, x_u, y) = linear(), batch
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[1].weight /= 2
    for reduction in ("batch", "sample"):
        assert loss([other], (2 * x, 2 * x_u, y), reduction, "layer").item() == pytest.approx(
            loss([network], batch, reduction, "layer").item()
        )


def test_a_batch_uses_batch_statistics_and_a_sample_running_ones(smooth: Make, batch: Batch) -> None:
    network = smooth()
    moved = copy.deepcopy(network)
    moved[1].running_mean += 0.5
    for reduction, differs in (("batch", False), ("sample", True)):
        first, second = (loss([n], batch, reduction, "flat").item() for n in (network, moved))
        assert (first != pytest.approx(second)) == differs
    x, x_u, y = batch
    gradients = []
    for images in (x, x_u):
        trained = copy.deepcopy(network).train()
        nn.functional.cross_entropy(trained(images), y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trained.parameters()]).tolist())
    assert loss([network], batch, "batch", "flat").item() == pytest.approx(naive_distance(*gradients))


def test_a_parameter_without_direction_does_not_count(smooth: Make, batch: Batch) -> None:
    """A bias in front of batch norm has no gradient but rounding; a layer that is never used has none at all."""
    network, bare = smooth(), smooth(bias=False)
    bare.load_state_dict({key: value for key, value in network.state_dict().items() if key != "0.bias"})
    unused = copy.deepcopy(bare)
    unused.register_parameter("idle", nn.Parameter(torch.ones(7, dtype=torch.float64)))
    expected = loss([bare], batch, "batch", "layer").item()
    assert expected > 0.001
    for other in (network, unused):
        assert loss([other], batch, "batch", "layer").item() == pytest.approx(expected)


def test_a_clean_gradient_of_zero_gives_a_finite_loss(linear: Make, batch: Batch) -> None:
    network = linear(classes=2)
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([2000.0, 0.0]))
    x, x_u, _ = batch
    x_u.requires_grad_(True)
    value = loss([network], (x, x_u, torch.zeros(5, dtype=torch.int64)), "batch", "layer")
    assert math.isfinite(value.item())
    assert torch.autograd.grad(value, x_u)[0].isfinite().all()


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_bf16_stays_near_fp32(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 16, 16, generator=generator)
    x_u = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1).requires_grad_(True)
    y = torch.arange(8) % 3
    losses = {}
    for precision in ("fp32", "bf16-mixed"):
        runtime = Runtime.create("cpu", precision)
        network = runtime.place(build("cnn", 3, seed=0, size=16))
        with runtime.autocast():
            value = gradient_matching([network], x, x_u, y, reduction=reduction)
        losses[precision] = value.item()
        assert torch.autograd.grad(value, x_u)[0].isfinite().all()
    assert losses["bf16-mixed"] == pytest.approx(losses["fp32"], rel=0.2)
