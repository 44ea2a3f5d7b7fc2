"""Hackers in the loop of direct optimisation."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.methods.uge import hackers as module
from uge.methods.uge.generator import delta_records
from uge.methods.uge.hackers import hacker_loss, train_hackers, with_hackers
from uge.methods.uge.protector import protected_store, refine_pass
from uge.methods.uge.settings import RefineSettings
from uge.networks import build, weights_hash
from uge.runtime import Runtime

Batch = tuple[Tensor, Tensor, Tensor]
SETTINGS = RefineSettings(hackers="lenet, cnn", hacker_steps=4)


@pytest.fixture
def pool(smooth: Callable[..., nn.Module]) -> list[nn.Module]:
    return [smooth(seed).eval() for seed in (1, 2)]


@pytest.mark.parametrize("term", ["minimise", "target"])
def test_equals_the_naive_formula(term: str, pool: list[nn.Module], batch: Batch) -> None:
    _, x_u, y = batch
    terms = []
    for hacker in pool:
        for image, label in zip(x_u, y.tolist(), strict=True):
            logits = hacker(image[None])[0].tolist()
            wanted = label if term == "minimise" else (label + 1) % 3
            terms.append(math.log(sum(math.exp(value) for value in logits)) - logits[wanted])
    loss = hacker_loss(pool, x_u, y, term=term, classes=3)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_students_are_measured_against_the_softened_answers(pool: list[nn.Module], batch: Batch, smooth: Any) -> None:
    _, x_u, y = batch
    teachers, terms = [smooth(7).eval()], []
    for student, temperature in zip(pool, (4.0, 1.0), strict=True):
        p, q = (torch.softmax(network(x_u) / temperature, 1) for network in (teachers[0], student))
        terms.append((p * (p / q).log()).sum(1).mean())
    loss = hacker_loss(pool, x_u, y, term="student", classes=3, teachers=teachers)
    torch.testing.assert_close(loss, sum(terms) / 2)
    assert hacker_loss(teachers, x_u, y, term="student", classes=3, teachers=teachers).item() == pytest.approx(0)


def test_the_answers_are_given(batch: Batch, smooth: Any) -> None:
    """The gradient is that of the students alone; moving the answers of the teacher would be another way down."""
    _, x_u, y = batch
    student, teacher = smooth(1).eval(), smooth(2).eval()
    x_u.requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        hacker_loss([student], x_u, y, term="student", classes=3, teachers=[teacher]), x_u
    )
    answers = torch.softmax(teacher(x_u).detach() / 4, 1)
    cross = -(answers * torch.log_softmax(student(x_u) / 4, 1)).sum(1).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(cross, x_u)[0])


def test_students_learn_from_their_teachers(make_store: Callable[..., PixelStore], runtime: Runtime) -> None:
    """Students of one teacher differ from networks that learn the labels, and from students of another."""
    store = make_store(count=12)

    def train(*teachers: nn.Module) -> str:
        settings = SETTINGS.model_copy(update={"hackers": "lenet"})
        (hacker,) = train_hackers(store, settings, teachers=teachers, seed=0, name=(0,), runtime=runtime)
        return weights_hash(hacker)

    first, second = (build("lenet", 3, seed=seed, size=16) for seed in (1, 2))
    assert len({train(), train(first), train(second)}) == 3
    assert train(first) == train(first)


def test_does_not_depend_on_the_order_of_hackers_or_images(pool: list[nn.Module], batch: Batch) -> None:
    _, x_u, y = batch
    turned = torch.arange(len(y)).flip(0)
    loss = hacker_loss(pool[::-1], x_u[turned], y[turned], term="target", classes=3)
    torch.testing.assert_close(loss, hacker_loss(pool, x_u, y, term="target", classes=3))


@pytest.mark.parametrize("term", ["minimise", "target"])
def test_gradient_is_that_of_finite_differences(term: str, pool: list[nn.Module], batch: Batch) -> None:
    _, x_u, y = batch
    x_u.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda pixels: hacker_loss(pool, pixels, y, term=term, classes=3), x_u)


def test_pools_follow_seed_and_name_alone(make_store: Callable[..., PixelStore], runtime: Runtime) -> None:
    store = make_store(count=12)

    def hashes(seed: int, name: tuple[int, int]) -> list[str]:
        return [
            weights_hash(hacker) for hacker in train_hackers(store, SETTINGS, seed=seed, name=name, runtime=runtime)
        ]

    first = hashes(0, (0, 0))
    assert hashes(0, (0, 0)) == first
    everything = [*first, *hashes(0, (0, 1)), *hashes(1, (0, 0))]
    assert len(set(everything)) == 6


def test_hackers_are_partly_trained(
    make_store: Callable[..., PixelStore], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = make_store(count=6), list[int]()
    monkeypatch.setattr(module, "fit", lambda network, part, recipe, **rest: seen.append(len(part)))
    settings = RefineSettings(hackers="lenet", hacker_steps=8)
    for number in range(60):
        (hacker,) = train_hackers(store, settings, seed=0, name=(number,), runtime=runtime)
        assert not hacker.training
        assert not any(parameter.requires_grad for parameter in hacker.parameters())
    assert {count // 6 for count in seen} == set(range(2, 9))
    assert all(count % 6 == 0 for count in seen)


@pytest.mark.parametrize("term", ["minimise", "target", "student"])
def test_passes_lower_the_loss_of_a_pool(term: str, make_store: Callable[..., PixelStore], runtime: Runtime) -> None:
    store, budget = make_store(count=24, separable=True), Budget()
    settings = SETTINGS.model_copy(update={"hacker_term": term, "hackers": "lenet"})
    teachers = [build("lenet", 3, seed=9, size=16).eval()] if term == "student" else []
    pool = train_hackers(store, settings, teachers=teachers, seed=0, name=(0,), runtime=runtime)

    def nothing(x: Tensor, x_u: Tensor, y: Tensor, draw: Any) -> dict[str, Tensor]:
        return {"loss": (x_u * 0).sum()}

    losses = with_hackers(nothing, pool, settings, classes=3, teachers=teachers, runtime=runtime)
    files = [delta_records(store, budget) for _ in range(2)]

    def value(number: int) -> float:
        pixels = protected_store(store, files[number % 2], budget).pixels.read(torch.arange(24)) / 255
        return hacker_loss(pool, pixels, store.labels, term=term, classes=3, teachers=teachers).item()

    def run() -> Iterator[float]:
        yield value(0)
        for number in range(3):
            before, after = files[number % 2], files[(number + 1) % 2]
            options: dict[str, Any] = {"step": 2, "batch_size": 8, "seed": 0, "name": (0, number)}
            refine_pass(store, before, after, losses, budget, **options)
            yield value(number + 1)

    assert all(after < before for before, after in itertools.pairwise(run()))


def test_their_loss_is_added_with_its_weight(pool: list[nn.Module], batch: Batch, runtime: Runtime) -> None:
    x, x_u, y = batch
    settings = RefineSettings(hackers="lenet", hacker_weight=0.5)
    losses = with_hackers(lambda *_: {"loss": torch.tensor(2.0)}, pool, settings, classes=3, runtime=runtime)
    parts = losses(x, x_u, y, torch.Generator())
    torch.testing.assert_close(parts["loss"].double(), 2 + 0.5 * parts["hackers"].double())
