"""Labelled images from folders, Parquet, archives, the hub or the embedded set, read as a stream.

``import uge.data`` imports neither torch nor a format library; names are loaded when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge.data.images import ImageSet as ImageSet
    from uge.data.images import Sample as Sample
    from uge.data.sources import has_split as has_split
    from uge.data.sources import load_images as load_images

_HOME = {
    "ImageSet": "uge.data.images",
    "Sample": "uge.data.images",
    "has_split": "uge.data.sources",
    "load_images": "uge.data.sources",
}
__all__ = ["ImageSet", "Sample", "has_split", "load_images"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'uge.data' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
