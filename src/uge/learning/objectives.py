"""Objectives, which a training step minimises: ``(network, batch) -> {"loss": ..., "logits": ...}``."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.loader import Batch
from uge.errors import UsageError

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]
#: Random change of pixels in [0, 1], batch × channels × height × width; returns the same shape.
Change = Callable[[Tensor, torch.Generator], Tensor]


def full_precision(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 if they are fp64 already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def supervised(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy on labels."""
    logits = network(batch.x)
    return {"loss": F.cross_entropy(full_precision(logits), batch.y), "logits": logits}


def soft_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch (no T² factor).

    Args:
        student: Logits, batch × classes.
        teacher: Logits, batch × classes.
        temperature: T > 0; larger is softer.
    """
    log_student = F.log_softmax(full_precision(student) / temperature, dim=1)
    log_teacher = F.log_softmax(full_precision(teacher) / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def distillation(teacher: nn.Module, *, temperature: float = 4.0, alpha: float = 0.9) -> Objective:
    """Distillation (Eq. 10): α·T²·KL(teacher ‖ student) + (1 - α)·CE on labels.

    Args:
        teacher: Trained network; used in evaluation mode on the same augmented batch, not updated.
        temperature: T.
        alpha: Weight of the KL term, in [0, 1].

    Raises:
        UsageError: T ≤ 0 or α outside [0, 1].
    """
    if temperature <= 0 or not 0 <= alpha <= 1:
        raise UsageError(
            f"distillation needs temperature > 0 and alpha in [0, 1], got {temperature} and {alpha}; change the recipe"
        )
    teacher.eval().requires_grad_(False)

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher(batch.x)
        logits = network(batch.x)
        kl = soft_kl(logits, target, temperature) * temperature**2
        ce = F.cross_entropy(full_precision(logits), batch.y)
        return {"loss": alpha * kl + (1 - alpha) * ce, "kl": kl, "ce": ce, "logits": logits}

    return objective


def augmented(change: Change, generator: torch.Generator, objective: Objective = supervised) -> Objective:
    """``objective`` on a batch that is changed at random, after the recipe's own augmentation.

    Args:
        change: Makes a new batch of pixels.
        generator: Source of its random numbers.
        objective: Objective of the changed batch.
    """
    return lambda network, batch: objective(network, replace(batch, x=_exactly(change, batch.x, generator)))


def error_maximising(change: Change, generator: torch.Generator, count: int) -> Objective:
    """Cross-entropy on the random change of each image with the highest loss (error maximisation).

    Losses are compared in evaluation mode, so that batch statistics come from the chosen images alone.

    Args:
        change: Makes a new batch of pixels.
        generator: Source of its random numbers.
        count: Changes of each image that are compared.
    """

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        chosen = batch.x
        highest = torch.full(batch.y.shape, -torch.inf, device=batch.x.device)
        with evaluating(network), torch.no_grad():
            for _ in range(count):
                x = _exactly(change, batch.x, generator)
                loss = F.cross_entropy(full_precision(network(x)), batch.y, reduction="none").float()
                worse = loss > highest
                chosen = torch.where(worse[:, None, None, None], x, chosen)
                highest = torch.where(worse, loss, highest)
        return supervised(network, replace(batch, x=chosen))

    return objective


def _exactly(change: Change, x: Tensor, generator: torch.Generator) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # pixels keep their precision; only layers may lose some
        return change(x, generator)


def mixup(generator: torch.Generator) -> Objective:
    """Cross-entropy on convex combinations of images and labels (Zhang et al., 2018), λ ~ Beta(1, 1) per batch.

    Args:
        generator: Source of λ and of the second images, on the CPU.
    """

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        share = float(torch.rand((), generator=generator))
        other = torch.randperm(len(batch.y), generator=generator).to(batch.y.device)
        return _two_labels(network, share * batch.x + (1 - share) * batch.x[other], batch.y, batch.y[other], share)

    return objective


def cutmix(generator: torch.Generator) -> Objective:
    """Cross-entropy with a box of a second image pasted in, weighted by area (Yun et al., 2019), λ ~ Beta(1, 1).

    Args:
        generator: Source of boxes and second images, on the CPU.
    """

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        height, width = batch.x.shape[2:]
        area, down, across = torch.rand(3, generator=generator).tolist()
        other = torch.randperm(len(batch.y), generator=generator).to(batch.y.device)
        rows, columns = (_stretch(place, length, area) for place, length in ((down, height), (across, width)))
        x = batch.x.clone()
        x[:, :, rows, columns] = batch.x[other][:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return _two_labels(network, x, batch.y, batch.y[other], share)

    return objective


def _stretch(place: float, length: int, area: float) -> slice:
    """Side of a box of relative ``area`` around ``place``, cut at the image's border."""
    half = int(length * area**0.5) // 2
    centre = int(place * length)
    return slice(max(0, centre - half), min(length, centre + half))


def _two_labels(network: nn.Module, x: Tensor, first: Tensor, second: Tensor, share: float) -> dict[str, Tensor]:
    logits = network(x)
    exact = full_precision(logits)
    return {
        "loss": share * F.cross_entropy(exact, first) + (1 - share) * F.cross_entropy(exact, second),
        "logits": logits,
    }


def adversarial(generator: torch.Generator, *, radius: float, step: float, steps: int) -> Objective:
    """Cross-entropy on worst-case images of an L∞ ball, by PGD with a random start (Madry et al., 2018).

    Args:
        generator: Source of starting points, on the CPU.
        radius: Radius of the ball, in [0, 1] units.
        step: Length of a step, in [0, 1] units.
        steps: Number of steps; 1 with a ``step`` above the radius is the fast form of Wong et al., 2020.
    """
    return lambda network, batch: supervised(
        network, replace(batch, x=pgd(network, batch, generator, radius, step, steps))
    )


def pgd(network: nn.Module, batch: Batch, generator: torch.Generator, radius: float, step: float, steps: int) -> Tensor:
    """Images within ``radius`` of the batch's with the highest cross-entropy, in [0, 1]; see :func:`adversarial`."""
    low = (batch.x - radius).clamp_min(0)
    high = (batch.x + radius).clamp_max(1)
    x = (batch.x + ((torch.rand(batch.x.shape, generator=generator) * 2 - 1) * radius).to(batch.x.device)).clamp(0, 1)
    with evaluating(network):
        for _ in range(steps):
            x.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(full_precision(network(x)), batch.y), x)
            x = torch.minimum(torch.maximum(x.detach() + step * gradient.sign(), low), high)
    return x.detach()


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode of a network inside the block, its former mode after it."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
