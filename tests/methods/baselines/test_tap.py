from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from shallow import faint

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.methods.baselines import tap
from uge.methods.baselines.base import Material
from uge.methods.baselines.surrogate import Surrogate
from uge.methods.baselines.tap import TAP, TAP_UNTARGETED, TAPSettings, clean_surrogate
from uge.runtime import Runtime

ALL = torch.arange(30)
QUICK = {
    "surrogate": "shallow:shallow",
    "epochs": 6,
    "lr": 0.05,
    "steps": 24,
    "step": 2.0,
    "restarts": 1,
    "batch_size": 16,
}


@pytest.fixture
def material(make_store: Callable[..., PixelStore], runtime: Runtime) -> Callable[..., Material]:
    store = faint(make_store(count=30, separable=True))
    return lambda progress=lambda *figures: None, **options: Material(
        store, Budget(16 / 255), 0, runtime, {**QUICK, **options}, None, progress
    )


@pytest.fixture
def surrogate(material: Callable[..., Material]) -> Surrogate:
    return clean_surrogate(material(), TAPSettings(**QUICK))


def logits(material: Material, surrogate: Surrogate, delta: torch.Tensor | float = 0.0) -> torch.Tensor:
    with torch.no_grad():
        return surrogate.logits((material.store.pixels.read(ALL).float() + delta) / 255)


def test_targeted_noise_is_taken_for_the_next_class(material: Callable[..., Material], surrogate: Surrogate) -> None:
    images = material()
    labels = images.store.labels
    goal = (labels + 1) % 3
    clean, delta = logits(images, surrogate), TAP.make(images).read(ALL)
    moved = logits(images, surrogate, delta)
    assert (clean.argmax(1) == labels).float().mean() >= 0.8
    assert (moved.argmax(1) == goal).float().mean() > (clean.argmax(1) == goal).float().mean() + 0.2
    assert F.cross_entropy(moved, goal) < 0.7 * F.cross_entropy(clean, goal)
    assert delta.abs().max() == 16


def test_untargeted_noise_raises_the_loss(material: Callable[..., Material], surrogate: Surrogate) -> None:
    images = material()
    labels, delta = images.store.labels, TAP_UNTARGETED.make(images).read(ALL)
    losses = [F.cross_entropy(logits(images, surrogate, by), labels, reduction="none") for by in (0.0, delta)]
    assert (losses[1] > losses[0]).all()
    assert losses[1].mean() > 1.5 * losses[0].mean()
    assert not torch.equal(delta, TAP.make(images).read(ALL))


def test_the_surrogate_is_frozen_and_clean(material: Callable[..., Material], surrogate: Surrogate) -> None:
    again = clean_surrogate(material(), TAPSettings(**QUICK))
    for first, second in zip(surrogate.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(first, second)
        assert not first.requires_grad
    assert not surrogate.network.training


def test_the_trial_with_the_lowest_mean_loss_is_kept_whole(
    material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials are constant perturbations here, and the second has the lowest mean, though not for every batch."""
    losses = iter([5.0, 5.0, 1.0, 7.0, 6.0, 6.0])  # Three trials of two batches.
    levels = iter([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    monkeypatch.setattr(
        tap, "_attack", lambda surrogate, clean, *rest: (torch.full_like(clean, next(levels)), next(losses))
    )
    images = material(restarts=3)
    images.store.pixels.write(ALL, images.store.pixels.read(ALL).clamp(20, 230))
    assert (TAP.make(images).read(ALL) == 2).all()


def test_trials_start_at_random(material: Callable[..., Material]) -> None:
    delta = TAP.make(material(restarts=1, steps=1, step=0.01)).read(ALL).float()
    assert delta.abs().max() == 16
    assert 0.3 < (delta.abs() == 16).float().mean() < 0.4, "a third of normal numbers is beyond one deviation"


def test_gradient_evaluations_are_counted(material: Callable[..., Material]) -> None:
    reports: list[tuple[int, int, dict[str, float]]] = []
    TAP.make(material(lambda *figures: reports.append(figures), restarts=2, steps=3))
    assert reports[-1][:2] == (60, 60)
    assert reports[-1][2]["gradients"] == 6 * 30 + 30 * 2 * 3


def test_published_settings() -> None:
    settings = TAPSettings()
    assert (settings.surrogate, settings.epochs, settings.steps, settings.step) == ("resnet18", 40, 250, 0.4)
    assert settings.restarts == 8
