"""What a wave code adds: one pattern of the class, within the budget, by image id and class, and nothing else."""

import json
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
from uge.data import images as images_module
from uge.data.images import ImageSet, Pixels
from uge.errors import UsageError, WeightsError
from uge.methods import apply
from uge.methods.apply import load_generator, load_perturber, protected_images, save_perturber
from uge.methods.keyed.wave_code import WaveCode, shared_key
from uge.methods.uge.generator import Generator, Levels
from uge.networks import WaveKey, build, save_weights, weights_hash
from uge.networks.wave_key import MOST_LEVELS
from uge.runtime import Runtime, stream

KEY = WaveKey(5, seed=0)
MakeImages = Callable[..., ImageSet]


def code(levels: int = 10, key: WaveKey = KEY) -> WaveCode:
    return WaveCode(key, Budget(levels / 255), [f"class {number}" for number in range(len(key.waves))])


def random_images(count: int, *shape: int, seed: int = 0) -> list[Pixels]:
    """Pixels of all values, black and white more often."""
    wide = np.random.default_rng(seed).integers(-100, 356, (count, *shape))
    return list(wide.clip(0, 255).astype(np.uint8))


def one(made: WaveCode, image: Pixels, label: int = 0, name: str = "a") -> Levels:
    (found,) = made.levels([image], [label], [name])
    return found


def drawn(key: WaveKey, label: int, name: str = "a") -> int:
    """Which pattern an image of this id gets."""
    return key.random_number(label, stream(0, weights_hash(key), name))


def gray_like(image: Pixels) -> Pixels:
    """The image with equal colours; alpha stays."""
    found = image.copy()
    found[..., :3] = image[..., :1]
    return found


class TestBound:
    @settings(max_examples=40, deadline=None)
    @given(
        height=st.integers(1, 50),
        width=st.integers(1, 50),
        levels=st.sampled_from([1, 2, 10, MOST_LEVELS]),
        more=st.sampled_from([0, 1, 150]),
        channels=st.integers(1, 4),
        gray=st.booleans(),
        label=st.integers(0, 4),
    )
    def test_every_pixel_moves_by_the_keys_levels_as_far_as_there_is_room(
        self, height: int, width: int, levels: int, more: int, channels: int, gray: bool, label: int
    ) -> None:
        key = WaveKey(5, seed=0, levels=levels)
        (image,), made = random_images(1, height, width, channels), code(levels + more, key)
        image = gray_like(image) if gray and channels > 2 else image
        change = one(made, image, label)
        assert (change.shape, change.dtype) == (image.shape, np.int8)
        colours = 1 if channels < 3 else 3
        assert not change[..., colours:].any()
        old, new = image.astype(int), image + change.astype(int)
        assert np.abs(new - old).max() <= levels
        np.testing.assert_array_equal(made.budget.add(image, change), new)
        first, second = key.patterns(height, width)[drawn(key, label)].numpy().astype(int)
        colourless = bool((old[..., :colours] == old[..., :1]).all())
        fields = [first, first, first if colourless else second][:colours]
        for channel, field in enumerate(fields):
            np.testing.assert_array_equal(new[..., channel], (old[..., channel] + levels * field).clip(0, 255))

    @pytest.mark.parametrize("channels", [3, 4])
    def test_gray_images_stay_gray(self, channels: int) -> None:
        image = gray_like(random_images(1, 20, 24, channels)[0])
        change = one(code(), image)
        assert change.any()
        assert (change[..., :3] == change[..., :1]).all()
        np.testing.assert_array_equal(change[..., :1], one(code(), image[..., :1].copy()))
        image[0, 0, 2] ^= 64  # one blue pixel makes it an image with colours
        assert (one(code(), image)[..., 2] != change[..., 2]).mean() > 0.1

    def test_the_whole_strength_is_used_where_there_is_room(self) -> None:
        (image,) = random_images(1, 40, 32, 3)
        found = one(code(), image.clip(10, 245), 3)
        assert set(np.abs(found).ravel().tolist()) == {10}
        assert 0.3 < (found > 0).mean() < 0.7

    @pytest.mark.parametrize(("levels", "allowed"), [(10, 9), (2, 1), (64, 63)])
    def test_patterns_stronger_than_the_budget_are_refused(self, levels: int, allowed: int) -> None:
        words = f"are {levels} levels strong, but rho .* allows only {allowed}; give --rho {levels}/255 or more"
        with pytest.raises(UsageError, match=words):
            code(allowed, WaveKey(5, seed=0, levels=levels))
        assert code(levels, WaveKey(5, seed=0, levels=levels)).budget.levels == levels

    @pytest.mark.parametrize("levels", [-1, 0, MOST_LEVELS + 1, 200])
    def test_so_are_keys_of_no_sensible_strength(self, levels: int) -> None:
        with pytest.raises(UsageError, match=f"must be 1 to {MOST_LEVELS} levels strong, got {levels}"):
            code(255, WaveKey(5, seed=0, levels=levels))


