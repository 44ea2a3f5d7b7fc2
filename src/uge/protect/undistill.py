"""Undistill loss L_ud: the authorised network must not teach (Eq. 11, 12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.objectives import full_precision, soft_kl


def undistill(
    authorized: Sequence[nn.Module],
    hacker: nn.Module,
    x_u: Tensor,
    y: Tensor,
    *,
    omega: float = 0.1,
    temperature: float = 4.0,
) -> Tensor:
    """L_ud = mean_k mean_x [ CE(f^k(x_u), y) - ω · KL(f^k(x_u) ‖ f'(x_u)) ] (Eq. 11, 12).

    KL is that of the distillation attack, between outputs softened by T; the hacker is the
    student, the authorised network the teacher. No T² factor, as Eq. 11 has none.

    Args:
        authorized: Trained authorised networks, frozen, in eval mode.
        hacker: A randomly initialised network, frozen, in eval mode.
        x_u: Protected pixels in [0, 1], batch × channels × height × width.
        y: int64 labels.
        omega: ω (Table 5).
        temperature: T (Table 5).
    """
    student = hacker(x_u)
    losses = []
    for network in authorized:
        teacher = network(x_u)
        losses.append(F.cross_entropy(full_precision(teacher), y) - omega * soft_kl(student, teacher, temperature))
    return torch.stack(losses).mean()
