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
    random_start,
    sign_steps,
    trainable_surrogate,
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
    moved = sign_steps(
        clean, delta, lambda x: seen.append(x) or torch.full_like(x, gradient), steps=steps, step=step, bound=8
    )
    low, high = max(-8.0, -pixel), min(8.0, 255.0 - pixel)
    expected = min(max(float(delta) - gradient * step * steps, low), high)
    assert float(moved) == pytest.approx(expected, abs=1e-3)
    assert len(seen) == steps
    assert all(0 <= float(x) <= 1 for x in seen)


def test_a_gradient_is_of_the_loss_in_pixels_and_leaves_the_network(material: Material) -> None:
    surrogate = trainable_surrogate(material, "resnet8", "x", lr=0.1)
    before = {key: value.clone() for key, value in surrogate.network.state_dict().items()}
    x, y = material.store.pixels.read(ALL).double() / 255, material.store.labels
    surrogate.network.double()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = (surrogate.label_gradient(x, y) * direction).sum()
    with torch.no_grad():
        ends = [F.cross_entropy(surrogate.logits(x + h * direction), y, reduction="sum") for h in (1e-6, -1e-6)]
    assert torch.isclose(change, (ends[0] - ends[1]) / 2e-6, rtol=1e-4)
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
    surrogate = trainable_surrogate(material, "lenet", "x", lr=0.1)
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
    material.store.pixels.write(ALL, material.store.pixels.read(ALL).clamp(20, 230))
    noise = SampleNoise(material)
    surrogate = trainable_surrogate(material, "lenet", "x", lr=0.1)
    for _ in range(4):
        noise.descend([ALL], surrogate, steps=1, step=0.4)
    levels = noise.read(ALL)
    assert set((levels * 10).round().unique().int().tolist()) <= {-16, -8, 0, 8, 16, -12, 12, -4, 4}
    assert levels.abs().max().item() == pytest.approx(1.6)


def test_a_class_pattern_follows_its_own_images(material: Material) -> None:
    noise = ClassNoise(material)
    surrogate = trainable_surrogate(material, "lenet", "x", lr=0.1)
    own = (material.store.labels == 1).nonzero()[:, 0]
    clean = material.store.pixels.read(own).float() / 255
    expected = surrogate.label_gradient(clean, torch.ones(len(own), dtype=torch.int64)).sum(0)
    noise.descend([own[:1], own[1:]], surrogate, steps=1, step=0.8)  # One gradient over both batches.
    clear = expected.abs() > 1e-6  # Elsewhere the order of the sum may decide the sign.
    assert clear.float().mean() > 0.9
    assert torch.allclose(noise.patterns[1][clear], -0.8 * expected.sign()[clear])
    assert torch.equal(noise.read(own[:2]), noise.patterns[[1, 1]])
    assert not noise.patterns[0].any()
    assert not noise.patterns[2].any()


def test_a_class_pattern_moves_to_the_mean_of_its_images_batch_by_batch(material: Material) -> None:
    noise = ClassNoise(material)
    surrogate = trainable_surrogate(material, "lenet", "x", lr=0.1)
    own = (material.store.labels == 1).nonzero()[:, 0]
    material.store.pixels.write(own, material.store.pixels.read(own).clamp(20, 230))
    clean, labels = material.store.pixels.read(own).float(), torch.ones(len(own), dtype=torch.int64)
    first, second = own[:1], own[1:]
    pattern = -0.8 * surrogate.label_gradient(clean[:1] / 255, labels[:1]).sign()[0]
    moved = pattern - 0.8 * surrogate.label_gradient((clean[1:] + pattern) / 255, labels[1:]).sign()
    noise.follow([first, second], surrogate, steps=1, step=0.8)
    assert torch.allclose(noise.patterns[1], moved.mean(0), atol=1e-4)
    assert not noise.patterns[0].any()


def test_a_random_start_fills_the_bound_where_pixels_have_room() -> None:
    clean = torch.tensor([0.0, 128.0, 255.0])[:, None].expand(3, 2000)
    delta = random_start(clean, 8, torch.Generator().manual_seed(0))
    assert [round(row.min().item()) for row in delta] == [0, -8, -8]
    assert [round(row.max().item()) for row in delta] == [8, 8, 0]
    assert delta[1].unique().numel() > 1900
