"""Small images and files that the tests of this folder share."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tree(root: Path, files: Sequence[str]) -> Path:
    """Image files (or, without an image's ending, text files) at the given relative paths."""
    for seed, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(seed)) if name.endswith(".png") else b"text")
    return root


def parquet(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    struct: bool = True,
    columns: tuple[str, str] = ("image", "label"),
    rows: int = 1000,
    **more: Sequence[Any],
) -> Path:
    """A Parquet file as the hub has them; ``rows`` a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (
        pa.array(
            [{"bytes": data, "path": None} for data in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        if struct
        else pa.array(images)
    )
    table = pa.table({columns[0]: values, columns[1]: pa.array(labels), **{k: pa.array(v) for k, v in more.items()}})
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path
