"""Attacks on a wave key that know the construction (:mod:`uge.networks.wave_key`), but no secret.

Photographs are smooth and patterns are not. The pattern that an image carries brings neighbouring pixels closest when
it is taken out.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.attacks.base import Context, batched, stored, transformed, with_images
from uge.networks.wave_key import (
    JITTER,
    LEVELS,
    STEPS,
    THRESHOLD,
    WaveKey,
    coloured,
    contrast,
    field_contrasts,
    highest_frequency,
    is_gray,
    total_variation,
)
from uge.runtime import stream

STRENGTH = LEVELS / 255  # Amplitude of a pattern in [0, 1] units.
_CANDIDATES = 8  # Waves that are tried for an image.
_OFFSETS = 7  # Frequencies that are tried around each of those from which a key draws.
_SHRINK = 0.6  # Factor of the move from one time to the next.
_CLUSTERS = 16  # Patterns that are searched for in a class.
_FEWEST = 5  # Images that a pattern must have to be used.


def without_waves(pixels: Tensor, terms: int = 1) -> Tensor:
    """Every image without the waves that it seems to carry, estimated from that image alone.

    A pattern depends on few numbers: frequencies and a phase for each wave. For each field, a search finds the numbers
    that bring neighbouring pixels closest. The pattern stays out where it does so by more than chance.

    Args:
        pixels: uint8, batch × channels × size × size.
        terms: Number of waves of a field; see :func:`wave_terms`.
    """
    x = pixels.float() / 255
    borders = _borders(x)
    fields = [_nearest_signs(borders[:, number], terms) for number in range(1 if x.shape[1] == 1 else 2)]
    return _restored(x, torch.stack([fields[0], fields[-1]], 1))


def wave_terms(classes: int) -> int:
    """Number of waves of a field in keys for so many classes."""
    return WaveKey(classes, seed=0).waves.shape[2]


def _nearest_signs(borders: Tensor, terms: int) -> Tensor:
    """Signs of waves, (batch, size, size), that win most; borders are those of one field."""
    rows = torch.arange(len(borders), device=borders.device)
    size = borders.shape[-1]
    choices = torch.combinations(torch.arange(_CANDIDATES, device=borders.device), terms)
    sets = _likely_waves(borders)[:, choices]  # batch × choices × terms × 3
    wins = torch.stack([_win(borders, _signs(own, size)) for own in sets.unbind(1)], 1)
    starts = wins.topk(min(3, len(choices)), 1).indices.unbind(1)  # Only the best sets are refined.
    waves, refined_wins = zip(*(_refined(borders, sets[rows, start]) for start in starts), strict=True)
    return _signs(torch.stack(waves)[torch.stack(refined_wins).argmax(0), rows], size)


def _likely_waves(borders: Tensor) -> Tensor:
    """Candidate waves by the steps between neighbours: (batch, candidates, 3), as :func:`_signs` has them.

    Keys draw frequencies near a few. The likeliest wave of each pair of these, across and down, is compared.
    """
    excess = _excess(borders)
    size = borders.shape[-1]
    low = highest_frequency(size) / 2
    offsets = JITTER * low * torch.linspace(-1, 1, _OFFSETS, device=excess.device)
    cycles = (torch.linspace(low, 2 * low, STEPS, device=excess.device)[:, None] + offsets).flatten()
    angles = 2 * math.pi * cycles[:, None] * _places(size, excess.device)
    # Patterns are their own mirror images, so that across there are cosines only.
    rows = torch.einsum("byx,ix->biy", excess, F.normalize(angles.cos(), dim=1))
    even, odd = (torch.einsum("biy,jy->bij", rows, wave).flatten(1) for wave in (angles.cos(), angles.sin()))
    grid = torch.arange(len(cycles) ** 2, device=excess.device).view(STEPS, _OFFSETS, STEPS, _OFFSETS)
    cells = grid.transpose(1, 2).reshape(STEPS**2, _OFFSETS**2)
    heights, inside = (even**2 + odd**2)[:, cells].max(2)
    best = heights.topk(_CANDIDATES, 1).indices
    flat = cells[best, inside.gather(1, best)]
    phases = torch.atan2(-odd.gather(1, flat), even.gather(1, flat))
    return torch.stack([cycles[flat // len(cycles)], cycles[flat % len(cycles)], phases], -1)


def _refined(borders: Tensor, waves: Tensor) -> tuple[Tensor, Tensor]:
    """Waves (batch, terms, 3) moved one number at a time wherever that wins, and their win then."""
    size = borders.shape[-1]
    win = _win(borders, _signs(waves, size))
    widest = JITTER * highest_frequency(size) / 4
    moves = torch.diag(torch.tensor([widest, widest, 0.6], device=waves.device))
    for search, term in itertools.product(range(6), range(waves.shape[1])):  # Moves get smaller.
        for move in (*moves * _SHRINK**search, *-moves * _SHRINK**search):
            tried = waves.clone()
            tried[:, term] += move
            own = _win(borders, _signs(tried, size))
            waves = torch.where((own > win)[:, None, None], tried, waves)
            win = torch.maximum(own, win)
    return waves, win


def _signs(waves: Tensor, size: int) -> Tensor:
    """Signs (batch, size, size) of sums of waves (batch, terms, 3: cycles across, cycles down, phase down)."""
    angles = 2 * math.pi * waves[..., :2, None] * _places(size, waves.device)
    return _as_signs(torch.einsum("btx,bty->byx", angles[:, :, 0].cos(), (angles[:, :, 1] + waves[..., 2, None]).cos()))


def _places(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + 0.5) / size - 0.5


def _as_signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0)


def _borders(x: Tensor) -> Tensor:
    """Win of each field's steps between neighbours: (batch, FIELDS, 4, size, size), as :func:`_steps` has them.

    Let d be the difference of two neighbours and e · 2 strengths a step between them, where e is -1, 0 or 1. Taking the
    step out wins |d| - |d - 2 e strengths|. That is e · (d limited to 2 strengths) - |e| · (2 strengths -
    |d|, if above 0). Gray images have no second field.
    """
    step = 2 * STRENGTH
    fields = []
    for channels in (x[:, :2], x[:, 2:]):
        limited = [_padded(channels.diff(dim=dim).clamp(-step, step), dim) for dim in (-2, -1)]
        costs = [_padded((step - channels.diff(dim=dim).abs()).clamp_min(0), dim) for dim in (-2, -1)]
        fields.append(torch.stack([values.sum(1) for values in (*limited, *costs)], 1))
    fields[1] = fields[1] * ~is_gray(x)[:, None, None, None]
    return torch.stack(fields, 1)


def _steps(signs: Tensor) -> Tensor:
    """Steps from each pixel down and right, and their sizes below 0: (..., 4, size, size) of (..., size, size)."""
    steps = [_padded(signs.diff(dim=dim) / 2, dim) for dim in (-2, -1)]
    return torch.stack([*steps, *(-step.abs() for step in steps)], -3)


def _padded(values: Tensor, dim: int) -> Tensor:
    return F.pad(values, (0, 0, 0, 1) if dim == -2 else (0, 1))


def _win(borders: Tensor, signs: Tensor) -> Tensor:
    """Amount by which all neighbours come closer without the signs, (batch,)."""
    return (borders * _steps(signs)).sum((1, 2, 3))


def _excess(borders: Tensor) -> Tensor:
    """Height of each pixel above its neighbours, where a large step counts like the step of a pattern."""
    down = borders[..., 0, :, :]
    across = borders[..., 1, :, :]
    return down.roll(1, -2) - down + across.roll(1, -1) - across


def _restored(x: Tensor, fields: Tensor) -> Tensor:
    """Pixels of images (B, channels, size, size) in [0, 1] without fields of signs, where they gain by that."""
    clipped = x.clamp(STRENGTH, 1 - STRENGTH)
    without = (x - STRENGTH * coloured(fields, is_gray(x), x.shape[1])).clamp(STRENGTH, 1 - STRENGTH)
    carries = total_variation(without) < (1 - THRESHOLD) * total_variation(clipped)
    return stored(255 * torch.where(carries[:, None, None, None], without, clipped))


def estimated_patterns_out(context: Context) -> Context:
    """Estimate the patterns of every class from all its images, and take the pattern of each image out of it.

    The estimate assumes no waves, but patterns must lie at the same place in all images, as they do in the published
    ones. The test images carry none and are clipped only.
    """
    store = context.store.empty_like()
    for label in range(len(store.classes)):
        rows = (context.store.labels == label).nonzero()[:, 0].cpu()
        sample = rows[: max(1, 2**22 // store.size**2)]  # Enough for an estimate, and little memory.
        pixels = torch.cat([context.store.pixels.read(part) for part in batched(store, sample)])
        patterns = estimated_patterns(pixels, stream(context.seed, "patterns", label))
        for part in batched(store, rows):
            store.pixels.write(part, _without(context.store.pixels.read(part), patterns))
    return with_images(context, store, lambda other: transformed(other, _clipped))


def estimated_patterns(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Patterns of images of one class as signs, (patterns, FIELDS, size, size); maybe more than there are, maybe none.

    Images are clustered by their contrasts (k-means on correlations). Then each image goes to the pattern that wins
    most in it, and each pattern is changed to win most in its images, a pixel at a time.

    Args:
        pixels: uint8, batch × channels × size × size.
        draw: Chooses the images at which clusters begin.
    """
    x = pixels.float() / 255
    if len(x) < _FEWEST:
        return x.new_zeros((0, 2, *x.shape[2:]))
    borders = _borders(x)
    contrasts = contrast(x).clamp(-2 * STRENGTH, 2 * STRENGTH)  # A few edges must not outvote.
    fields = torch.stack([contrasts[:, :2].mean(1), contrasts[:, -1]], 1)
    number = _clusters(F.normalize(field_contrasts(contrasts, is_gray(x)).flatten(1)), draw)
    for _ in range(5):  # Images go to patterns, patterns follow their images.
        members = F.one_hot(number, _CLUSTERS).to(x.dtype).T
        patterns = _as_signs(torch.einsum("kb,bfyx->kfyx", members, fields))
        patterns = _adjusted(patterns, torch.einsum("kb,bfdyx->kfdyx", members, borders))
        number = _best_numbers(borders, patterns)
    return patterns[torch.bincount(number, minlength=_CLUSTERS) >= _FEWEST]


