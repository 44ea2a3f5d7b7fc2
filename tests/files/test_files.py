import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uge import files
from uge.errors import DataError, OutputExistsError, StorageError, UsageError

KILLED = """
import os, signal, sys
from pathlib import Path
from uge import files
with files.staged_folder(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_fingerprint_depends_on_values_not_on_order() -> None:
    assert files.fingerprint({"a": 1, "b": [2, "ü"]}) == files.fingerprint({"b": [2, "ü"], "a": 1})
    assert files.fingerprint({"a": 1}) != files.fingerprint({"a": 2})


def test_file_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert files.file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"name": "Käse", "list": [1, 2.5, None], "path": Path("a/b")}
    files.write_json(tmp_path / "deep" / "value.json", value)
    assert files.read_json(tmp_path / "deep" / "value.json") == {**value, "path": "a/b"}


@pytest.mark.parametrize("content", [b'{"a": ', b"[1, 2]", b"\xff\xfe{}"])
def test_read_json_refuses(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"value\.json"):
        files.read_json(path)
    with pytest.raises(DataError, match="missing"):
        files.read_json(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EIO, "an error at"),
    ],
)
def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    path = tmp_path / "value"
    files.write_atomic(path, "old")
    write = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StorageError, match=advice):
        files.write_atomic(path, "new content")
    assert contents(tmp_path) == {"value": "old"}


def test_other_system_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError), files.storage_errors(tmp_path):
        raise InterruptedError(errno.EINTR, "interrupted")


def test_a_file_in_the_path_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file, not a folder"):
        files.EventLog(tmp_path / "file" / "sub" / "log.jsonl")


class TestOutput:
    def test_overlap_with_the_source(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        (source / "train").mkdir(parents=True)
        for out in (source, source / "out", source / "train", tmp_path, source / ".." / "source"):
            with pytest.raises(UsageError, match="overlap"):
                files.check_output(out, source=source, overwrite=True)
        files.check_output(tmp_path / "source2", source=source)

    def test_overlap_through_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "source")
        with pytest.raises(UsageError, match="overlap"):
            files.check_output(tmp_path / "link" / "out", source=tmp_path / "source")

    def test_what_exists_is_kept(self, tmp_path: Path) -> None:
        full = tmp_path / "full"
        empty = tmp_path / "empty"
        file = tmp_path / "file"
        full.mkdir()
        empty.mkdir()
        (full / "x").write_text("")
        file.write_text("")
        for taken in (full, file):
            with pytest.raises(OutputExistsError, match="--overwrite"):
                files.check_output(taken)
            files.check_output(taken, overwrite=True)
        files.check_output(empty)

    def test_of_others_nothing_is_replaced(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        files.check_output(out, overwrite=True, ours=lambda folder: False)
        (out / "thesis").write_text("")
        files.check_output(out, overwrite=True, ours=lambda folder: folder == out)
        with pytest.raises(UsageError, match="did not write"):
            files.check_output(out, overwrite=True, ours=lambda folder: False)

    def test_pipes_and_devices_stay(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        (tmp_path / "link").symlink_to(pipe)
        for out in (pipe, tmp_path / "link"):
            with pytest.raises(UsageError, match="no regular file or folder; choose another"):
                files.check_output(out, overwrite=True)
            with pytest.raises(UsageError, match="no regular file or folder"), files.staged_folder(out, overwrite=True):
                pass
            with pytest.raises(UsageError, match="no regular file or folder"):
                files.write_atomic(out, "text")
        assert pipe.is_fifo()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]

    def test_names_that_no_disk_takes(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="the name is too long"):
            files.check_output(tmp_path / ("x" * 300))
        with pytest.raises(StorageError, match="it is a folder, where a file was expected"):
            files.write_atomic(tmp_path, "text")


class TestStagedFolder:
    def test_takes_its_place_at_the_end(self, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "out"
        with files.staged_folder(out, mode=0o700) as staging:
            (staging / "a").write_text("1")
            assert not out.exists()
        assert contents(tmp_path) == {"deep/out/a": "1"}
        assert out.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
    def test_failure_leaves_everything_as_it_was(self, tmp_path: Path, error: BaseException) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "old").write_text("1")

        def fail() -> None:
            with files.staged_folder(out, overwrite=True) as staging:
                (staging / "new").write_text("2")
                raise error

        with pytest.raises(type(error)):
            fail()
        assert contents(tmp_path) == {"out/old": "1"}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_failure_of_the_last_rename_brings_the_old_folder_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "old").write_text("1")
        rename = Path.rename

        def fail(self: Path, target: Path) -> Path:
            if "staging" in self.name:
                raise OSError(errno.ENOSPC, "full")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(StorageError, match="disk is full"), files.staged_folder(out, overwrite=True):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert contents(tmp_path) == {"out/old": "1"}

    @pytest.mark.parametrize("file", [False, True])
    def test_replaces_a_folder_or_a_file(self, tmp_path: Path, file: bool) -> None:
        out = tmp_path / "out"
        if file:
            out.write_text("old")
        else:
            out.mkdir()
            (out / "old").write_text("1")
        with pytest.raises(OutputExistsError), files.staged_folder(out):
            pass
        with files.staged_folder(out, overwrite=True) as staging:
            (staging / "new").write_text("2")
        assert contents(tmp_path) == {"out/new": "2"}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_what_a_killed_process_left_goes_and_nothing_else(self, tmp_path: Path) -> None:
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")])
        assert killed.returncode == -signal.SIGKILL
        left = {path.name for path in tmp_path.iterdir()}
        assert {".out.uge-lock", ".out.uge-journal"} < left
        token = next(name for name in left if "staging" in name).rpartition("-")[2]
        others = {f".other.staging-{token}", ".out.staging-1", ".out.staging-0a0b0c0d", ".out.retired-notes"}
        for name in others:
            (tmp_path / name).mkdir()
        with files.staged_folder(tmp_path / "out"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {*others, "out"}

    def test_a_link_to_a_folder_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "old").write_text("1")
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with files.staged_folder(tmp_path / "link", overwrite=True) as staging:
            (staging / "new").write_text("2")
        assert (tmp_path / "link").is_symlink()
        assert contents(tmp_path / "real") == {"new": "2"}


class TestEvents:
    def test_appends_and_reads(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "log.jsonl"
        files.EventLog(path).write("start", seed=1)
        files.EventLog(path).write("step", loss=0.5)
        assert [{k: v for k, v in event.items() if k != "time"} for event in files.read_events(path)] == [
            {"event": "start", "seed": 1},
            {"event": "step", "loss": 0.5},
        ]

    def test_a_line_cut_off_by_a_crash_costs_only_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        files.EventLog(path).write("start")
        with path.open("a") as handle:
            handle.write(json.dumps({"event": "lost"})[:8])
        assert [event["event"] for event in files.read_events(path)] == ["start"]
        files.EventLog(path).write("resumed")
        assert [event["event"] for event in files.read_events(path)] == ["start", "resumed"]

    def test_without_a_path_nothing_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        files.EventLog(None).write("start")
        assert list(tmp_path.iterdir()) == []
        assert files.read_events(tmp_path / "absent") == []

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log = files.EventLog(tmp_path / "log.jsonl")

        def full(self: Path, mode: str) -> None:
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match="disk is full"):
            log.write("start")


def test_an_output_with_a_nul_character_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a path to write to, got 'a\\x00b' with a NUL character"):
        files.local_path("a\0b")
