"""What can be had of a wave key without it: from one image, and from all images of a class."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from uge.attacks import ATTACKS, Context
from uge.attacks.waves import estimated_patterns, estimated_patterns_out, wave_terms, without_waves
from uge.data import load_images
from uge.data.store import PixelStore, Records
from uge.learning.recipes import Recipe
from uge.networks import WaveKey
from uge.networks.wave_key import coloured
from uge.runtime import Runtime

COUNT = 120


@functools.cache
def photos(channels: int = 3, size: int = 32) -> Tensor:
    """Embedded photographs, uint8."""
    images = load_images("photos").take(COUNT)
    x = torch.from_numpy(np.stack([images.read(row) for row in range(COUNT)])).permute(0, 3, 1, 2)
    return x[:, :channels, :size, :size].contiguous()


def gray(x: Tensor) -> Tensor:
    return x[:, :1].expand(-1, 3, -1, -1).contiguous()


def protected(x: Tensor, key: WaveKey) -> tuple[Tensor, Tensor]:
    """Images with patterns of the key's classes in turn, and which pattern each has."""
    numbers = torch.arange(len(x)) % (len(key.waves) * key.phases.shape[1])
    fields = key.patterns(*x.shape[2:], numbers=numbers)
    alone = (x.amax(1) == x.amin(1)).flatten(1).all(1)
    return (x + key.levels * coloured(fields, alone, x.shape[1]).short()).clamp(0, 255).to(torch.uint8), numbers


def errors(found: Tensor, clean: Tensor) -> Tensor:
    """Mean distance of each image from its clipped original, in levels."""
    return (found.float() - clean.clamp(10, 245).float()).abs().mean((1, 2, 3))


def store(pixels: Tensor, labels: Tensor, classes: int) -> PixelStore:
    records = Records(len(pixels), tuple(pixels.shape[1:]), torch.uint8)
    records.write(torch.arange(len(pixels)), pixels)
    return PixelStore(records, labels, tuple(map(str, range(classes))))


def make_context(pixels: Tensor, labels: Tensor, classes: int) -> Context:
    """Of published images; all others are their negatives."""
    published, other = store(pixels, labels, classes), store(255 - pixels, labels, classes)
    network, runtime = nn.Identity(), Runtime.create("cpu", "fp32")
    return Context(network, published, other, Recipe(), 0, runtime, lambda: network, clean=lambda: other)


def estimated(pixels: Tensor, labels: Tensor | None = None, classes: int = 1) -> Tensor:
    """The published images after ``pattern-estimation``; the others must be clipped only."""
    own, rows = torch.zeros(len(pixels), dtype=torch.int64) if labels is None else labels, torch.arange(len(pixels))
    context = make_context(pixels, own, classes)
    found = estimated_patterns_out(context)
    for images in (found.test, found.clean()):
        assert torch.equal(images.pixels.read(rows), (255 - pixels).clamp(10, 245))
    assert torch.equal(context.store.pixels.read(rows), pixels)
    assert torch.equal(found.store.labels, own)
    return found.store.pixels.read(rows)


