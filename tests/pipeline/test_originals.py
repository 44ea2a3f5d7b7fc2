import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uge.data import ImageSet, load_images
from uge.data.store import load_pixels
from uge.errors import DataError
from uge.pipeline.originals import aligned, clean_images, find_originals, hashes, labelled_images, pairs

MakeImages = Callable[..., ImageSet]


def write(images: ImageSet, root: Path, *, names: str = "{}", suffix: str = ".png", change: int = 0) -> Path:
    """An image folder with one sub-folder per class; ``names`` renames files, so that ids differ."""
    for sample in images:
        folder = root / images.classes[sample.label]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(int(sample.id)).integers(-change, change + 1, sample.pixels.shape)
        pixels = (sample.pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / folder / f"{names.format(sample.id)}{suffix}")
    return root


@pytest.fixture
def images(make_images: MakeImages) -> ImageSet:
    return make_images(count=24, classes=3)


class TestAligned:
    def test_labels_follow_the_names(self, images: ImageSet) -> None:
        turned = dataclasses.replace(images, classes=images.classes[::-1], labels=2 - images.labels)
        found = aligned(turned, images.classes, "test images")
        assert found.classes == images.classes
        assert np.array_equal(found.labels, images.labels)

    def test_other_classes(self, images: ImageSet) -> None:
        other = dataclasses.replace(images, classes=("a", "b", "c"))
        with pytest.raises(DataError, match=r"the originals have the classes .* but the published folder has"):
            aligned(other, images.classes, "originals")

    def test_clean_test_images_of_another_order(self, images: ImageSet, tmp_path: Path) -> None:
        source = write(images, tmp_path / "test")
        turned = dataclasses.replace(images, classes=images.classes[::-1], labels=2 - images.labels)
        found = clean_images(str(source), turned, None)
        named = [found.classes[label] for label in found.labels]
        assert named == [name.split("/")[0] for name in found.ids]


class TestOriginals:
    def test_by_id(self, images: ImageSet, tmp_path: Path) -> None:
        clean = write(images, tmp_path / "clean")
        published = load_images(write(images, tmp_path / "published", change=10)).subset([5, 3, 8, 20])
        found = find_originals(str(clean), str(clean), published)
        assert found.images is not None
        assert list(found.images.ids) == list(published.ids)
        assert found.label_agreement == 1

    def test_by_order_where_ids_differ(self, images: ImageSet, tmp_path: Path) -> None:
        clean = write(images, tmp_path / "clean")
        published = load_images(write(images, tmp_path / "published", names="x{}", change=20))
        found = find_originals("unused", str(clean), published)
        assert found.images is not None
        assert found.label_agreement is None
        stores = {"clean": load_pixels(found.images), "protected": load_pixels(published)}
        for label, original, protected in pairs(found.images, published, 100, **stores):
            assert np.abs(original.astype(int) - protected).max() <= 20
            assert 0 <= label < 3

    def test_other_images_are_no_originals(self, images: ImageSet, make_images: MakeImages, tmp_path: Path) -> None:
        published = load_images(write(images, tmp_path / "published", names="x{}"))
        for number, other in enumerate(
            (make_images(count=24, seed=9), images.subset(range(20)), make_images(count=24, size=18))
        ):
            clean = write(other, tmp_path / f"other{number}")
            with pytest.raises(DataError, match="has not the originals of the published images: expected 24 images"):
                find_originals("unused", str(clean), published)

    @pytest.mark.parametrize(("displaced", "matches"), [(7, True), (8, False)])
    def test_by_order_more_than_half_must_look_alike(
        self, displaced: int, matches: bool, make_images: MakeImages, tmp_path: Path
    ) -> None:
        images = make_images(count=16, classes=1)
        both = tmp_path / "both"
        write(images, both / "train")
        write(images, both / "test")
        rows = np.r_[np.roll(np.arange(displaced), 1), displaced:16]
        ids = [f"x{number}" for number in range(16)]
        published = dataclasses.replace(images.subset(rows.tolist()), ids=ids)
        assert (find_originals(str(both), None, published).images is not None) == matches

    def test_shuffled_labels_are_noticed(self, images: ImageSet, tmp_path: Path) -> None:
        both = tmp_path / "both"
        write(images, both / "train")
        write(images, both / "test")
        published = load_images(both)
        shuffled = dataclasses.replace(published, labels=np.roll(published.labels, 4))
        found = find_originals(str(both), None, shuffled)
        assert found.images is None
        assert found.label_agreement == pytest.approx((shuffled.labels == published.labels).mean())

    def test_a_test_source_without_a_train_split_has_none(self, images: ImageSet, tmp_path: Path) -> None:
        test = write(images, tmp_path / "test")
        assert find_originals(str(test), None, images).images is None


