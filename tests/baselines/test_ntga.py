import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from uge.baselines.base import Material
from uge.baselines.ntga import NTGA, BlockAttack, NTGASettings, blocks, centred
from uge.baselines.ntk import TangentNetwork, cnn, flow, fnn, kernel, tangents
from uge.budget import Budget
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.runtime import Runtime, stream

BUDGET = Budget(8 / 255)
SMALL = {"width": 6, "block": 16, "held_out": 12, "chunk": 5}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tangent_network(make: Callable[..., TangentNetwork], size: int = 8, classes: int = 3) -> TangentNetwork:
    return make(2, size, classes, 5, torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("make", [cnn, fnn])
def test_the_kernel_is_that_of_per_sample_gradients(make: Callable[..., TangentNetwork]) -> None:
    network, x, z = tangent_network(make), random(5, 2, 8, 8), random(4, 2, 8, 8, seed=1)
    network.requires_grad_(True)

    def jacobian(images: Tensor) -> Tensor:
        rows = []
        for image in images:
            gradients = torch.autograd.grad(network(image[None]).sum() / math.sqrt(3), list(network.parameters()))
            # Weights are scaled by √(2 / fan-in) in the NTK parametrisation, and so are the gradients in them.
            rows.append(torch.cat([(g * math.sqrt(2 / g[0].numel())).flatten() for g in gradients]))
        return torch.stack(rows)

    expected = jacobian(x) @ jacobian(z).T
    assert torch.allclose(kernel(tangents(network, x), tangents(network, z)), expected, rtol=1e-9)


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


@pytest.fixture
def attack() -> Callable[..., BlockAttack]:
    def make(loss: str = "cross-entropy", chunk: int = 4) -> BlockAttack:
        labels = torch.arange(7) % 3
        others, their = random(5, 2, 8, 8, seed=9), torch.arange(5) % 3
        network = tangent_network(cnn)
        return BlockAttack(network, centred(labels, 3), others, their, time=9.0, loss=loss, chunk=chunk)

    return make


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_the_slope_is_the_derivative_of_the_held_out_loss(attack: Callable[..., BlockAttack], loss: str) -> None:
    block, x = attack(loss), random(7, 2, 8, 8)
    direction = random(*x.shape, seed=5) - 0.5
    ends = [block.loss(block.predictions(x + sign * 1e-5 * direction)) for sign in (1, -1)]
    assert torch.isclose((block.slope(x) * direction).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-5)


def test_the_slope_does_not_depend_on_chunks(attack: Callable[..., BlockAttack]) -> None:
    x = random(7, 2, 8, 8)
    one, many = attack(chunk=7), attack(chunk=2)
    assert torch.allclose(one.slope(x), many.slope(x), rtol=1e-9)
    assert one.gradients == many.gradients == 5 + 3 * 7


@pytest.mark.parametrize(("count", "block", "held_out"), [(2, 512, 512), (33, 16, 12), (40, 16, 100), (17, 16, 1)])
def test_every_image_is_in_one_block_and_never_its_own_judge(count: int, block: int, held_out: int) -> None:
    found = list(blocks(count, NTGASettings(block=block, held_out=held_out), 0))
    assert sorted(torch.cat([own for own, _ in found]).tolist()) == list(range(count))
    assert len(found) >= 2
    for own, others in found:
        assert len(own) <= block
        assert 1 <= len(others) <= held_out
        assert not set(own.tolist()) & set(others.tolist())
        assert len(set(others.tolist())) == len(others)


@pytest.mark.parametrize(("count", "held_out"), [(40, 24), (100, 12), (60, 60)])
def test_all_blocks_have_the_same_judges_but_for_their_own_images(count: int, held_out: int) -> None:
    found = [
        (set(own.tolist()), set(others.tolist()))
        for own, others in blocks(count, NTGASettings(block=16, held_out=held_out), 0)
    ]
    common = set().union(*(others for _, others in found))
    assert len(common) == held_out
    for own, others in found:
        assert others == common - own
        assert len(others) > held_out / 2, "spread over the order, so that no block loses most of them"


def test_one_image_is_refused() -> None:
    with pytest.raises(UsageError, match="at least two images"):
        list(blocks(1, NTGASettings(), 0))


@pytest.mark.parametrize("options", [{"network": "cnn", "time": 60.0}, {"network": "fnn", "loss": "mse"}])
def test_it_spoils_what_the_kernel_predicts(
    options: dict[str, object], make_store: Callable[..., PixelStore], runtime: Runtime
) -> None:
    """Held-out loss rises block by block, and with it falls what the predictions get right."""
    store, told = make_store(count=24, separable=True), list[dict[str, float]]()
    material = Material(
        store, BUDGET, 0, runtime, {**SMALL, **options}, progress=lambda done, total, figures: told.append(figures)
    )
    delta = NTGA.make(material)
    settings, everything = NTGASettings(**{**SMALL, **options}), torch.arange(24)
    make, time = (cnn, 60.0) if settings.network == "cnn" else (fnn, 4096.0)
    network = make(3, 16, 3, 6, stream(0, "ntga", "network"))
    clean = store.pixels.read(everything).float() / 255
    moved = clean + delta.read(everything) / 255
    accuracy = np.zeros(2)
    for own, others in blocks(24, settings, 0):
        block = BlockAttack(
            network,
            centred(store.labels[own], 3),
            clean[others],
            store.labels[others],
            time=time,
            loss=settings.loss,
            chunk=8,
        )
        predicted = [block.predictions(x[own]) for x in (clean, moved)]
        assert block.loss(predicted[1]) > block.loss(predicted[0]) + 1e-4
        accuracy += [(p.argmax(1) == store.labels[others]).sum().item() for p in predicted]
    assert accuracy[1] < accuracy[0] or settings.loss == "mse"
    assert delta.read(everything).abs().max() == 8
    assert 0 <= (moved * 255).round().min() <= (moved * 255).round().max() <= 255
    # Two blocks of 12 images with 6 others each; 10 steps of 3 evaluations per image.
    assert told[-1]["gradients"] == 2 * 6 + 24 * 10 * 3
    again = NTGA.make(Material(store, BUDGET, 0, runtime, {**SMALL, **options}))
    assert torch.equal(again.read(everything), delta.read(everything))


def test_weights_start_in_the_ntk_parametrisation() -> None:
    network = cnn(3, 32, 10, 64, torch.Generator().manual_seed(0))
    spreads = [layer.weight.std().item() * math.sqrt(layer.weight[0].numel() / 2) for layer in network.weighted()]
    assert spreads == pytest.approx([1, 1, 1], abs=0.05)
    assert all(not isinstance(layer, nn.ReLU) for layer in network.layers)
