"""Small files that would take much memory are refused by the sizes that they claim."""

import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uge.data import load_images
from uge.data.formats import parquet, webdataset
from uge.data.formats.cifar import load_pickle
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError
from uge.methods.baselines import foreign

LARGE = 200 << 20


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    """Nothing here may take more than 64 MiB."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    return header.getvalue()


def archive(path: Path, **members: tuple[bytes, int]) -> Path:
    """Arrays of zeros after their headers, written without holding them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, (header, zeros) in members.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header)
                for _ in range(zeros >> 20):
                    member.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("claimed", ["labels", "images"])
def test_an_array_packed_more_tightly_than_images_is_refused(claimed: str, tmp_path: Path) -> None:
    few = (npy_header((4,), "<i8") + bytes(32), 0)
    images = (npy_header((4, 8, 8), "|u1") + bytes(256), 0)
    members = {
        "labels": {"images": images, "labels": (npy_header((LARGE // 8,), "<i8"), LARGE)},
        "images": {"images": (npy_header((LARGE // 64, 8, 8), "|u1"), LARGE), "labels": few},
    }
    path = archive(tmp_path / "set.npz", **members[claimed])
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=f"array '{claimed}' of .* cannot be read: .*out of all proportion"):
        load_images(path)


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_packed_more_tightly_than_images_is_refused(column: str, tmp_path: Path) -> None:
    large = pa.array([b"\0" * (LARGE // 8)] * 8, pa.binary())
    table = pa.table(
        {
            "image": large if column == "image" else pa.array([b"x"] * 8, pa.binary()),
            "label": large.cast(pa.string()) if column == "label" else pa.array([0, 1] * 4),
        }
    )
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=f"its column '{column}' has .* bytes in a row group, out of all proportion"):
        load_images(path)


def test_what_packs_well_but_is_small_is_read(tmp_path: Path) -> None:
    images = np.zeros((400, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "set.npz", images=images, labels=np.arange(400) % 2)
    assert len(load_images(tmp_path / "set.npz")) == 400
    assert parquet.check_sizes(pa.parquet.read_metadata(_tiny_parquet(tmp_path)), tmp_path) is None


def _tiny_parquet(folder: Path) -> Path:
    path = folder / "tiny.parquet"
    pq.write_table(pa.table({"image": pa.array([b"\0" * 4096] * 1000, pa.binary())}), path, compression="zstd")
    return path


MEMORY_FOR_A_PLACE = b"\x80\x02}r" + struct.pack("<I", 1 << 28) + b"."
LONG_BYTES = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33) + b"."


@pytest.mark.parametrize("content", [MEMORY_FOR_A_PLACE, LONG_BYTES])
def test_a_pickle_that_claims_more_than_it_holds_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="is no CIFAR file"):
        load_pickle(io.BytesIO(content), "x")


def test_a_pickle_whose_values_hold_one_another_does_not_grow() -> None:
    value: dict[str, object] = {}
    for _ in range(60):
        value = {"a": value, "b": value}
    assert load_pickle(io.BytesIO(pickle.dumps(value, 2)), "x").keys() == {"a", "b"}


def _add(archive: tarfile.TarFile, name: str, size: int, content: bytes = b"") -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member)
    archive.fileobj.write(content)  # type: ignore[union-attr]


def _long_label(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        _add(file, "0.png", 0)
        _add(file, "0.cls", 1 << 32)
    os.truncate(path, (1 << 32) + (1 << 20))


def _long_image(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        _add(file, "0.cls", 1, b"0".ljust(512, b"\0"))
        _add(file, "0.png", 1 << 32)
    os.truncate(path, (1 << 32) + (1 << 20))


def _sparse(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("0.png")
        member.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(1 << 40),
        }
        file.addfile(member)
        _add(file, "0.cls", 1, b"0".ljust(512, b"\0"))


@pytest.mark.parametrize("make", [_long_label, _long_image, _sparse])
def test_tar_members_that_are_sparse_or_too_large_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    make(path)
    with pytest.raises(DataError, match=r"its member 0\.(cls|png) is sparse or too large"):
        load_images(path)
    assert webdataset.splits(tmp_path)


@pytest.mark.parametrize("column", ["image", "label", "id"])
def test_a_dictionary_is_not_multiplied(column: str, tmp_path: Path) -> None:
    """A few bytes per row refer to one value of a megabyte: read at once, they would be a hundred gigabytes."""
    kind = pa.binary() if column == "image" else pa.string()
    indices = pa.array([0] * 100_000, pa.int32())
    values = {"image": pa.array([b"y"] * 100_000, pa.binary()), "label": pa.array([0] * 100_000)}
    values[column] = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * (1 << 20)], kind))
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(values), path, compression="zstd", dictionary_pagesize_limit=1 << 22)
    assert path.stat().st_size < 1 << 20
    if column == "image":
        with pytest.raises(DataError, match="cannot decode image"):
            next(load_images(path).probe(1))
    else:
        with pytest.raises(DataError, match=f"column '{column}' has a text of 1048576 bytes"):
            load_images(path)


def test_rows_without_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parquet, "_UNDOUBTED_ROWS", 1000)
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": pa.array([b"x"] * 100_000, pa.binary()), "label": [1] * 100_000}), path)
    with pytest.raises(DataError, match="100,000 rows, out of all proportion"):
        load_images(path)


def test_ids_of_noise_are_bounded(tmp_path: Path) -> None:
    noise = (npy_header((4, 8, 8, 3), "|i1") + bytes(768), 0)
    path = archive(tmp_path / "noise.npz", noise=noise, ids=(npy_header((LARGE // 8,), "<i8"), LARGE))
    with pytest.raises(DataError, match=r"array 'ids' of .*out of all proportion"):
        foreign.open_noise(path, toy_images(4))


def toy_images(count: int) -> ImageSet:
    class Blank:
        def read(self, row: int) -> Pixels:
            return np.full((8, 8, 3), 100 + row, np.uint8)

    labels = np.arange(count, dtype=np.int64) % 2
    ids = [str(number) for number in range(count)]
    return ImageSet("toy", "train", ("a", "b"), labels, ids, Blank(), np.arange(count))