class TestIds:
    def test_an_image_gets_the_same_whatever_comes_with_it(self) -> None:
        images = [*random_images(3, 20, 20, 3), *random_images(2, 33, 17, 4), *random_images(2, 20, 20, 3, seed=1)]
        images[2] = gray_like(images[2])
        labels, ids = [0, 1, 2, 3, 4, 0, 1], [f"train/{number}" for number in range(7)]
        together = list(code().levels(images, labels, ids))
        order = [4, 6, 0, 3, 1, 5, 2]
        shuffled = list(code().levels(*([part[place] for place in order] for part in (images, labels, ids))))
        for place, number in enumerate(order):
            alone = one(code(), images[number], labels[number], ids[number])
            for found in (shuffled[place], alone):
                assert found.tobytes() == together[number].tobytes()

    def test_nor_does_it_matter_how_many_go_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, ids = random_images(5, 20, 20, 3), list("abcde")
        together = list(code().levels(images, [0, 1, 2, 3, 4], ids))
        monkeypatch.setattr("uge.methods.keyed.wave_code._PIXELS", 800)
        np.testing.assert_array_equal(list(code().levels(images, [0, 1, 2, 3, 4], ids)), together)

    def test_nor_at_another_precision(self) -> None:
        image, made = random_images(1, 61, 80, 3)[0], code(key=WaveKey(30, seed=0))  # two waves, whose sum is rounded
        with Runtime.create("cpu", "bf16-mixed").autocast():
            found = one(made, image)
        assert found.tobytes() == one(made, image).tobytes()

    def test_ids_choose_among_the_patterns_of_a_class(self) -> None:
        image, names = np.full((32, 32, 3), 128, np.uint8), [f"image {number}" for number in range(60)]
        image[..., 2], kinds = 100, []
        for label in (0, 1):
            found = {one(code(), image, label, name).tobytes() for name in names}
            patterns = 10 * KEY.patterns(32, 32)[8 * label : 8 * label + 8]
            own = {pattern[[0, 0, 1]].permute(1, 2, 0).contiguous().numpy().tobytes() for pattern in patterns}
            assert found <= own
            assert len(found) > 4
            kinds.append(found)
        assert not kinds[0] & kinds[1]
        counts = np.bincount([drawn(KEY, 2, name) for name in names])
        assert (counts[16:24] > 0).sum() > 5

    def test_other_keys_give_other_waves_and_other_draws(self) -> None:
        image, other = np.full((32, 32, 3), 128, np.uint8), WaveKey(5, seed=1)
        assert (one(code(), image) != one(code(key=other), image)).mean() > 0.2
        names = [f"image {number}" for number in range(20)]
        assert [drawn(KEY, 0, name) for name in names] != [drawn(other, 0, name) for name in names]

    def test_equal_keys_give_equal_bytes(self) -> None:
        image = random_images(1, 24, 40, 3)[0]
        assert one(code(key=WaveKey(5, seed=0)), image).tobytes() == one(code(), image).tobytes()


