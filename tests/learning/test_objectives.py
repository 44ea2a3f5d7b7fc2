import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from uge.data.loader import Batch
from uge.errors import UsageError
from uge.learning.objectives import distillation, full_precision, soft_kl, supervised


class Fixed(nn.Module):
    """Returns the logits it was given, whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


@pytest.fixture
def material() -> tuple[Tensor, Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    labels = torch.randint(0, 4, (5,), generator=generator)
    return student, teacher, Batch(torch.zeros(5, 3, 8, 8), labels, torch.arange(5))


def softmax(row: np.ndarray, temperature: float = 1) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def naive_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return sum(-math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)) / len(labels)


def naive_kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student, teacher, strict=True):
        for s, t in zip(softmax(s_row, temperature), softmax(t_row, temperature), strict=True):
            total += t * math.log(t / s)
    return total / len(student)


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.9), (20.0, 0.9), (1.0, 0.3)])
def test_distillation_is_the_formula(material: tuple[Tensor, Tensor, Batch], temperature: float, alpha: float) -> None:
    student, teacher, batch = material
    parts = distillation(Fixed(teacher), temperature=temperature, alpha=alpha)(Fixed(student), batch)
    kl = temperature**2 * naive_kl(student.numpy(), teacher.numpy(), temperature)
    ce = naive_cross_entropy(student.numpy(), batch.y.numpy())
    assert parts["loss"].item() == pytest.approx(alpha * kl + (1 - alpha) * ce)
    assert (parts["kl"].item(), parts["ce"].item()) == pytest.approx((kl, ce))


def test_supervised_is_cross_entropy(material: tuple[Tensor, Tensor, Batch]) -> None:
    student, _, batch = material
    parts = supervised(Fixed(student), batch)
    assert parts["loss"].item() == pytest.approx(naive_cross_entropy(student.numpy(), batch.y.numpy()))
    assert torch.equal(parts["logits"], student)


def test_a_constant_added_to_the_logits_changes_nothing(material: tuple[Tensor, Tensor, Batch]) -> None:
    student, teacher, batch = material
    value = distillation(Fixed(teacher))(Fixed(student), batch)["loss"].item()
    shift = torch.arange(5.0)[:, None]
    assert distillation(Fixed(teacher + shift))(Fixed(student - 7), batch)["loss"].item() == pytest.approx(value)
    assert distillation(Fixed(teacher))(Fixed(student.flip(1)), batch)["loss"].item() != pytest.approx(value)


def test_gradient_is_that_of_finite_differences(material: tuple[Tensor, Tensor, Batch]) -> None:
    student, teacher, batch = material
    objective = distillation(Fixed(teacher))
    network = Fixed(student)
    (gradient,) = torch.autograd.grad(objective(network, batch)["loss"], network.logits)
    for row in range(5):
        for column in range(4):
            step = torch.zeros_like(student)
            step[row, column] = 1e-5
            up, down = (objective(Fixed(student + sign * step), batch)["loss"].item() for sign in (1, -1))
            assert gradient[row, column].item() == pytest.approx((up - down) / 2e-5, abs=1e-8)


def test_a_student_like_its_teacher_has_nothing_to_learn(material: tuple[Tensor, Tensor, Batch]) -> None:
    student = material[0]
    assert soft_kl(student, student, 4).item() == pytest.approx(0)


def test_the_teacher_is_used_in_eval_mode_and_not_updated(material: tuple[Tensor, Tensor, Batch]) -> None:
    batch = material[2]
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5), nn.Linear(192, 4)).train()
    statistics = teacher[1].running_mean.clone()
    objective = distillation(teacher)
    student = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    objective(student, batch)["loss"].backward()
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student[1].bias.grad.abs().sum() > 0


@pytest.mark.parametrize(("temperature", "alpha"), [(0.0, 0.5), (-1.0, 0.5), (4.0, 1.5), (4.0, -0.1)])
def test_refuses_constants_without_meaning(temperature: float, alpha: float) -> None:
    with pytest.raises(UsageError, match="distillation needs"):
        distillation(nn.Identity(), temperature=temperature, alpha=alpha)


def test_full_precision_only_widens() -> None:
    types = [full_precision(torch.ones(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float32, torch.float64)]
    assert types == [torch.float32, torch.float32, torch.float64]
