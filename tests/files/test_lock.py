import json
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from uge import files
from uge.errors import StorageError, UsageError
from uge.files.pair import Journal

HOLDER = """
import sys, time
from pathlib import Path
from uge import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_names_the_first(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with holder(out) as process:
        message = rf"process {process.pid}, begun \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC, is writing .*out; wait"
        with pytest.raises(UsageError, match=message), files.locked(out):
            pass
        with pytest.raises(UsageError, match=message), files.staged_folder(out):
            pass
        process.communicate("go\n")
    assert list(tmp_path.iterdir()) == []
    with files.locked(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_kill_frees_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {".out.uge-lock", ".out.uge-journal"}
    with files.locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_waiting_process_gets_the_lock_at_the_end(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        assert process.stdin is not None
        ending = threading.Timer(0.2, process.stdin.close)
        ending.start()
        with files.locked(tmp_path / "out", wait=True) as hold:
            assert hold.journal.process == os.getpid()
        ending.join()


def test_blocks_of_one_thread_nest_and_another_thread_is_refused(tmp_path: Path) -> None:
    errors: list[str] = []

    def other() -> None:
        try:
            with files.locked(tmp_path / "out"):
                pass
        except UsageError as error:
            errors.append(str(error))

    (tmp_path / "link").symlink_to(tmp_path / "out")
    with files.locked(tmp_path / "out") as hold, files.locked(tmp_path / "link") as inner:
        assert inner is hold
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert f"process {os.getpid()}" in errors[0]


def test_decorated_functions_hold_the_lock_unless_nothing_is_written(tmp_path: Path) -> None:
    class Session:
        def __init__(self, dry_run: bool) -> None:
            self.dry_run = dry_run

    @files.writes("save")
    def command(save: Path | None, *, session: Session) -> bool:
        return (tmp_path / ".file.uge-lock").exists()

    assert command(tmp_path / "file", session=Session(False))
    assert not command(tmp_path / "file", session=Session(True))
    assert not command(None, session=Session(False))


def test_a_parent_that_takes_no_file_has_its_lock_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tmp_path / "parent"
    elsewhere = tmp_path / "temporary"
    parent.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != parent)
    with files.locked(parent / "out"):
        assert list(parent.iterdir()) == []
        (folder,) = elsewhere.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.suffix for path in folder.iterdir()} == {".uge-lock", ".uge-journal"}
    assert list(elsewhere.iterdir()) == []


def test_a_run_that_ended_inside_this_process_leaves_it_its_folder_of_sockets(tmp_path: Path) -> None:
    own = Path(get_temp_dir())
    journal = tmp_path / ".out.uge-journal"
    with files.locked(tmp_path / "out"):
        left = journal.read_bytes()
    assert str(own) in left.decode()
    journal.write_bytes(left)
    with files.locked(tmp_path / "out"):
        assert own.is_dir()
    assert own.is_dir()


@pytest.mark.parametrize("name", ["/", "/dev/null"])
def test_places_that_can_be_no_output(name: str) -> None:
    with pytest.raises(UsageError, match=r"choose another|name a folder"), files.locked(Path(name)):
        pass


class TestExchange:
    def test_files_and_folders_change_together(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").write_text("old")
        with files.locked(tmp_path / "a") as hold, hold.staged(tmp_path / "a") as new:
            (new / "b").write_text("new")
            (tmp_path / "c.new").mkdir()
            hold.exchange([(new / "b", tmp_path / "b"), (tmp_path / "c.new", tmp_path / "c"), (new, tmp_path / "a")])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
        assert (tmp_path / "b").read_text() == "new"

    @pytest.mark.parametrize("failing", [1, 2, 3, 4])
    def test_a_refused_move_undoes_all(self, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "old").write_text("")
        real = Path.rename
        calls = 0

        def rename(self: Path, target: Path) -> Path:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise PermissionError(13, "no", str(self))
            return real(self, target)

        def together() -> list[files.Move]:
            (tmp_path / "b.new").mkdir()
            return [(tmp_path / "b.new", tmp_path / "b")]

        monkeypatch.setattr(Path, "rename", rename)
        with (
            pytest.raises(StorageError, match="permission"),
            files.staged_folder(tmp_path / "a", overwrite=True, together=together),
        ):
            pass
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
            *("a", "a/old", "b", "b.new", "b/old")
        ]

    def test_parts_of_killed_writes_go_and_lookalikes_stay(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        (out / "run").mkdir(parents=True)
        journal = Journal(tmp_path / ".out.uge-journal", places=[out])
        journal.write()
        gone = [out / "run" / ".key.safetensors.123.part", out / ".images-77"]
        stay = [out / "run" / "key.123.part", out / ".key.part", out / ".images-mine", tmp_path / ".out.x.123.part"]
        for path in (*gone, *stay):
            path.mkdir() if "images" in path.name else path.write_text("")
        files.recover(out)
        assert [path.exists() for path in (*gone, *stay)] == [False] * 2 + [True] * 4
        assert not journal.path.exists()

    @pytest.mark.parametrize(
        "changes",
        [
            {"moves": [["precious", "out"]]},
            {"moves": [["../x/y", "../x/z"]]},
            {"tokens": ["../../x"]},
            {"kind": "other"},
            {"places": 3},
        ],
    )
    def test_a_journal_from_elsewhere_moves_nothing_else(self, changes: dict[str, object], tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("1")
        journal = Journal(tmp_path / ".out.uge-journal", places=[tmp_path / "out"])
        journal.write()
        journal.path.write_text(json.dumps(json.loads(journal.path.read_text()) | changes))
        files.recover(tmp_path / "out")
        assert (tmp_path / "precious").read_text() == "1"
        assert not (tmp_path / "out").exists()

    def test_a_pipe_in_place_of_the_journal_stops_nothing(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / ".out.uge-journal")
        with files.locked(tmp_path / "out"):
            pass


def test_a_reader_goes_on_while_a_writer_has_nothing_to_exchange(tmp_path: Path) -> None:
    with holder(tmp_path / "out") as process:
        files.recover(tmp_path / "out")
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    files.recover(tmp_path / "out.private")
    assert list(tmp_path.iterdir()) == []