def _clusters(flat: Tensor, draw: torch.Generator) -> Tensor:
    """Cluster of each row of ``flat`` (rows of length 1), (rows,), by k-means that begins at rows far apart."""
    chosen = [int(torch.randint(len(flat), (), generator=draw))]
    for _ in range(_CLUSTERS - 1):
        far = (1 - (flat @ flat[chosen].T).amax(1)).clamp_min(1e-6)
        chosen.append(int(torch.multinomial(far.square().cpu(), 1, generator=draw)))
    means = flat[chosen]
    for _ in range(4):  # k-means
        sums = torch.zeros_like(means).index_add_(0, (flat @ means.T).argmax(1), flat)
        means = torch.where(sums.any(1, keepdim=True), F.normalize(sums), means)
    return (flat @ means.T).argmax(1)


def _adjusted(patterns: Tensor, borders: Tensor) -> Tensor:
    """Patterns of which each pixel has the sign that wins more beside its neighbours' signs.

    Args:
        patterns: (patterns, FIELDS, size, size).
        borders: Sums over the images of each, (patterns, FIELDS, 4, size, size).
    """
    place = torch.arange(patterns.shape[-1], device=patterns.device)
    white = (place[:, None] + place) % 2 == 0
    excess = _excess(borders)
    down = borders[..., 2, :, :]
    across = borders[..., 3, :, :]
    for sweep in range(10):  # One colour of a chessboard at a time, since its squares are no neighbours.
        below = down * patterns.roll(-1, -2) + (down * patterns).roll(1, -2)
        beside = across * patterns.roll(-1, -1) + (across * patterns).roll(1, -1)
        patterns = torch.where(white == (sweep % 2 == 0), _as_signs(excess + below + beside), patterns)
    return patterns


def _best_numbers(borders: Tensor, patterns: Tensor) -> Tensor:
    return (borders.flatten(1) @ _steps(patterns).flatten(1).T).argmax(1)


def _without(pixels: Tensor, patterns: Tensor) -> Tensor:
    if not len(patterns):
        return _clipped(pixels)
    x = pixels.float() / 255
    return _restored(x, patterns[_best_numbers(_borders(x), patterns)])


def _clipped(pixels: Tensor) -> Tensor:
    return pixels.clamp(LEVELS, 255 - LEVELS)  # The range in which patterns have room.
