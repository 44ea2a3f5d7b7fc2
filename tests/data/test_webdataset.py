from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, picture

from uge.data import load_images
from uge.errors import DataError

Members = list[tuple[str, bytes | str]]


def shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(first: int, labels: list[str]) -> Members:
    members: Members = []
    for number, label in enumerate(labels, first):
        members += [(f"dir/{number:06d}.cls", label), (f"dir/{number:06d}.png", encode(picture(number)))]
    return members


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shard(root / "train-000001.tar", samples(3, ["1", "0"]))
    shard(root / "train-000000.tar", samples(0, ["0", "1", "2"]))
    shard(root / "val-000000.tar", samples(9, ["1"]))
    before = sorted(root.rglob("*"))
    train, test = load_images(root), load_images(root, "test")
    assert (train.name, train.labels.tolist(), train.classes) == ("set", [0, 1, 2, 1, 0], ("0", "1", "2"))
    assert (train.ids[4], test.ids, test.labels.tolist()) == ("train/00000004", ["val/00000000"], [1])
    for index in (4, 0, 2):
        assert np.array_equal(train.read(index), picture(index))
    assert np.array_equal(pickle.loads(pickle.dumps(train)).read(3), picture(3))
    assert sorted(root.rglob("*")) == before


def test_names_json_and_ids(tmp_path: Path) -> None:
    members = []
    for key, label in (("x.1", "dog"), ("y", "cat")):
        members += [
            (f"{key}.jpg", encode(picture(0), "JPEG")),
            (f"{key}.json", json.dumps({"label": label, "id": key})),
        ]
    images = load_images(shard(tmp_path / "a.tar", [("note.txt", "text"), *members[2:], *samples(0, ["dog"])]))
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert list(images.ids) == ["train/00000000", "train/00000001"]  # not every sample has an id
    images = load_images(shard(tmp_path / "b.tar", members[2:]))
    assert list(images.ids) == ["y"]


@pytest.mark.parametrize(("file", "content"), [("classes.txt", "cat\ndog\n\n"), ("classes.json", '["cat", "dog"]')])
@pytest.mark.parametrize("labels", [["0", "1"], ["cat", "dog"]])
def test_class_files(tmp_path: Path, file: str, content: str, labels: list[str]) -> None:
    path = shard(tmp_path / "train-0.tar", samples(0, labels))
    (tmp_path / file).write_text(content)
    for source in (path, tmp_path):
        images = load_images(source)
        assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 1])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", encode(picture(0)))], "'a' in .* needs a label"),
        ([("a.png", encode(picture(0))), ("a.json", "{")], r"the \.json of 'a'"),
        ([("a.png", encode(picture(0))), ("a.json", '{"label": [1]}')], "needs a label"),
        ([("a.png", encode(picture(0))), ("a.cls", b"\xff")], "no UTF-8 text"),
        ([("a.png", encode(picture(0))), ("a.cls", "-1")], "has no labels, which are needed"),
        ([("a.cls", "1")], "no image was found"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, members: Members, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(shard(tmp_path / "x.tar", members))


def test_damage_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", [("a.cls", "0"), ("a.png", b"damage")])
    with pytest.raises(DataError, match=r"image 0 of .*x\.tar"):
        load_images(path).read(0)
    whole = shard(path, [("a.cls", "0"), ("a.png", encode(picture(0, 64, 64)))]).read_bytes()
    for cut in (whole[:3000], b"damage" * 200):
        path.write_bytes(cut)
        with pytest.raises(DataError, match=r"tar file .*x\.tar cannot be read"):
            load_images(path)
    (tmp_path / "classes.json").write_text('{"0": "cat"}')
    path.write_bytes(whole)
    with pytest.raises(DataError, match="must be a list of class names"):
        load_images(path)


def test_a_text_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", samples(0, ["cat", "dog"]))
    shard(tmp_path / "test-0.tar", samples(0, ["cow"]))
    with pytest.raises(DataError, match="label 'cow' is no class"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("cut", [0, 1, 511, 512])
def test_a_shard_cut_between_members_is_refused(tmp_path: Path, cut: int) -> None:
    file = shard(tmp_path / "a.tar", samples(0, ["0", "1"]))
    with tarfile.open(file) as archive:
        last = archive.getmembers()[-1]
    ends = last.offset_data + -(-last.size // 512) * 512
    whole = file.read_bytes()
    file.write_bytes(whole[: ends + cut])
    if cut == 512:
        assert len(load_images(file)) == 2
    else:
        with pytest.raises(DataError, match="ends without the mark of its end"):
            load_images(file)


def test_two_spellings_of_one_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels '01' and '1' of .* are one number"):
        load_images(shard(tmp_path / "a.tar", samples(0, ["0", "01", "1"])))
    assert load_images(shard(tmp_path / "b.tar", samples(0, ["00", "01"]))).labels.tolist() == [0, 1]


def test_names_may_have_dots_within(tmp_path: Path) -> None:
    members: Members = []
    for number, name in enumerate(["0.5_a", "0.5_b", "img.v2", "plain"]):
        members += [(f"{name}.png", encode(picture(number))), (f"{name}.cls", str(number % 2))]
    images = load_images(shard(tmp_path / "train.tar", members))
    assert images.labels.tolist() == [0, 1, 0, 1]
    for number in range(4):
        assert np.array_equal(images.read(number), picture(number))


def test_further_images_of_a_sample_are_none_of_their_own(tmp_path: Path) -> None:
    members = [("1.png", encode(picture(1))), ("1.mask.png", encode(picture(2))), ("1.cls", "0")]
    images = load_images(shard(tmp_path / "train.tar", members))
    assert len(images) == 1
    assert np.array_equal(images.read(0), picture(1))
