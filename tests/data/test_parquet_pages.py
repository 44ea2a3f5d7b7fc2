"""Large values of Parquet files where they lie: the bytes that Arrow writes, and the bytes that it reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from uge.data.formats.parquet_pages import Sizes, fill, only_value
from uge.files import Region
from uge.publishing.layout import PARQUET, table_schema

SCHEMA = table_schema(["cat", "dog"])


def write(path: Path, groups: list[list[bytes]]) -> Path:
    with pq.ParquetWriter(path, SCHEMA, **PARQUET) as writer:
        for number, values in enumerate(groups):
            names = [f"{number}.png"] * len(values)
            columns = [pa.array(values, pa.binary()), pa.array(names)]
            image = pa.StructArray.from_arrays(columns, fields=list(SCHEMA.field("image").type))
            labels = pa.array([0] * len(values), pa.int64())
            writer.write_table(pa.table([image, labels, pa.array(names)], schema=SCHEMA))
    return path


def column(path: Path, group: int = 0) -> Any:
    return pq.ParquetFile(path).metadata.row_group(group).column(0)


def test_filled_values_are_as_arrow_writes_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    groups = [[b"a", b"bc"], *([random.bytes(size)] for size in (1, 100, 70_000, 3_000_000)), [b"z"], [b""]]
    whole = write(tmp_path / "whole.parquet", groups)
    filled = write(tmp_path / "filled.parquet", [[b""] if len(part) == 1 else part for part in groups])
    regions = {}
    for number, part in enumerate(groups):
        if len(part) == 1:
            regions[number] = Region.temporary(tmp_path)
            regions[number].append(part[0])
    fill(filled, regions)
    assert filled.read_bytes() == whole.read_bytes()
    for number, part in enumerate(groups):
        region = only_value(filled, column(filled, number))
        assert (None if region is None else region[:]) == (part[0] if len(part) == 1 else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filled.parquet", "whole.parquet"]


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"use_dictionary": True}, {"data_page_version": "2.0"}])
def test_other_pages_are_left_to_arrow(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array([b"x" * 1000], pa.binary())}), path, **{**PARQUET, **options})
    assert only_value(path, column(path)) is None


def test_a_missing_value_has_no_place(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array([None], pa.binary())}), path, **PARQUET)
    assert only_value(path, column(path)) is None


def test_sizes_come_from_the_pages(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array([b"x" * 10_000] * 100, pa.binary())}), path, compression="zstd")
    sizes = Sizes.of(path, column(path))
    assert sizes.unpacked == column(path).total_uncompressed_size - (
        column(path).total_compressed_size - sum_of_pages(path)
    )
    assert sizes.shared == 10_004  # The dictionary: one value with its length.
    assert path.stat().st_size < 2000


def sum_of_pages(path: Path) -> int:
    from uge.data.formats.parquet_pages import pages

    with path.open("rb") as handle:
        return sum(page.size for page in pages(handle, column(path)))


@pytest.mark.parametrize("size", [1, 5, 9])
def test_damaged_headers_are_an_error(size: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [[b"x" * 50]])
    place = column(path)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset : place.data_page_offset + size] = b"\xff" * size
    path.write_bytes(data)
    with pytest.raises(ValueError, match="header"):
        Sizes.of(path, place)
    assert only_value(path, place) is None


def test_regions_are_sliced_like_bytes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3000)
    region = Region.temporary(tmp_path)
    for start in range(0, 3000, 700):
        region.append(data[start : start + 700])
    assert (len(region), region[:], region[10:20], region[-5:], region[2990:4000]) == (
        3000,
        data,
        data[10:20],
        data[-5:],
        data[2990:],
    )
    with region.open() as reader:
        assert (reader.read(100), reader.seek(-10, 2), reader.read()) == (data[:100], 2990, data[-10:])
    assert list(tmp_path.iterdir()) == []
