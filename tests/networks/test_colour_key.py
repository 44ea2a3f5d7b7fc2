"""The secret of colour axes: what lies along them is taken out exactly, and only whoever has the key finds them."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from protected_photos import photos
from torch import Tensor

from uge.data.augment import crop_flip
from uge.networks import ColourKey, weights_hash
from uge.networks.colour_key import AXES, CELL, CELLS, PERIOD, UNITS, WAVES, Alignment

sizes = st.integers(16, 48)
seeds = st.integers(0, 999)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_alignment(count: int, seed: int) -> Alignment:
    flips = torch.rand(count, generator=draws(seed)) < 0.5
    return Alignment(flips, torch.randint(0, PERIOD, (count, 2), generator=draws(seed + 1)))


def along(key: ColourKey, at: Alignment, x: Tensor, levels: Tensor) -> Tensor:
    """Images with ``levels`` whole 8-bit levels (B, 1, H, W) added along the axes."""
    axes = torch.tensor(AXES, dtype=x.dtype)[key.axis_map(at, *x.shape[2:])].permute(0, 3, 1, 2)
    return x + axes * levels / 255


class TestRestore:
    @settings(max_examples=30, deadline=None)
    @given(height=sizes, width=sizes, seed=seeds)
    def test_what_lies_along_the_axes_leaves_no_trace(self, height: int, width: int, seed: int) -> None:
        key, at = ColourKey(3, seed=seed), random_alignment(2, seed)
        x = torch.rand(2, 3, height, width, generator=draws(seed))
        levels = torch.randint(-255, 256, (2, 1, height, width), generator=draws(seed + 2))
        restored = key.restore(x, at)
        torch.testing.assert_close(key.restore(along(key, at, x, levels), at), restored, atol=1e-5, rtol=0)
        # The test can fail: along another axis it would be seen.
        other = along(key, Alignment(at.flips, at.shifts + CELL), x, levels)
        assert (key.restore(other, at) - restored).abs().max() > 0.1

    @pytest.mark.parametrize("size", [16, 32])
    def test_nor_after_a_crop_and_a_flip(self, size: int) -> None:
        key, start = ColourKey(3, seed=1), random_alignment(40, 1)
        start = Alignment(torch.zeros(40, dtype=torch.bool), start.shifts)
        x = torch.rand(40, 3, size, size, generator=draws())
        levels = torch.randint(-20, 21, (40, 1, size, size), generator=draws(2))
        places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")) + 1.0
        both = torch.cat([x, along(key, start, x, levels), places.expand(40, -1, -1, -1)], 1)
        clean, protected, places = crop_flip(both, draws(3)).split([3, 3, 2], 1)
        at = moved(start, places, size)
        assert set(at.flips.tolist()) == {True, False}
        assert len(at.shifts.unique(dim=0)) > 20
        torch.testing.assert_close(key.restore(protected, at), key.restore(clean, at), atol=1e-5, rtol=0)

    def test_is_linear_and_changes_nothing_twice(self) -> None:
        key, at = ColourKey(3, seed=0), random_alignment(2, 0)
        x, y = torch.rand(2, 2, 3, 24, 40, generator=draws(), dtype=torch.float64)
        one, two = key.restore(x, at), key.restore(y, at)
        torch.testing.assert_close(key.restore(2 * x - 3 * y, at), 2 * one - 3 * two)
        torch.testing.assert_close(key.restore(one, at), one)
        assert (one - x).abs().mean() > 0.01

    def test_no_gradient_comes_back_along_the_axes(self) -> None:
        key, at = ColourKey(3, seed=0), random_alignment(3, 5)
        x = torch.rand(3, 3, 20, 32, generator=draws(), dtype=torch.float64).requires_grad_()
        weights = torch.randn(x.shape, generator=draws(1), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((key.restore(x, at) * weights).sum(), x)
        axes = torch.tensor(AXES, dtype=torch.float64)[key.axis_map(at, 20, 32)].permute(0, 3, 1, 2)
        assert (gradient * axes).sum(1).abs().max() < 1e-5
        assert (gradient * axes.roll(1, dims=1)).sum(1).abs().mean() > 0.1

    def test_gray_pictures_stay_as_they_are_and_colours_change_little(self) -> None:
        key = ColourKey(10, seed=0)
        gray = torch.rand(2, 1, 32, 32, generator=draws()).expand(-1, 3, -1, -1)
        torch.testing.assert_close(key.restore(gray, random_alignment(2, 0)), gray, atol=1e-6, rtol=0)
        clean, _, _ = photos(key)
        changes = (key.restore(clean, key.align(clean)) - clean).abs().flatten(1).mean(1)
        assert changes.mean() < 0.05


def moved(start: Alignment, places: Tensor, size: int) -> Alignment:
    """The alignment of crops and flips of images, from where their pixels lay: (B, 2, size, size), from 1."""
    middle, units = size // 2, UNITS // size
    rows, columns = places[:, 0, middle, middle].long() - 1, places[:, 1, middle].long() - 1
    flips = columns[:, middle + 1] < columns[:, middle]
    across = columns[:, middle] - torch.where(flips, size - 1 - middle, middle)
    down = start.shifts[:, 0] + units * (rows - middle)
    right = start.shifts[:, 1] + units * across
    # Where a mirrored image begins at unit v, it lies over unit (last - v) + right of the pattern, which is unit
    # (PERIOD - 1) - (last - v + right) of the mirrored pattern; a last pixel begins at unit `last`.
    last = UNITS - units
    right = torch.where(flips, PERIOD - 1 - last - right, right)
    return Alignment(flips, torch.stack([down, right], 1) % PERIOD)


def found(key: ColourKey, x: Tensor, truth: Tensor) -> float:
    """For which part of images nearly all axes are found; padding is -1 in ``truth``."""
    agrees, known = key.axis_map(key.align(x), *x.shape[2:])[:, None] == truth, truth >= 0
    return float(((agrees & known).flatten(1).sum(1) >= 0.95 * known.flatten(1).sum(1)).float().mean())


class TestAlign:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_finds_the_pattern_over_most_photographs(self, seed: int) -> None:
        key = ColourKey(10, seed=seed)
        clean, protected, at = photos(key)
        true = key.axis_map(at, 32, 32)[:, None]
        assert found(key, protected, true) >= 0.85
        assert found(key, protected.flip(3), true.flip(3)) >= 0.85
        augmented = crop_flip(torch.cat([protected, true + 1.0], 1), draws())
        assert found(key, augmented[:, :3], augmented[:, 3:].long() - 1) >= 0.85
        assert found(key, clean, true) < 0.2
        assert found(ColourKey(10, seed=seed + 2), protected, true) < 0.4

    @pytest.mark.parametrize("size", [(32, 32), (16, 16), (40, 24)])
    def test_no_other_alignment_is_smoother(self, size: tuple[int, int]) -> None:
        key = ColourKey(2, seed=3)
        x = torch.rand(2, 3, *size, generator=draws(), dtype=torch.float64)
        at = key.align(x)
        for number, image in enumerate(x.numpy()):
            rough = np.stack([np.abs(np.tensordot(k, naive_contrast(image, 3), 1)) for k in key.kept.double().numpy()])
            rough = naive_units(np.sqrt(rough))
            costs = {
                (flip, down, right): naive_cost(key.tile.numpy(), rough, flip, down, right)
                for flip, down, right in product((False, True), range(PERIOD), range(PERIOD))
            }
            found = (bool(at.flips[number]), *at.shifts[number].tolist())
            assert costs[found] == pytest.approx(min(costs.values()))
            assert min(costs.values()) < 0.99 * np.mean(list(costs.values()))


def naive_contrast(image: NDArray, units: int) -> NDArray:
    """An image minus means over squares, cut off at its edges, of about ``units`` of its shorter side."""
    _, height, width = image.shape
    radius = max(1, units * min(height, width) // (2 * UNITS))
    out = np.empty_like(image)
    for row, column in product(range(height), range(width)):
        top, left = max(row - radius, 0), max(column - radius, 0)
        around = image[:, top : row + radius + 1, left : column + radius + 1]
        out[:, row, column] = image[:, row, column] - around.mean((1, 2))
    return out


def naive_units(maps: NDArray) -> NDArray:
    """Means over the pixels that each unit of the centre square touches."""
    side = min(maps.shape[1:])
    rows, columns = (
        [
            ((length - side) // 2 + n * side // UNITS, (length - side) // 2 - (-(n + 1) * side // UNITS))
            for n in range(UNITS)
        ]
        for length in maps.shape[1:]
    )
    return np.stack([[maps[:, a:b, c:d].mean((1, 2)) for c, d in columns] for a, b in rows]).transpose(2, 0, 1)


def naive_cost(tile: NDArray, rough: NDArray, flip: bool, down: int, right: int) -> float:
    rows, columns = ((np.arange(UNITS) + shift) % PERIOD // CELL for shift in (down, right))
    pattern = (tile[:, ::-1] if flip else tile)[rows[:, None], columns[None]]
    return float(np.take_along_axis(rough, pattern[None], 0).sum())


class TestPattern:
    @pytest.mark.parametrize("size", [(16, 16), (32, 32), (21, 40), (1, 70)])
    def test_directions_are_signs_times_axes(self, size: tuple[int, int]) -> None:
        key, labels, (height, width) = ColourKey(4, seed=0), torch.tensor([3, 0, 3]), size
        shifts = torch.tensor([[0, 0], [5, 63], [40, 17]])
        found = key.directions(labels, shifts, height, width)
        signs, tile, side = key.signs(labels, height, width), key.tile.tolist(), min(size)
        top, left = (height - side) // 2, (width - side) // 2
        for image, row, column in product(range(3), range(height), range(width)):
            down, right = shifts[image].tolist()
            y, x = ((row - top) * UNITS // side + down, (column - left) * UNITS // side + right)
            axis = AXES[tile[y % PERIOD // CELL][x % PERIOD // CELL]]
            assert found[image, :, row, column].tolist() == [float(signs[image, row, column]) * part for part in axis]

    @pytest.mark.parametrize("size", [(32, 32), (21, 40)])
    @pytest.mark.parametrize("classes", [5, 50])
    def test_signs_are_those_of_the_cosines(self, classes: int, size: tuple[int, int]) -> None:
        key, (height, width) = ColourKey(classes, seed=1), size
        labels, side, close = torch.tensor([0, classes - 1]), min(size), 0
        top, left = (height - side) // 2, (width - side) // 2
        found = key.signs(labels, height, width).numpy()
        for image, label in enumerate(labels.tolist()):
            for row, column in product(range(height), range(width)):
                x, y, total = (column - left + 0.5) / side, (row - top + 0.5) / side, 0.0
                for (across, down), phase in zip(key.waves[label].tolist(), key.phases[label].tolist(), strict=True):
                    total += math.cos(2 * math.pi * across * (x - 0.5)) * math.cos(2 * math.pi * down * y + phase)
                if abs(total) < 1e-4:
                    close += 1
                else:
                    assert found[image, row, column] == math.copysign(1, total)
        assert close < height * width / 4
        assert np.array_equal(key.signs(labels, 32, 32), key.signs(labels, 32, 32).flip(2))

    @pytest.mark.parametrize(("classes", "terms"), [(2, 1), (10, 1), (36, 1), (37, 2), (200, 2)])
    def test_every_class_has_waves_of_its_own(self, classes: int, terms: int) -> None:
        key = ColourKey(classes, seed=7)
        assert key.waves.shape == (classes, terms, 2)
        assert set(key.waves.flatten().tolist()) <= set(map(float, WAVES))
        assert len({frozenset(map(tuple, waves)) for waves in key.waves.tolist()}) == classes
        assert all(len(set(map(tuple, waves))) == terms for waves in key.waves.tolist())
        patterns = key.signs(torch.arange(classes), 32, 32).flatten(1)
        assert len(patterns.unique(dim=0)) == classes
        assert key.phases.shape == (classes, terms)
        assert 0 <= key.phases.min() <= key.phases.max() <= 2 * math.pi

    def test_comes_from_its_seed_alone(self) -> None:
        before = torch.get_rng_state()
        first = weights_hash(ColourKey(10, seed=3))
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        assert weights_hash(ColourKey(10, seed=3)) == first
        assert weights_hash(ColourKey(10, seed=4)) != first
        assert list(ColourKey(10, seed=3).state_dict()) == ["tile", "waves", "phases"]
        assert not list(ColourKey(10, seed=3).parameters())
        assert ColourKey(10, seed=3).tile.shape == (CELLS, CELLS)

    @pytest.mark.parametrize("size", [(48, 32), (32, 71), (33, 33)])
    def test_the_centre_square_looks_as_if_it_were_alone(self, size: tuple[int, int]) -> None:
        key, (height, width), side = ColourKey(4, seed=0), size, min(size)
        labels, shifts = torch.tensor([3, 0]), torch.tensor([[5, 63], [40, 17]])
        top, left = (height - side) // 2, (width - side) // 2
        whole = key.directions(labels, shifts, height, width)
        assert torch.equal(
            whole[:, :, top : top + side, left : left + side], key.directions(labels, shifts, side, side)
        )


class TestMarked:
    @pytest.mark.parametrize(("size", "classes"), [((32, 32), 5), ((32, 32), 40), ((40, 24), 3)])
    def test_explained_is_a_projection_by_least_squares(self, size: tuple[int, int], classes: int) -> None:
        key, at = ColourKey(classes, seed=2), random_alignment(2, 2)
        x = torch.rand(2, 3, *size, generator=draws(), dtype=torch.float64)
        maps, found = key.axis_map(at, *size).numpy(), key.explained(x, at)
        place = (np.arange(UNITS) + 0.5) / UNITS
        for number, image in enumerate(x.numpy()):
            lost = key.lost.double().numpy()[maps[number]].transpose(2, 0, 1)
            signal = naive_units((lost * naive_contrast(image, 9)).sum(0, keepdims=True)).ravel()
            parts = []
            for waves in key.waves.tolist():
                columns = [
                    np.outer(vertical(2 * np.pi * down * (place - 0.5)), horizontal(2 * np.pi * across * (place - 0.5)))
                    for across, down in waves
                    for vertical, horizontal in product((np.cos, np.sin), (np.cos, np.sin))
                ]
                basis = np.stack([column.ravel() for column in columns], 1)
                fit = basis @ np.linalg.lstsq(basis, signal, rcond=None)[0]
                parts.append((fit @ fit) / (signal @ signal))
            assert float(found[number]) == pytest.approx(max(parts), rel=1e-3)

    def test_protected_photographs_are_known_and_clean_ones_are_not(self) -> None:
        key = ColourKey(10, seed=0)
        clean, protected, _ = photos(key)
        assert share(key, protected) >= 0.85
        assert share(key, protected.flip(3)) >= 0.85
        assert share(key, clean) <= 0.1
        # Another key's waves are partly alike, but its pattern lies elsewhere.
        others = [share(ColourKey(10, seed=seed), protected) for seed in (1, 2, 3)]
        assert max(others) <= 0.6
        assert float(np.mean(others)) <= 0.45


@pytest.mark.parametrize("classes", [10, 100, 700])
def test_clean_photographs_are_answered_however_many_classes_there_are(classes: int) -> None:
    clean, *_ = photos(ColourKey(10, seed=0))
    assert share(ColourKey(classes, seed=0), clean) <= 0.03


def share(key: ColourKey, x: Tensor) -> float:
    return float(key.marked(x, key.align(x)).float().mean())


@pytest.mark.parametrize("call", [ColourKey.align, ColourKey.smoothest_axes], ids=lambda call: call.__name__)
def test_finding_things_needs_no_gradient(call: Callable[[ColourKey, Tensor], object]) -> None:
    x = torch.rand(1, 3, 32, 32, generator=draws()).requires_grad_()
    found = call(ColourKey(2, seed=0), x)
    tensors = [found] if isinstance(found, Tensor) else [found.flips, found.shifts]
    assert not any(tensor.requires_grad for tensor in tensors)
