"""Undistill loss L_ud, which makes the authorised network a bad teacher (Eq. 11 and 12)."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from uge.data.loader import batches
from uge.data.store import PixelStore
from uge.learning.objectives import full_precision, soft_kl
from uge.runtime import Network, Runtime, seeded, stream


def measure_statistics(network: Network, store: PixelStore, *, seed: int, runtime: Runtime) -> Network:
    """Give an untrained network the batch statistics of up to 512 clean images; returns it in eval mode.

    Without them batch normalisation in eval mode does nothing, and the outputs of deep networks vanish or explode.

    Args:
        network: Its running statistics are measured anew; parameters stay as they are.
        store: Clean images at the training size.
        seed: Draws the images.
        runtime: Device and precision.
    """
    images = itertools.islice(batches(store, 64, order=stream(seed, "statistics")), 8)
    with runtime.autocast(), seeded(seed, "statistics-layers"):
        update_bn((batch.x.to(memory_format=runtime.memory_format) for batch in images), runtime.place(network))
    return network.eval()


def undistill(
    authorized: Sequence[nn.Module],
    hacker: nn.Module,
    x_u: Tensor,
    y: Tensor,
    *,
    omega: float = 0.1,
    temperature: float = 4.0,
    squared: bool = True,
) -> Tensor:
    """L_ud = mean_k mean_x [ CE(f^k(x_u), y) - ω · T² · KL(f^k(x_u) ‖ f'(x_u)) ] (Eq. 11 and 12).

    KL is that of the distillation attack (Eq. 10), between outputs softened by T. The hacker f' is the student,
    the authorised network f^k the teacher. The factor T² is that of Eq. 10, whose loss Eq. 11 writes with the same
    symbol, and of the nasty teachers that Eq. 11 follows (Ma et al., ICLR 2021): gradients through softened outputs
    shrink with 1 / T², and with the factor ω means the same at every T.

    Args:
        authorized: Trained authorised networks, frozen, in eval mode.
        hacker: A randomly initialised network with measured statistics, frozen, in eval mode.
        x_u: Protected pixels in [0, 1], batch × channels × height × width.
        y: int64 labels.
        omega: ω (Table 5).
        temperature: T (Table 5).
        squared: The factor T²; without it Eq. 11 is read without the factor of Eq. 10.

    Returns:
        A scalar, differentiable in ``x_u``.

    Example:
        >>> import torch
        >>> teacher = torch.nn.Flatten()  # Two pixels as the logits of two classes.
        >>> x_u, y = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([0])
        >>> undistill([teacher], teacher, x_u, y).item()  # log 2: student and teacher agree.
        0.693147...
    """
    student = hacker(x_u)
    weight = omega * (temperature**2 if squared else 1.0)
    losses = [
        F.cross_entropy(full_precision(teacher), y) - weight * soft_kl(student, teacher, temperature)
        for teacher in (network(x_u) for network in authorized)
    ]
    return torch.stack(losses).mean()
