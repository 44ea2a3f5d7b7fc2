"""AR: autoregressive noise (Sandoval-Segura et al., NeurIPS 2022, arXiv 2206.03693)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.store import Records
from uge.errors import UsageError
from uge.methods.baselines.base import Baseline, Material, Settings, reference_radius, scaled
from uge.runtime import stream

_START = 2
"""Rows and columns that are drawn freely, since a 3 × 3 window needs them."""
_VALUES = 2**22
"""Values that a filtered batch has at most."""
_DRAWN, _RARE = 256, 1000
"""Processes that are drawn at a time, and of how many drawn ones at least one must be bounded."""


class ArSettings(Settings):
    """AR's settings.

    Attributes:
        radius: L2 length of a perturbation of 32 × 32 × 3 values in [0, 1] units; it grows with the square
            root of the number of values.
        crop: Rows above and columns left of the image that are generated and cut off.
        bound: Largest root mean square of what a process makes of standard normal starts; others diverge (of the
            published ones the largest has 2.5).
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
    out, size = start.clone(), start.shape[-1]
    for row in range(_START, size):
        above = out[..., row - 2 : row, :].unfold(-1, 3, 1)  # ... × 2 × (size - 2) × 3
        ready = torch.einsum("...kjl,...kl->...j", above, coefficients[..., :2, :])
        for column in range(_START, size):
            before = out[..., row, column - 2 : column] * coefficients[..., 2, :2]
            out[..., row, column] = ready[..., column - 2] + before.sum(-1)
    return out


def response(filters: Tensor, signals: Tensor) -> Tensor:
    """How strongly signals violate processes: the sum of the positive part of the filtered signal.

    Args:
        filters: processes × channels × 3 × 3, the last entry of each channel 0.
        signals: count × channels × size × size.

    Returns:
        count × processes; 0 where a process made the signal.
    """
    kernel = filters.clone()
    kernel[..., 2, 2] = -1
    part = max(1, _VALUES // (len(kernel) * signals[0, 0].numel()))
    return torch.cat([F.conv2d(each, kernel).relu().sum((2, 3)) for each in torch.split(signals, part)])


def _draw(count: int, generator: torch.Generator) -> Tensor:
    """Processes of one channel: normal coefficients with sum 1, so that a constant goes on as it is."""
    drawn = torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    drawn[:, 2, 2] = 0
    return drawn / drawn.sum((1, 2), keepdim=True)


def class_processes(classes: int, channels: int, size: int, settings: ArSettings, seed: int) -> Tensor:
    """One stable process per class and channel, chosen greedily to be unlike those before.

    Returns:
        classes × channels × 3 × 3, float64.

    Raises:
        UsageError: Hardly any process stays within ``bound``.
    """
    wanted, kept, whole = settings.pool * classes * channels, list[Tensor](), size + settings.crop
    number = 0
    while (found := sum(map(len, kept))) < wanted:
        if found < number * _DRAWN // _RARE:
            raise UsageError(
                f"hardly any process of the ar baseline stays within its setting bound, {settings.bound:g}; raise it"
            )
        generator = stream(seed, "ar-processes", number)
        drawn = _draw(_DRAWN, generator)
        start = torch.randn(2, len(drawn), whole, whole, dtype=torch.float64, generator=generator)
        made = autoregress(drawn, start)[..., settings.crop :, settings.crop :]
        kept.append(drawn[(made.pow(2).mean((2, 3)).sqrt() < settings.bound).all(0)])
        number += 1
    pool = torch.cat(kept)[:wanted].reshape(-1, channels, 3, 3)
    start = torch.randn(len(pool), channels, whole, whole, dtype=torch.float64, generator=stream(seed, "ar-trial"))
    signals = scaled(autoregress(pool, start)[..., settings.crop :, settings.crop :], 1.0).float()
    filters, chosen, distance = pool.float(), [0], torch.full((len(pool),), torch.inf)
    while len(chosen) < classes:
        last = chosen[-1]
        there, back = response(filters[last : last + 1], signals)[:, 0], response(filters, signals[last : last + 1])[0]
        distance = torch.minimum(distance, torch.minimum(there, back))
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return pool[torch.tensor(chosen)]


def _make(material: Material) -> Records:
    settings, store = material.settings(ArSettings), material.store
    processes = class_processes(len(store.classes), store.channels, store.size, settings, material.seed)
    records, whole = material.records(), store.size + settings.crop
    radius = reference_radius(settings.radius, store)
    for indices, pixels, labels in material.chunks():
        generator = stream(material.seed, "ar-noise", int(indices[0]))
        start = torch.randn(len(indices), store.channels, whole, whole, dtype=torch.float64, generator=generator)
        noise = autoregress(processes[labels.cpu()], start)[..., settings.crop :, settings.crop :]
        records.write(indices, material.stored(pixels, scaled(noise, radius).float().to(store.device)))
    return records


AR = Baseline(
    _make,
    norm="L2",
    rho=1.0,
    scope="sample",
    about=(
        "AR: fresh noise for every image from the autoregressive process of its class (Sandoval-Segura, Singla, "
        "Geiping, Goldblum, Goldstein and Jacobs, NeurIPS 2022)."
    ),
    settings=ArSettings,
)
