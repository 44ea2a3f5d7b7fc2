"""Image sets as data sets of PyTorch and of Hugging Face ``datasets``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from uge import extras

if TYPE_CHECKING:
    from uge.data.images import ImageSet, Pixels

logger = logging.getLogger(__name__)


class TorchImages(Dataset[tuple[Any, int]]):
    """Map-style data set: pairs of an image and its label, read when they are asked for, in any order.

    Workers of a ``DataLoader`` read on their own, forked or spawned.

    Args:
        images: The image set.
        transform: Takes a PIL image, in gray if all probed images are gray, else in RGB. Without one, images are
            float32 tensors in [0, 1], channels × height × width.

    Attributes:
        classes: Class names; a label is an index into them.
        targets: Labels of all images.
    """

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image], Any] | None = None) -> None:
        self.classes = list(images.classes)
        self.targets: list[int] = images.labels.tolist()
        self._images = images
        self._transform = _to_tensor if transform is None else transform
        self._mode = "L" if images.channels() == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = _picture(self._images.read(range(len(self))[index]))
        return self._transform(image.convert(self._mode)), self.targets[index]


def _to_tensor(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def hugging_face(images: ImageSet, cache_dir: Path | str | None = None) -> Any:
    """Set as a ``datasets.Dataset`` with the columns image, label and id; a set without labels has no column label.

    Args:
        images: The image set.
        cache_dir: Folder of the library's cache; its own by default.

    Raises:
        MissingExtraError: The library ``datasets`` is not installed.
    """
    library = extras.load("datasets", "hf", "ImageSet.hf()")
    logger.warning(
        "the cache of datasets (%s) holds the images of %s as they are, for everybody who may read it; remove it "
        "afterwards if they are secret",
        *(cache_dir or library.config.HF_DATASETS_CACHE, images.name),
    )
    features = {
        "image": library.Image(),
        "label": library.ClassLabel(names=list(images.classes)),
        "id": library.Value("string"),
    }
    if not images.labelled:
        del features["label"]
    return library.Dataset.from_generator(
        _rows,
        features=library.Features(features),
        cache_dir=None if cache_dir is None else str(cache_dir),
        gen_kwargs={"images": images},
    )


def _rows(images: ImageSet) -> Iterator[dict[str, Any]]:
    for index in range(len(images)):
        encoded = images.encoded(index)
        image = _picture(images.read(index)) if encoded is None else {"bytes": encoded, "path": None}
        label = {"label": int(images.labels[index])} if images.labelled else {}
        yield {"image": image, **label, "id": images.ids[index]}
