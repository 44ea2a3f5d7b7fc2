from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shallow import faint

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.methods.baselines.base import Material
from uge.methods.baselines.surrogate import Surrogate
from uge.methods.baselines.tap import TAP, TAP_UNTARGETED, TAPSettings, clean_surrogate
from uge.runtime import Runtime

ALL = torch.arange(30)
QUICK = {"surrogate": "shallow:shallow", "epochs": 6, "lr": 0.05, "steps": 8, "step": 2.0, "batch_size": 16}


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


@pytest.mark.parametrize(("make", "sign"), [(TAP, 1), (TAP_UNTARGETED, -1)])
def test_restarts_keep_the_best_of_every_image(
    material: Callable[..., Material], surrogate: Surrogate, make: Any, sign: int
) -> None:
    """More restarts are never worse for any image, and better for some."""
    few = {"steps": 2, "augment": "none"}
    labels = material().store.labels
    goal = (labels + 1) % 3 if sign == 1 else labels
    losses = []
    for restarts in (1, 3):
        delta = make.make(material(restarts=restarts, **few)).read(ALL)
        losses.append(sign * F.cross_entropy(logits(material(), surrogate, delta), goal, reduction="none"))
    # Stored noise is rounded to whole levels, the loss that was compared is not.
    assert (losses[1] <= losses[0] + 0.02).all()
    assert losses[1].mean() < losses[0].mean()


def test_gradient_evaluations_are_counted(material: Callable[..., Material]) -> None:
    reports: list[tuple[int, int, dict[str, float]]] = []
    TAP.make(material(lambda *figures: reports.append(figures), restarts=2, steps=3))
    assert reports[-1][:2] == (60, 60)
    assert reports[-1][2]["gradients"] == 6 * 30 + 30 * 2 * 3


def test_published_settings() -> None:
    settings = TAPSettings()
    assert (settings.surrogate, settings.epochs, settings.steps, settings.step) == ("resnet18", 40, 250, 0.4)
