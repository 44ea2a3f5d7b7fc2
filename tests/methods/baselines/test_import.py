"""Noise from other people's programs: read as it was meant, refused with a reason, never unpickled."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from uge.budget import Budget
from uge.data.images import ImageSet
from uge.errors import DataError, UsageError
from uge.methods.baselines.foreign import Unit, is_noise, open_noise
from uge.networks import build, save_weights

MakeImages = Callable[..., ImageSet]


def noise(*shape: int, top: int = 8) -> NDArray[np.int8]:
    """Whole levels between -top and top, both taken."""
    levels = np.random.default_rng(0).integers(-top, top + 1, shape)
    levels.flat[:2] = (top, -top)
    return levels.astype(np.int8)


def middle(images: ImageSet) -> ImageSet:
    """The same set, gray all over, so that nothing is cut off at 0 or 255."""
    arrays = [np.full_like(images.read(number), 128) for number in range(len(images))]
    return replace(images, reader=type(images.reader)(arrays))


def changes(images: ImageSet, place: str | Path, budget: Budget | None = None) -> NDArray[np.int64]:
    opened = open_noise(place, images)
    pairs = list(opened.pairs(images, budget or Budget(opened.largest / 255)))
    assert len(pairs) == len(images)
    return np.stack([protected.astype(int) - clean for clean, protected in pairs])


def write(place: Path, array: NDArray[np.generic]) -> Path:
    """The array in the format that the file's ending names."""
    if place.suffix == ".npy":
        np.save(place, array)
    elif place.suffix == ".npz":
        np.savez_compressed(place, array)
    else:
        save_file({"delta": torch.from_numpy(np.ascontiguousarray(array))}, place)
    return place


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("kind", ["int8", "int16", "float levels", "float unit", "float16 unit"])
def test_every_format_and_type_gives_the_same_levels(
    ending: str, kind: str, make_images: MakeImages, tmp_path: Path
) -> None:
    images, levels = middle(make_images(count=5)), noise(5, 16, 16, 3)
    stored = {
        "int8": levels,
        "int16": levels.astype(np.int16),
        "float levels": levels.astype(np.float32),
        "float unit": levels / 255,
        "float16 unit": (levels / 255).astype(np.float16),
    }[kind]
    place = write(tmp_path / f"noise.{ending}", stored)
    assert is_noise(place)
    np.testing.assert_array_equal(changes(images, place), levels)
    assert open_noise(place, images).unit == ("[0, 1]" if "unit" in kind else "levels")


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(4, 9),
    count=st.integers(4, 9),
    channels=st.sampled_from([1, 3]),
    first=st.booleans(),
    data=st.data(),
)
def test_layouts_and_scopes(
    size: int, count: int, channels: int, first: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = np.array([*range(3), *(data.draw(st.integers(0, 2)) for _ in range(count - 3))])
    images = _images(count, size, labels)
    by_class = data.draw(st.booleans())
    levels = noise(3 if by_class else count, size, size, channels)
    stored = levels.transpose(0, 3, 1, 2) if first else levels
    moved = changes(images, write(tmp_path_factory.mktemp("noise") / "a.npy", stored))
    wanted = levels[labels] if by_class else levels
    np.testing.assert_array_equal(moved, np.broadcast_to(wanted, (count, size, size, 3)))


def _images(count: int, size: int, labels: NDArray[np.int64]) -> ImageSet:
    class Gray:
        def read(self, row: int) -> NDArray[np.uint8]:
            return np.full((size, size, 3), 128, np.uint8)

    ids = [str(number) for number in range(count)]
    return ImageSet("gray", "train", ("a", "b", "c"), labels, ids, Gray(), np.arange(count))


def test_named_arrays(make_images: MakeImages, tmp_path: Path) -> None:
    images, levels = middle(make_images(count=5)), noise(5, 16, 16, 3)
    np.savez(tmp_path / "a.npz", other=levels[:2], mine=levels)
    save_file({"x.mine": torch.from_numpy(levels), "other": torch.zeros(1)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(changes(images, f"{tmp_path}/a.npz:mine"), levels)
    np.testing.assert_array_equal(changes(images, f"{tmp_path}/a.safetensors:x.mine"), levels)
    for name in ("a.npz:mine", "a.safetensors:x.mine"):
        assert is_noise(f"{tmp_path}/{name}")


def test_fortran_order_and_bfloat16(make_images: MakeImages, tmp_path: Path) -> None:
    images, levels = middle(make_images(count=5)), noise(5, 16, 16, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(levels))
    np.testing.assert_array_equal(changes(images, tmp_path / "a.npy"), levels)
    save_file({"delta": torch.from_numpy(levels).bfloat16()}, tmp_path / "b.safetensors")
    np.testing.assert_array_equal(changes(images, tmp_path / "b.safetensors"), levels)


@pytest.mark.parametrize("top", [1.0, 1.0000002, 1.01, 1.9])
def test_floats_with_two_readings_need_a_unit(top: float, make_images: MakeImages, tmp_path: Path) -> None:
    images = middle(make_images(count=5))
    array = np.zeros((5, 16, 16, 3))
    array[2, 3, 4, 1] = -top
    place = write(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match="say which by --unit 1 or --unit 255"):
        open_noise(place, images)
    assert open_noise(place, images, unit="levels").largest == round(top)
    if top < 1.001:
        assert open_noise(place, images, unit="[0, 1]").largest == 255


def test_the_unit_follows_from_all_values(make_images: MakeImages, tmp_path: Path) -> None:
    images = middle(make_images(count=5))
    values = np.random.default_rng(0).normal(0, 0.03, (5, 16, 16, 3))
    assert open_noise(write(tmp_path / "a.npy", values), images).unit == "[0, 1]"
    assert open_noise(write(tmp_path / "b.npy", values * 255), images).unit == "levels"
    values[0, 0, 0, 0] = 2.5  # An outlier alone makes no levels of the others.
    with pytest.raises(UsageError, match="--unit"):
        open_noise(write(tmp_path / "c.npy", values), images)


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32", "levels", "normalised"])
def test_whole_images_are_no_noise(kind: str, make_images: MakeImages, tmp_path: Path) -> None:
    images = make_images(count=5)
    clean = np.stack([images.read(number) for number in range(5)]).astype(np.int16)
    changed = (clean + noise(5, 16, 16, 3)).clip(0, 255)
    stored = {
        "uint8": changed.astype(np.uint8),
        "int16": changed,
        "float32": (changed / 255).astype(np.float32),
        "levels": changed.astype(np.float32),
        "normalised": changed / 127.5 - 1,
    }[kind]
    place = write(tmp_path / "a.npy", stored)
    unit: Unit | None = "[0, 1]" if kind == "normalised" else None
    with pytest.raises(UsageError, match="got uint8" if kind == "uint8" else "seems to hold whole images"):
        open_noise(place, images, unit=unit)
    if kind == "normalised":
        with pytest.raises(UsageError, match="holds negative values, so no images"):
            open_noise(place, images, perturbed=True)
        return
    opened = open_noise(place, images, perturbed=True)
    assert opened.largest == np.abs(changed - clean).max()
    for number, (_, published) in enumerate(opened.pairs(images, Budget(opened.largest / 255))):
        np.testing.assert_array_equal(published, changed[number])


def test_perturbed_images_in_another_order_are_refused(make_images: MakeImages, tmp_path: Path) -> None:
    images = make_images(count=5)
    stored = np.stack([images.read(number) for number in (1, 2, 3, 4, 0)])
    with pytest.raises(UsageError, match="do not look like those of the source at the same places"):
        open_noise(write(tmp_path / "a.npy", stored), images, perturbed=True)


def test_rows_with_ids_land_on_the_images_of_their_ids(make_images: MakeImages, tmp_path: Path) -> None:
    images, levels = middle(make_images(count=5)), noise(7, 16, 16, 3)
    order = [3, 0, 4, 2, 1]
    names = [*(images.ids[number] for number in order), "more", "another"]
    np.savez(tmp_path / "a.npz", noise=levels, ids=names)
    moved = changes(images, tmp_path / "a.npz")
    np.testing.assert_array_equal(moved[order], levels[:5])
    np.savez(tmp_path / "b.npz", noise=levels[1:], ids=names[1:])
    with pytest.raises(UsageError, match=rf"lack 1 of 5 images, such as '{images.ids[3]}'"):
        open_noise(tmp_path / "b.npz", images)


def test_noise_for_all_images_serves_the_first_ones(make_images: MakeImages, tmp_path: Path) -> None:
    images, levels = middle(make_images(count=5)), noise(5, 16, 16, 3)
    place = write(tmp_path / "a.npy", levels)
    opened = open_noise(place, images.take(4), of=5)
    moved = [protected.astype(int) - clean for clean, protected in opened.pairs(images.take(4), Budget(8 / 255))]
    np.testing.assert_array_equal(moved, levels[:4])


def test_a_budget_clips(make_images: MakeImages, tmp_path: Path) -> None:
    images, levels = middle(make_images(count=5)), noise(5, 16, 16, 3)
    moved = changes(images, write(tmp_path / "a.npy", levels), Budget(3 / 255))
    np.testing.assert_array_equal(moved, levels.clip(-3, 3))


def test_noise_of_another_size_lands_on_the_centre_square_and_is_mirrored_beyond(
    make_images: MakeImages, tmp_path: Path
) -> None:
    images = middle(make_images(count=5, size=(32, 44)))
    levels = np.full((5, 16, 16, 3), 6, np.int8)
    levels[:, :, :8] = -6
    moved = changes(images, write(tmp_path / "a.npy", levels))
    assert (moved[:, :, 6:20] == -6).all()
    assert (moved[:, :, 24:38] == 6).all()
    assert (moved[:, :, :6] == -6).all()
    assert (moved[:, :, 38:] == 6).all()


def test_oblong_noise_for_oblong_images(make_images: MakeImages, tmp_path: Path) -> None:
    images, levels = middle(make_images(count=5, size=(9, 14))), noise(5, 9, 14, 3)
    np.testing.assert_array_equal(changes(images, write(tmp_path / "a.npy", levels)), levels)


def test_alpha_stays_and_gray_gets_the_mean(make_images: MakeImages, tmp_path: Path) -> None:
    levels = np.zeros((5, 16, 16, 3), np.int8) + np.array([3, 6, 9], np.int8)
    place = write(tmp_path / "a.npy", levels)
    assert (changes(middle(make_images(count=5, channels=4)), place) == [3, 6, 9, 0]).all()
    assert (changes(middle(make_images(count=5, channels=1)), place) == 6).all()


def test_as_many_images_as_classes(make_images: MakeImages, tmp_path: Path) -> None:
    images = middle(make_images(count=3))
    place = write(tmp_path / "a.npy", noise(3, 16, 16, 3))
    with pytest.raises(UsageError, match="has 3 rows, as many as there are images and classes; give --scope sample or"):
        open_noise(place, images)
    assert open_noise(place, images, "class").scope == "class"
    assert open_noise(place, images, "sample").scope == "sample"


REFUSED = [
    (noise(4, 16, 16, 3), r"has 4 rows, expected 5 \(images\) or 3 \(classes\); give noise for these images"),
    (noise(5, 16, 16), r"must be N×H×W×C or N×C×H×W, got the shape \(5, 16, 16\); reshape it"),
    (noise(5, 16, 16, 2), r"with 1 or 3 channels, got the shape \(5, 16, 16, 2\); reshape it"),
    (noise(5, 3, 16, 16, 3), "must be N×H×W×C or N×C×H×W"),
    (np.zeros((0, 16, 16, 3)), r"got the shape \(0, 16, 16, 3\)"),
    (noise(5, 16, 12, 3), "has 16×12 pixels, but an image has 16×16; give noise of the images' size, or square noise"),
    (np.full((5, 16, 16, 3), np.nan), "row 0 of the noise in .* holds NaN or infinity; make it again"),
    (np.full((5, 16, 16, 3), -np.inf), "holds NaN or infinity"),
    (np.zeros((5, 16, 16, 3)), "is at most 0, less than one 8-bit level; nothing would change"),
    (np.full((5, 16, 16, 3), 300.0), "changes values by 300, more than 255 levels; scale it"),
    (np.full((5, 16, 16, 3), -32768, np.int16), "changes values by 32768, more than 255 levels"),
    (np.full((5, 16, 16, 3), 3, np.uint8), r"must be floats, int8 or int16, got uint8; convert it \(unsigned types"),
    (np.full((5, 16, 16, 3), 3, np.int64), "must be floats, int8 or int16, got int64"),
    (np.full((5, 16, 16, 3), 1j), "must be floats, int8 or int16, got complex128"),
]


@pytest.mark.parametrize(("array", "words"), REFUSED, ids=[words[:30] for _, words in REFUSED])
def test_refused(array: NDArray[np.generic], words: str, make_images: MakeImages, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        open_noise(write(tmp_path / "a.npy", array), make_images(count=5))


class Trap:
    """Would leave a file if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("trap"),)  # type: ignore[return-value]


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_pickles_are_never_opened(
    ending: str, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = write(tmp_path / f"a.{ending}", np.array([Trap()] * 5, dtype=object))
    with pytest.raises(UsageError, match="must be numbers, got pickled objects"):
        open_noise(place, make_images(count=5))
    assert not Path("trap").exists()


def test_files_that_are_none(make_images: MakeImages, tmp_path: Path) -> None:
    images = make_images(count=5)
    np.savez(tmp_path / "two.npz", a=noise(5, 16, 16, 3), b=noise(3, 16, 16, 3))
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes(write(tmp_path / "a.npy", noise(5, 16, 16, 3)).read_bytes()[:-9])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:-9])
    (tmp_path / "no.safetensors").write_bytes(b"nothing of the kind")
    for name, error, words in (
        ("gone.npy", UsageError, "there is no noise file at .*gone.npy; give a .npy, .npz or .safetensors file"),
        ("a.pt", UsageError, "must be a .npy, .npz or .safetensors file, got .*a.pt; convert it"),
        ("two.npz", UsageError, r"holds 2 arrays \(a, b\); name one, as .*two.npz:NAME"),
        ("two.npz:c", UsageError, "unknown array in .*two.npz 'c'"),
        ("cut.npy", DataError, "cut.npy cannot be read .*; fetch or write it again"),
        ("cut.npz", DataError, "cut.npz cannot be read .*; fetch or write it again"),
        ("no.safetensors", DataError, "no.safetensors cannot be read .*; fetch or write it again"),
    ):
        with pytest.raises(error, match=words):
            open_noise(f"{tmp_path}/{name}", images)


def test_weights_of_this_project_are_no_noise(tmp_path: Path) -> None:
    save_weights(tmp_path / "key.safetensors", build("lenet", 3, seed=0, size=16))
    assert not is_noise(tmp_path / "key.safetensors")
    assert not is_noise(tmp_path / "gone.safetensors")
    assert not is_noise(tmp_path / "images")