@pytest.mark.parametrize(("channels", "exact"), [(3, True), (1, False), (4, False)])
def test_pairs_are_spread_over_the_set(make_images: MakeImages, channels: int, exact: bool) -> None:
    """And what a store holds as it was read is not decoded again."""
    originals, published = make_images(count=24, channels=channels), make_images(count=24, seed=1)
    clean, protected = (load_pixels(one, channels=3) for one in (originals, published))
    assert (clean.exact, protected.exact) == (exact, True)
    expected = [[one.read(row) for one in (originals, published)] for row in (0, 11, 23)]
    unreadable = [dataclasses.replace(one, rows=one.rows + 99) for one in (originals, published)]
    found = list(pairs(unreadable[0] if exact else originals, unreadable[1], 3, clean=clean, protected=protected))
    assert [label for label, _, _ in found] == published.labels[[0, 11, 23]].tolist()
    for pair, both in zip(found, expected, strict=True):
        for pixels, wanted in zip(pair[1:], both, strict=True):
            np.testing.assert_array_equal(pixels, wanted)


def test_hashes_tell_images_apart(make_store: Callable[..., object]) -> None:
    one, other = (list(hashes(make_store(seed=seed))) for seed in (0, 1))
    assert len(set(one)) == len(one)
    assert not set(one) & set(other)
    assert list(hashes(make_store())) == one


class TestLabelled:
    @pytest.fixture
    def source(self, make_images: MakeImages, tmp_path: Path) -> str:
        return str(write(make_images(count=90, classes=3, seed=4), tmp_path / "test"))

    def test_ten_a_class_from_images_that_are_not_measured(self, source: str, images: ImageSet) -> None:
        test = clean_images(source, images, 30)
        few, measured = labelled_images(source, images, test, 0)
        assert np.bincount(few.labels).tolist() == [10, 10, 10]
        assert list(measured.ids) == list(test.ids)
        assert not {*few.ids} & {*test.ids}
        again, other = (labelled_images(source, images, test, seed)[0] for seed in (0, 1))
        assert list(again.ids) == list(few.ids) != list(other.ids)

    def test_where_all_are_measured_they_are_measured_no_more(self, source: str, images: ImageSet) -> None:
        test = clean_images(source, images, None)
        few, measured = labelled_images(source, images, test, 0)
        assert np.bincount(few.labels).tolist() == [10, 10, 10]
        assert sorted([*few.ids, *measured.ids]) == sorted(test.ids)

    def test_a_small_class_gives_half(
        self, images: ImageSet, make_images: MakeImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = str(write(make_images(count=15, classes=3, seed=4), tmp_path / "small"))
        few, measured = labelled_images(source, images, clean_images(source, images, None), 0)
        assert np.bincount(few.labels).tolist() == [2, 2, 2]
        assert len(measured) == 9
        assert "only 2 labelled images for some class, expected 10" in caplog.text

    def test_single_images_are_refused(self, images: ImageSet, make_images: MakeImages, tmp_path: Path) -> None:
        source = str(write(make_images(count=3, classes=3, seed=4), tmp_path / "single"))
        with pytest.raises(DataError, match="give at least two a class"):
            labelled_images(source, images, clean_images(source, images, None), 0)
