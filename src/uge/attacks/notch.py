"""A notch filter that follows from the published images' own spectrum."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.attacks.base import Context, batched, stored
from uge.data.store import PixelStore


def notch(context: Context) -> Callable[[Tensor], Tensor]:
    """Transform that takes the peaks of the spectrum of ``context.store`` out of an image."""
    return functools.partial(filtered, mask=spectral_mask(context.store))


def filtered(pixels: Tensor, mask: Tensor) -> Tensor:
    """Pixels without the frequencies where ``mask`` (channels × size × size // 2 + 1, opponent colours) is 0."""
    basis = _basis(pixels.shape[1]).to(pixels.device)
    x = torch.einsum("oc,bchw->bohw", basis, pixels.float())
    return stored(torch.einsum("oc,bohw->bchw", basis, torch.fft.irfft2(torch.fft.rfft2(x) * mask, s=x.shape[2:])))


def spectral_mask(store: PixelStore) -> Tensor:
    """1 for frequencies of an opponent colour to keep, else 0: channels × size × (size // 2 + 1).

    Two spectra are compared with the law 1/f^a that fits them, corrected by a running median for the
    directions that pictures prefer. The mean power of all images shows a pattern that all of them carry. The power of
    the class means shows a pattern that the images of a class share. It counts from 25 times the smooth spectrum: above
    the largest of some 10⁵ exponential values, which chance alone gives.
    """
    total, classes = _spectra(store)
    size = store.size
    peaks = _excess(total, size) > 4.0
    # Under no class structure a class mean's power is the mean power over the number of images.
    for power in classes / total.clamp_min(1e-12):  # One class at a time: a running median takes 49 times the memory.
        peaks |= _excess(power, size) > 25.0
    # Pictures consist of the frequencies below 2.5 cycles per image.
    return (~(peaks & (_cycles_per_image(size, total.device) >= 2.5))).to(torch.float32)


def _spectra(store: PixelStore) -> tuple[Tensor, Tensor]:
    """Mean power (channels × size × half) and each class mean's power times its images; a Hann window against edges.

    Classes of one image are left out, and so is a single class.
    """
    device = store.device
    size = store.size
    side = torch.hann_window(size + 2, periodic=False, device=device)[1:-1]
    window = side[:, None] * side
    count = len(store.classes)
    basis = _basis(store.channels).to(device)
    power = torch.zeros(store.channels, size, size // 2 + 1, device=device, dtype=torch.float64)
    sums = torch.zeros(count, store.channels, size, size, device=device)
    for rows in batched(store):
        x = torch.einsum("oc,bchw->bohw", basis, store.pixels.read(rows).float())
        power += torch.fft.rfft2((x - x.mean((2, 3), keepdim=True)) * window).abs().square().sum(0)
        sums.index_add_(0, store.labels[rows.to(device)], x)
    images = torch.bincount(store.labels, minlength=count)
    several = images > 1
    if int(several.sum()) < 2:
        return power / len(store), power.new_empty(0, *power.shape)
    images = images[several][:, None, None, None]
    means = sums[several] / images - sums.sum(0) / len(store)
    spectra = torch.fft.rfft2((means - means.mean((2, 3), keepdim=True)) * window).abs().square()
    return power / len(store), (spectra * images).double()


def _basis(channels: int) -> Tensor:
    # Orthonormal colours: brightness and two differences; the channels themselves unless there are three.
    return (
        F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]), dim=1)
        if channels == 3
        else torch.eye(channels)
    )


def _cycles_per_image(size: int, device: torch.device) -> Tensor:
    return torch.sqrt(
        torch.fft.fftfreq(size, 1 / size, device=device)[:, None] ** 2
        + torch.fft.rfftfreq(size, 1 / size, device=device) ** 2
    )


def _excess(power: Tensor, size: int) -> Tensor:
    """Power over its smooth part: the fitted 1/f^a, then the median of 7 × 7 neighbours in log power."""
    logs = power.clamp_min(1e-12).log()
    slope = _cycles_per_image(size, power.device).clamp_min(0.5).log().to(logs.dtype)
    centred = slope - slope.mean()
    flat = logs.mean((-2, -1), keepdim=True)
    steepness = ((logs - flat) * centred).sum((-2, -1), keepdim=True) / centred.square().sum()
    rest = logs - flat - steepness * centred
    x = rest.reshape(-1, 1, *rest.shape[-2:])
    x = F.pad(F.pad(x, (0, 0, 3, 3), mode="circular"), (3, 3, 0, 0), mode="replicate")  # Only rows wrap around.
    return (rest - running_median(x, 7).view_as(rest)).exp()


def running_median(x: Tensor, side: int) -> Tensor:
    """Median of every square of ``side`` × ``side`` values in the last two dimensions of four."""
    return x.unfold(2, side, 1).unfold(3, side, 1).flatten(4).median(4).values
