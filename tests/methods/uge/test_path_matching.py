"""Value matching and parameter matching along the path of an authorised network."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uge.methods.uge.matching import parameter_matching, value_matching
from uge.networks import build, weights_hash

Batch = tuple[Tensor, Tensor, Tensor]
Make = Callable[..., nn.Module]


def naive_values(network: nn.Module, x: Tensor, x_u: Tensor) -> float:
    """Of the network of ``smooth``: convolution, batch norm, tanh, linear."""
    convolution, norm, head = network[0], network[1], network[4]
    values = []
    for images in (x, x_u):
        before = convolution(images)
        mean, variance = before.mean((0, 2, 3)), before.var((0, 2, 3), correction=0)
        scaled = (before - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        features = torch.tanh(scaled * norm.weight[:, None, None] + norm.bias[:, None, None]).flatten(1)
        values.append((mean, variance, features, head(features)))
    (mean, variance, features, logits), (mean_u, variance_u, features_u, logits_u) = values
    parts = [
        ((mean_u - mean) ** 2).sum() / variance.sum(),
        ((variance_u.sqrt() - variance.sqrt()) ** 2).sum() / variance.sum(),
        ((features_u - features) ** 2).sum() / ((features - features.mean(0)) ** 2).sum(),
        ((logits_u - logits) ** 2).sum() / ((logits - logits.mean(0)) ** 2).sum(),
    ]
    return float(sum(parts) / 4)


def naive_parameters(network: nn.Module, batch: Batch, steps: int, lr: float) -> float:
    """Two copies, trained by an ordinary optimiser; their statistics are those of the batch anyway."""
    x, x_u, y = batch
    ends = []
    for images in (x, x_u):
        trained = copy.deepcopy(network).train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=lr)
        for pixels, labels in zip(images.tensor_split(steps), y.tensor_split(steps), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(pixels), labels).backward()
            optimizer.step()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in trained.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    return float((ends[1] - ends[0]).square().sum() / (ends[0] - start).square().sum())


def test_value_matching_is_the_formula(smooth: Make, batch: Batch) -> None:
    x, x_u, _ = batch
    loss = value_matching([smooth(0), smooth(1)], x, x_u).item()
    expected = [naive_values(smooth(seed), x, x_u) for seed in (0, 1)]
    assert loss == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert loss > 0.001


@pytest.mark.parametrize(("steps", "lr"), [(1, 0.02), (2, 0.5)])
def test_parameter_matching_is_the_formula(steps: int, lr: float, smooth: Make, batch: Batch) -> None:
    loss = parameter_matching([smooth(0), smooth(1)], *batch, steps=steps, lr=lr).item()
    expected = [naive_parameters(smooth(seed), batch, steps, lr) for seed in (0, 1)]
    assert loss == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert loss > 0.001


def test_one_step_is_the_relative_error_of_the_gradient_at_any_rate(smooth: Make, batch: Batch) -> None:
    losses = [parameter_matching([smooth()], *batch, lr=lr).item() for lr in (0.001, 1.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_nothing_between_images_and_themselves(smooth: Make, batch: Batch) -> None:
    x, _, y = batch
    assert value_matching([smooth()], x, x).item() == pytest.approx(0, abs=1e-12)
    assert parameter_matching([smooth()], x, x, y, steps=2, lr=0.5).item() == pytest.approx(0, abs=1e-12)


def test_order_of_images_does_not_matter(smooth: Make, batch: Batch) -> None:
    x, x_u, y = batch
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(value_matching([smooth()], x[order], x_u[order]), value_matching([smooth()], x, x_u))
    torch.testing.assert_close(
        parameter_matching([smooth()], x[order], x_u[order], y[order]), parameter_matching([smooth()], x, x_u, y)
    )


def test_gradients_are_those_of_finite_differences(smooth: Make, batch: Batch) -> None:
    x, x_u, y = batch
    x_u.requires_grad_(True)
    networks = [smooth(0), smooth(1)]
    assert torch.autograd.gradcheck(lambda moved: value_matching(networks, x, moved), x_u, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda moved: parameter_matching(networks, x, moved, y, steps=2, lr=0.3), x_u, atol=1e-6
    )


def test_more_steps_than_pairs_of_images_are_cut(smooth: Make, batch: Batch) -> None:
    cut, whole = (parameter_matching([smooth()], *batch, steps=steps, lr=0.5).item() for steps in (9, 2))
    assert cut == whole


@pytest.mark.parametrize("name", ["cnn", "resnetc20", "mobilenetv2"])
def test_networks_stay_as_they_are(name: str) -> None:
    network = build(name, 3, seed=0, size=16).eval()
    before, modes = weights_hash(network), [module.training for module in network.modules()]
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x_u, y = (x + 0.02).clamp(0, 1).requires_grad_(True), torch.tensor([0, 1, 2, 0])
    total = value_matching([network], x, x_u) + parameter_matching([network], x, x_u, y, steps=2)
    (gradient,) = torch.autograd.grad(total, x_u)
    assert gradient.isfinite().all()
    assert gradient.any()
    assert weights_hash(network) == before
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_pre_hooks for module in network.modules())
