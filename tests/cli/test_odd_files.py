"""Commands that meet pipes, devices, links to themselves and huge files say one sentence, and wait for nothing."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import TINY, make_folder, refused, run_uge

ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "of eight gibibytes": lambda path: (path.touch(), os.truncate(path, 1 << 33)),
}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A command that waits fails instead."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["train.tar", "train.parquet", "set.npz", "run.toml", "run.yaml", "wanted.json"])
def test_sources_settings_and_requests(name: str, odd: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", train=2, test=1)
    place = tmp_path / "source" / name
    place.parent.mkdir()
    ODD[odd](place)
    source = place if name == "set.npz" else place.parent
    arguments = {
        "run.toml": (folder, tmp_path / "out", "--config", place),
        "run.yaml": (folder, tmp_path / "out", "--config", place),
        "wanted.json": (folder, tmp_path / "out", "--for", place),
    }.get(name, (source, tmp_path / "out", *TINY))
    ran = run_uge("protect", *arguments, "-q")
    assert ran.code in (1, 2), ran.err
    assert ran.err.count("\n") == 1
    assert "unexpected" not in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("odd", ["a pipe", "a link to itself", "a device without end"])
def test_images(odd: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", train=2, test=1)
    ODD[odd](folder / "train" / "cat" / "odd.png")
    ran = run_uge("protect", folder, tmp_path / "out", *TINY, "-q")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "odd.png" in ran.err
    assert "unexpected" not in ran.err


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["manifest.json", "README.md", "TRAINING.md", "data/train-00000-of-00001.parquet"])
def test_a_published_folder(name: str, odd: str, copy: Path) -> None:
    (copy / name).unlink()
    ODD[odd](copy / name)
    ran = run_uge("verify", copy, "-q")
    assert ran.code == 1
    assert name in ran.err
    assert "unexpected" not in ran.err


def test_a_generator(copy: Path, toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    os.mkfifo(path)
    refused(2, "generator.safetensors", "apply", path, toy, tmp_path / "more", inside=copy)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("request", "new.json", "--network", "lenet", "--classes", "1000000000"), "100000"),
        (("request", "new.json", "--network", "lenet", "--classes", "3", "--size", "1000000"), "4096"),
        (("protect", "photos", "new", "--size", "1000000"), "4096"),
        (("env", "--threads", "9999999"), "threads"),
    ],
)
def test_absurd_numbers(flags: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(2, words, *flags, inside=tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("overlap", {"a": 1}), ("label_agreement", "x"), ("budget_levels", [1]), ("test_images", {}), ("attacks", "x")],
)
def test_a_summary_with_fields_of_other_kinds(
    field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uge.auditing.summary import Summary

    summary = json.loads(Summary().model_dump_json()) | {"facts": {field: value}}
    (tmp_path / "run" / "cases").mkdir(parents=True)
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr("uge.report.page.read_cases", lambda folder: [None])
    refused(1, "expected a summary in", "report", tmp_path / "run", tmp_path / "page.html", inside=tmp_path)


@pytest.mark.parametrize("error", [SystemExit(0), MemoryError()])
def test_a_plug_in_that_leaves_is_no_success(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(target: str) -> None:
        raise error

    monkeypatch.setattr("uge.pipeline.inspect.inspect", leave)
    ran = run_uge("inspect", "photos")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "unexpected" not in ran.err
