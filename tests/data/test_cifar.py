from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uge.data import has_split, load_images
from uge.data.formats.cifar import load_pickle
from uge.errors import DataError


def rows(seed: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def python2(content: dict[str, Any]) -> bytes:
    """A protocol-2 pickle as Python 2 wrote the originals: byte strings, and arrays of the old NumPy."""

    def text(data: bytes) -> bytes:
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def item(value: Any) -> bytes:
        if isinstance(value, str):
            return text(value.encode())
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        if isinstance(value, np.ndarray):
            made = (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR"
            )
            dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
            dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
            shape = b"".join(map(number, value.shape)) + b"\x86"
            return made + b"(" + number(1) + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        return number(value)

    return b"\x80\x02}(" + b"".join(item(key) + item(value) for key, value in content.items()) + b"u."


def python3(content: dict[str, Any]) -> bytes:
    return pickle.dumps({key.encode(): value for key, value in content.items()}, protocol=2)


def cifar10(root: Path, write: Any = python2) -> Path:
    root.mkdir(parents=True)
    for number in range(1, 6):
        batch = {"batch_label": "x", "labels": [0, 1, 1, 0], "data": rows(number), "filenames": ["a"] * 4}
        (root / f"data_batch_{number}").write_bytes(write(batch))
    (root / "test_batch").write_bytes(write({"labels": [1, 0, 0, 1], "data": rows(6)}))
    (root / "batches.meta").write_bytes(write({"label_names": ["airplane", "bird"], "num_vis": 3072}))
    return root


@pytest.mark.parametrize("write", [python2, python3])
def test_cifar10(tmp_path: Path, write: Any) -> None:
    root = cifar10(tmp_path / "cifar-10-batches-py", write)
    train, test = load_images(root), load_images(tmp_path, "test")
    assert (len(train), train.classes, train.ids[5]) == (20, ("airplane", "bird"), "train/00000005")
    assert test.labels.tolist() == [1, 0, 0, 1]
    planes = rows(2)[1].reshape(3, 32, 32)
    assert np.array_equal(train.read(5), np.stack(list(planes), axis=2))


def test_cifar100(tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        content = {"fine_labels": [0, 1, 2, 0], "coarse_labels": [0, 0, 1, 0], "data": rows(seed)}
        (tmp_path / name).write_bytes(python2(content))
    (tmp_path / "meta").write_bytes(python2({"fine_label_names": ["a", "b", "c"], "coarse_label_names": ["x", "y"]}))
    assert load_images(tmp_path).classes == ("a", "b", "c")
    assert load_images(tmp_path, "test").labels.tolist() == [0, 1, 2, 0]


def test_the_archive_is_read_without_extracting(tmp_path: Path) -> None:
    root = cifar10(tmp_path / "there" / "cifar-10-batches-py")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(root, root.name)
    before = sorted(tmp_path.rglob("*"))
    for split in ("train", "test"):
        packed, plain = load_images(tmp_path / "cifar-10-python.tar.gz", split), load_images(root, split)
        assert packed.name == "cifar-10-python"
        assert np.array_equal(packed.labels, plain.labels)
        assert np.array_equal(packed.read(3), plain.read(3))
    assert sorted(tmp_path.rglob("*")) == before


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, getattr, print])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, function: Any, protocol: int) -> None:
    target = tmp_path / "touched"
    arguments = (f"mkdir {target}",) if function is os.system else (str(target),)
    arguments = (target, "mkdir") if function is getattr else arguments
    root = cifar10(tmp_path / "set")
    (root / "data_batch_2").write_bytes(pickle.dumps({"data": Evil(function, *arguments)}, protocol=protocol))
    with pytest.raises(DataError, match=r"'data_batch_2' of .* asks to run '.*nothing was run"):
        load_images(root)
    assert not target.exists()


def test_a_pickle_cannot_change_how_the_next_one_is_read(tmp_path: Path) -> None:
    for name in (b"numpy\nndarray", b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct"):
        # BUILD with a pair of dictionaries sets attributes on whatever it is given.
        spoiled = b"\x80\x02c" + name + b"\n}U\x0c__setstate__Ns}U\x08__init__Ns\x86b."
        with pytest.raises(DataError):
            load_pickle(io.BytesIO(spoiled), "x")
    array = load_pickle(io.BytesIO(python2({"data": rows(0)})), "x")["data"]
    assert np.array_equal(array, rows(0))


def test_arrays_of_objects_are_refused() -> None:
    content = pickle.dumps({"data": np.array([1, "a"], dtype=object)}, protocol=2)
    with pytest.raises(DataError, match="no CIFAR file"):
        load_pickle(io.BytesIO(content), "x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3", None, "'data_batch_3' is missing"),
        ("data_batch_3", b"damage", "'data_batch_3' of .* is no CIFAR file"),
        ("data_batch_3", pickle.dumps([1]), "expected a dictionary"),
        ("data_batch_3", python2({"data": rows(0)}), "lacks 'label_names' or 'labels'"),
        ("data_batch_3", python2({"data": rows(0)[:, :9], "labels": [0]}), "bytes of N×3072"),
        ("data_batch_3", python2({"data": rows(0), "labels": [0]}), "20 images but 17"),
        ("data_batch_3", python2({"data": rows(0), "labels": [0, 1, 7, 0]}), "label 7 is out of range"),
        ("batches.meta", python2({"x": 1}), "lacks 'label_names'"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    root = cifar10(tmp_path / "set")
    (root / name).unlink()
    if content is not None:
        (root / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_images(root)


def test_absent_files_and_other_archives(tmp_path: Path) -> None:
    root = cifar10(tmp_path / "set")
    (root / "test_batch").unlink()
    assert not has_split(root, "test")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(root / "batches.meta", "readme")
    with pytest.raises(DataError, match="no complete CIFAR set"):
        load_images(tmp_path / "other.tgz")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "other.tgz").read_bytes()[:50])
    with pytest.raises(DataError, match=r"cut\.tar\.gz cannot be read"):
        load_images(tmp_path / "cut.tar.gz")
