from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uge.budget import Budget
from uge.data import images as images_module
from uge.data.images import ImageSet, Strips, whole
from uge.data.store import Records, load_pixels
from uge.methods import apply
from uge.methods.apply import PlacedDelta, place_delta, protected_images
from uge.methods.uge.generator import Generator, delta_records
from uge.runtime import Runtime

MakeImages = Callable[..., ImageSet]


@pytest.fixture
def generator() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(3, Budget(), width=4, blocks=1)
        torch.nn.init.normal_(generator.decoder[-1].weight)
    return generator


def changes(images: ImageSet, generator: Generator, runtime: Runtime, delta: Records | None = None) -> list[NDArray]:
    pairs = list(protected_images(images, generator, runtime, delta=delta))
    assert len(pairs) == len(images)
    for number, (clean, protected) in enumerate(pairs):
        np.testing.assert_array_equal(clean, images.read(number))
        assert protected.dtype == np.uint8
        assert Budget.measure(clean, protected) <= generator.budget.levels
    return [protected.astype(int) - clean for clean, protected in pairs]


def filled(images: ImageSet, size: int, levels: torch.Tensor, budget: Budget | None = None) -> Records:
    store = load_pixels(images, size=size)
    delta = delta_records(store, budget or Budget())
    delta.write(torch.arange(len(images)), levels.expand(len(images), *store.pixels.shape))
    return delta


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_the_generator_alone(channels: int, precision: str, make_images: MakeImages, generator: Generator) -> None:
    images, runtime = make_images(count=5, size=(18, 13), channels=channels), Runtime.create("cpu", precision)
    colours = 1 if channels <= 2 else 3
    for change in changes(images, generator.train(), runtime):
        assert change.shape == (18, 13, channels)
        assert np.abs(change[..., :colours]).max() > 0
        assert not change[..., colours:].any()
    assert not generator.training


