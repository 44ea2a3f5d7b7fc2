import csv
import errno
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_sets import BUDGET, image_set, protect, random_pixels

from uge.data import load_images
from uge.data.codec import decode, encode, metadata_problem, storable
from uge.errors import DataError, OutputExistsError, StorageError, UnknownNameError, UsageError
from uge.publishing import Provenance, publish, read_manifest, verify
from uge.publishing.layout import class_folders

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from(["png", "webp"]),
    st.sampled_from(["noise", "hidden", "opaque"]),
    st.integers(0, 99),
)
def test_codec_keeps_every_value(height, width, channels, codec, kind, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    if kind != "noise" and channels in (2, 4):
        pixels[..., -1] = 0 if kind == "hidden" else 255
    data = encode(pixels, storable(pixels, codec))
    assert np.array_equal(decode(data), pixels)
    assert Image.open(io.BytesIO(data)).mode == MODES[channels]
    assert metadata_problem(data) is None


@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
@pytest.mark.parametrize("codec", ["png", "webp", None])
def test_mixed_modes_and_sizes_round_trip(make, tmp_path, format, codec):
    shapes = [(5, 7, 1), (1, 1, 3), (16, 9, 2), (9, 16, 4), (2, 2, 3), (30, 30, 3)] * 2
    images = image_set([random_pixels(1, shape, seed)[0] for seed, shape in enumerate(shapes)])
    manifest = make(images, format=format, codec=codec, rows_per_file=5)
    assert manifest.size.height == (1, 30)
    assert manifest.size.channels == (1, 2, 3, 4)
    assert manifest == read_manifest(tmp_path / "out")
    found = verify(tmp_path / "out", against=images)
    assert found.problems == ()
    assert found.measured == manifest.measured


def test_parquet_layout(make, images, tmp_path):
    manifest = make(images, rows_per_file=4, provenance=Provenance(method="noise", seeds={"root": 3}))
    names = [f"data/train-{shard:05d}-of-00003.parquet" for shard in range(3)]
    assert [file.path for file in manifest.files] == ["README.md", "TRAINING.md", "croissant.json", *names]
    assert [file.count for file in manifest.files[3:]] == [4, 4, 2]
    assert manifest.class_counts == (5, 5)
    assert manifest.seeds == {"root": 3}
    table = pq.read_table(tmp_path / "out" / "data")
    assert table["id"].to_pylist() == images.ids
    assert table["label"].to_pylist() == images.labels.tolist()
    assert table["image"][9].as_py()["path"] == "00000009.webp"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == ["cat", "dog"]


def test_card_has_front_matter_and_limits(make, images, tmp_path):
    make(images)
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert "10 of 255 levels" in text
    assert "does not protect against" in text


def test_hugging_face_datasets_reads_both_layouts(make, images, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for format in ("parquet", "imagefolder"):
        make(images, tmp_path / format, format=format)
        rows = datasets.load_dataset(str(tmp_path / format), cache_dir=str(tmp_path / "cache"))["train"]
        assert len(rows) == 10
        assert rows.features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
def test_equal_inputs_give_equal_bytes(make, images, tmp_path, format):
    make(images, tmp_path / "a", format=format, workers=1)
    make(images, tmp_path / "b", format=format, workers=4)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_date_comes_from_source_date_epoch_only(make, images, tmp_path, monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert make(images, tmp_path / "a").created is None
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert make(images, tmp_path / "b").created == "1970-01-02"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        make(images, tmp_path / "c")


def test_source_metadata_is_not_carried_over(make, tmp_path):
    images = image_set(random_pixels(2), ids=["/home/me/secret/1.jpg", "../../etc/2.jpg"])
    make(images)
    row = pq.read_table(tmp_path / "out" / "data")["image"][0].as_py()
    assert row["path"] == "00000000.webp"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_class_folders_suit_every_file_system(make, tmp_path):
    names = ["a/b", "a_b", "A_B", "..", "", "CON", "nul.txt", "x" * 300, "ü\u0308", ".git", "end. ", "monkey\n"]
    folders = class_folders(names)
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    assert all(folder.isprintable() and folder[0] != "." and len(folder.encode()) < 200 for folder in folders.values())
    images = image_set(random_pixels(24), classes=names)
    manifest = make(images, format="imagefolder")
    assert manifest.class_folders == folders
    assert verify(tmp_path / "out", against=images).ok
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_pairs_stream_through(make, images, monkeypatch):
    """Batches of one image: never more pairs are taken than the threads can hold."""
    monkeypatch.setattr("uge.publishing.writer.batches", lambda pairs, size_of: ([pair] for pair in pairs))
    taken, ahead = 0, []

    def counted() -> Iterator:
        nonlocal taken
        for pair in protect(images):
            taken += 1
            yield pair

    make(images, pairs=counted(), workers=1, progress=lambda done: ahead.append(taken - done))
    assert len(ahead) == 10
    assert max(ahead) <= 3


# Refused images, which leave everything as it was.


def failing(images, after: int, error: BaseException) -> Iterator:
    for pair in protect(images):
        if pair[0] == after:
            raise error
        yield pair


def over_budget(images) -> Iterator:
    for index, clean, protected in protect(images):
        value = int(clean[0, 0, 0])
        protected[0, 0, 0] = value + 11 if value < 128 else value - 11
        yield index, clean, protected


def with_alpha_changed(images) -> Iterator:
    for index, clean, protected in protect(images):
        yield index, clean, np.concatenate([protected[..., :3], 255 - clean[..., 3:]], axis=2)


REFUSED = {
    "iterator fails": (lambda images: failing(images, 7, RuntimeError("boom")), RuntimeError, "boom"),
    "interrupted": (lambda images: failing(images, 7, KeyboardInterrupt("stop")), KeyboardInterrupt, "stop"),
    "over budget": (over_budget, DataError, "11 levels, more than the 10"),
    "too few": (lambda images: list(protect(images))[:9], DataError, "expected 10 protected images, got 9"),
    "too many": (lambda images: [*protect(images), (10, *next(protect(images))[1:])], DataError, "got 10"),
    "out of order": (lambda images: reversed(list(protect(images))), DataError, "got 9"),
    "nan": (lambda images: ((i, c, np.full(c.shape, np.nan)) for i, c, _ in protect(images)), DataError, "float64"),
    "shape": (lambda images: ((i, c, p[:4]) for i, c, p in protect(images)), DataError, "expected the shape"),
    "two dimensions": (lambda images: ((i, c, p[..., 0]) for i, c, p in protect(images)), DataError, "height × width"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
def test_failure_leaves_nothing_behind(make, images, tmp_path, case, format):
    pairs, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make(images, pairs=pairs(images), format=format, rows_per_file=3)
    assert list(tmp_path.iterdir()) == []
    make(images)
    before = bytes_of(tmp_path)
    with pytest.raises(error):
        make(images, pairs=pairs(images), format=format, overwrite=True, rows_per_file=3)
    assert bytes_of(tmp_path) == before


def test_changed_alpha_is_refused(make):
    images = image_set(random_pixels(4, (8, 8, 4)))
    with pytest.raises(DataError, match="alpha channel"):
        make(images, pairs=with_alpha_changed(images))


def test_filled_output_needs_overwrite(make, images, tmp_path):
    make(images)
    before = bytes_of(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="not empty"):
        make(images)
    assert bytes_of(tmp_path / "out") == before
    make(images.take(4), overwrite=True)
    assert read_manifest(tmp_path / "out").count == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("manifest", [None, "{}", "[]", '{"tool": "other"}'])
def test_folders_of_others_are_not_overwritten(make, images, tmp_path, manifest):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    before = bytes_of(tmp_path)
    with pytest.raises(UsageError, match="did not write"):
        make(images, overwrite=True)
    assert bytes_of(tmp_path) == before


def test_copies_of_the_originals_are_no_protected_copy(make, images, tmp_path):
    clean = [(index, sample.pixels, sample.pixels) for index, sample in enumerate(images)]
    with pytest.raises(DataError, match="no image was changed; nothing was published"):
        make(images, pairs=clean)
    assert list(tmp_path.iterdir()) == []
    assert make(images, pairs=[next(protect(images)), *clean[1:]]).measured.unchanged_images == 9


def test_output_inside_source_is_refused(make, tmp_path):
    images = image_set(random_pixels(4), root=tmp_path)
    with pytest.raises(UsageError, match="overlap"):
        make(images)


@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
@pytest.mark.parametrize(("code", "message"), [(errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full")])
def test_storage_trouble_is_told_and_leaves_nothing(make, images, tmp_path, monkeypatch, format, code, message):
    real = Path.open

    def refuse(path: Path, mode: str = "r", *args, **kwargs):
        if "w" in mode and path.suffix in (".parquet", ".png", ".webp", ".tar"):
            raise OSError(code, "no")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: refuse(path, "wb").write(data))
    with pytest.raises(StorageError, match=message):
        make(images, format=format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"format": "tar"}, UnknownNameError),
        ({"codec": "jpeg"}, UnknownNameError),
        ({"workers": 0}, UsageError),
        ({"rows_per_file": 0}, UsageError),
    ],
)
def test_wrong_arguments(make, images, changes, error):
    with pytest.raises(error):
        make(images, **changes)


@pytest.mark.parametrize("changes", [{"ids": ["a", "a"]}, {"labels": np.array([0, 2])}, {"ids": ["a", "\udcff"]}])
def test_unusable_image_sets(make, changes):
    with pytest.raises(DataError):
        make(image_set(random_pixels(2), **changes))


def test_empty_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="no image"):
        publish([], tmp_path / "out", images=image_set([]), budget=BUDGET, provenance=Provenance(method="noise"))


@pytest.mark.parametrize("classes", [[str(number) for number in range(12)], ["dog", "cat", "owl"], ["a", "B", "c"]])
def test_sorted_folders_number_the_classes_as_the_manifest_does(classes, make, tmp_path):
    images = image_set(random_pixels(24), classes=classes)
    make(images, format="imagefolder")
    place = {path.name: label for label, path in enumerate(sorted((tmp_path / "out" / "train").iterdir()))}
    with (tmp_path / "out" / "index.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            assert place[row["path"].split("/")[1]] == int(row["label"])
    assert load_images(tmp_path / "out").classes == tuple(classes)


def test_a_class_without_images_has_no_folder(make, tmp_path):
    images = image_set(random_pixels(6), classes=["a", "none", "z"])
    images = replace(images, labels=images.labels // 2 * 2)
    manifest = make(images, format="imagefolder")
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == ["a", "z"]
    assert manifest.classes == ("a", "none", "z")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 of the classes have no image and so no folder, such as 'none'" in card
    assert verify(tmp_path / "out", against=images).ok
    published = load_images(tmp_path / "out")
    assert (published.classes, published.labels.tolist()) == (images.classes, images.labels.tolist())
