"""The tables of formats: a path is opened by the first row that recognises it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from uge.data.formats import folder, parquet, photos
from uge.data.formats.base import Format, Splits

FORMATS = (
    Format("Parquet files", parquet.detect, parquet.splits),
    Format("image folder", folder.detect, folder.splits),
)
EMBEDDED: Mapping[str, Callable[[], Splits]] = {"photos": photos.splits}
SCHEMES: Mapping[str, Callable[[str], Splits]] = {}
