from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.methods.baselines.base import Material
from uge.methods.baselines.ntga import (
    BIASES,
    NTGA,
    WEIGHTS,
    Kernel,
    Layer,
    NTGASettings,
    average,
    block_gradient,
    blocks,
    centred,
    cnn,
    erf,
    flow,
    fnn,
    held_out_loss,
    kernels,
    relu,
)
from uge.runtime import Runtime

BUDGET = Budget(8 / 255)
SMALL = {"block": 16, "held_out": 12, "chunk": 5}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("layer", "function", "gradient"),
    [
        (relu, torch.relu, lambda x: (x > 0).double()),
        (erf, torch.erf, lambda x: 2 / np.pi**0.5 * (-x * x).exp()),
    ],
)
def test_activations_are_gaussian_integrals(
    layer: Callable[[Layer], Layer], function: Callable[[Tensor], Tensor], gradient: Callable[[Tensor], Tensor]
) -> None:
    """Of products of values, and of derivatives, over two normal variables with given variances and covariance."""
    first, second, cross = 1.3, 0.6, 0.5
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(200))
    weights = weights / weights.sum()
    u = (first**0.5 * nodes)[:, None].expand(-1, 200)
    v = cross / first**0.5 * nodes[:, None] + (second - cross**2 / first) ** 0.5 * nodes
    weight = weights[:, None] * weights
    made = layer(Layer(*(torch.full((1, 1, 1), value, dtype=torch.float64) for value in (cross, first, second, 1.0))))
    assert made.cross.item() == pytest.approx((function(u) * function(v) * weight).sum().item(), rel=3e-3)
    assert made.first.item() == pytest.approx((function(u) ** 2 * weight).sum().item(), rel=3e-3)
    assert made.tangent.item() == pytest.approx((gradient(u) * gradient(v) * weight).sum().item(), rel=1e-2)


