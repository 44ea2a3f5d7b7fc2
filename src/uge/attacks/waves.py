"""What somebody does against a wave key who knows the construction (:mod:`uge.networks.wave_key`), but no secret.

Photographs are smooth and patterns are not: of all patterns the one that an image carries is the one that brings
neighbouring pixels closest when it is taken out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.attacks.base import Context, batched
from uge.attacks.filters import stored
from uge.data.store import PixelStore
from uge.networks import WaveKey
from uge.networks.wave_key import (
    JITTER,
    LEVELS,
    STEPS,
    THRESHOLD,
    coloured,
    contrast,
    field_contrasts,
    highest_frequency,
    is_gray,
    total_variation,
)
from uge.runtime import stream

STRENGTH = LEVELS / 255
_CANDIDATES, _OFFSETS, _STARTS = 8, 7, 3
"""Waves of an image that are tried, frequencies around each that a key may draw, and sets of waves that are refined."""
_SEARCHES, _SHRINK = 6, 0.6
"""How often every number of a wave is moved both ways, and by how much less each time."""
_CLUSTERS, _FEWEST = 16, 5
"""Patterns that are looked for in a class, and images that one must have to be believed."""
_MEANS, _ROUNDS, _SWEEPS = 4, 5, 10
"""Rounds of k-means, rounds with patterns after it, and how often each pattern is adjusted in every one of those."""
_PIXELS = 2**22
"""Pixels of a class from which patterns are estimated."""


def without_waves(pixels: Tensor, terms: int = 1) -> Tensor:
    """Every image without the waves that it seems to carry, found in that image alone.

    Patterns come of few numbers: frequencies and a phase for each wave. For each field those are searched for that
    bring neighbouring pixels closest; the pattern stays out where it does so by more than chance.

    Args:
        pixels: uint8, batch × channels × size × size.
        terms: How many waves a field has; see :func:`wave_terms`.
    """
    x = pixels.float() / 255
    gray, borders = is_gray(x), _borders(x)
    fields = [_nearest_signs(borders[:, number], terms) for number in range(1 if x.shape[1] == 1 else 2)]
    return _restored(x, torch.stack([fields[0], fields[-1]], 1), gray)


def wave_terms(classes: int) -> int:
    """How many waves a field has in keys for so many classes."""
    return WaveKey(classes, seed=0).waves.shape[2]


def _nearest_signs(borders: Tensor, terms: int) -> Tensor:
    """The signs of waves, (batch, size, size), that win most; borders are those of one field."""
    rows, size = torch.arange(len(borders), device=borders.device), borders.shape[-1]
    choices = torch.combinations(torch.arange(_CANDIDATES, device=borders.device), terms)
    sets = _likely_waves(borders)[:, choices]  # batch × choices × terms × 3
    wins = torch.stack([_win(borders, _signs(own, size)) for own in sets.unbind(1)], 1)
    best, highest = sets[:, 0], torch.full_like(wins[:, 0], -math.inf)
    for start in wins.topk(min(_STARTS, len(choices)), 1).indices.unbind(1):
        waves, win = _refined(borders, sets[rows, start])
        best = torch.where((win > highest)[:, None, None], waves, best)
        highest = torch.maximum(highest, win)
    return _signs(best, size)


def _likely_waves(borders: Tensor) -> Tensor:
    """Waves that steps between neighbours look like: (batch, candidates, 3), as :func:`_signs` has them.

    Keys draw frequencies near a few; of each pair of these, across and down, the likeliest wave is one to be compared.
    """
    excess, size = _excess(borders), borders.shape[-1]
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
    """Waves (batch, terms, 3) moved one number at a time wherever that wins, and what they win then."""
    size = borders.shape[-1]
    win, widest = _win(borders, _signs(waves, size)), JITTER * highest_frequency(size) / 4
    moves = torch.diag(torch.tensor([widest, widest, 0.6], device=waves.device))
    for search, term in itertools.product(range(_SEARCHES), range(waves.shape[1])):
        for move in (*moves * _SHRINK**search, *-moves * _SHRINK**search):
            tried = waves.clone()
            tried[:, term] += move
            own = _win(borders, _signs(tried, size))
            waves, win = torch.where((own > win)[:, None, None], tried, waves), torch.maximum(own, win)
    return waves, win


def _signs(waves: Tensor, size: int) -> Tensor:
    """Signs (batch, size, size) of sums of waves (batch, terms, 3: cycles across, cycles down, phase down)."""
    angles = 2 * math.pi * waves[..., :2, None] * _places(size, waves.device)
    down = (angles[:, :, 1] + waves[..., 2, None]).cos()
    return _as_signs(torch.einsum("btx,bty->byx", angles[:, :, 0].cos(), down))


def _places(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + 0.5) / size - 0.5


def _as_signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0)


def _borders(x: Tensor) -> Tensor:
    """What each field's steps between neighbours win: (batch, FIELDS, 4, size, size), as :func:`_steps` has them.

    With d the difference of two neighbours and e · 2 strengths a step between them, e from -1 to 1 and whole, taking
    it out wins |d| - |d - 2 e strengths|. That is e · (d limited to 2 strengths) - |e| · (2 strengths -
    |d|, if above 0). Gray images have no second field.
    """
    step, found = 2 * STRENGTH, []
    for channels in (x[:, :2], x[:, 2:]):
        gaps = [_padded(channels.diff(dim=dim), dim) for dim in (-2, -1)]
        costs = [_padded((step - channels.diff(dim=dim).abs()).clamp_min(0), dim) for dim in (-2, -1)]
        found.append(torch.stack([*(gap.clamp(-step, step).sum(1) for gap in gaps), *(own.sum(1) for own in costs)], 1))
    found[1] = found[1] * ~is_gray(x)[:, None, None, None]
    return torch.stack(found, 1)


def _steps(signs: Tensor) -> Tensor:
    """Steps from each pixel down and right, and their sizes below 0: (..., 4, size, size) of (..., size, size)."""
    steps = [_padded(signs.diff(dim=dim) / 2, dim) for dim in (-2, -1)]
    return torch.stack([*steps, *(-step.abs() for step in steps)], -3)


def _padded(values: Tensor, dim: int) -> Tensor:
    return F.pad(values, (0, 0, 0, 1) if dim == -2 else (0, 1))


def _win(borders: Tensor, signs: Tensor) -> Tensor:
    """By how much all neighbours come closer without the signs, (batch,)."""
    return (borders * _steps(signs)).sum((1, 2, 3))


def _excess(borders: Tensor) -> Tensor:
    """How far each pixel stands out of its neighbours, where large steps count as one of a pattern."""
    down, across = borders[..., 0, :, :], borders[..., 1, :, :]
    return down.roll(1, -2) - down + across.roll(1, -1) - across


def _restored(x: Tensor, fields: Tensor, gray: Tensor) -> Tensor:
    """Pixels of images (B, channels, size, size) in [0, 1] without fields of signs, where they gain by that."""
    signs, clipped = coloured(fields, gray, x.shape[1]), x.clamp(STRENGTH, 1 - STRENGTH)
    found = (x - STRENGTH * signs).clamp(STRENGTH, 1 - STRENGTH)
    carries = total_variation(found) < (1 - THRESHOLD) * total_variation(clipped)
    return stored(255 * torch.where(carries[:, None, None, None], found, clipped))


def estimated_patterns_out(context: Context) -> Context:
    """Estimate the patterns of every class from all its images, and take out of each what it carries.

    Of waves nothing is needed here; but patterns must lie at the same place in all images, as they do in the published
    ones. The test images carry none and are clipped only.
    """
    store = context.store.empty_like()
    for label in range(len(store.classes)):
        rows = (context.store.labels == label).nonzero()[:, 0].cpu()
        few = batched(store, rows[: max(1, _PIXELS // store.size**2)])
        pixels = torch.cat([context.store.pixels.read(part) for part in few])
        patterns = estimated_patterns(pixels, stream(context.seed, "patterns", label))
        for part in batched(store, rows):
            store.pixels.write(part, _without(context.store.pixels.read(part), patterns))
    return dataclasses.replace(
        context,
        store=store,
        test=_clipped(context.test),
        clean=lambda: _clipped(context.clean()),
        public=lambda: _clipped(context.public()),
    )


def estimated_patterns(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Patterns of images of one class as signs, (patterns, FIELDS, size, size); maybe more than there are, maybe none.

    Images are clustered by their contrasts (k-means on correlations). Then each goes to the pattern that wins most in
    it, and each pattern becomes the one that wins most in its images, a pixel at a time.

    Args:
        pixels: uint8, batch × channels × size × size.
        draw: Chooses the images at which clusters begin.
    """
    x = pixels.float() / 255
    if len(x) < _FEWEST:
        return x.new_zeros((0, 2, *x.shape[2:]))
    borders, contrasts = _borders(x), contrast(x).clamp(-2 * STRENGTH, 2 * STRENGTH)  # A few edges must not outvote.
    fields = torch.stack([contrasts[:, :2].mean(1), contrasts[:, -1]], 1)
    number = _clusters(F.normalize(field_contrasts(contrasts, is_gray(x)).flatten(1)), draw)
    for _ in range(_ROUNDS):
        members = F.one_hot(number, _CLUSTERS).to(x.dtype).T
        patterns = _as_signs(torch.einsum("kb,bfyx->kfyx", members, fields))
        patterns = _adjusted(patterns, torch.einsum("kb,bfdyx->kfdyx", members, borders))
        number = _numbers(borders, patterns)
    return patterns[torch.bincount(number, minlength=_CLUSTERS) >= _FEWEST]


