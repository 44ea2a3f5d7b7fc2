from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encode, parquet, picture

from uge.data import has_split, load_images
from uge.data.formats import parquet as module
from uge.errors import DataError, UsageError

IMAGES = [encode(picture(seed)) for seed in range(12)]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def check_pixels(images: Any, first: int = 0) -> None:
    assert all(np.array_equal(sample.pixels, picture(first + i)) for i, sample in enumerate(images))


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for number in (1, 0):
        part = slice(number * 6, number * 6 + 6)
        parquet(
            tmp_path / f"set/data/train-0000{number}-of-00002.parquet", IMAGES[part], [0, 1] * 3, names="ab", rows=4
        )
    parquet(tmp_path / "set/data/validation-00000-of-00001.parquet", IMAGES[:2], [1, 0], names="ab")
    train, test = load_images(tmp_path / "set"), load_images(tmp_path / "set", "test")
    assert (train.name, train.classes, train.labels.tolist()) == ("set", ("a", "b"), [0, 1] * 6)
    assert (train.ids[11], test.ids[1]) == ("train/00000011", "validation/00000001")
    check_pixels(train)
    check_pixels(test)


def test_one_file_is_the_split_it_names(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", IMAGES[:2], [0, 1])
    assert has_split(parquet(tmp_path / "some.parquet", IMAGES[:2], [0, 1]), "train")
    alone = parquet(tmp_path / "test.parquet", IMAGES[:2], [0, 1])
    assert has_split(alone, "test")
    assert not has_split(alone, "train")
    with pytest.raises(DataError, match="there are: test"):
        load_images(alone)


def test_split_folders_and_files_that_name_no_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parquet(tmp_path / "train/0000.parquet", IMAGES[:2], [0, 1])
    parquet(tmp_path / "test/0000.parquet", IMAGES[:2], [0, 1])
    parquet(tmp_path / "other.parquet", IMAGES[:2], [0, 1])
    assert (len(load_images(tmp_path)), len(load_images(tmp_path, "test"))) == (2, 2)
    assert "other.parquet is not used" in caplog.text


@pytest.mark.parametrize("columns", [("img", "labels"), ("image", "fine_label")])
@pytest.mark.parametrize("struct", [True, False])
def test_column_names_and_plain_bytes(tmp_path: Path, columns: tuple[str, str], struct: bool) -> None:
    file = parquet(tmp_path / "x.parquet", IMAGES[:3], [2, 0, 1], columns=columns, struct=struct)
    images = load_images(file)
    assert (images.name, images.classes) == ("x", ("0", "1", "2"))
    check_pixels(images)


def test_text_labels_and_ids(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", IMAGES[:3], ["dog", "cat", "dog"], id=["u", "v", "w"])
    parquet(tmp_path / "test.parquet", IMAGES[:1], pa.array(["dog"]).dictionary_encode(), id=[7])
    train, test = load_images(tmp_path), load_images(tmp_path, "test")
    assert (train.classes, train.labels.tolist(), train.ids) == (("cat", "dog"), [1, 0, 1], ["u", "v", "w"])
    assert (test.labels.tolist(), test.ids) == ([1], ["7"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 5], "names": "ab"}, "label 5 is out of range for 2 classes"),
        ({"labels": [0, -1]}, "label -1 is out of range"),
        ({"labels": [0, None]}, "1 labels are missing"),
        ({"labels": [0.5, 1.0]}, "one whole number or one text"),
        ({"labels": [[0], [0, 1]]}, r"column 'label'\) must be one whole number or one text"),
        ({"labels": ["a", "z"], "names": "ab"}, "label 'z' is no class"),
        ({"names": ["a", "a"]}, "both named 'a'"),
        ({"id": ["u", "u"]}, "ids repeat"),
        ({"columns": ("bild", "label")}, "no image column.*there are: bild, label"),
        ({"columns": ("image", "klasse")}, "no label column"),
        ({"images": ["a.png", "b.png"], "struct": False}, "must hold encoded images as bytes, got string"),
        ({"images": [], "labels": []}, "no image was found"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = {"images": IMAGES[:2], "labels": [0, 1], **change}
    file = parquet(tmp_path / "x.parquet", content.pop("images"), content.pop("labels"), **content)
    with pytest.raises(DataError, match=message):
        load_images(file)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1], ("ab", "ba"), r"train-1\.parquet has other class names than .*train-0\.parquet, or another order"),
        ([0, 1], ("ab", "abc"), "other class names"),
        (["a", "b"], (None, None), "both have numbers or both texts"),
    ],
)
def test_shards_that_contradict_one_another_are_refused(
    tmp_path: Path, labels: list[Any], names: tuple[str | None, str | None], message: str
) -> None:
    parquet(tmp_path / "train-0.parquet", IMAGES[:2], [0, 1], names=names[0])
    parquet(tmp_path / "train-1.parquet", IMAGES[:2], labels, names=names[1])
    with pytest.raises(DataError, match=message):
        load_images(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", [b"damage", None], [0, 1])
    images = load_images(file)
    with pytest.raises(DataError, match=r"image 0 of .*x\.parquet"):
        images.read(0)
    with pytest.raises(DataError, match="no bytes, only a path perhaps"):
        images.read(1)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot read Parquet file .*x\.parquet"):
        load_images(file)
    table = pa.table({"image": IMAGES[:1], "label": [0]}, metadata={"huggingface": "{"})
    pq.write_table(table, file)
    with pytest.raises(DataError, match="'huggingface' metadata"):
        load_images(file)


@pytest.mark.parametrize("limit", [1, 64 << 20])  # a row group in many batches, or as one
def test_memory_holds_few_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", limit)
    noise = [np.random.default_rng(seed).bytes(100_000) for seed in range(80)]
    file = parquet(tmp_path / "x.parquet", noise, [0, 1] * 40, rows=4)
    seen = []
    monkeypatch.setattr(module, "decode", lambda data, name: seen.append(data) or picture(0))
    before = pa.total_allocated_bytes()
    peak = 0
    images = load_images(file)
    for index in range(80):
        images.read(index)
        assert len(images.reader._batches) <= module._KEPT_BATCHES
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert seen == noise
    assert peak < 2_500_000  # of 8,000,000


def test_rows_in_order_read_each_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_images(parquet(tmp_path / "x.parquet", IMAGES, [0, 1] * 6, rows=3))
    started = []
    real = images.reader._iterate
    monkeypatch.setattr(images.reader, "_iterate", lambda group: started.append(group) or real(group))
    check_pixels(images)
    assert started == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [1, 64 << 20])
