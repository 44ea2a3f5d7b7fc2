"""Image sets as data sets of PyTorch and of Hugging Face datasets."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, picture
from PIL import Image
from torch.utils.data import DataLoader

from uge.data import ImageSet, load_images
from uge.errors import MissingExtraError


def folder(root: Path, channels: tuple[int, ...] = (3, 3, 3, 3)) -> ImageSet:
    for seed, count in enumerate(channels):
        path = root / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(seed, channels=count)))
    return load_images(root)


def test_items_are_pairs_of_tensor_and_label_in_any_order(tmp_path: Path) -> None:
    images = folder(tmp_path)
    data = images.torch()
    assert isinstance(data, torch.utils.data.Dataset)
    assert (len(data), data.classes, data.targets) == (4, ["a", "b"], images.labels.tolist())
    for index in (2, 0, 3, -1):
        image, label = data[index]
        assert (image.dtype, label) == (torch.float32, int(images.labels[index]))
        assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), images.read(index % 4))
    assert [label for _, label in data] == data.targets
    with pytest.raises(IndexError):
        data[4]


def test_a_transform_takes_pil_images_of_one_mode(tmp_path: Path) -> None:
    mixed = folder(tmp_path / "mixed", (3, 1, 4, 2)).torch(lambda image: (type(image), image.mode, image.size))
    assert {item for item, _ in mixed} == {(Image.Image, "RGB", (8, 8))}
    gray = folder(tmp_path / "gray", (1, 1, 1, 1))
    assert {image.mode for image, _ in gray.torch(lambda image: image)} == {"L"}
    assert gray.torch()[0][0].shape == (1, 8, 8)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_on_their_own(tmp_path: Path, method: str) -> None:
    images = folder(tmp_path)
    loader = DataLoader(images.torch(), batch_size=2, num_workers=1, multiprocessing_context=method)
    pixels, labels = zip(*loader, strict=True)
    assert torch.cat(labels).tolist() == images.labels.tolist()
    expected = torch.stack([image for image, _ in images.torch()])
    assert torch.equal(torch.cat(pixels), expected)


def test_a_hugging_face_set_has_images_labels_and_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_images: Callable[..., ImageSet]
) -> None:
    pytest.importorskip("datasets")
    for images in (folder(tmp_path / "files"), make_images(4, classes=2)):
        table = images.hf(tmp_path / "cache")
        assert table.features["label"].names == list(images.classes)
        assert table["id"][:] == list(images.ids)
        assert table["label"][:] == images.labels.tolist()
        for index, row in enumerate(table):
            assert np.array_equal(np.asarray(row["image"]), images.read(index))
    assert "holds the images of files as they are" in caplog.text


def test_the_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'uge\[hf\]'"):
        folder(tmp_path).hf()
