"""Wave keys: a key takes out exactly what its own protection added, and another key finds something else."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from protected_photos import clipped, photos
from torch import Tensor

from uge.data.augment import crop_flip
from uge.networks import WaveKey, weights_hash
from uge.networks.wave_key import (
    FIELDS,
    JITTER,
    MARGIN,
    THRESHOLD,
    Match,
    coloured,
    contrast,
    field_contrasts,
    highest_frequency,
    total_variation,
)

sizes = st.integers(16, 48)
seeds = st.integers(0, 999)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    """Whole levels from 0 to 255, black and white more often."""
    return torch.randint(-60, 316, shape, generator=draws(seed)).clamp(0, 255)


def shades(pixels: Tensor, kind: str) -> Tensor:
    """Images (B, 3, H, W) in colour, without colours, or with one channel."""
    return {"colour": pixels, "gray": pixels[:, :1].expand(-1, 3, -1, -1), "single": pixels[:, :1]}[kind]


def protected(key: WaveKey, pixels: Tensor, numbers: Tensor, gray: bool) -> Tensor:
    """Whole levels with a pattern on top."""
    fields = key.patterns(*pixels.shape[2:], numbers=numbers)
    step = int(key.levels) * coloured(fields, torch.full((len(pixels),), gray), pixels.shape[1]).long()
    return (pixels + step).clamp(0, 255)


def there(numbers: Tensor, gray: bool, shift: tuple[int, int] = (0, 0), gain: float = 1.0) -> Match:
    count = len(numbers)
    return Match(
        numbers, torch.tensor([shift]).expand(count, 2), torch.full((count,), gain), torch.full((count,), gray)
    )


class TestPatterns:
    @settings(max_examples=25, deadline=None)
    @given(height=sizes, width=sizes, seed=seeds, classes=st.sampled_from([2, 7, 40]), size=st.sampled_from([16, 32]))
    def test_are_signs_and_mirror_images_of_themselves(
        self, height: int, width: int, seed: int, classes: int, size: int
    ) -> None:
        width += max(width - height, 0) % 2  # else no pixel lies in the middle of both image and square
        key = WaveKey(classes, seed=seed, size=size)
        patterns = key.patterns(height, width)
        assert patterns.dtype == torch.int8
        assert patterns.shape == (classes * key.phases.shape[1], FIELDS, height, width)
        assert set(patterns.unique().tolist()) == {-1, 1}
        assert (patterns != patterns.flip(3)).float().mean() < 1e-4  # where cosines cancel, rounding decides
        assert (patterns != patterns.flip(2)).float().mean() > 0.1

    @pytest.mark.parametrize("size", [(32, 32), (21, 40), (40, 24)])
    @pytest.mark.parametrize("classes", [5, 30])
    def test_are_the_signs_of_the_cosines(self, classes: int, size: tuple[int, int]) -> None:
        key, (height, width), side = WaveKey(classes, seed=1), size, min(size)
        variants = key.phases.shape[1]
        numbers = torch.tensor([classes * variants - 1, 3])
        margin = 3
        close = 0
        top, left = (height - side) // 2, (width - side) // 2
        patterns = key.patterns(height, width, margin=margin, numbers=numbers)
        for image, number in enumerate(numbers.tolist()):
            waves, phases = key.waves[number // variants], key.phases[number // variants, number % variants]
            for field, row, column in product(range(FIELDS), range(height + 2 * margin), range(width + 2 * margin)):
                x, y, total = (column - margin - left + 0.5) / side, (row - margin - top + 0.5) / side, 0.0
                for (across, down), phase in zip(waves[field].tolist(), phases[field].tolist(), strict=True):
                    total += math.cos(2 * math.pi * across * (x - 0.5)) * math.cos(2 * math.pi * down * y + phase)
                if abs(total) < 1e-4:
                    close += 1
                else:
                    assert patterns[image, field, row, column] == math.copysign(1, total)
        assert close < 0.1 * patterns.numel()

    @pytest.mark.parametrize("size", [(48, 32), (32, 71), (33, 33)])
    def test_the_centre_square_looks_as_if_it_were_alone(self, size: tuple[int, int]) -> None:
        key, (height, width), side = WaveKey(4, seed=0), size, min(size)
        top, left = (height - side) // 2, (width - side) // 2
        whole = key.patterns(height, width)
        assert torch.equal(whole[..., top : top + side, left : left + side], key.patterns(side, side))

    def test_go_on_outside_and_can_be_had_one_by_one(self) -> None:
        key, numbers = WaveKey(4, seed=0), torch.tensor([9, 0, 9])
        wide = key.patterns(20, 24, margin=5)
        assert wide.shape[2:] == (30, 34)
        assert torch.equal(wide[..., 5:-5, 5:-5], key.patterns(20, 24))
        assert torch.equal(key.patterns(20, 24, numbers=numbers), key.patterns(20, 24)[numbers])

    @pytest.mark.parametrize(
        ("classes", "terms", "variants"), [(2, 1, 8), (10, 1, 8), (25, 1, 6), (26, 2, 6), (160, 2, 1), (301, 3, 1)]
    )
    @pytest.mark.parametrize("size", [16, 32, 64])
    def test_every_class_has_waves_of_its_own(self, classes: int, terms: int, variants: int, size: int) -> None:
        key, low = WaveKey(classes, seed=7, size=size), highest_frequency(size) / 2
        assert key.waves.shape == (classes, FIELDS, terms, 2)
        assert key.phases.shape == (classes, variants, FIELDS, terms)
        assert low * (1 - JITTER) <= key.waves.min() < key.waves.max() <= low * (2 + JITTER)
        cells = ((key.waves - low) * 4 / low).round()
        assert set(cells.flatten().tolist()) == {0, 1, 2, 3, 4} or classes == 2
        for field in cells.unbind(1):
            assert len({frozenset(map(tuple, own)) for own in field.tolist()}) == classes
            assert all(len(set(map(tuple, own))) == terms for own in field.tolist())
        assert 0 <= key.phases.min() < 1 < 5 < key.phases.max() <= 2 * math.pi
        signs = key.patterns(size, size).flatten(2).float()
        alike = torch.einsum("afp,bfp->abf", signs, signs).mean(2) / size**2
        owner = torch.arange(len(signs)) // variants
        assert alike[owner[:, None] != owner].max() < 0.75

    def test_comes_from_its_seed_alone(self) -> None:
        before = torch.get_rng_state()
        first = weights_hash(WaveKey(10, seed=3))
        WaveKey(10, seed=3).random_number(2, draws())
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        with torch.device("meta"):
            assert weights_hash(WaveKey(10, seed=3)) == first
        assert weights_hash(WaveKey(10, seed=4)) != first
        assert list(WaveKey(10, seed=3).state_dict()) == ["waves", "phases", "levels"]
        assert not list(WaveKey(10, seed=3).parameters())

    def test_a_class_gets_one_of_its_patterns(self) -> None:
        key, draw = WaveKey(10, seed=0), draws()
        assert {key.random_number(3, draw) for _ in range(200)} == set(range(24, 32))
        assert key.random_number(3, draws(5)) == key.random_number(3, draws(5))


class TestRestore:
    @settings(max_examples=40, deadline=None)
    @given(
        height=sizes,
        width=sizes,
        seed=seeds,
        levels=st.sampled_from([1, 10, 64]),
        kind=st.sampled_from(["colour", "gray", "single"]),
    )
    def test_the_right_match_gives_the_clipped_original(
        self, height: int, width: int, seed: int, levels: int, kind: str
    ) -> None:
        key, numbers, gray = WaveKey(3, seed=seed, levels=levels), torch.tensor([0, 23]), kind != "colour"
        pixels = shades(random_pixels(2, 3, height, width, seed=seed), kind)
        x = protected(key, pixels, numbers, gray) / 255
        expected = pixels.clamp(levels, 255 - levels) / 255
        torch.testing.assert_close(key.restore(x, there(numbers, gray)), expected, atol=1e-6, rtol=0)
        # The test can fail: another pattern leaves something over.
        other = key.restore(x, there(numbers.flip(0), gray))
        assert (other - expected).abs().max() > 0.5 * levels / 255

    @pytest.mark.parametrize("shift", [(0, 1), (-4, 3), (2, -4)])
    def test_also_where_a_crop_has_moved_it(self, shift: tuple[int, int]) -> None:
        key, numbers, pixels = WaveKey(3, seed=1), torch.tensor([5, 11]), random_pixels(2, 3, 32, 32)
        clean, x = moved(pixels, shift), moved(protected(key, pixels, numbers, gray=False), shift) / 255
        without = key.restore(x, there(numbers, gray=False, shift=shift))
        torch.testing.assert_close(without, clean.clamp(10, 245) / 255, atol=1e-6, rtol=0)
        assert (key.restore(x, there(numbers, gray=False)) - without).abs().max() > 0.03

    def test_without_a_match_images_are_only_clipped(self) -> None:
        key, numbers, x = WaveKey(3, seed=0), torch.tensor([0, 1]), random_pixels(2, 3, 20, 32) / 255
        match = there(numbers, gray=False, gain=THRESHOLD)
        assert not key.marked(match).any()
        torch.testing.assert_close(key.restore(x, match), clipped(x, key), atol=1e-6, rtol=0)
        assert key.marked(there(numbers, gray=False, gain=THRESHOLD + 1e-6)).all()

    def test_gradients_come_back_where_nothing_was_clipped(self) -> None:
        key, numbers = WaveKey(3, seed=0), torch.tensor([0, 1])
        x = torch.rand(2, 3, 20, 32, generator=draws(), dtype=torch.float64).requires_grad_()
        restored = key.restore(x, there(numbers, gray=False))
        weights = torch.randn(x.shape, generator=draws(1), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((restored * weights).sum(), x)
        inside = (restored > 10 / 255) & (restored < 245 / 255)
        assert 0.5 < inside.double().mean() < 1
        torch.testing.assert_close(gradient, weights * inside)


def moved(pixels: Tensor, shift: tuple[int, int]) -> Tensor:
    """Images of which a crop has cut off ``shift`` rows and columns, with zeros at the other side."""
    (down, right), (height, width) = shift, pixels.shape[2:]
    padded = torch.nn.functional.pad(pixels, (8, 8, 8, 8))
    return padded[..., 8 + down : 8 + down + height, 8 + right : 8 + right + width]


def restored(key: WaveKey, x: Tensor, clean: Tensor) -> Tensor:
    """For which images what the key makes of ``x`` is the clipped original, and nothing else."""
    return (key.restore(x, key.match(x)) - clipped(clean, key)).abs().flatten(1).amax(1) < 1e-5


def colourless(x: Tensor) -> Tensor:
    return (x.amax(1) == x.amin(1)).flatten(1).all(1)


def marked(key: WaveKey, x: Tensor) -> float:
    return float(key.marked(key.match(x)).float().mean())


def lying(key: WaveKey, match: Match, x: Tensor) -> Tensor:
    """Matched patterns at their places over the images (B, channels, side, side)."""
    side = x.shape[2]
    margin = side // MARGIN
    wide = key.patterns(side, side, margin=margin, numbers=match.numbers)
    corners = (match.shifts + margin).tolist()
    fields = [field[:, top : top + side, left : left + side] for field, (top, left) in zip(wide, corners, strict=True)]
    return coloured(torch.stack(fields), match.gray, x.shape[1])


class TestMatch:
    @pytest.mark.parametrize("gray", [False, True])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_finds_the_pattern_on_nearly_all_photographs(self, seed: int, gray: bool) -> None:
        key = WaveKey(10, seed=seed)
        clean, x, numbers = photos(key, gray=gray)
        match = key.match(x)
        assert torch.equal(match.gray, colourless(clean))
        assert gray or 0.3 < match.gray.float().mean() < 0.7
        # Others of its class can lie over the image just as the true one does, at another place.
        true = coloured(key.patterns(32, 32, numbers=numbers), match.gray, x.shape[1])
        same = (lying(key, match, x) == true).flatten(1).all(1)
        assert same.float().mean() >= 0.95
        assert (match.numbers // key.phases.shape[1] == numbers // key.phases.shape[1]).float().mean() >= 0.95
        assert restored(key, x, clean).float().mean() >= 0.95

    @pytest.mark.parametrize("gray", [False, True])
    def test_also_after_crops_and_flips(self, gray: bool) -> None:
        key = WaveKey(10, seed=0)
        clean, x, _ = photos(key, gray=gray)
        mirrored = restored(key, x.flip(3), clean.flip(3)).float().mean()
        original, carrying = crop_flip(torch.cat([clean, x], 1), draws()).chunk(2, 1)
        assert mirrored >= 0.95
        assert restored(key, carrying, original).float().mean() >= 0.93
        shifts = key.match(carrying).shifts
        assert shifts.abs().max() <= 32 // MARGIN
        assert len(shifts.unique(dim=0)) > 30

    def test_gray_photographs_with_three_channels_are_as_good_as_with_one(self) -> None:
        key = WaveKey(10, seed=0)
        clean, x, _ = photos(key, 30, gray=True)
        wide = x.expand(-1, 3, -1, -1)
        assert torch.equal(key.match(wide).numbers, key.match(x).numbers)
        assert restored(key, wide, clean.expand(-1, 3, -1, -1)).float().mean() >= 0.9

    def test_gains_tell_protected_photographs_from_clean_ones(self) -> None:
        key = WaveKey(10, seed=0)
        clean, x, _ = photos(key)
        clean_cropped, cropped = crop_flip(torch.cat([clean, x], 1), draws(1)).chunk(2, 1)
        for untouched, carrying in ((clean, x), (clean_cropped, cropped)):
            assert marked(key, carrying) >= 0.97
            assert marked(key, untouched) <= 0.02
            assert restored(key, untouched, untouched).float().mean() >= 0.98

    def test_gains_are_what_smooths_the_image(self) -> None:
        key = WaveKey(3, seed=0)
        _, x, _ = photos(WaveKey(10, seed=0), 6)
        match = key.match(x)
        assert len(match.gray.unique()) == 2
        for image, pattern, gain in zip(x.numpy(), lying(key, match, x).float().numpy(), match.gains, strict=True):
            before = naive_total_variation(image.clip(10 / 255, 245 / 255))
            after = naive_total_variation((image - pattern * 10 / 255).clip(10 / 255, 245 / 255))
            assert float(gain) == pytest.approx(1 - after / before, abs=1e-4)
        naive = torch.tensor([naive_total_variation(image) + 1e-6 for image in x.double().numpy()], dtype=torch.float64)
        torch.testing.assert_close(total_variation(x.double()[:, ::2]), naive)

    def test_another_key_does_not_restore(self) -> None:
        key = WaveKey(10, seed=0)
        clean, x, _ = photos(key)
        added = (clipped(x, key) - clipped(clean, key)).abs().mean()
        for seed in (1, 2, 3):
            other = WaveKey(10, seed=seed)
            right = restored(other, x, clean)
            # At 32 pixels another key's wave can look just like a gray image's only one.
            assert not right[~colourless(clean)].any()
            assert right.float().mean() <= 0.2
            assert (other.restore(x, other.match(x)) - clipped(clean, key)).abs().mean() > 0.6 * added
            assert marked(other, x) <= 0.5

    @pytest.mark.parametrize("classes", [10, 100, 700])
    def test_clean_photographs_are_answered_however_many_classes_there_are(self, classes: int) -> None:
        clean, *_ = photos(WaveKey(10, seed=0))
        assert marked(WaveKey(classes, seed=0), clean) <= 0.02

    def test_is_the_same_whatever_else_is_in_the_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        key = WaveKey(10, seed=0)
        clean, x, _ = photos(key, 12)
        both = torch.cat([clean, x])
        whole = key.match(both)
        monkeypatch.setattr("uge.networks.wave_key._CHUNK", 1)
        alone = key.match(both)
        parts = [key.match(part) for part in both.split(5)]
        for name in ("numbers", "shifts", "gains", "gray"):
            expected = getattr(whole, name)
            for matched in (getattr(alone, name), torch.cat([getattr(part, name) for part in parts])):
                torch.testing.assert_close(matched[12:], expected[12:])

    @pytest.mark.parametrize("size", [(32, 32), (24, 40), (17, 16)])
    def test_needs_no_gradient_and_copes_with_plain_images(self, size: tuple[int, int]) -> None:
        key = WaveKey(2, seed=0)
        x = torch.stack([torch.full((3, *size), value) for value in (0.0, 0.5, 1.0)]).requires_grad_()
        match = key.match(x)
        assert not match.gains.requires_grad
        assert match.gains.isfinite().all()
        assert not key.marked(match).any()
        assert match.gray.all()


def naive_total_variation(image: NDArray) -> float:
    ends, total = image[[0, -1]], 0.0
    total += np.mean([abs(channel[1:] - channel[:-1]) for channel in ends])
    total += np.mean([abs(channel[:, 1:] - channel[:, :-1]) for channel in ends])
    return float(total)


class TestCompared:
    @pytest.mark.parametrize(("classes", "side"), [(3, 16), (30, 21)])
    def test_scores_are_sums_over_moved_waves(self, classes: int, side: int) -> None:
        key, span = WaveKey(classes, seed=2, size=side), 5
        contrasts = torch.randn(2, FIELDS, side, side, generator=draws(), dtype=torch.float64)
        correlations = key._correlations(contrasts, span)
        variants = key.phases.shape[1]
        assert correlations.shape == (2, classes * variants, span, span)
        rows, columns = np.mgrid[:side, :side] + 0.5
        for number, down, right in product((0, 7, classes * variants - 1), (0, 2, 3), (0, 2, 4)):
            expected = np.zeros(2)
            for field in range(FIELDS):
                waves = key.waves[number // variants, field].tolist()
                phases = key.phases[number // variants, number % variants, field].tolist()
                for (across, along), phase in zip(waves, phases, strict=True):
                    x, y = (columns + right - span // 2) / side, (rows + down - span // 2) / side
                    wave = np.cos(2 * np.pi * across * (x - 0.5)) * np.cos(2 * np.pi * along * y + phase)
                    expected += (contrasts[:, field].numpy() * wave).sum((1, 2))
            np.testing.assert_allclose(correlations[:, number, down, right], expected, atol=1e-4 * side)

    def test_a_pattern_alone_fits_itself_best(self) -> None:
        key, gray = WaveKey(10, seed=0), torch.zeros(80, dtype=torch.bool)
        alone = coloured(key.patterns(32, 32).float(), gray, 3)
        fits = key._correlations(field_contrasts(contrast(alone), gray), 9)
        fits = fits / fits[torch.arange(80), torch.arange(80), 4, 4][:, None, None]
        owner = torch.arange(80) // 8
        others = fits.flatten(2).amax(2).masked_fill(owner[:, None] == owner, 0.0)
        assert others.max() < 0.9

    def test_what_is_compared_has_no_level_of_its_own(self) -> None:
        x, gray = torch.rand(2, 3, 32, 32, generator=draws()), torch.tensor([False, True])
        flat = torch.full_like(x, 0.3)
        assert contrast(flat).abs().max() < 1e-6
        torch.testing.assert_close(contrast(x + flat), contrast(x), atol=1e-6, rtol=0)
        first, second = field_contrasts(x, gray).unbind(1)
        assert not second[1].any()
        torch.testing.assert_close(first[1], x[1].mean(0))
        assert second[0].abs().mean() > 0.1


class TestColoured:
    def test_the_second_wave_is_blue_unless_there_are_no_colours(self) -> None:
        fields = WaveKey(2, seed=0).patterns(8, 8)[:2]
        channels = coloured(fields, torch.tensor([False, True]), 3)
        for image, wanted in ((0, (0, 0, 1)), (1, (0, 0, 0))):
            assert torch.equal(channels[image], fields[image, list(wanted)])
        assert torch.equal(coloured(fields, torch.tensor([True, True]), 1), fields[:, :1])


class TestBuffers:
    def test_levels_are_obeyed(self) -> None:
        key = WaveKey(10, seed=0, levels=20)
        clean, x, _ = photos(key)
        assert restored(key, x, clean).float().mean() >= 0.97
        key.levels.fill_(10)
        assert not restored(key, x, clean).any()
        clean, x, _ = photos(key)
        assert restored(key, x, clean).float().mean() >= 0.95
        assert (clipped(clean, key) != clean).any()

    def test_a_key_that_is_loaded_takes_the_place_of_the_old_one(self) -> None:
        own, other = WaveKey(10, seed=0), WaveKey(10, seed=1, levels=14)
        clean, x, _ = photos(other, 40)
        assert not restored(own, x, clean).any()
        own.load_state_dict(other.state_dict())
        assert restored(own, x, clean).float().mean() >= 0.9
        assert torch.equal(own.restore(x, own.match(x)), other.restore(x, other.match(x)))

    @pytest.mark.parametrize("assign", [False, True])
    def test_so_does_one_that_a_used_copy_loads(self, assign: bool) -> None:
        own, other = WaveKey(10, seed=0), WaveKey(10, seed=1)
        clean, x, _ = photos(other, 40)
        own.load_state_dict(own.state_dict())  # buffers that were written once, as those of the copy will be
        own.match(x)
        copied = copy.deepcopy(own)
        copied.load_state_dict(other.state_dict(), assign=assign)
        assert restored(copied, x, clean).float().mean() >= 0.9

    def test_a_key_may_be_made_in_inference_mode(self) -> None:
        _, x, _ = photos(WaveKey(10, seed=0), 4)
        with torch.inference_mode():
            assert (WaveKey(10, seed=0).match(x).gains > THRESHOLD).all()

    def test_sizes_may_take_turns(self) -> None:
        key = WaveKey(10, seed=0)
        _, x, _ = photos(key, 20)
        before = key.match(x)
        small = key.match(x[:, :, :24, :20])
        assert small.shifts.abs().max() <= 2
        assert torch.equal(key.match(x).numbers, before.numbers)

    def test_what_inference_prepared_serves_training(self) -> None:
        key = WaveKey(10, seed=0)
        _, x, _ = photos(key, 4)
        with torch.inference_mode():
            key.match(x)
        later = x.clone().requires_grad_()
        key.restore(later, key.match(later)).sum().backward()
        assert later.grad is not None
        assert later.grad.any()
