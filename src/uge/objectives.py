"""What a training step minimises: ``(network, batch) -> {"loss": ..., "logits": ...}``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.loader import Batch
from uge.errors import UsageError

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]


def full_precision(logits: Tensor) -> Tensor:
    """Logits in fp32, or in fp64 where they are that already."""
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
    """The distillation attack (Eq. 10): α·T²·KL(teacher ‖ student) + (1 - α)·CE on labels.

    Args:
        teacher: Trained network; used in eval mode on the same augmented batch, not updated.
        temperature: T.
        alpha: Weight of the KL term, in [0, 1].

    Raises:
        UsageError: T ≤ 0 or α outside [0, 1].
    """
    if temperature <= 0 or not 0 <= alpha <= 1:
        raise UsageError(f"distillation needs temperature > 0 and alpha in [0, 1], got {temperature} and {alpha}")
    teacher.eval().requires_grad_(False)

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher(batch.x)
        logits = network(batch.x)
        kl = soft_kl(logits, target, temperature) * temperature**2
        ce = F.cross_entropy(full_precision(logits), batch.y)
        return {"loss": alpha * kl + (1 - alpha) * ce, "kl": kl, "ce": ce, "logits": logits}

    return objective