def _clusters(flat: Tensor, draw: torch.Generator) -> Tensor:
    """The cluster of each row of ``flat`` (rows of length 1), (rows,), by k-means that begins at rows far apart."""
    chosen = [int(torch.randint(len(flat), (), generator=draw))]
    for _ in range(_CLUSTERS - 1):
        far = (1 - (flat @ flat[chosen].T).amax(1)).clamp_min(1e-6)
        chosen.append(int(torch.multinomial(far.square().cpu(), 1, generator=draw)))
    means = flat[chosen]
    for _ in range(_MEANS):
        sums = torch.zeros_like(means).index_add_(0, (flat @ means.T).argmax(1), flat)
        means = torch.where(sums.any(1, keepdim=True), F.normalize(sums), means)
    return (flat @ means.T).argmax(1)


def _adjusted(patterns: Tensor, borders: Tensor) -> Tensor:
    """Patterns after each pixel was given the sign that wins more beside its neighbours' signs, some times over.

    Args:
        patterns: (patterns, FIELDS, size, size).
        borders: Sums over the images of each, (patterns, FIELDS, 4, size, size).
    """
    place = torch.arange(patterns.shape[-1], device=patterns.device)
    white, excess = (place[:, None] + place) % 2 == 0, _excess(borders)
    down, across = borders[..., 2, :, :], borders[..., 3, :, :]
    for sweep in range(_SWEEPS):  # Of a chessboard one colour at a time, since its squares are no neighbours.
        below = down * patterns.roll(-1, -2) + (down * patterns).roll(1, -2)
        beside = across * patterns.roll(-1, -1) + (across * patterns).roll(1, -1)
        patterns = torch.where(white == (sweep % 2 == 0), _as_signs(excess + below + beside), patterns)
    return patterns


def _numbers(borders: Tensor, patterns: Tensor) -> Tensor:
    """Which pattern wins most in each image, (batch,)."""
    return (borders.flatten(1) @ _steps(patterns).flatten(1).T).argmax(1)


def _without(pixels: Tensor, patterns: Tensor) -> Tensor:
    if not len(patterns):
        return pixels.clamp(LEVELS, 255 - LEVELS)
    x = pixels.float() / 255
    return _restored(x, patterns[_numbers(_borders(x), patterns)], is_gray(x))


def _clipped(store: PixelStore) -> PixelStore:
    """What is left of images without patterns: their pixels clipped to where patterns have room."""
    found = store.empty_like()
    for rows in batched(store):
        found.pixels.write(rows, store.pixels.read(rows).clamp(LEVELS, 255 - LEVELS))
    return found
