"""Attacks that train with stronger augmentation (RandAugment, TrivialAugment, UEraser, ...); test images stay.

Augmentation comes after the recipe's own crops and flips. Policies take float pixels in [0, 1], batch × channels ×
height × width, and stay on their device; random numbers come from a generator on the CPU.
"""

import functools
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.attacks.base import Attack, Entry, learn
from uge.attacks.compression import jpeg
from uge.data.augment import crop_flip, cutout
from uge.learning.objectives import Objective, augmented, cutmix, error_maximising, mixup
from uge.runtime import stream

#: Pixels and a strength from -1 to 1 for each image, batch × 1 × 1 × 1, to pixels.
Op = Callable[[Tensor, Tensor], Tensor]
_BITS_LOST = 4


def luma(x: Tensor) -> Tensor:
    """Brightness (BT.601), batch × 1 × height × width; one channel is brightness already."""
    return x if x.shape[1] == 1 else torch.einsum("bchw,c->bhw", x, x.new_tensor((0.299, 0.587, 0.114)))[:, None]


def _blend(x: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Towards ``other`` for negative strengths, away from it for positive ones."""
    return (other + (1 + 0.9 * strength) * (x - other)).clamp(0, 1)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    kernel = x.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    channels = x.shape[1]
    smooth = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel.expand(channels, 1, 3, 3), groups=channels)
    return _blend(x, smooth, strength)


def _with_bits(x: Tensor, bits: Tensor) -> Tensor:
    levels = 2.0 ** bits.round()
    return (x * 255 / 256 * levels).floor() / levels * 256 / 255


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    low = x.amin((2, 3), keepdim=True)
    high = x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1 / 255), x)


def _equalize(x: Tensor, strength: Tensor) -> Tensor:
    levels = (x * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, device=x.device).scatter_add_(2, levels, torch.ones_like(x).flatten(2))
    below = counts.cumsum(2) - counts
    return (below + counts / 2).gather(2, levels).view_as(x) / levels.shape[2]


def _rotate(x: Tensor, strength: Tensor) -> Tensor:
    angle = math.radians(30) * strength
    return _moved(x, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})


def _moved(x: Tensor, entries: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Images under the affine map that is the identity but for some entries of its matrix."""
    matrix = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    for (row, column), value in entries.items():
        matrix[:, row, column] = value.flatten()
    return F.grid_sample(x, F.affine_grid(matrix, list(x.shape), align_corners=False), align_corners=False)


#: Operations that a policy draws from.
OPS: dict[str, Op] = {
    "identity": lambda x, strength: x,
    "brightness": lambda x, strength: _blend(x, torch.zeros_like(x), strength),
    "contrast": lambda x, strength: _blend(x, luma(x).mean((2, 3), keepdim=True), strength),
    "colour": lambda x, strength: _blend(x, luma(x), strength),
    "sharpness": _sharpness,
    "posterize": lambda x, strength: _with_bits(x, 8 - _BITS_LOST * strength.abs()),
    "solarize": lambda x, strength: torch.where(x >= 1 - strength.abs(), 1 - x, x),
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "shear-x": lambda x, strength: _moved(x, {(0, 1): 0.3 * strength}),
    "shear-y": lambda x, strength: _moved(x, {(1, 0): 0.3 * strength}),
    "shift-x": lambda x, strength: _moved(x, {(0, 2): 0.6 * strength}),
    "shift-y": lambda x, strength: _moved(x, {(1, 2): 0.6 * strength}),
}
#: Operations of TrivialAugment as UEraser has it: posterising leaves one to four bits.
WIDE = OPS | {"posterize": lambda x, strength: _with_bits(x, (_BITS_LOST * (1 - strength.abs())).clamp_min(1))}


def one_operation(
    x: Tensor, strengths: Tensor, generator: torch.Generator, operations: Mapping[str, Op] = OPS
) -> Tensor:
    """One operation for each image, drawn evenly, at the given strength.

    Args:
        x: Pixels.
        strengths: (B,), from -1 to 1.
        generator: Source of the draw.
        operations: Choices of the draw.
    """
    picked = torch.randint(len(operations), (len(x),), generator=generator)
    strengths = strengths.to(x.device)[:, None, None, None]
    out = x.clone()
    for number, op in enumerate(operations.values()):
        rows = (picked == number).nonzero().flatten().to(x.device)
        if len(rows):
            out[rows] = op(x[rows], strengths[rows])
    return out


def randaugment(x: Tensor, generator: torch.Generator, *, operations: int = 2, magnitude: float = 0.3) -> Tensor:
    """Operations of one magnitude and random sign, one after the other (Cubuk et al., RandAugment, 2020).

    Args:
        x: Pixels.
        generator: Source of operations and signs.
        operations: Number of operations.
        magnitude: From 0 to 1; 0.3 is 9 of 30.
    """
    for _ in range(operations):
        x = one_operation(x, magnitude * (torch.randint(0, 2, (len(x),), generator=generator) * 2.0 - 1), generator)
    return x


def trivial(x: Tensor, generator: torch.Generator) -> Tensor:
    """One operation of random strength (Müller and Hutter, TrivialAugment, 2021)."""
    return one_operation(x, torch.rand(len(x), generator=generator) * 2 - 1, generator, WIDE)


def plasma(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Fractal noise: random grids of 2, 4, 8 ... cells a side, each finer one weaker by a factor from 0.3 to 0.7.

    Args:
        shape: Batch, channels, height, width.
        generator: Source of the noise.

    Returns:
        On the CPU, every channel of every image stretched to [0, 1].
    """
    batch, channels, height, width = shape
    factor = 0.3 + 0.4 * torch.rand((batch, 1, 1, 1), generator=generator)
    noise = torch.zeros(batch, channels, height, width)
    for octave in range(max(height, width).bit_length() - 1):
        cells = torch.rand((batch, channels, 2 << octave, 2 << octave), generator=generator) - 0.5
        noise += factor**octave * F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=True)
    noise -= noise.amin((2, 3), keepdim=True)
    return noise / noise.amax((2, 3), keepdim=True).clamp_min(1e-6)


def ueraser(x: Tensor, generator: torch.Generator, *, share: float = 1.0) -> Tensor:
    """UEraser's policy (Qin et al., 2023), as the public benchmark has it.

    Plasma brightness and plasma contrast, each for a share of the images, a channel shuffle for half of them, then
    TrivialAugment.

    Args:
        x: Pixels.
        generator: Source of the policy.
        share: Part of the images that get each of the plasmas, 0 to 1.
    """
    batch, channels = x.shape[:2]
    strength = 0.5 + 0.5 * torch.rand((batch, 1, 1, 1), generator=generator)
    brightness = (plasma(x.shape, generator) * 2 - 1) * strength
    contrast = plasma(x.shape, generator) * 4
    shares = torch.tensor([share, share, 0.5]).view(3, 1, 1, 1, 1)
    brighter, starker, shuffled = torch.rand(3, batch, 1, 1, 1, generator=generator) < shares
    x = (x + torch.where(brighter, brightness, 0).to(x.device)).clamp(0, 1)
    x = ((x - 0.5) * torch.where(starker, contrast, 1).to(x.device) + 0.5).clamp(0, 1)
    order = torch.rand(batch, channels, generator=generator).argsort(1)
    order = torch.where(shuffled.flatten()[:, None], order, torch.arange(channels)).to(x.device)
    return trivial(x[torch.arange(batch, device=x.device)[:, None], order], generator)


def ueraser_jpeg(x: Tensor, generator: torch.Generator) -> Tensor:
    """UEraser's form against poisons that survive it: JPEG of one random quality, from 10 to 95, comes first.

    The public benchmark uses it against TAP and AR, with the plasmas for 80 % of the images.
    """
    quality = int(torch.randint(10, 96, (), generator=generator))
    compressed = jpeg((255 * x).round().to(torch.uint8), quality).to(x) / 255
    return ueraser(compressed, generator, share=0.8)


def strong(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotation up to 10°, shear up to 10° and scale by 0.8 to 1.2, colours changed by up to a fifth, crop and flip.

    As in the second step of orthogonal projection (Sandoval-Segura et al., 2023). Pixels may lie outside [0, 1]; the
    changes of colour clip them.
    """
    angle, shear = (math.radians(10) * (2 * torch.rand(len(x), generator=generator) - 1).to(x) for _ in range(2))
    scale = (0.8 + 0.4 * torch.rand(len(x), generator=generator)).to(x)
    x = _moved(x, {(0, 0): angle.cos(), (0, 1): -angle.sin(), (1, 0): angle.sin(), (1, 1): angle.cos()})
    x = _moved(x, {(0, 0): 1 / scale, (0, 1): shear.tan() / scale, (1, 1): 1 / scale})
    for name in ("brightness", "contrast", "colour"):
        fifth = 0.2 / 0.9 * (2 * torch.rand((len(x), 1, 1, 1), generator=generator) - 1)
        x = OPS[name](x, fifth.to(x))
    return crop_flip(x, generator)


def random_colour(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image without one random direction of colour; brightness stays."""
    return without_direction(x, chromatic(len(x), generator).to(x)) if x.shape[1] == 3 else x


def chromatic(count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors of colour without brightness, count × 3."""
    angle = torch.rand(count, generator=generator) * math.pi
    red_green = torch.tensor([1.0, -1.0, 0.0]) / math.sqrt(2)
    yellow_blue = torch.tensor([1.0, 1.0, -2.0]) / math.sqrt(6)
    return angle.cos()[:, None] * red_green + angle.sin()[:, None] * yellow_blue


def without_direction(x: Tensor, directions: Tensor) -> Tensor:
    """Colours projected to the plane across a unit vector, batch × 3 or 1 × 3 (not clamped)."""
    return x - directions[:, :, None, None] * (x * directions[:, :, None, None]).sum(1, keepdim=True)


def drawn(name: str, make: Callable[[torch.Generator], Objective]) -> Attack:
    """Plain training by an objective that draws from the stream ``name`` of the attack's seed."""
    return lambda context: learn(context, make(stream(context.seed, name)))


_ROWS: dict[str, tuple[Callable[[torch.Generator], Objective], str, float, float, int]] = {
    "cutout16": (
        functools.partial(augmented, cutout),
        "covers a random square of half the side (16 of 32 pixels)",
        1.0,
        5.0,
        0,
    ),
    "mixup": (mixup, "trains on blends of two images and of their labels", 1.1, 15.0, 0),
    "cutmix": (cutmix, "trains on images with a box of another image pasted in", 1.0, 8.0, 0),
    "randaugment": (
        functools.partial(augmented, randaugment),
        "trains with two random operations on every image (RandAugment)",
        1.1,
        10.0,
        0,
    ),
    "random-colour": (
        functools.partial(augmented, random_colour),
        "drops another random direction of colour from every image in every step",
        1.1,
        15.0,
        0,
    ),
    "ueraser": (
        functools.partial(error_maximising, ueraser, count=5),
        "trains on the hardest of five strong augmentations of every image (UEraser)",
        5.2,
        70.0,
        2,
    ),
    "ueraser-jpeg": (
        functools.partial(error_maximising, ueraser_jpeg, count=5),
        "trains on the hardest of five strong augmentations of a JPEG of random quality (UEraser against TAP and AR)",
        6.0,
        70.0,
        0,
    ),
    "ueraser-lite": (
        functools.partial(augmented, ueraser),
        "trains on one strong augmentation of every image (UEraser without its worst of five)",
        1.6,
        50.0,
        2,
    ),
}

AUGMENTATION: dict[str, Entry] = {
    name: Entry(drawn(name, make), "augment", about, cost=cost, expected=expected, revision=revision)
    for name, (make, about, cost, expected, revision) in _ROWS.items()
}