@pytest.mark.parametrize("shape", [(96, 160, 3), (480, 288, 1), (96, 96, 4)])
def test_waves_grow_with_the_image(shape: tuple[int, int, int]) -> None:
    found, small = one(code(), np.full(shape, 128, np.uint8)), one(code(), np.full((32, 32, shape[2]), 128, np.uint8))
    side = min(shape[:2])
    top, left = ((length - side) // 2 for length in shape[:2])
    step = side // 32
    middles = found[top : top + side, left : left + side][step // 2 :: step, step // 2 :: step]
    assert (middles != small).mean() < 0.01
    assert (np.abs(found[..., :3][..., : min(shape[2], 3)]) == 10).all()


DAMAGES = ["waves", "phases", "levels", "rows", "none", "terms", "variants", "weak", "strong", "names", "bare", "rho"]


class TestFiles:
    key = WaveKey(5, seed=0, levels=8)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        save_perturber(tmp_path / "generator.safetensors", code(8, self.key))
        return tmp_path / "generator.safetensors"

    def test_comes_back_as_saved(self, path: Path) -> None:
        found, image = load_perturber(path), random_images(1, 24, 40, 3)[0]
        assert isinstance(found, WaveCode)
        assert (found.budget.levels, found.training, found.channels) == (8, False, 3)
        assert weights_hash(found.key) == weights_hash(self.key)
        assert one(found, image).tobytes() == one(code(8, self.key), image).tobytes()
        before = path.read_bytes()
        save_perturber(path, found)
        assert path.read_bytes() == before

    def test_other_kinds_are_refused(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="holds a wave code, where a trained generator was expected"):
            load_generator(path)
        save_perturber(tmp_path / "trained", Generator(3, Budget(), width=4, blocks=1))
        assert isinstance(load_perturber(tmp_path / "trained"), Generator)
        save_weights(tmp_path / "key", build("keyed:lenet", 5, seed=0))
        with pytest.raises(WeightsError, match="holds no generator of this project"):
            load_perturber(tmp_path / "key")

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_files_are_refused(self, damage: str, path: Path) -> None:
        tensors, options = load_file(path), {"rho": 8 / 255, "classes": list(code().classes)}
        assert isinstance(self.saved(tensors, options, path), WaveCode)
        if damage == "rows":
            tensors["waves"] = tensors["waves"][:2].clone()
        elif damage == "none":
            tensors = {name: tensor[:0] if tensor.dim() else tensor for name, tensor in tensors.items()}
            options["classes"] = []
        elif damage == "terms":
            tensors["waves"] = tensors["waves"].repeat(1, 1, 2, 1)
        elif damage == "variants":
            tensors["phases"] = tensors["phases"][:, :3].clone()
        elif damage in ("weak", "strong"):
            tensors["levels"] = torch.tensor(0 if damage == "weak" else 9)
        elif damage == "names":
            options["classes"] = ["a", "b"]
        elif damage == "rho":
            options["rho"] = 0
        elif damage == "bare":
            del options["classes"]
        else:
            del tensors[damage]
        with pytest.raises(WeightsError, match="damaged"):
            self.saved(tensors, options, path)

    def saved(self, tensors: dict[str, torch.Tensor], options: dict[str, object], path: Path) -> object:
        save_file(tensors, path, {"kind": "uge-wave-code", "options": json.dumps(options)})
        return load_perturber(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nor_may_numbers_be_infinite(self, value: float, path: Path) -> None:
        tensors = load_file(path)
        tensors["phases"][0, 0, 0, 0] = value
        with pytest.raises(WeightsError, match="holds NaN or infinity"):
            self.saved(tensors, {"rho": 8 / 255, "classes": list(code().classes)}, path)


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
        made = WaveCode(WaveKey(3, seed=0), Budget(), images.classes)
        renamed = replace(images, classes=images.classes[::-1], labels=2 - images.labels)
        for (_, one), (_, other) in zip(
            protected_images(images, made, runtime), protected_images(renamed, made, runtime), strict=True
        ):
            assert np.array_equal(one, other)
        assert made.numbers(images.classes[1:]) == [1, 2]
        with pytest.raises(UsageError, match="3 classes, got 2 names"):
            WaveCode(WaveKey(3, seed=0), Budget(), ["a", "b"])

    def test_gray_ones_among_colours(self, make_images: MakeImages, runtime: Runtime) -> None:
        arrays = [*random_images(1, 16, 16, 3), *random_images(1, 16, 16, 1), gray_like(random_images(1, 16, 16, 3)[0])]
        images = make_images(count=3)
        images = replace(images, reader=type(images.reader)(arrays))
        for (clean, protected), channels in zip(protected_images(images, code(), runtime), (3, 1, 3), strict=True):
            assert protected.shape == (16, 16, channels)
            assert not np.array_equal(clean, protected)
            assert bool((protected == protected[..., :1]).all()) == bool((clean == clean[..., :1]).all())


def networks(*names_and_seeds: tuple[str, int]) -> Sequence[torch.nn.Module]:
    return [build(name, 5, seed=seed) for name, seed in names_and_seeds]


def test_authorised_networks_share_one_key() -> None:
    same = networks(("keyed:lenet", 0), ("keyed:cnn", 0))
    assert weights_hash(shared_key(same)) == weights_hash(same[1].key)
    for others in (networks(("keyed:lenet", 0), ("keyed:lenet", 1)), networks(("keyed:lenet", 0), ("lenet", 0)), []):
        with pytest.raises(UsageError, match="needs authorised networks with one wave key"):
            shared_key(others)


@pytest.mark.parametrize("classes", [5, 100, 700])  # Patterns of one, two and three waves.
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_strips_of_an_image_get_its_perturbation(
    classes: int, rows: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = code(key=WaveKey(classes, seed=1))
    monkeypatch.setattr(images_module, "_STRIP", rows * 70)
    colourful = random_images(1, 50, 70, channels)[0]
    late = gray_like(colourful) if channels > 2 else colourful
    late[-1, -1, :1] ^= 4  # Colour, or not, is a matter of the whole image.
    for image in (colourful, late, gray_like(colourful) if channels > 2 else colourful):
        strips = list(made.level_strips(image, 3, "a"))
        assert max(map(len, strips)) == min(rows, 50)
        np.testing.assert_array_equal(np.concatenate(strips), one(made, image, 3))
