from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shallow import faint

from uge.budget import Budget
from uge.data.augment import crop_flip
from uge.data.store import PixelStore
from uge.methods.baselines import rem
from uge.methods.baselines.base import Material
from uge.methods.baselines.rem import REM, REMSettings, adversary, defence, robust_gradient
from uge.methods.baselines.surrogate import Surrogate, trainable_surrogate
from uge.runtime import Runtime, stream

ALL = torch.arange(24)
SMALL = {"steps": 3, "step": 3.2, "adversary_steps": 2, "adversary_step": 2.4, "samples": 2}
QUICK = {"surrogate": "shallow:shallow", "theta_steps": 8, "batch_size": 12, "lr": 0.05, **SMALL}


@pytest.fixture
def material(make_store: Callable[..., PixelStore], runtime: Runtime) -> Callable[..., Material]:
    store = faint(make_store(count=24, separable=True))
    return lambda progress=lambda *figures: None, **options: Material(
        store, Budget(8 / 255), 0, runtime, {**QUICK, **options}, None, progress
    )


@pytest.fixture
def surrogate(material: Callable[..., Material]) -> Surrogate:
    """A few ordinary steps from its start."""
    surrogate = trainable_surrogate(material(), "shallow:shallow", "rem", lr=0.05)
    store = material().store
    for _ in range(5):
        surrogate.train_step(store.pixels.read(ALL).float() / 255, store.labels)
    return surrogate


def loss(surrogate: Surrogate, x: torch.Tensor, y: torch.Tensor) -> float:
    surrogate.network.eval()
    with torch.no_grad():
        return F.cross_entropy(surrogate.logits(x), y).item()


def robust_loss(surrogate: Surrogate, x: torch.Tensor, y: torch.Tensor, draws: int = 4) -> float:
    """E_t max_ρ CE(f(t(x) + ρ), y), by draws that the noise was not made with."""
    settings, draw = REMSettings(**QUICK), stream(99, "test")
    losses = []
    for _ in range(draws):
        seen = crop_flip(x, draw)
        losses.append(loss(surrogate, seen + adversary(surrogate, seen, y, settings, draw), y))
    return sum(losses) / draws


def test_the_adversary_raises_the_loss_within_its_radius(
    material: Callable[..., Material], surrogate: Surrogate
) -> None:
    store = material().store
    x, settings = store.pixels.read(ALL).float() / 255, REMSettings(**QUICK)
    noise = adversary(surrogate, x, store.labels, settings, stream(0, "a"))
    assert noise.abs().max().item() <= 4 / 255 + 1e-6
    assert loss(surrogate, x + noise, store.labels) > loss(surrogate, x, store.labels) + 0.05
    start = adversary(surrogate, x, store.labels, REMSettings(adversary_steps=0), stream(0, "a")) * 255
    assert start.abs().max().item() > 3.9
    assert abs(start.mean().item()) < 0.2


def test_the_defence_lowers_the_adversarially_augmented_loss(
    material: Callable[..., Material], surrogate: Surrogate
) -> None:
    store, settings = material().store, REMSettings(**QUICK)
    clean = store.pixels.read(ALL).float()
    delta = defence(surrogate, clean, store.labels, 8, settings, stream(0, "d"))
    assert robust_loss(surrogate, (clean + delta) / 255, store.labels) < 0.8 * robust_loss(
        surrogate, clean / 255, store.labels
    )
    assert delta.abs().max().item() <= 8


def test_the_robust_gradient_is_the_mean_over_draws_of_that_at_the_worst_point(
    material: Callable[..., Material], surrogate: Surrogate
) -> None:
    store, settings = material().store, REMSettings(**{**QUICK, "samples": 3})
    x, y = store.pixels.read(ALL).float() / 255, store.labels
    gradient = robust_gradient(surrogate, x, y, settings, stream(0, "s"))
    draw, expected = stream(0, "s"), torch.zeros_like(x)
    for _ in range(3):
        leaf = x.clone().requires_grad_(True)
        seen = crop_flip(leaf, draw)
        worst = seen + adversary(surrogate, seen.detach(), y, settings, draw)
        expected += torch.autograd.grad(F.cross_entropy(surrogate.logits(worst), y, reduction="sum"), leaf)[0] / 3
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_made_noise_lowers_the_robust_loss_and_stays_in_the_budget(
    material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Surrogate] = []
    real = rem.trainable_surrogate
    monkeypatch.setattr(rem, "trainable_surrogate", lambda *a, **b: (made.append(real(*a, **b)), made[-1])[1])
    reports: list[tuple[int, int, dict[str, float]]] = []
    images = material(lambda *figures: reports.append(figures))
    delta = REM.make(images).read(ALL)
    assert delta.abs().max() == 8
    assert delta.dtype == torch.int8
    # 8 steps of 12 images: 3 · 2 draws of (2 + 1), then 2 + 1 for θ; the last pass without the latter.
    assert reports[-1][2]["gradients"] == 8 * 12 * (18 + 3) + 24 * 18
    assert reports[-1][:2] == (10, 10)
    clean = images.store.pixels.read(ALL).float()
    protected = robust_loss(made[0], (clean + delta) / 255, images.store.labels)
    assert protected < 0.8 * robust_loss(made[0], clean / 255, images.store.labels)


def test_the_learning_rate_falls(material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[Any] = []
    real = Surrogate.train_step
    monkeypatch.setattr(
        Surrogate, "train_step", lambda self, x, y, lr=None: (rates.append(lr), real(self, x, y, lr=lr))[1]
    )
    REM.make(material(theta_steps=4, decay_every=2, steps=1, samples=1, adversary_steps=0))
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005])


def test_published_settings() -> None:
    settings = REMSettings()
    assert (settings.theta_steps, settings.decay_every, settings.samples) == (5000, 2000, 5)
    assert (settings.steps, settings.step) == (10, 1.6)
    assert settings.clip is None
    assert (settings.adversary_radius, settings.adversary_steps, settings.adversary_step) == (4.0, 10, 0.8)
