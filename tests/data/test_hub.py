from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from image_files import encode, picture

from uge.data import has_split, load_images
from uge.errors import DataError, MissingExtraError, UsageError

datasets = pytest.importorskip("datasets")

Serve = Callable[[dict[str, Any]], list[Any]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Puts tables in the place of the hub; returns the list of what was asked for."""

    def start(tables: dict[str, Any]) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(*names: str, revision: str | None) -> dict[str, Any]:
            asked.append((*names, revision))
            return tables

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return start


def table(labels: list[Any], label: Any, **more: list[Any]) -> Any:
    columns = {
        "img": [{"bytes": encode(picture(i)), "path": None} for i in range(len(labels))],
        "label": labels,
        **more,
    }
    features = {"img": datasets.Image(), "label": label, **{name: datasets.Value("string") for name in more}}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_images_classes_and_ids(serve: Serve) -> None:
    classes = datasets.ClassLabel(names=["cat", "dog"])
    asked = serve({"train": table([1, 0, 1], classes), "validation": table([0], classes, id=["u"])})
    train, test = load_images("hf://owner/pets@v2"), load_images("hf://datasets/owner/pets/small", "test")
    assert asked == [("owner/pets", "v2"), ("owner/pets", "small", None)]
    assert (train.name, train.classes, train.labels.tolist()) == ("pets", ("cat", "dog"), [1, 0, 1])
    assert (train.ids[2], test.ids, test.split, train.root) == ("train/00000002", ["u"], "validation", None)
    assert np.array_equal(train.read(2), picture(2))
    assert has_split("hf://owner/pets", "test")


def test_text_labels(serve: Serve) -> None:
    serve({"train": table(["dog", "cat"], datasets.Value("string"))})
    assert load_images("hf://owner/pets").classes == ("cat", "dog")


@pytest.mark.parametrize("labels", [[None, None], [-1, -1], None], ids=["null", "-1", "none"])
def test_tables_without_labels(labels: list[Any] | None, serve: Serve) -> None:
    made = table(labels or [0, 0], datasets.Value("int64"))
    serve({"train": made if labels else made.remove_columns("label")})
    images = load_images("hf://owner/photos", labels=False)
    assert (images.classes, images.labels.tolist()) == ((), [-1, -1])
    assert np.array_equal(images.read(1), picture(1))
    with pytest.raises(DataError):
        load_images("hf://owner/photos")


def test_a_table_without_images_is_refused(serve: Serve) -> None:
    serve({"train": datasets.Dataset.from_dict({"text": ["a"], "label": [0]})})
    with pytest.raises(DataError, match="there are: text, label"):
        load_images("hf://owner/texts")


def test_one_sentence_when_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"cannot load hf://owner/pets \(ConnectionError: no route to host\); check"):
        load_images("hf://owner/pets")


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"uge\[hf\]"):
        load_images("hf://owner/pets")


@pytest.mark.parametrize("source", ["hf://", "hf://a/b/c/d", "hf://owner//pets"])
def test_malformed_ids_are_refused(source: str) -> None:
    with pytest.raises(UsageError, match="a hub id is hf://owner/name"):
        load_images(source)


def test_the_column_called_image_is_taken(serve: Serve) -> None:
    def several(*columns: str) -> Any:
        pictures = {
            name: [{"bytes": encode(picture(10 * place + row)), "path": None} for row in range(2)]
            for place, name in enumerate(columns)
        }
        features = dict.fromkeys(columns, datasets.Image()) | {"label": datasets.Value("int64")}
        return datasets.Dataset.from_dict(pictures | {"label": [0, 1]}, datasets.Features(features))

    serve({"train": several("depth", "image")})
    assert np.array_equal(load_images("hf://me/depth").read(1), picture(11))
    assert np.array_equal(load_images("hf://me/depth", image_column="depth").read(1), picture(1))
    serve({"train": several("depth", "scan")})
    with pytest.raises(DataError, match=r"there are: depth, scan\); rename the column, or name it by --image-column"):
        load_images("hf://me/depth")
