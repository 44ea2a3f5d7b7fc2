"""AR: autoregressive noise, one process per class.

Sandoval-Segura et al., NeurIPS 2022, arXiv 2206.03693.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.store import Records
from uge.errors import UsageError
from uge.methods.baselines.base import Baseline, Material, Settings, reference_radius, scaled
from uge.runtime import stream

_FILTERED = 2**22  # Values of a filtered batch, at most.
_DRAWN = 256  # Processes that are drawn at a time.
_RARE = 1000  # At least one in so many processes must be bounded.


class ArSettings(Settings):
    """Settings of AR.

    Attributes:
        radius: L2 length of a perturbation of 32 × 32 × 3 values in [0, 1] units; it grows with the square
            root of the number of values.
        crop: Rows above and columns left of the image that are generated and cut off.
        bound: Largest root mean square of the noise that a process makes from standard normal starts; processes
            above it are not used (ours; the largest of the published processes has 3.7).
        pool: Processes that are drawn per class, from which the most different are chosen.
    """

    radius: float = Field(1.0, gt=0)
    crop: int = Field(4, ge=0)
    bound: float = Field(2.5, gt=0)
    pool: int = Field(10, ge=1)


def autoregress(coefficients: Tensor, start: Tensor) -> Tensor:
    """Run each process from its start: every value is the weighted sum of the 8 before it in its 3 × 3 window.

    Args:
        coefficients: ... × 3 × 3, the last entry 0.
        start: ... × size × size; only its first two rows and columns are used.

    Returns:
        Like ``start``; x[i, j] = Σ b[k, l] · x[i - 2 + k, j - 2 + l] from the third row and column on.
    """
    out = start.clone()
    for row in range(2, start.shape[-2]):
        above = out[..., row - 2 : row, :].unfold(-1, 3, 1)  # ... × 2 × (size - 2) × 3
        ready = torch.einsum("...kjl,...kl->...j", above, coefficients[..., :2, :])
        for column in range(2, start.shape[-1]):
            before = out[..., row, column - 2 : column] * coefficients[..., 2, :2]
            out[..., row, column] = ready[..., column - 2] + before.sum(-1)
    return out


def response(filters: Tensor, signals: Tensor) -> Tensor:
    """Violation of processes by signals: the sum of the positive part of the filtered signal.

    Args:
        filters: processes × channels × 3 × 3, the last entry of each channel 0.
        signals: count × channels × size × size.

    Returns:
        count × processes; 0 where a process made the signal.
    """
    kernel = filters.clone()
    kernel[..., 2, 2] = -1
    count = max(1, _FILTERED // (len(kernel) * signals[0, 0].numel()))
    return torch.cat([F.conv2d(part, kernel).relu().sum((2, 3)) for part in torch.split(signals, count)])


def class_processes(classes: int, channels: int, size: int, settings: ArSettings, seed: int) -> Tensor:
    """One stable process per class and channel, chosen greedily to be unlike those before.

    Returns:
        classes × channels × 3 × 3, float64.

    Raises:
        UsageError: Hardly any process stays within ``bound``.
    """
    pool = _bounded_processes(settings.pool * classes * channels, size, settings, seed).reshape(-1, channels, 3, 3)
    signals = scaled(_process_noise(pool, size, settings, stream(seed, "ar-trial")), 1.0).float()
    filters = pool.float()
    chosen = [0]
    distance = torch.full((len(pool),), torch.inf)
    while len(chosen) < classes:
        last = chosen[-1]
        there = response(filters[last : last + 1], signals)[:, 0]
        back = response(filters, signals[last : last + 1])[0]
        distance = torch.minimum(distance, torch.minimum(there, back))
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return pool[torch.tensor(chosen)]


def _bounded_processes(count: int, size: int, settings: ArSettings, seed: int) -> Tensor:
    """Processes of one channel within the bound: normal coefficients with sum 1, so that a constant stays as it is."""
    bounded = torch.zeros(0, 3, 3, dtype=torch.float64)
    number = 0
    while len(bounded) < count:
        if len(bounded) < number * _DRAWN // _RARE:
            raise UsageError(
                f"hardly any process of the ar baseline stays within its setting bound, {settings.bound:g}; raise it"
            )
        generator = stream(seed, "ar-processes", number)
        drawn = torch.randn(_DRAWN, 3, 3, dtype=torch.float64, generator=generator)
        drawn[:, 2, 2] = 0
        drawn /= drawn.sum((1, 2), keepdim=True)
        noise = _process_noise(drawn.expand(2, -1, -1, -1), size, settings, generator)
        bounded = torch.cat([bounded, drawn[(noise.pow(2).mean((2, 3)).sqrt() < settings.bound).all(0)]])
        number += 1
    return bounded[:count]


def _process_noise(processes: Tensor, size: int, settings: ArSettings, generator: torch.Generator) -> Tensor:
    # Processes are ... × 3 × 3, start from standard normal values and give ... × size × size.
    whole = size + settings.crop
    start = torch.randn(*processes.shape[:-2], whole, whole, dtype=torch.float64, generator=generator)
    return autoregress(processes, start)[..., settings.crop :, settings.crop :]


def _autoregressive_noise(material: Material, settings: ArSettings) -> Records:
    store = material.store
    processes = class_processes(len(store.classes), store.channels, store.size, settings, material.seed)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        draw = material.stream("ar-noise", indices)
        noise = _process_noise(processes[labels.cpu()], store.size, settings, draw)
        return scaled(noise, reference_radius(settings.radius, store)).float().to(x.device)

    return material.filled(change)


AR = Baseline(
    _autoregressive_noise,
    norm="L2",
    rho=1.0,
    scope="sample",
    about=(
        "AR: fresh noise for every image from the autoregressive process of its class (Sandoval-Segura, Singla, "
        "Geiping, Goldblum, Goldstein and Jacobs, NeurIPS 2022)."
    ),
    settings=ArSettings,
    alone=True,
)
