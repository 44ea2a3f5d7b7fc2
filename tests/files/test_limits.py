"""Only regular files of a stated size are read, and documents nested without end are refused."""

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from uge.cases.case import read_case
from uge.config import read_config
from uge.errors import UGEError
from uge.files import (
    UnreadableError,
    check_regular,
    file_sha256,
    open_regular,
    parse,
    read_bytes,
    read_events,
    read_json,
    read_text,
)
from uge.files.limits import DEPTH
from uge.publishing import read_manifest

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "bytes": ("any", read_bytes),
    "text": ("any", read_text),
    "JSON": ("any.json", read_json),
    "TOML": ("run.toml", lambda path: read_config(path, f"config file {path}")),
    "YAML": ("run.yaml", lambda path: read_config(path, f"config file {path}")),
    "case": ("case.json", read_case),
    "manifest": ("manifest.json", lambda path: read_manifest(path.parent)),
}
ODD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "missing": lambda path: None,
    "of eight gibibytes": lambda path: (path.touch(), os.truncate(path, 1 << 33)),
}
NESTED = ["JSON", "TOML", "YAML", "case", "manifest"]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A read that waits fails instead."""
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_nothing_but_a_regular_file_of_stated_size_is_read(reader: str, odd: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    ODD[odd](path)
    with pytest.raises(UGEError) as refused:
        read(path)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, '{"a":' * 200 + "1" + "}" * 200]
)
@pytest.mark.parametrize("reader", NESTED)
def test_a_document_nested_without_end_is_one_sentence(reader: str, text: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    path.write_text(text if reader != "TOML" else f"a = {text.replace(':', '=')}")
    with pytest.raises(UGEError, match=r"^[^\n]*$"):
        read(path)


def test_depth_is_counted() -> None:
    deep = "[" * DEPTH + "]" * DEPTH
    assert parse(json.loads, deep) == json.loads(deep)
    with pytest.raises(ValueError, match=f"nested more than {DEPTH} deep"):
        parse(json.loads, f"[{deep}]")


@pytest.mark.parametrize(("text", "value"), [("", None), ("word", "word"), ("3", 3), ("[1, [2]]", [1, [2]])])
def test_values_come_back(text: str, value: object) -> None:
    assert parse(yaml.safe_load, text) == value


def test_aliases_that_multiply_a_document_are_refused() -> None:
    laughs = "a0: &a0 [[x]]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    with pytest.raises(ValueError, match="aliases"):
        parse(yaml.safe_load, laughs)
    assert parse(yaml.safe_load, "a: &a {b: 1}\nc: *a") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize("odd", ["a pipe", "a link to itself", "a device without end", "a folder", "missing"])
def test_files_of_any_size_must_be_regular(odd: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    ODD[odd](path)
    for read in (check_regular, open_regular, file_sha256):
        with pytest.raises(UnreadableError, match="file cannot be read: "):
            read(path)


def test_a_pipe_that_takes_the_place_of_a_checked_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    regular = os.stat_result((stat.S_IFREG, *[0] * 9))
    monkeypatch.setattr(os, "stat", lambda *_, **__: regular)
    with pytest.raises(UnreadableError, match="a regular file was expected"):
        open_regular(path)


def test_a_limit_is_the_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UnreadableError, match="it has 5 bytes, and at most 4 are read"):
        read_bytes(path, 4)


def test_lines_of_a_log_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("[" * 100_000 + '\n{"event": "step"}\n{"ev')
    assert read_events(path) == [{"event": "step"}]