def test_any_order_many_files_threads_and_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", limit)
    for seed, data in enumerate(IMAGES):
        parquet(tmp_path / f"train-{seed:02d}.parquet", [data, IMAGES[0]], [0, 1])
    images = load_images(tmp_path)
    order = np.random.default_rng(0).permutation(12)
    for i in order:
        assert np.array_equal(images.read(2 * i), picture(i))
    assert images.reader._file.cache_info().currsize <= module._KEPT_FILES
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: images.read(2 * i), [*order, *order]))
    assert all(np.array_equal(pixels, picture(i)) for pixels, i in zip(read, [*order, *order], strict=True))
    assert np.array_equal(pickle.loads(pickle.dumps(images)).read(6), picture(3))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data sets are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "counts", "classes", "channels", "size"),
    [
        ("cifar10", (50_000, 10_000), 10, 3, 32),
        ("mnist", (12_000, 2_000), 10, 1, 28),
        ("tinyimagenet20", (10_000, 1_000), 20, 3, 64),
        ("caltech101_15", (671, 225), 15, 3, None),
    ],
)
def test_real_sets(name: str, counts: tuple[int, int], classes: int, channels: int, size: int | None) -> None:
    train, test = load_images(SHARED / name).check_trainable(), load_images(SHARED / name, "test")
    assert (len(train), len(test), len(train.classes)) == (*counts, classes)
    assert train.classes == test.classes
    few = load_images(SHARED / name, limit=2 * classes)
    if (np.diff(train.labels) >= 0).all():  # sorted by class: a share of each; else the first rows
        assert np.bincount(few.labels, minlength=classes).min() >= 1
    else:
        assert np.array_equal(few.labels, train.labels[: 2 * classes])
    assert (few.channels(), few.native_size()) == (channels, size)
    assert json.dumps(few.ids[0]).startswith('"train/')


def test_files_without_a_split_join_those_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("bus", "car", "train"):
        parquet(tmp_path / f"{name}.parquet", IMAGES[:2], [0, 1])
    assert len(load_images(tmp_path)) == 6
    parquet(tmp_path / "elsewhere/0000.parquet", IMAGES[:2], [0, 1])
    parquet(tmp_path / "test.parquet", IMAGES[:2], [0, 1])
    assert len(load_images(tmp_path)) == 2
    assert "bus.parquet and 1 more files are not used" in caplog.text
    assert "files in the folders elsewhere are not used" in caplog.text


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", IMAGES[:3], [0, 1, 0], columns=("scan", "label"), kind=[1, 0, 1])
    with pytest.raises(DataError, match=r"there are: scan, label, kind\); rename the column, or name it by"):
        load_images(file)
    assert load_images(file, image_column="scan").labels.tolist() == [0, 1, 0]
    images = load_images(file, image_column="scan", label_column="kind")
    assert images.labels.tolist() == [1, 0, 1]
    check_pixels(images)
    with pytest.raises(UsageError, match=r"unknown image column of .* 'scam'; did you mean 'scan'"):
        load_images(file, image_column="scam")


@pytest.mark.parametrize("labels", [[-1, -1], [None, None]])
def test_validation_stands_in_for_a_test_split_without_labels(
    tmp_path: Path, labels: list[int | None], caplog: pytest.LogCaptureFixture
) -> None:
    parquet(tmp_path / "train.parquet", IMAGES[:3], [0, 1, 0])
    parquet(tmp_path / "test.parquet", IMAGES[:2], labels)
    assert load_images(tmp_path).classes == ("0", "1")
    with pytest.raises(DataError, match="label"):
        load_images(tmp_path, "test")
    parquet(tmp_path / "validation.parquet", IMAGES[:2], [1, 0])
    images = load_images(tmp_path, "test")
    assert (images.split, images.labels.tolist()) == ("validation", [1, 0])
    assert "the split 'test' has no labels; 'validation' is used for it" in caplog.text