class TestWaveRemoval:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_photographs_come_back(self, seed: int) -> None:
        clean = photos()
        published, _ = protected(clean, WaveKey(10, seed=seed))
        assert errors(published, clean).mean() > 9
        after = errors(without_waves(published), clean)
        assert after.mean() < 0.3
        assert (after < 1).float().mean() > 0.9

    def test_patterns_of_two_waves(self) -> None:
        clean = photos()[:40]
        published, _ = protected(clean, WaveKey(60, seed=0))
        one, two = (errors(without_waves(published, terms), clean) for terms in (1, 2))
        assert two.mean() < 1
        assert two.mean() < one.mean() / 4

    @pytest.mark.parametrize("classes", [2, 25, 26, 60])
    def test_classes_say_how_many_waves_a_pattern_is_of(self, classes: int) -> None:
        assert wave_terms(classes) == WaveKey(classes, seed=1).waves.shape[2] == (1 if classes < 26 else 2)
        prepare, rows = ATTACKS["wave-removal"].prepare, torch.arange(8)
        assert prepare is not None
        published, _ = protected(photos()[:8], WaveKey(classes, seed=1))
        found = prepare(make_context(published, rows % classes, classes))
        assert torch.equal(found.store.pixels.read(rows), without_waves(published, wave_terms(classes)))
        assert torch.equal(found.test.pixels.read(rows), without_waves(255 - published, wave_terms(classes)))

    def test_clean_photographs_are_clipped_only(self) -> None:
        after = errors(without_waves(photos()), photos())
        assert (after == 0).float().mean() > 0.95

    @pytest.mark.parametrize("form", ["gray", "one channel", "small", "odd"])
    def test_other_images(self, form: str) -> None:
        clean = {"gray": gray(photos()), "one channel": photos(1), "small": photos(3, 24), "odd": photos(3, 29)}[form]
        published, _ = protected(clean, WaveKey(10, seed=0, size=clean.shape[2]))
        found = without_waves(published)
        assert (found.shape, found.dtype) == (clean.shape, torch.uint8)
        assert errors(found, clean).mean() < errors(published, clean).mean() / 20
        if form == "gray":
            assert torch.equal(found, gray(found))

    def test_images_do_not_depend_on_their_batch(self) -> None:
        published, _ = protected(photos()[:8], WaveKey(10, seed=0))
        assert torch.equal(without_waves(published)[5:6], without_waves(published[5:6]))


class TestPatternEstimation:
    def test_patterns_of_a_class_are_recovered(self) -> None:
        key = WaveKey(1, seed=0)
        published, numbers = protected(photos(), key)
        found = estimated_patterns(published, torch.Generator().manual_seed(0))
        true = key.patterns(32, 32).float()
        assert set(found.unique().tolist()) == {-1.0, 1.0}
        agreement = ((found[:, None] * true).mean((3, 4)) / 2 + 0.5).amin(2)  # patterns found × true ones
        assert (agreement.amax(0) > 0.95).float().mean() > 0.7
        assert len(numbers.unique()) == len(true) == 8

    @pytest.mark.parametrize("form", ["colour", "gray", "one channel"])
    def test_most_photographs_come_back(self, form: str) -> None:
        clean = {"colour": photos(), "gray": gray(photos()), "one channel": photos(1)}[form]
        published, _ = protected(clean, WaveKey(1, seed=0))
        found = estimated(published)
        after = errors(found, clean)
        assert (after < 1).float().mean() > 0.9
        assert after.mean() < errors(published, clean).mean() / 20
        assert torch.equal(found, estimated(published))
        if form == "gray":
            assert torch.equal(found, gray(found))

    def test_it_needs_no_waves(self) -> None:
        """Patterns of any signs that a class shares are found alike."""
        clean = photos()
        cells = torch.randint(0, 2, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
        cells[:, 1] = cells[:, 0]
        patterns = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
        published = (clean + 10 * patterns[torch.arange(COUNT) % 4]).clamp(0, 255).to(torch.uint8)
        assert errors(estimated(published), clean).mean() < errors(published, clean).mean() / 20

    def test_unprotected_photographs_are_clipped_only(self) -> None:
        assert (errors(estimated(photos()), photos()) == 0).float().mean() > 0.85

    @pytest.mark.parametrize(("count", "channels", "size"), [(1, 3, 16), (4, 1, 17), (6, 3, 16), (15, 1, 32)])
    def test_classes_of_few_images(self, count: int, channels: int, size: int) -> None:
        """The first class has all but one of the images, the second one, the third none."""
        pixels = photos(channels, size)[: count + 1]
        labels = torch.tensor([0] * count + [1])
        found = estimated(pixels, labels, classes=3)
        assert (found.shape, found.dtype) == (pixels.shape, torch.uint8)
        assert found.min() >= 10
        assert found.max() <= 245
        assert torch.equal(found[-1], pixels[-1].clamp(10, 245))
