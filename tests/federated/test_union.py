"""Parts of a source keep the shared class list, and their union keeps order, labels and pixels."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fed_toy import make_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uge.data import load_images
from uge.data.formats.base import Columns, read_columns
from uge.data.images import ImageSet
from uge.data.store import load_pixels
from uge.errors import DataError
from uge.federated.parts import Server, split_rows, union, write_part

Make = Callable[..., ImageSet]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(servers=st.integers(2, 4), kind=st.sampled_from(["classes", "iid", "dirichlet"]), seed=st.integers(0, 50))
def test_the_union_of_the_parts_is_the_whole(make_images: Make, servers: int, kind: str, seed: int) -> None:
    images = make_images(count=96, size=4, classes=8, seed=seed)
    parts = split_rows(images.labels, servers, kind, seed=seed)
    whole = union([images.subset(rows) for rows in parts])
    order = np.concatenate(parts)
    assert whole.classes == images.classes
    assert np.array_equal(whole.labels, images.labels[order])
    owners = np.repeat(np.arange(servers), [len(rows) for rows in parts])
    assert list(whole.ids) == [f"server-{k}/{images.ids[i]}" for k, i in zip(owners, order, strict=True)]
    for place in (0, len(parts[0]) - 1, len(parts[0]), len(whole) - 1):
        assert np.array_equal(whole.read(place), images.read(int(order[place])))


def test_the_union_reads_nothing_until_asked_and_keeps_equal_ids_apart(make_images: Make) -> None:
    class Unread:
        def read(self, row: int) -> np.ndarray:
            raise AssertionError("a pixel was read")

    part = make_images(count=6)
    closed = ImageSet("x", "train", part.classes, part.labels, part.ids, Unread(), part.rows)
    whole = union([closed, closed]).check_trainable()
    assert len(whole) == 12
    assert len(set(whole.ids)) == 12


def test_the_union_is_the_same_every_time(make_images: Make) -> None:
    parts = [make_images(count=10, seed=seed) for seed in (0, 1)]
    first, again = (load_pixels(union(parts)).digest() for _ in range(2))
    assert first == again
    assert load_pixels(union(parts[::-1])).digest() != first


def test_parts_of_other_classes_have_no_union(make_images: Make) -> None:
    with pytest.raises(DataError, match="server 1 has"):
        union([make_images(classes=3), make_images(classes=4)])


def test_relabelling_keeps_each_image_in_its_class(make_images: Make) -> None:
    images = make_images(classes=3)
    shared = ("zebra", "class 2", "class 0", "ant", "class 1")
    renamed = images.relabelled(shared)
    assert [shared[i] for i in renamed.labels] == [images.classes[i] for i in images.labels]
    assert renamed.classes == shared
    with pytest.raises(DataError, match="class 'class 2' is not among the shared classes"):
        images.relabelled(("class 0", "class 1"))
    # A class that no image has need not be shared.
    assert len(images.subset(np.flatnonzero(images.labels < 2)).relabelled(("class 0", "class 1"))) == 8


def test_a_part_reads_its_rows_of_the_source_under_the_shared_classes(tmp_path: Path) -> None:
    images = load_images("photos")
    rows = np.flatnonzero(images.labels >= 5)[::7]
    server = Server.at(tmp_path, 1)
    write_part(server, "photos", images, rows.tolist(), limit=None)
    part = server.originals().check_trainable()
    assert part.classes == images.classes
    assert np.array_equal(part.labels, images.labels[rows])
    assert np.array_equal(part.read(3), images.read(int(rows[3])))
    assert part.labels.min() >= 5


def test_a_part_of_a_source_with_fewer_classes_takes_the_shared_list(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine", classes=("dog", "owl"), train=3)
    file = tmp_path / "mine.part.json"
    file.write_text(json.dumps({"source": str(folder), "classes": ["cat", "dog", "eel", "owl"]}))
    assert load_images(file).labels.tolist() == [1, 1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": 7}, "is a part of 7 images"),
        ({"rows": [0, 10**6]}, "must lie within"),
        ({"rows": [-1]}, "must lie within"),
        ({"rows": [0.5]}, "whole numbers"),
        ({"rows": []}, "whole numbers"),
        ({"classes": ["unheard of"]}, "is not among the shared classes"),
    ],
)
def test_a_part_that_does_not_fit_its_source_is_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    file = tmp_path / "x.part.json"
    file.write_text(json.dumps({"source": "photos", **change}))
    with pytest.raises(DataError, match=words):
        load_images(file)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.part.json"
    for text in ("", "[]", "{}", "nonsense"):
        file.write_text(text)
        with pytest.raises(DataError, match="must hold"):
            load_images(file)


def test_a_part_remembers_the_columns_of_its_source(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(picture, "PNG")
    table = pa.table({"scan": pa.array([picture.getvalue()] * 4), "kind": pa.array(["b", "a", "b", "a"])})
    pq.write_table(table, tmp_path / "set.parquet")
    server = Server.at(tmp_path, 0)
    with read_columns(Columns("scan", "kind")):
        images = load_images(tmp_path / "set.parquet")
        write_part(server, str(tmp_path / "set.parquet"), images, [1, 2], limit=None)
    assert server.originals().labels.tolist() == [0, 1]
