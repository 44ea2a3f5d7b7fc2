import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shallow import faint

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.methods.baselines.base import Material
from uge.methods.baselines.em import _FORMS, _PUBLISHED, EM, EM_CLASS, EMClassSettings, EMSettings, _Run
from uge.methods.baselines.surrogate import Surrogate
from uge.runtime import Runtime

ALL = torch.arange(24)
BUDGET = Budget(8 / 255)
SMALL = {"surrogate": "shallow:shallow", "batch_size": 12, "lr": 0.05}
QUICK = {**SMALL, "form": "fixed", "theta_steps": 6, "steps": 3, "step": 2.0}
ORIGINAL = {**SMALL, "form": "original", "theta_batches": 2, "rounds": 8, "subset": 1.0}
SCOPES = {"sample": EM, "class": EM_CLASS}
FORMS = {"fixed": QUICK, "original": ORIGINAL}


@pytest.fixture
def material(make_store: Callable[..., PixelStore], runtime: Runtime) -> Callable[..., Material]:
    store = faint(make_store(count=24))
    return lambda progress=lambda *figures: None, **options: Material(
        store, BUDGET, 0, runtime, options, None, progress
    )


def surrogate_losses(run: _Run, delta: torch.Tensor) -> tuple[float, float]:
    """Loss of the final surrogate on clean and on perturbed images."""
    store, surrogate = run.material.store, run.surrogate
    surrogate.network.eval()
    clean = store.pixels.read(ALL).float() / 255
    with torch.no_grad():
        losses = [F.cross_entropy(surrogate.logits(x), store.labels).item() for x in (clean, clean + delta / 255)]
    return losses[0], losses[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scope", SCOPES)
def test_it_lowers_the_loss_of_the_surrogate(material: Callable[..., Material], scope: Any, form: str) -> None:
    # Patterns of the original form move by less than a level at a time.
    options = {**FORMS[form], **({"rounds": 24, "stop_error": 0} if scope == "class" else {})}
    delta = SCOPES[scope].make(material(**options)).read(ALL)
    run = _Run(material(**options), EMSettings(**options), scope)  # The same seed: the surrogate that made the noise.
    with torch.random.fork_rng():
        _FORMS[form](run)
    assert torch.equal(run.noise.read(ALL).round(), delta)
    clean, perturbed = surrogate_losses(run, delta)
    assert perturbed < 0.8 * clean
    assert delta.dtype == torch.int8
    assert delta.min() < -2
    assert 2 < delta.max() <= 8


@pytest.mark.parametrize("form", FORMS)
def test_class_wise_noise_is_one_pattern_per_class(material: Callable[..., Material], form: str) -> None:
    images = material(**FORMS[form])
    delta, labels = EM_CLASS.make(images).read(ALL), images.store.labels
    for label in range(3):
        assert (delta[labels == label] == delta[labels == label][0]).all()
    assert len(torch.unique(delta, dim=0)) == 3
    own = EM.make(images).read(ALL)
    assert len(torch.unique(own, dim=0)) == 24


@pytest.mark.parametrize(
    ("options", "scope", "expected"),
    [
        # 6 steps of 12 images by (3 + 1), and a last pass of 3.
        (QUICK, "sample", 6 * 12 * 4 + 24 * 3),
        (QUICK, "class", 6 * 12 * 4),
        ({**QUICK, "steps": None, "step": None, "theta_steps": 1}, "sample", 12 * 11 + 24 * 10),
        # Rounds of 2 steps of 12 images, and 20 (class-wise: 1) sign steps over 24, or over a part of them.
        ({**ORIGINAL, "stop_error": 0, "rounds": 2}, "sample", 2 * (2 * 12 + 20 * 24)),
        ({**ORIGINAL, "stop_error": 0}, "class", 8 * (2 * 12 + 24)),
        ({**ORIGINAL, "stop_error": 0, "subset": 0.5}, "class", 8 * (2 * 12 + 12)),
    ],
)
def test_gradient_evaluations_are_counted(
    material: Callable[..., Material], options: dict[str, Any], scope: str, expected: int
) -> None:
    reports = []
    SCOPES[scope].make(material(lambda *figures: reports.append(figures), **options))
    assert reports[-1][2]["gradients"] == expected
    assert reports[-1][0] == reports[-1][1] == len(reports)


def test_the_original_form_stops_when_the_noise_is_learnt(material: Callable[..., Material], caplog: Any) -> None:
    reports: list[tuple[int, int, dict[str, float]]] = []
    options = {**ORIGINAL, "rounds": 30, "stop_error": 0.2}
    EM.make(material(lambda *figures: reports.append(figures), **options))
    errors = [figures["error"] for _, _, figures in reports]
    assert errors[-1] < 0.2 <= min(errors[:-1], default=1)
    assert len(errors) < 30
    assert not caplog.records
    EM.make(material(**{**options, "rounds": 1, "stop_error": 0}))
    assert "after 1 rounds" in caplog.text


def test_noise_grows_from_visit_to_visit(material: Callable[..., Material]) -> None:
    """Sign steps go on from the present δ: one short step per visit adds up."""
    largest = {}
    for steps in (1, 4):
        options = {**ORIGINAL, "rounds": steps, "stop_error": 0, "steps": 1, "step": 0.6}
        largest[steps] = EM.make(material(**options)).read(ALL).abs().max().item()
    assert largest == {1: 1, 4: 2}  # 0.6 and 2.4, rounded.


def test_no_pass_takes_more_images_at_a_time_than_the_batch_size(material: Callable[..., Material]) -> None:
    run = _Run(material(), EMSettings(**{**QUICK, "batch_size": 10}), "sample")
    assert [len(indices) for indices in run.chunks] == [10, 10, 4]


def test_published_settings() -> None:
    settings = EMSettings()
    assert (settings.form, settings.theta_steps, settings.decay_every) == ("fixed", 5000, 2000)
    assert settings.theta_batches == 10
    assert EMClassSettings().form == "original"
    forms = {key: (form.steps, form.step, form.stop_error, form.clip) for key, form in _PUBLISHED.items()}
    assert forms["fixed", "sample"] == (10, 1.6, 0, math.inf)
    assert forms["original", "sample"] == (20, 0.8, 0.01, 5)
    assert forms["original", "class"] == (1, 0.8, 0.1, 5)
    assert {_PUBLISHED["original", scope].augment for scope in SCOPES} == {"none"}


def test_every_visit_of_the_fixed_form_starts_anew_at_random(material: Callable[..., Material]) -> None:
    """One short step moves a random start by that step only, however often the images were visited."""
    delta = EM.make(material(**{**QUICK, "theta_steps": 8, "steps": 1, "step": 0.5})).read(ALL).float()
    assert delta.abs().max() == 8
    assert 0.8 < delta.std() / (8 / 3**0.5) < 1.2, "uniform within the bound"


def test_the_learning_rate_of_the_fixed_form_falls(
    material: Callable[..., Material], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[Any] = []
    real = Surrogate.train_step
    monkeypatch.setattr(
        Surrogate, "train_step", lambda self, x, y, lr=None: (rates.append(lr), real(self, x, y, lr=lr))[1]
    )
    EM.make(material(**{**QUICK, "theta_steps": 4, "decay_every": 2, "steps": 1}))
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005])


def test_a_subset_moves_the_patterns_of_the_original_form(material: Callable[..., Material]) -> None:
    run = _Run(material(), EMSettings(**{**ORIGINAL, "subset": 0.5}), "class")
    assert len(torch.cat(run.judged).unique()) == 12
    assert torch.equal(torch.cat(_Run(material(), EMSettings(**ORIGINAL), "sample").judged), ALL)


@pytest.mark.parametrize("options", [{"form": "short"}, {"theta_steps": 0}, {"step": -1}])
def test_wrong_settings(material: Callable[..., Material], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"baseline setting {next(iter(options))}"):
        EM.make(material(**options))
