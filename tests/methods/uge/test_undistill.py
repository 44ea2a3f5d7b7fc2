import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uge.budget import Budget
from uge.config import ProtectConfig
from uge.data.images import ImageSet
from uge.data.store import PixelStore
from uge.methods import Task
from uge.methods.uge.settings import LOSSES
from uge.methods.uge.stages import Stages
from uge.methods.uge.undistill import measure_statistics, undistill
from uge.networks import build, weights_hash
from uge.runtime import Runtime, stream_seed

Make = Callable[..., nn.Module]
Batch = tuple[Tensor, Tensor, Tensor]


def softmax(logits: list[float], temperature: float = 1) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def naive(authorized: list[nn.Module], hacker: nn.Module, x_u: Tensor, y: Tensor, omega: float, t: float) -> float:
    total = 0.0
    for network in authorized:
        for teacher, student, label in zip(network(x_u).tolist(), hacker(x_u).tolist(), y.tolist(), strict=True):
            kl = sum(p * math.log(p / q) for p, q in zip(softmax(teacher, t), softmax(student, t), strict=True))
            total += -math.log(softmax(teacher)[label]) - omega * t**2 * kl
    return total / len(y) / len(authorized)


@pytest.mark.parametrize(("omega", "temperature"), [(0.1, 4.0), (0.01, 20.0), (2.0, 1.0), (0.0, 4.0)])
@pytest.mark.parametrize("count", [1, 2])
def test_is_the_formula(linear: Make, batch: Batch, omega: float, temperature: float, count: int) -> None:
    _, x_u, y = batch
    authorized, hacker = [linear(seed) for seed in range(count)], linear(9)
    loss = undistill(authorized, hacker, x_u, y, omega=omega, temperature=temperature)
    assert loss.item() == pytest.approx(naive(authorized, hacker, x_u, y, omega, temperature))


def test_without_the_factor_softer_outputs_count_less(linear: Make, batch: Batch) -> None:
    _, x_u, y = batch
    at_four = undistill([linear(0)], linear(9), x_u, y, omega=1, temperature=4, squared=False)
    assert at_four.item() == pytest.approx(undistill([linear(0)], linear(9), x_u, y, omega=1 / 16).item())


def test_several_networks_are_averaged(linear: Make, batch: Batch) -> None:
    _, x_u, y = batch
    first, second = (undistill([linear(seed)], linear(9), x_u, y).item() for seed in (0, 1))
    assert undistill([linear(0), linear(1)], linear(9), x_u, y).item() == pytest.approx((first + second) / 2)


def test_a_constant_added_to_logits_changes_nothing(linear: Make, batch: Batch) -> None:
    _, x_u, y = batch
    before = undistill([linear(0)], linear(9), x_u, y, omega=1).item()
    shifted = []
    for seed, shift in ((0, 3.0), (9, -5.0)):
        network = linear(seed)
        with torch.no_grad():
            network[1].bias += shift
        shifted.append(network)
    assert undistill(shifted[:1], shifted[1], x_u, y, omega=1).item() == pytest.approx(before)


def test_order_of_images_and_of_classes_changes_nothing(linear: Make, batch: Batch) -> None:
    _, x_u, y = batch
    before = undistill([linear(0)], linear(9), x_u, y, omega=1).item()
    order, renamed = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([2, 0, 1])
    others = []
    for seed in (0, 9):
        network = linear(seed)
        other = copy.deepcopy(network)
        with torch.no_grad():
            other[1].weight[renamed] = network[1].weight
            other[1].bias[renamed] = network[1].bias
        others.append(other)
    assert undistill(others[:1], others[1], x_u[order], renamed[y[order]], omega=1).item() == pytest.approx(before)


def test_at_high_temperature_the_term_is_the_distance_of_centred_logits(linear: Make, batch: Batch) -> None:
    """T² · KL tends to ‖z - z'‖² / 2K for logits z, z' less their means, so that ω means the same at every T."""
    _, x_u, y = batch
    teacher, student = linear(0), linear(9)
    z, z_student = (logits - logits.mean(1, keepdim=True) for logits in (teacher(x_u), student(x_u)))
    limit = ((z - z_student).square().sum(1) / (2 * z.shape[1])).mean().item()
    ce = undistill([teacher], student, x_u, y, omega=0).item()
    for temperature in (200.0, 400.0):
        loss = undistill([teacher], student, x_u, y, omega=1, temperature=temperature).item()
        assert ce - loss == pytest.approx(limit, rel=0.02)


def test_gradient_is_that_of_finite_differences(smooth: Make, batch: Batch) -> None:
    _, x_u, y = batch
    authorized, hacker = [smooth(0).eval(), smooth(1).eval()], smooth(9).eval()
    assert torch.autograd.gradcheck(
        lambda moved: undistill(authorized, hacker, moved, y, omega=1, temperature=2), x_u.requires_grad_(True)
    )


@pytest.mark.parametrize("name", ["mobilenetv2", "shufflenetv2", "resnetc20"])
def test_a_random_network_with_measured_statistics_is_moved_by_the_images(
    name: str, make_store: Callable[..., PixelStore], runtime: Runtime
) -> None:
    store = make_store(count=70)
    raw, first, second = (build(name, 3, seed=0, size=16) for _ in range(3))
    states = [measure_statistics(network, store, seed=1, runtime=runtime).state_dict() for network in (first, second)]
    assert weights_hash(states[0]) == weights_hash(states[1])
    for parameter, value in raw.named_parameters():
        assert torch.equal(states[0][parameter], value)
    assert not first.training
    x = (store.pixels.read(torch.arange(8)) / 255).requires_grad_(True)
    logits = first(x)
    assert 0.01 < logits.std(0).mean() < 3
    (gradient,) = torch.autograd.grad(logits.softmax(1).square().sum(), x)
    assert gradient.abs().mean() > 1e-5
    norms = [module for module in first.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 2 and norm.momentum == 0.1 for norm in norms)


def test_the_random_network_of_a_run_is_measured(
    make_images: Callable[..., ImageSet], make_store: Callable[..., PixelStore], runtime: Runtime
) -> None:
    config = ProtectConfig(method="undistill", hacker="resnet8")
    task = Task(make_images(), config, Budget(), [], runtime, make_store)
    hacker = Stages(task, LOSSES["undistill"])._hacker(stream_seed(task.settings.seed, "hacker"))
    norms = [module for module in hacker.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.num_batches_tracked == 1 for norm in norms)