def test_it_is_the_generator_that_perturbs(make_images: MakeImages, generator: Generator, runtime: Runtime) -> None:
    images = make_images(count=3)
    clean = [images.read(number) for number in range(3)]
    levels = list(generator.eval().levels(clean))
    for change, own, pixels in zip(changes(images, generator, runtime), levels, clean, strict=True):
        np.testing.assert_array_equal(change, (pixels.astype(int) + own).clip(0, 255) - pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_refined_perturbations_at_their_own_size(
    channels: int, make_images: MakeImages, generator: Generator, runtime: Runtime
) -> None:
    images = make_images(count=4, channels=channels)
    colours = 1 if channels == 1 else 3
    levels = torch.randint(-10, 11, (4, colours, 16, 16), generator=torch.Generator().manual_seed(0))
    for number, change in enumerate(changes(images, generator, runtime, filled(images, 16, levels))):
        clean = images.read(number)[..., :colours].astype(int)
        wanted = (clean + levels[number].permute(1, 2, 0).numpy()).clip(0, 255) - clean
        np.testing.assert_array_equal(change[..., :colours], wanted)
        assert not change[..., colours:].any()


def test_refined_perturbations_land_on_the_centre_square(
    make_images: MakeImages, generator: Generator, runtime: Runtime
) -> None:
    images = make_images(count=2, size=(32, 44))
    images = replace(images, reader=type(images.reader)([np.full((32, 44, 3), 128, np.uint8)] * 2))
    left_right = torch.cat([torch.full((3, 16, 8), -6), torch.full((3, 16, 8), 6)], 2)
    around = changes(images, generator, runtime)
    for change, alone in zip(changes(images, generator, runtime, filled(images, 16, left_right)), around, strict=True):
        np.testing.assert_array_equal(change[:, 6:20], -6)
        np.testing.assert_array_equal(change[:, 24:38], 6)
        np.testing.assert_array_equal(change[:, :6], alone[:, :6])
        np.testing.assert_array_equal(change[:, 38:], alone[:, 38:])


@pytest.mark.parametrize("size", [16, 32])
def test_a_budget_of_more_than_a_byte(size: int, make_images: MakeImages, runtime: Runtime) -> None:
    images, generator = make_images(count=1, size=size), Generator(3, Budget(0.8), width=4, blocks=1)
    images = replace(images, reader=type(images.reader)([np.full((size, size, 3), 20, np.uint8)]))
    (change,) = changes(images, generator, runtime, filled(images, 16, torch.tensor(200), generator.budget))
    np.testing.assert_array_equal(change, 200)


def test_gray_images_in_a_colour_set_stay_gray(make_images: MakeImages, generator: Generator, runtime: Runtime) -> None:
    colour, gray = make_images(count=1), make_images(count=1, channels=1)
    arrays = [colour.read(0), np.full_like(gray.read(0), 128)]
    images = make_images(count=2)
    images = replace(images, reader=type(images.reader)(arrays))
    levels = torch.tensor([3, 6, 9])[:, None, None]
    moved = changes(images, generator, runtime, filled(images, 16, levels))
    assert [change.shape for change in moved] == [(16, 16, 3), (16, 16, 1)]
    np.testing.assert_array_equal(moved[1], 6)


def test_chunks_do_not_show(
    make_images: MakeImages, generator: Generator, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(count=7)
    levels = torch.randint(-10, 11, (7, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    whole = changes(images, generator, runtime, filled(images, 16, levels))
    for name, value in (("_CHUNK", 3), ("_CHUNK_BYTES", 2 * 768)):
        monkeypatch.setattr(apply, name, value)
        for a, b in zip(whole, changes(images, generator, runtime, filled(images, 16, levels)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(36, 64, 3), (64, 36, 3), (20, 90, 1), (50, 50, 4)])
@pytest.mark.parametrize("size", [16, 20, 31])
def test_beyond_the_centre_square_a_perturbation_is_mirrored(shape: tuple[int, int, int], size: int) -> None:
    delta = torch.randint(-8, 9, (3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    placed = place_delta(delta, np.zeros(shape, np.uint8), np.zeros(0, np.int8))
    side = min(shape[:2])
    top, left = ((length - side) // 2 for length in shape[:2])
    square = placed[top : top + side, left : left + side]
    np.testing.assert_array_equal(square, place_delta(delta, square.astype(np.uint8), np.zeros(0, np.int8)))
    around = [(before, length - side - before) for before, length in zip((top, left), shape[:2], strict=True)]
    np.testing.assert_array_equal(placed, np.pad(square, (*around, (0, 0)), "symmetric"))


@pytest.mark.parametrize("shape", [(48, 80, 3), (80, 48, 1), (64, 64, 4)])
@pytest.mark.parametrize("size", [16, 48, 64])
def test_rows_of_a_placed_perturbation_do_not_depend_on_their_number(
    shape: tuple[int, int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = torch.randint(-8, 9, (3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    base = np.random.default_rng(0).integers(-8, 9, shape).astype(np.int8)
    small = place_delta(delta, np.zeros(shape, np.uint8), base)
    monkeypatch.setattr(images_module, "LARGE", 1)
    placed = PlacedDelta(delta, shape)
    whole_image = placed.rows(0, shape[0], base)
    for count in (1, 7, 30):
        tops = range(0, shape[0], count)
        parts = [placed.rows(top, min(top + count, shape[0]), base[top : top + count]) for top in tops]
        np.testing.assert_array_equal(np.concatenate(parts), whole_image)
    # Torch adds in another order, and where the sum is half a level, it may round to the other side.
    assert (whole_image != small).mean() < 1e-3
    assert np.abs(whole_image.astype(int) - small).max() <= 1


@pytest.mark.parametrize("refined", [False, True])
def test_large_images_get_the_perturbation_of_small_ones(
    refined: bool, make_images: MakeImages, generator: Generator, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(count=3, size=(32, 44))
    levels = torch.randint(-10, 11, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    delta = filled(images, 32, levels) if refined else None
    wanted = list(protected_images(images, generator, runtime, delta=delta))
    monkeypatch.setattr(images_module, "LARGE", 1)
    monkeypatch.setattr(images_module, "_STRIP", 5 * 44)
    pairs = protected_images(images, generator, runtime, delta=delta)
    for (clean, protected), small in zip(pairs, wanted, strict=True):
        assert isinstance(protected, Strips)
        np.testing.assert_array_equal(whole(clean), small[0])
        np.testing.assert_array_equal(whole(protected), small[1])
        clean.close()
        with pytest.raises(ValueError, match="closed"):
            next(iter(clean))
