import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uge.data.images import ImageSet
from uge.data.pixels import resize, to_channels
from uge.data.store import PixelStore, Records, load_pixels
from uge.errors import DataError, StorageError, UsageError

MakeStore = Callable[..., PixelStore]
MakeImages = Callable[..., ImageSet]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 12),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.uint8, torch.int8, torch.int16]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_file_behaves_like_memory(
    count: int, shape: tuple[int, int, int], dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    resident, filed = Records(count, shape, dtype), Records(count, shape, dtype, resident_bytes=0)
    assert resident.resident
    assert not filed.resident
    rows = st.lists(st.integers(0, count - 1), max_size=2 * count)
    for _ in range(3):
        written = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), unique=True)), dtype=torch.int64)
        values = torch.randint(-255, 256, (len(written), *shape), generator=generator).to(dtype)
        read = torch.tensor(data.draw(rows), dtype=torch.int64)
        for records in (resident, filed):
            records.write(written, values)
            records.flush()
        assert torch.equal(resident.read(read), filed.read(read))
        assert torch.equal(filed.read(written), values)
        assert filed.read(read).dtype == dtype


def test_records_outlive_their_object_in_a_named_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records"
    values = torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4)
    first = Records(3, (4,), torch.int8, path=path)
    assert torch.equal(first.read(torch.arange(3)), torch.zeros(3, 4, dtype=torch.int8))
    first.write(torch.tensor([2, 0, 1]), values)
    first.flush()
    again = Records(3, (4,), torch.int8, path=path)
    assert torch.equal(again.read(torch.tensor([2, 0, 1])), values)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    records = Records(3, (4,), torch.uint8, path=tmp_path / "records")
    os.truncate(tmp_path / "records", 9)
    assert records.read(torch.tensor([1])).shape == (1, 4)
    with pytest.raises(DataError, match="end before number 2"):
        records.read(torch.tensor([2]))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(2, (8,), torch.uint8, path=tmp_path / "records")
    write = os.pwrite
    calls = []

    def nearly_full(handle: int, content: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "full")
        return write(handle, content[:3], offset)

    monkeypatch.setattr(os, "pwrite", nearly_full)
    with pytest.raises(StorageError, match=r"records: the disk is full"):
        records.write(torch.tensor([1]), torch.ones(1, 8))
    assert calls == [8, 11, 14]


def test_pieces_are_written_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(2, (8,), torch.uint8, path=tmp_path / "records")
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, offset: write(handle, content[:3], offset))
    values = torch.arange(16, dtype=torch.uint8).reshape(2, 8)
    records.write(torch.arange(2), values)
    assert torch.equal(records.read(torch.arange(2)), values)


@pytest.mark.parametrize("resident_bytes", [0, 2**30])
def test_store_holds_pixels_and_labels_in_order(make_images: MakeImages, resident_bytes: int) -> None:
    images = make_images(count=300, size=4)
    counts: list[int] = []
    store = load_pixels(images, resident_bytes=resident_bytes, progress=counts.append)
    assert (len(store), store.channels, store.size, store.classes) == (300, 3, 4, images.classes)
    assert store.labels.tolist() == images.labels.tolist()
    for index, pixels in enumerate(store.pixels.read(torch.arange(300))):
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), images.read(index))
    assert sum(counts) == 300
    assert store.exact


def test_one_image_of_another_size_makes_a_store_inexact(make_images: MakeImages) -> None:
    images = make_images(count=3, size=8)
    images.reader.arrays[1] = images.read(1)[:6]
    assert not load_pixels(images, size=8).exact


def test_labels_are_a_copy(make_images: MakeImages) -> None:
    images = make_images()
    images.labels.flags.writeable = False
    store = load_pixels(images)
    store.labels[0] = 2
    assert images.labels[0] == 0


@pytest.mark.parametrize(("have", "want", "get"), [(1, None, 1), (2, None, 1), (4, None, 3), (1, 3, 3), (3, 1, 1)])
def test_channels_and_size(make_images: MakeImages, have: int, want: int | None, get: int) -> None:
    images = make_images(count=3, size=(6, 8), channels=have)
    store = load_pixels(images, size=5, channels=want)
    assert store.pixels.shape == (get, 5, 5)
    expected = to_channels(resize(images.read(1), 5), get)
    np.testing.assert_array_equal(store.pixels.read(torch.tensor([1]))[0].permute(1, 2, 0).numpy(), expected)


def test_empty_like_keeps_labels_and_kind(make_store: MakeStore) -> None:
    for limit in (0, 2**30):
        store = make_store(resident_bytes=limit)
        copy = store.empty_like()
        assert copy.pixels.resident == store.pixels.resident
        assert copy.labels is store.labels
        copy.pixels.write(torch.arange(12), store.pixels.read(torch.arange(12)) // 2)
        assert not torch.equal(copy.pixels.read(torch.arange(12)), store.pixels.read(torch.arange(12)))


def test_the_digest_is_of_all_that_training_sees(make_store: MakeStore) -> None:
    store = make_store()
    last = torch.tensor([11])
    assert make_store(resident_bytes=0).digest() == store.digest()
    changed, gray = make_store(), Records(12, (1, 48, 16), torch.uint8)
    changed.pixels.write(last, 255 - store.pixels.read(last))
    gray.write(torch.arange(12), store.pixels.read(torch.arange(12)).reshape(12, 1, 48, 16))
    others = [changed, *(replace(store, **new) for new in ({"labels": store.labels.flip(0)}, {"pixels": gray}))]
    others.append(replace(store, classes=("a", "b", "c")))
    assert len({store.digest(), *(other.digest() for other in others)}) == 5


def test_refuses(make_images: MakeImages) -> None:
    with pytest.raises(UsageError, match="--size"):
        load_pixels(make_images(size=(6, 8)))
    with pytest.raises(DataError, match="no image"):
        load_pixels(make_images(count=0))
