"""Undistill loss L_ud: the authorised network must not teach (Eq. 11, 12)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.loader import batches
from uge.data.store import PixelStore
from uge.learning.objectives import full_precision, soft_kl
from uge.runtime import Network, Runtime, seeded, stream

_BATCHES, _BATCH = 8, 64


def measure_statistics(network: Network, store: PixelStore, *, seed: int, runtime: Runtime) -> Network:
    """Give a network that is never trained the batch statistics of up to 512 clean images; returns it in eval mode.

    Without them batch normalisation in eval mode does nothing, and the outputs of deep networks vanish or explode.

    Args:
        network: Its running statistics are measured anew; parameters stay as they are.
        store: Clean images at the training size.
        seed: Draws the images.
        runtime: Device and precision.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # The mean over all batches.
    runtime.place(network).train()
    with torch.no_grad(), runtime.autocast(), seeded(seed, "statistics-layers"):
        for batch in itertools.islice(batches(store, _BATCH, order=stream(seed, "statistics")), _BATCHES):
            network(batch.x.to(memory_format=runtime.memory_format))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


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
        hacker: A randomly initialised network with measured statistics, frozen, in eval mode.
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
