"""Folders without labels, and of one class: sealed, published, verified, opened and exported without any made up."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import uge
from uge.config import ProtectConfig, PublishConfig
from uge.data import load_images
from uge.errors import DataError
from uge.pipeline.export import run_export
from uge.pipeline.inspect import inspect
from uge.pipeline.protect import ProtectRun
from uge.progress import Silent
from uge.publishing import private_folder
from uge.publishing.verify import run_verify
from uge.runtime import Runtime
from uge.sealing.opening import opened_by
from uge.session import Session

FORMATS = ("parquet", "imagefolder")
Publish = Callable[..., Path]


def photographs(folder: Path, count: int = 6) -> Path:
    """Folder of images that are no squares, and one file that is none."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"holiday {number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def publish(tmp_path: Path, runtime: Runtime) -> Publish:
    """Protects a folder by previews, or by another method, and gives the published folder."""

    def make(source: Path, format: str = "parquet", **settings: object) -> Path:
        config = ProtectConfig.checked(**{"method": "preview", "size": 16, **settings})
        out = tmp_path / "out"
        ProtectRun(str(source), out, config, PublishConfig.checked(format=format), Session(runtime)).run()
        return out

    return make


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_without_labels_is_sealed_and_comes_back(format: str, publish: Publish, tmp_path: Path) -> None:
    source = photographs(tmp_path / "source")
    out = publish(source, format)
    key = private_folder(out) / "owner.agekey"
    findings = run_verify(out, [str(source)], Silent(), key=key)
    assert (findings["problems"], findings["count"], findings["opened"]) == ([], 6, 6)
    originals = uge.open(out, key=key)
    assert (originals.classes, set(originals.labels.tolist())) == ((), {-1})
    clean = load_images(source, labels=False)
    assert all(np.array_equal(originals.read(row), clean.read(row)) for row in range(6))
    run_export(out, tmp_path / "back", key, progress=Silent())
    assert (tmp_path / "back" / "index.csv").read_text().splitlines()[0] == "path,id"
    assert len(load_images(tmp_path / "back", labels=False)) == 6
    about = inspect(str(out))
    assert (about["classes"], about["class_counts"], about["count"]) == ([], [], 6)


def test_no_label_is_made_up_in_either_layout(publish: Publish, tmp_path: Path) -> None:
    source = photographs(tmp_path / "source")
    out = publish(source)
    (shard,) = (out / "data").iterdir()
    assert pq.read_schema(shard).names == ["image", "id"]
    assert list(json.loads(pq.read_schema(shard).metadata[b"huggingface"])["info"]["features"]) == ["image", "id"]
    out.rename(tmp_path / "parquet")
    private_folder(out).rename(tmp_path / "parquet.private")
    out = publish(source, "imagefolder")
    assert sorted(path.name for path in (out / "train").iterdir()) == [f"{number:08d}.png" for number in range(6)]
    card = (out / "README.md").read_text()
    assert "6 images without labels" in card
    assert "image-classification" not in card


@pytest.mark.parametrize("format", FORMATS)
def test_hugging_face_datasets_finds_images_without_labels(
    format: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    out = publish(photographs(tmp_path / "source"), format)
    (split, table), *others = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache")).items()
    assert (split, others, len(table)) == ("train", [], 6)
    assert "label" not in table.features
    assert np.asarray(table[0]["image"]).shape == (20, 24, 3)
    originals = uge.open(out, key=private_folder(out) / "owner.agekey").hf(tmp_path / "cache")
    assert list(originals.features) == ["image", "id"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_label_that_comes_later_is_found(format: str, publish: Publish, tmp_path: Path) -> None:
    out = publish(photographs(tmp_path / "source"), format)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest |= {"classes": ["made up"], "class_counts": [6]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    problems = run_verify(out, (), Silent(), key=private_folder(out) / "owner.agekey")["problems"]
    assert any("expected the columns" in sentence for sentence in problems)


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_of_one_class_keeps_its_name(format: str, publish: Publish, tmp_path: Path) -> None:
    photographs(tmp_path / "source" / "cats")
    out = publish(tmp_path / "source", format)
    findings = run_verify(out, [str(tmp_path / "source")], Silent(), key=private_folder(out) / "owner.agekey")
    assert findings["problems"] == []
    assert load_images(out).classes == ("cats",)


@pytest.mark.parametrize("method", ["robust", "random"])
def test_methods_without_classes_take_it(method: str, publish: Publish, tmp_path: Path) -> None:
    settings = {"surrogates": "cnn", "epochs": 1, "steps": 2} if method == "robust" else {}
    out = publish(photographs(tmp_path / "source"), method=method, **({"robust": settings} if settings else {}))
    findings = run_verify(out, [str(tmp_path / "source")], Silent(), key=private_folder(out) / "owner.agekey")
    assert (findings["problems"], findings["measured"]["unchanged_images"]) == ([], 0)
    assert not list(out.rglob("*cluster*"))
    assert (private_folder(out) / "run" / "clusters.json").is_file() == (method == "robust")


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("method", ["keyed", "tap"])
def test_other_methods_name_what_works(method: str, labelled: bool, publish: Publish, tmp_path: Path) -> None:
    photographs(tmp_path / "source" / "cats" if labelled else tmp_path / "source")
    reason = "all images are of one class" if labelled else "the images have no labels"
    with pytest.raises(DataError, match=rf"{reason}.*--method robust --robust\.clusters N .*--method preview"):
        publish(tmp_path / "source", method=method)


def test_training_on_it_is_refused(publish: Publish, tmp_path: Path) -> None:
    out = publish(photographs(tmp_path / "source"))
    with pytest.raises(DataError, match="published without labels"):
        load_images(out)
    with opened_by(private_folder(out) / "owner.agekey"), pytest.raises(DataError, match="has no labels"):
        load_images(f"sealed:{out}")
