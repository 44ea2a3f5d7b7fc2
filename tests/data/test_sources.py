from __future__ import annotations

from pathlib import Path

import pytest
from image_files import encode, parquet, picture, tree

from uge.data import has_split, load_images
from uge.errors import DataError, UsageError


@pytest.mark.parametrize("ask", [load_images, lambda source: has_split(source, "test")])
def test_a_source_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: object) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path, ["pictures/a/1.png"])
    for source, message in (
        ("picturs", "'picturs'; did you mean 'pictures'"),
        (tmp_path / "pictuers", f"did you mean '{tmp_path / 'pictures'}'"),
        ("fotos", "did you mean 'photos'"),
        ("owner/name", "write hf://owner/name"),
        ("", "the source is empty"),
        (Path("photos"), "no file or folder 'photos'"),
    ):
        with pytest.raises(UsageError, match=message):
            ask(source)  # type: ignore[operator]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match=r"notes\.doc is of no known format \(NumPy archive, .*image folder\)"):
        load_images(tmp_path / "notes.doc")


def test_a_folder_goes_before_the_embedded_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tree(tmp_path, ["photos/a/1.png", "photos/b/2.png"]))
    assert load_images("photos").classes == ("a", "b")
    assert "not the embedded set" in caplog.text


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path, ["set/a/1.png", "set/b/2.png"])))
    assert load_images("~/set").name == "set"


def test_limit() -> None:
    assert load_images("photos", limit=20).labels.tolist() == [*range(10), *range(10)]
    assert len(load_images("photos", limit=10**6)) == 7000
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        load_images("photos", limit=0)
    with pytest.raises(DataError, match=r"photos has no split 'validation' \(there are: train, test\)"):
        load_images("photos", "validation")


def test_the_name_is_that_of_the_folder_or_of_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "pets", ["a/1.png", "b/2.png"])
    monkeypatch.chdir(root)
    assert load_images(".").name == "pets"
    stored = parquet(tmp_path / "0123abcd", [encode(picture(seed)) for seed in range(2)], [0, 1])
    (tmp_path / "birds.parquet").symlink_to(stored)
    assert load_images(tmp_path / "birds.parquet").name == "birds"
