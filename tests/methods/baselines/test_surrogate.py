"""Steps that every method with a surrogate takes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.methods.baselines.base import Material
from uge.methods.baselines.surrogate import (
    ClassNoise,
    SampleNoise,
    Surrogate,
    endless_indices,
    project,
    sign_steps,
    trained_surrogate,
)
from uge.runtime import Runtime

BUDGET = Budget(8 / 255)
ALL = torch.arange(12)


@pytest.fixture
def material(make_store: Callable[..., PixelStore], runtime: Runtime) -> Material:
    return Material(make_store(count=12), BUDGET, 0, runtime)


@given(
    st.integers(0, 255), st.floats(-20, 20), st.floats(0.1, 5), st.integers(1, 12), st.sampled_from([-1.0, 0.0, 1.0])
)
def test_sign_steps_end_where_the_step_the_bound_and_the_pixel_allow(
    pixel: int, start: float, step: float, steps: int, gradient: float
) -> None:
    clean, seen = torch.tensor([float(pixel)]), []
    delta = project(clean, torch.tensor([start]), 8)
    found = sign_steps(
        clean, delta, lambda x: seen.append(x) or torch.full_like(x, gradient), steps=steps, step=step, bound=8
    )
    low, high = max(-8.0, -pixel), min(8.0, 255.0 - pixel)
    expected = min(max(float(delta) - gradient * step * steps, low), high)
    assert float(found) == pytest.approx(expected, abs=1e-3)
    assert len(seen) == steps
    assert all(0 <= float(x) <= 1 for x in seen)


def test_a_slope_is_of_the_loss_in_pixels_and_leaves_the_network(material: Material) -> None:
    surrogate = trained_surrogate(material, "resnet8", "x", lr=0.1)
    before = {key: value.clone() for key, value in surrogate.network.state_dict().items()}
    x, y = material.store.pixels.read(ALL).double() / 255, material.store.labels
    surrogate.network.double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = (surrogate.label_slope(x, y) * direction).sum()
    with torch.no_grad():
        ends = [F.cross_entropy(surrogate.logits(x + h * direction), y, reduction="sum") for h in (1e-6, -1e-6)]
    assert torch.isclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
    assert surrogate.gradients == 12
    # Neither parameters nor running statistics moved, and nothing is left in .grad.
    assert all(torch.equal(value.float(), before[key].float()) for key, value in surrogate.network.state_dict().items())
    assert all(parameter.grad is None for parameter in surrogate.network.parameters())


def test_a_train_step_lowers_the_loss_and_obeys_rate_and_clip(runtime: Runtime) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 3
    surrogate = Surrogate(network, runtime, torch.optim.SGD(network.parameters(), lr=5.0), clip=0.01)
    first = surrogate.train_step(x, y, lr=0.5)
    moved = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    assert moved.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-4)
    assert surrogate.train_step(x, y) < first
    assert surrogate.gradients == 12


def test_a_surrogate_that_diverges_stops(material: Material, runtime: Runtime) -> None:
    surrogate = trained_surrogate(material, "lenet", "x", lr=0.1)
    nn.init.constant_(surrogate.network.head.weight, float("nan"))
    with pytest.raises(UsageError, match=r"the surrogate's loss became nan; lower .* lr"):
        surrogate.train_step(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(("size", "batches"), [(5, [5, 5, 2]), (11, [11]), (128, [12])])
def test_batches_never_end_and_never_hold_one_image(material: Material, size: int, batches: list[int]) -> None:
    order = endless_indices(material, size, "x")
    epochs = [[next(order) for _ in batches] for _ in range(3)]
    for epoch in epochs:
        assert [len(indices) for indices in epoch] == batches
        assert len(set(torch.cat(epoch).tolist())) == sum(batches)
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    again = endless_indices(material, size, "x")
    assert all(torch.equal(next(again), indices) for epoch in epochs for indices in epoch)


def test_one_image_is_refused(make_store: Callable[..., PixelStore], runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="at least two images"):
        next(endless_indices(Material(make_store(count=1), BUDGET, 0, runtime), 4, "x"))


def test_fractions_of_a_level_persist(material: Material) -> None:
    """Four visits of one step of 0.4 levels are 1.6 levels, not four times nothing."""
    noise, labels = SampleNoise(material), material.store.labels
    surrogate = trained_surrogate(material, "lenet", "x", lr=0.1)
    clean = material.store.pixels.read(ALL).float().clamp(20, 230)
    for _ in range(4):
        noise.descend(ALL, labels, clean, surrogate, steps=1, step=0.4)
    found = noise.read(ALL, labels)
    assert set((found * 10).round().unique().int().tolist()) <= {-16, -8, 0, 8, 16, -12, 12, -4, 4}
    assert found.abs().max().item() == pytest.approx(1.6)


def test_a_class_pattern_follows_its_own_images(material: Material) -> None:
    noise, labels = ClassNoise(material), material.store.labels
    surrogate = trained_surrogate(material, "lenet", "x", lr=0.1)
    clean = material.store.pixels.read(ALL).float().clamp(20, 230)
    own = labels == 1
    gradient = noise.gradient(labels[own], clean[own], surrogate)
    expected = surrogate.label_slope(clean[own] / 255, labels[own]).sum(0)
    assert torch.allclose(gradient[1], expected, atol=1e-6)
    noise.move(gradient, 0.8)
    assert torch.allclose(noise.patterns[1], -0.8 * expected.sign())
    assert not noise.patterns[0].any()
    assert not noise.patterns[2].any()
