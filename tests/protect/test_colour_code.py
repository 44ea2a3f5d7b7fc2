"""What a colour code adds: within the budget, along the axes, by image id and class, and nothing else."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
from uge.errors import UsageError, WeightsError
from uge.networks import ColourKey, build, save_weights, weights_hash
from uge.protect import apply
from uge.protect.apply import load_generator, load_perturber, protected_images, save_perturber
from uge.protect.colour_code import ColourCode, shared_key
from uge.protect.generator import Generator, Levels
from uge.runtime import Runtime, stream

KEY = ColourKey(5, seed=0)
MakeImages = Callable[..., ImageSet]


def code(levels: int = 10, key: ColourKey = KEY) -> ColourCode:
    return ColourCode(key, Budget(levels / 255), [f"class {number}" for number in range(len(key.waves))])


def random_images(count: int, *shape: int, seed: int = 0) -> list[Pixels]:
    """Pixels of all values, black and white more often."""
    wide = np.random.default_rng(seed).integers(-100, 356, (count, *shape))
    return list(wide.clip(0, 255).astype(np.uint8))


def one(made: ColourCode, image: Pixels, label: int = 0, name: str = "a") -> Levels:
    (found,) = made.levels([image], [label], [name])
    return found


def directions(label: int, height: int, width: int, name: str = "a") -> Levels:
    """What one level adds to an image of this id."""
    shift = KEY.random_shift(stream(0, weights_hash(KEY), name))
    found: Levels = KEY.directions(torch.tensor([label]), shift[None], height, width)[0].permute(1, 2, 0).int().numpy()
    return found


class TestBound:
    @settings(max_examples=40, deadline=None)
    @given(
        height=st.integers(1, 50),
        width=st.integers(1, 50),
        levels=st.sampled_from([1, 2, 7, 8, 10, 127, 128, 204, 255]),
        channels=st.sampled_from([3, 4]),
        label=st.integers(0, 4),
    )
    def test_levels_are_as_many_as_budget_and_pixel_allow(
        self, height: int, width: int, levels: int, channels: int, label: int
    ) -> None:
        image, made = random_images(1, height, width, channels)[0], code(levels)
        change = one(made, image, label).astype(int)
        assert change.shape == image.shape
        assert not change[..., 3:].any()
        old, new = image.astype(int), image + change
        assert 0 <= new.min() <= new.max() <= 255
        assert np.abs(change).max() <= levels
        np.testing.assert_array_equal(made.budget.add(image, change.astype(np.int16)), new)
        steps = directions(label, height, width)
        for row in range(height):
            for column in range(width):
                colours = old[row, column, :3]
                room = min(*colours, *(255 - colours))
                size = min(levels, (room + levels) // 2, 127)
                middle = [min(max(value, size), 255 - size) for value in colours]
                assert new[row, column, :3].tolist() == (middle + size * steps[row, column]).tolist()

    @pytest.mark.parametrize(("levels", "dtype"), [(10, np.int8), (127, np.int8), (128, np.int16), (255, np.int16)])
    def test_the_whole_budget_is_used_where_there_is_room(self, levels: int, dtype: type) -> None:
        margin = min(levels, 127)
        image = random_images(1, 40, 32, 3)[0].clip(margin, 255 - margin)
        found = one(code(levels), image, 3)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, margin * directions(3, 40, 32))

    def test_classes_differ_along_the_axes_only(self) -> None:
        """What a pixel near black or white is moved by to make room is the same for every class."""
        image = random_images(1, 32, 32, 3)[0]
        images = [image + one(code(), image, label).astype(int) for label in range(5)]
        for other in images[1:]:
            difference = np.abs(other - images[0])
            assert (difference == difference[..., :1]).all()
            assert set(difference.ravel().tolist()) <= {0, *range(10, 21)}
            assert {0, 20} < set(difference.ravel().tolist())

    def test_axes_are_of_two_colours_against_the_third(self) -> None:
        found = one(code(), np.full((32, 32, 3), 128, np.uint8)).astype(int)
        assert set(np.abs(found).ravel().tolist()) == {10}
        assert set(np.abs(found.sum(2)).ravel().tolist()) == {10}


@pytest.mark.parametrize("kind", [1, 2])
def test_gray_images_are_left_alone_with_one_warning(kind: int, caplog: pytest.LogCaptureFixture) -> None:
    gray, colour = random_images(6, 9, 14, kind), random_images(6, 9, 14, 3)
    mixed = [image for pair in zip(gray, colour, strict=True) for image in pair]
    made = code()
    with caplog.at_level(logging.WARNING):
        found = list(made.levels(mixed, [0] * 12, [str(number) for number in range(12)]))
        list(made.levels(gray, [0] * 6, ["a"] * 6))
    for number, change in enumerate(found):
        assert change.shape == mixed[number].shape
        assert change.any() == bool(number % 2)
    assert len(caplog.records) == 1
    assert "gray images are left as they are" in caplog.text


class TestIds:
    def test_an_image_gets_the_same_whatever_comes_with_it(self) -> None:
        images = [*random_images(3, 20, 20, 3), *random_images(2, 33, 17, 4), *random_images(2, 20, 20, 3, seed=1)]
        labels, ids = [0, 1, 2, 3, 4, 0, 1], [f"train/{number}" for number in range(7)]
        together = list(code().levels(images, labels, ids))
        order = [4, 6, 0, 3, 1, 5, 2]
        shuffled = list(code().levels(*([part[place] for place in order] for part in (images, labels, ids))))
        for place, number in enumerate(order):
            alone = one(code(), images[number], labels[number], ids[number])
            for found in (shuffled[place], alone):
                assert found.tobytes() == together[number].tobytes()

    def test_nor_at_another_precision(self) -> None:
        image = random_images(1, 21, 40, 3)[0]
        with Runtime.create("cpu", "bf16-mixed").autocast():
            found = one(code(), image)
        assert found.tobytes() == one(code(), image).tobytes()

    def test_ids_and_keys_move_the_pattern_and_classes_change_signs(self) -> None:
        image = np.full((32, 32, 3), 128, np.uint8)
        base = one(code(), image)
        axes = {name: pattern(one(code(), image, name=name)) for name in "abcdef"}
        assert len({found.tobytes() for found in axes.values()}) > 3
        assert np.array_equal(axes["a"], pattern(base))
        other_class = one(code(), image, label=1)
        assert np.array_equal(pattern(other_class), pattern(base))
        assert np.array_equal(np.abs(other_class), np.abs(base))
        assert 0.1 < (other_class == base).mean() < 0.9
        assert not np.array_equal(pattern(one(code(key=ColourKey(5, seed=1)), image)), pattern(base))

    def test_equal_keys_give_equal_bytes(self) -> None:
        image = random_images(1, 24, 40, 3)[0]
        assert one(code(key=ColourKey(5, seed=0)), image).tobytes() == one(code(), image).tobytes()


def pattern(levels: Levels) -> Levels:
    """Which colour of each pixel goes against the other two."""
    signs = np.sign(levels.astype(int))
    return np.argmax(signs != np.sign(signs.sum(2, keepdims=True)), axis=2)


@pytest.mark.parametrize("shape", [(500, 300, 3), (7, 200, 4), (1, 1, 3), (1, 37, 3), (64, 64, 3)])
def test_cells_and_waves_grow_with_the_image(shape: tuple[int, int, int]) -> None:
    image, side = np.full(shape, 128, np.uint8), min(shape[:2])
    found, small = one(code(), image), one(code(), np.full((32, 32, 3), 128, np.uint8))
    assert found.shape == shape
    top, left = ((length - side) // 2 for length in shape[:2])
    units = np.arange(side) * 32 // side
    centre = pattern(found[..., :3])[top : top + side, left : left + side]
    assert np.array_equal(centre, pattern(small)[units[:, None], units[None]])
    assert (np.abs(found[..., :3]) == 10).all()


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        save_perturber(tmp_path / "generator.safetensors", code(8))
        return tmp_path / "generator.safetensors"

    def test_comes_back_as_saved(self, path: Path) -> None:
        found, image = load_perturber(path), random_images(1, 24, 40, 3)[0]
        assert isinstance(found, ColourCode)
        assert (found.budget.levels, found.training, found.channels) == (8, False, 3)
        assert weights_hash(found.key) == weights_hash(KEY)
        assert one(found, image).tobytes() == one(code(8), image).tobytes()
        before = path.read_bytes()
        save_perturber(path, found)
        assert path.read_bytes() == before

    def test_other_kinds_are_refused(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="holds a colour code, where a trained generator was expected"):
            load_generator(path)
        save_perturber(tmp_path / "trained", Generator(3, Budget(), width=4, blocks=1))
        assert isinstance(load_perturber(tmp_path / "trained"), Generator)
        save_weights(tmp_path / "key", build("keyed:lenet", 5, seed=0))
        with pytest.raises(WeightsError, match="holds no generator of this project"):
            load_perturber(tmp_path / "key")

    @pytest.mark.parametrize("damage", ["tile", "waves", "phases", "rows", "terms", "options"])
    def test_damaged_files_are_refused(self, damage: str, path: Path) -> None:
        tensors, options = load_file(path), '{"rho": 0.04}'
        if damage == "rows":
            tensors["waves"] = tensors["waves"][:2].clone()
        elif damage == "terms":
            tensors["waves"] = tensors["waves"].repeat(1, 2, 1)
        elif damage == "options":
            options = "{}"
        else:
            del tensors[damage]
        save_file(tensors, path, {"kind": "uge-colour-code", "options": options})
        with pytest.raises(WeightsError, match="damaged"):
            load_perturber(path)


class TestImageSets:
    @pytest.mark.parametrize("channels", [3, 4])
    def test_it_is_the_code_that_perturbs(self, channels: int, make_images: MakeImages, runtime: Runtime) -> None:
        images = make_images(count=7, size=(18, 13), channels=channels)
        for number, (clean, protected) in enumerate(protected_images(images, code(), runtime)):
            own = one(code(), clean, int(images.labels[number]), images.ids[number])
            np.testing.assert_array_equal(clean, images.read(number))
            np.testing.assert_array_equal(protected, clean + own.astype(int))

    def test_chunks_do_not_show(
        self, make_images: MakeImages, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = make_images(count=7)
        whole = [protected.tobytes() for _, protected in protected_images(images, code(), runtime)]
        monkeypatch.setattr(apply, "_CHUNK", 3)
        assert [protected.tobytes() for _, protected in protected_images(images, code(), runtime)] == whole

    def test_a_class_without_waves_is_refused(self, make_images: MakeImages, runtime: Runtime) -> None:
        images = make_images(count=12, classes=6)
        with pytest.raises(UsageError, match=f"got '{images.classes[5]}'"):
            list(protected_images(images, code(), runtime))

    def test_classes_are_known_by_name(self, make_images: MakeImages, runtime: Runtime) -> None:
        images = make_images(count=6, classes=3)
        made = ColourCode(ColourKey(3, seed=0), Budget(), images.classes)
        renamed = replace(images, classes=images.classes[::-1], labels=2 - images.labels)
        for (_, one), (_, other) in zip(
            protected_images(images, made, runtime), protected_images(renamed, made, runtime), strict=True
        ):
            assert np.array_equal(one, other)
        assert made.numbers(images.classes[1:]) == [1, 2]
        with pytest.raises(UsageError, match="3 classes, got 2 names"):
            ColourCode(ColourKey(3, seed=0), Budget(), ["a", "b"])

    def test_gray_ones_among_colours(self, make_images: MakeImages, runtime: Runtime) -> None:
        arrays = [*random_images(1, 16, 16, 3), *random_images(1, 16, 16, 1)]
        images = make_images(count=2)
        images = replace(images, reader=type(images.reader)(arrays))
        changed = [not np.array_equal(*pair) for pair in protected_images(images, code(), runtime)]
        assert changed == [True, False]


def networks(*names_and_seeds: tuple[str, int]) -> Sequence[torch.nn.Module]:
    return [build(name, 5, seed=seed) for name, seed in names_and_seeds]


def test_authorised_networks_share_one_key() -> None:
    same = networks(("keyed:lenet", 0), ("keyed:cnn", 0))
    assert weights_hash(shared_key(same)) == weights_hash(same[1].key)
    for others in (networks(("keyed:lenet", 0), ("keyed:lenet", 1)), networks(("keyed:lenet", 0), ("lenet", 0)), []):
        with pytest.raises(UsageError, match="needs authorised networks with one colour key"):
            shared_key(others)
