from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, picture, tree

from uge.data import has_split, load_images, pixels
from uge.errors import DataError

SPLITS = ["train/cat/1.png", "train/cat/2.png", "train/dog/deep/3.png", "test/dog/4.png"]


def test_splits_classes_ids_and_pixels(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", SPLITS)
    train, test = load_images(root), load_images(str(root), "test")
    assert (train.name, train.split, train.classes, train.root) == ("pets", "train", ("cat", "dog"), root)
    assert list(train.ids) == ["cat/1.png", "cat/2.png", "dog/deep/3.png"]
    assert train.labels.tolist() == [0, 0, 1]
    assert np.array_equal(train.read(2), picture(2))
    assert (test.labels.tolist(), test.classes) == ([1], ("cat", "dog"))  # the label is that of training


def test_without_split_folders_all_images_are_for_training(tmp_path: Path) -> None:
    root = tree(tmp_path, ["cat/1.png", "dog/2.png", "test/3.png"])
    assert load_images(root).classes == ("cat", "dog", "test")
    assert not has_split(root, "test")


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "testing"])
def test_another_split_stands_in_for_test(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, ["train/a/1.png", f"{name}/a/2.png"])
    assert has_split(root, "test")
    assert load_images(root, "test").split == name


def test_an_absent_split_is_named_with_those_there_are(tmp_path: Path) -> None:
    root = tree(tmp_path, ["train/a/1.png"])
    with pytest.raises(DataError, match=r"no split 'test' \(there are: train\)"):
        load_images(root, "test")


def test_a_test_folder_without_classes_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path, ["train/a/1.png", "test/2.png", "val/a/3.png"])
    assert load_images(root, "test").split == "val"
    assert "no class sub-folders" in caplog.text


def test_files_that_are_no_images_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(
        tmp_path, ["a/1.png", "a/Thumbs.db", "a/notes.txt", "b/2.png", "b/.3.png", ".git/x/4.png", "empty/x.txt"]
    )
    with caplog.at_level(logging.WARNING):
        assert list(load_images(root).ids) == ["a/1.png", "b/2.png"]
    assert "2 files without an image extension" in caplog.text
    assert "empty" in caplog.text


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/1.png", "b/2.png"])
    (root / "b/2.png").write_bytes(b"damage")
    images = load_images(root)
    images.read(0)
    with pytest.raises(DataError, match=r"b/2\.png"):
        images.read(1)


@pytest.mark.parametrize("twin", ["cat", "Cat ", "CAT", "ca\ufb02e"])
def test_class_folders_of_one_name_are_refused(tmp_path: Path, twin: str) -> None:
    first = "cafle" if "\ufb02" in twin else "Cat"
    root = tree(tmp_path, [f"{first}/1.png", f"{twin}/2.png"])
    if len(list(root.iterdir())) < 2:
        pytest.skip("this file system holds them to be one name")
    with pytest.raises(DataError, match="have the same name"):
        load_images(root)


def test_a_class_only_in_test_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, ["train/a/1.png", "test/b/2.png"])
    with pytest.raises(DataError, match="class folder 'b'"):
        load_images(root, "test")


@pytest.mark.parametrize(("files", "got"), [([], "no image"), (["1.png"], "images that lie in no class folder")])
def test_folders_without_classes_are_refused(tmp_path: Path, files: list[str], got: str) -> None:
    with pytest.raises(DataError, match=rf"one sub-folder of images per class in .*, got {got}"):
        load_images(tree(tmp_path, files))


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/1.png", "b/2.png"])
    (root / "a/back").symlink_to(root / "a", target_is_directory=True)
    assert list(load_images(root).ids) == ["a/1.png", "b/2.png"]


def test_links_to_a_folder_above_are_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", ["a/1.png", "b/2.png"])
    elsewhere = tree(tmp_path / "more", ["3.png"])
    (root / "a/all").symlink_to(root, target_is_directory=True)
    (root / "everything").symlink_to(root, target_is_directory=True)
    (root / "b/more").symlink_to(elsewhere, target_is_directory=True)
    images = load_images(root)
    assert (images.classes, list(images.ids)) == (("a", "b"), ["a/1.png", "b/2.png", "b/more/3.png"])


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/1.png", "b/2.png"])
    os.mkfifo(root / "b/3.png")
    images = load_images(root)
    with pytest.raises(DataError, match=r"3\.png: it is no regular file"):
        images.read(2)


def test_a_name_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, ["a/1.png", "b/2.png"])
    try:
        (root / os.fsdecode(b"a/\xff.png")).write_bytes(encode(picture(0)))
    except OSError:
        pytest.skip("this file system allows Unicode names only")
    with pytest.raises(DataError, match="not valid UTF-8"):
        load_images(root)


def test_opening_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, SPLITS)
    monkeypatch.setattr(pixels.Image, "open", lambda *a, **k: pytest.fail("an image was opened"))
    assert len(load_images(root)) == 3


def test_rows_come_in_the_order_of_imagefolder(tmp_path: Path) -> None:
    names = ["10.png", "9.png", "top.png", "deep/b.png", "deep-er/a.png", "deep/inner/c.png"]
    root = tree(tmp_path, [f"{label}/{name}" for label in ("b", "a", "a-b") for name in names])
    # sorted(class), then sorted(os.walk(class)), then sorted(files), as torchvision has it.
    walked = [
        (Path(place) / file).relative_to(root).as_posix()
        for label in ("a", "a-b", "b")
        for place, _, files in sorted(os.walk(root / label))
        for file in sorted(files)
    ]
    assert list(load_images(root).ids) == walked
    assert walked != sorted(walked)


@pytest.mark.parametrize("name", ["train", "Test", "val", "dev"])
@pytest.mark.parametrize("deep", ["", "old/"])
def test_a_class_may_be_called_like_a_split(
    tmp_path: Path, name: str, deep: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, [f"{label}/{deep}{n}.png" for label in ("bus", "car", name) for n in range(2)])
    images = load_images(root)
    assert sorted(images.classes) == sorted(["bus", "car", name])
    assert len(images) == 6
    assert ("is read as a class" in caplog.text) == bool(deep)


@pytest.mark.parametrize("other", ["extra/a/4.png", "unlabelled/4.png"])
def test_folders_beside_several_splits_are_refused(tmp_path: Path, other: str) -> None:
    root = tree(tmp_path, ["train/a/1.png", "train/b/2.png", "test/a/3.png", other])
    with pytest.raises(DataError, match=r"folders of splits \(test, train\) and others beside them"):
        load_images(root)


def test_folders_of_loose_images_beside_a_split_are_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, ["train/a/1.png", "train/b/2.png", "unlabelled/3.png"])
    with pytest.raises(DataError, match=r"folders of splits \(train\) and others beside them \(unlabelled\)"):
        load_images(root)


def test_folders_without_images_do_not_count_beside_splits(tmp_path: Path) -> None:
    root = tree(tmp_path, ["train/a/1.png", "train/b/2.png", "annotations/all.txt"])
    assert load_images(root).classes == ("a", "b")


@pytest.mark.parametrize("place", ["", "train/"])
def test_images_in_no_class_folder_are_said_to_be_skipped(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tree(tmp_path, [f"{place}a/1.png", f"{place}b/2.png", f"{place}3.png", f"{place}4.png"])
    assert len(load_images(root)) == 2
    assert "2 images lie in no class folder and are skipped" in caplog.text