@pytest.mark.parametrize("side", [5, 6, 7, 8])
def test_a_convolution_averages_windows_around_every_second_pixel(side: int) -> None:
    values = random(side, side, 2, 3)
    total = max(2 * (-(-side // 2) - 1) + 5 - side, 0)
    padded = torch.zeros(side + total, side + total, 2, 3, dtype=torch.float64)
    padded[total // 2 : total // 2 + side, total // 2 : total // 2 + side] = values
    expected = [padded[r : r + 5, c : c + 5].mean((0, 1)) for r in range(0, side, 2) for c in range(0, side, 2)]
    assert torch.allclose(average(values.flatten(0, 1), side), torch.stack(expected))


class Wide(nn.Module):
    """A layer of a finite network in the NTK parametrisation: normal parameters, scaled where they are used."""

    def __init__(self, before: int, width: int, window: int = 0) -> None:
        super().__init__()
        shape = (width, before, window, window) if window else (width, before)
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * (WEIGHTS / self.weight[0].numel()) ** 0.5, self.bias * BIASES**0.5
        return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(F.pad(x, (1, 2, 1, 2)), weight, bias, 2)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("kernel", [fnn, cnn])
def test_a_wide_network_has_nearly_the_kernel(kernel: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    x, mean, draws, units = random(3, 2, 8, 8).float(), torch.zeros(3, 3), 10, 20
    for _ in range(draws):
        if kernel is fnn:
            parts = [nn.Flatten()]
            for before in (128, *[200] * 4):
                parts += [Wide(before, 200), Function(torch.erf)]
        else:
            parts = [Wide(2, 60, 5), nn.ReLU(), Wide(60, 60, 5), nn.ReLU(), nn.Flatten(), Wide(240, 150)]
            parts += [Wide(150, 150), Wide(150, units)]
        network = nn.Sequential(*parts)
        for unit in network(x)[:, :units].T:
            gradients = [torch.autograd.grad(value, list(network.parameters()), retain_graph=True) for value in unit]
            rows = torch.stack([torch.cat([part.flatten() for part in gradient]) for gradient in gradients])
            mean += rows @ rows.T / (draws * units)
    assert torch.allclose(mean, kernel(x, x), rtol=0.2), mean / kernel(x, x)


@pytest.mark.parametrize("kernel", [fnn, cnn])
def test_kernels_are_symmetric_and_have_no_negative_eigenvalues(kernel: Callable[..., Tensor]) -> None:
    x, z = random(6, 2, 7, 7), random(4, 2, 7, 7, seed=1)
    assert torch.allclose(kernel(x, z), kernel(z, x).T)
    assert torch.allclose(kernel(x[2:4], z[1:]), kernel(x, z)[2:4, 1:])
    assert torch.linalg.eigvalsh(kernel(x, x)).min() > 0


@pytest.mark.parametrize("time", [0.5, 40.0])
def test_flow_is_gradient_descent_of_a_linear_model(time: float) -> None:
    """A linear model's kernel is constant, so that small steps of its own weights must end at the closed form."""
    x, z, targets = random(6, 9), random(4, 9, seed=1), random(6, 3, seed=2) - 0.5
    weights, steps = torch.zeros(9, 3, dtype=torch.float64), 3000
    for _ in range(steps):
        weights -= time / steps * x.T @ (x @ weights - targets) / targets.numel()
    assert torch.allclose(flow(x @ x.T, z @ x.T, targets, time), z @ weights, atol=1e-3)


def test_flow_is_the_eigen_formula_and_its_limit_is_regression() -> None:
    x, z, targets = random(6, 9), random(4, 9, seed=1), random(6, 3, seed=2)
    train, cross = x @ x.T, z @ x.T
    matrix = torch.linalg.solve(train, torch.eye(6, dtype=torch.float64) - torch.matrix_exp(-train * 7 / 18))
    assert torch.allclose(flow(train, cross, targets, 7.0), cross @ matrix @ targets)
    assert torch.allclose(flow(train, cross, targets, 1e9), cross @ torch.linalg.solve(train, targets), atol=1e-6)


@pytest.mark.parametrize("rank", [5, 2, 0])
def test_the_derivative_of_flow(rank: int) -> None:
    """Also where eigenvalues coincide, as they do at 0 when there are more images than pixels."""
    x, targets = random(5, rank), random(5, 2, seed=2)
    cross = random(3, 5, seed=1).requires_grad_()
    train = (x @ x.T).requires_grad_()
    symmetric = lambda k, c: flow((k + k.T) / 2 + 0.1 * torch.eye(5, dtype=k.dtype), c, targets, 3.0)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, (train, cross), eps=1e-6, atol=1e-6)


HELD_OUT, THEIR_LABELS = random(5, 2, 8, 8, seed=9), torch.arange(5) % 3
TARGETS = centred(torch.arange(7) % 3, 3)


def loss_of(settings: NTGASettings) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda train, cross: held_out_loss(train, cross, TARGETS, THEIR_LABELS, settings)


@pytest.mark.parametrize(("kernel", "loss"), [(cnn, "cross-entropy"), (fnn, "cross-entropy"), (fnn, "mse")])
def test_the_gradient_is_the_derivative_of_the_held_out_loss(kernel: Kernel, loss: str) -> None:
    x, measure = random(7, 2, 8, 8), loss_of(NTGASettings(time=9.0, loss=loss))
    direction = random(*x.shape, seed=5) - 0.5
    ends = [measure(*kernels(kernel, x + sign * 1e-5 * direction, HELD_OUT, 4)) for sign in (1, -1)]
    gradient = block_gradient(kernel, x, HELD_OUT, measure, chunk=4)
    assert torch.isclose((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-5)


def test_the_gradient_does_not_depend_on_chunks() -> None:
    x, measure = random(7, 2, 8, 8), loss_of(NTGASettings(time=9.0))
    whole, parts = (block_gradient(cnn, x, HELD_OUT, measure, chunk=chunk) for chunk in (7, 2))
    assert torch.allclose(whole, parts, rtol=1e-9)


def test_the_time_of_the_prediction_is_the_best_published_one_of_the_network() -> None:
    train, cross = kernels(fnn, random(7, 2, 8, 8), HELD_OUT, 4)
    for network, time in (("fnn", 4096.0), ("cnn", 8.0)):
        expected = held_out_loss(train, cross, TARGETS, THEIR_LABELS, NTGASettings(network=network, time=time))
        assert held_out_loss(train, cross, TARGETS, THEIR_LABELS, NTGASettings(network=network)) == expected


@pytest.mark.parametrize(("count", "block", "held_out"), [(2, 512, 512), (33, 16, 12), (40, 16, 100), (17, 16, 1)])
def test_every_image_is_in_one_block_and_never_its_own_judge(count: int, block: int, held_out: int) -> None:
    divided = list(blocks(count, NTGASettings(block=block, held_out=held_out), 0))
    assert sorted(torch.cat([own for own, _ in divided]).tolist()) == list(range(count))
    assert len(divided) >= 2
    for own, others in divided:
        assert len(own) <= block
        assert 1 <= len(others) <= held_out
        assert not set(own.tolist()) & set(others.tolist())
        assert len(set(others.tolist())) == len(others)


@pytest.mark.parametrize(("count", "held_out"), [(40, 24), (100, 12), (60, 60)])
def test_all_blocks_have_the_same_judges_but_for_their_own_images(count: int, held_out: int) -> None:
    divided = [
        (set(own.tolist()), set(others.tolist()))
        for own, others in blocks(count, NTGASettings(block=16, held_out=held_out), 0)
    ]
    common = set().union(*(others for _, others in divided))
    assert len(common) == held_out
    for own, others in divided:
        assert others == common - own
        assert len(others) > held_out / 2, "spread over the order, so that no block loses most of them"


def test_one_image_is_refused() -> None:
    with pytest.raises(UsageError, match="at least two images"):
        list(blocks(1, NTGASettings(), 0))


@pytest.mark.parametrize("options", [{"network": "cnn"}, {"network": "fnn"}, {"network": "fnn", "loss": "mse"}])
def test_it_spoils_what_the_kernel_predicts(
    options: dict[str, object], make_store: Callable[..., PixelStore], runtime: Runtime
) -> None:
    """Held-out loss rises block by block."""
    store, reports = make_store(count=24, separable=True), list[dict[str, float]]()
    material = Material(
        store, BUDGET, 0, runtime, {**SMALL, **options}, progress=lambda done, total, figures: reports.append(figures)
    )
    delta = NTGA.make(material)
    settings, everything = NTGASettings(**{**SMALL, **options}), torch.arange(24)
    kernel = cnn if settings.network == "cnn" else fnn
    clean = store.pixels.read(everything).float() / 255
    moved = clean + delta.read(everything) / 255
    for own, others in blocks(24, settings, 0):
        targets = centred(store.labels[own], 3)
        before, after = (
            held_out_loss(*kernels(kernel, x[own], clean[others], 8), targets, store.labels[others], settings)
            for x in (clean, moved)
        )
        assert after > before + 1e-4
    assert delta.read(everything).abs().max() == 8
    assert 0 <= (moved * 255).round().min() <= (moved * 255).round().max() <= 255
    assert reports[-1]["gradients"] == 24 * 10
    again = NTGA.make(Material(store, BUDGET, 0, runtime, {**SMALL, **options}))
    assert torch.equal(again.read(everything), delta.read(everything))


def test_with_room_the_kernel_is_wrong_about_what_it_was_right_about(
    make_store: Callable[..., PixelStore], runtime: Runtime
) -> None:
    store, everything, right = make_store(count=24, separable=True), torch.arange(24), np.zeros(2)
    delta = NTGA.make(Material(store, Budget(64 / 255), 0, runtime, {**SMALL, "step": 7.0})).read(everything)
    clean = store.pixels.read(everything).float() / 255
    for own, others in blocks(24, NTGASettings(**SMALL), 0):
        targets, labels = centred(store.labels[own], 3), store.labels[others]
        blocks_of_pixels = (clean[own], clean[own] + delta[own] / 255)
        predicted = [flow(*kernels(fnn, x, clean[others], 8), targets, 4096.0).argmax(1) for x in blocks_of_pixels]
        right += [(classes == labels).sum().item() for classes in predicted]
    assert right[1] < right[0]
