"""Tasks in several processes, and the garbage collector while libraries load."""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from uge.processes import TRIES, Processes, load_ahead, loading


def opened(folder: Path) -> Callable[[int], tuple[int, int]]:
    """Squares numbers, notes every try, and kills its process: for 13 always, for 7 the first time."""

    def square(number: int) -> tuple[int, int]:
        with (folder / str(number)).open("a") as file:
            file.write("x")
        tries = (folder / str(number)).stat().st_size
        if number == 13 or (number == 7 and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2, os.getpid()

    return square


@pytest.mark.parametrize("size", [1, 3])
def test_a_process_that_dies_takes_nothing_but_its_task(size: int, tmp_path: Path) -> None:
    numbers = [1, 7, 2, 13, 3, 4]
    with contextlib.closing(Processes[int, tuple[int, int]](functools.partial(opened, tmp_path), size)) as processes:
        answers = dict(processes.map(numbers))
        assert processes.running == []
    assert {number: answer and answer[0] for number, answer in answers.items()} == {
        1: 1,
        7: 49,
        2: 4,
        13: None,
        3: 9,
        4: 16,
    }
    assert {number: (tmp_path / str(number)).stat().st_size for number in numbers} == {
        **dict.fromkeys(numbers, 1),
        7: 2,
        13: TRIES,
    }
    assert os.getpid() not in {answer[1] for answer in answers.values() if answer}


def test_a_process_is_used_again(tmp_path: Path) -> None:
    with contextlib.closing(Processes[int, tuple[int, int]](functools.partial(opened, tmp_path), 1)) as processes:
        pids = {answer[1] for _, answer in processes.map([1, 2, 3]) if answer}
    assert len(pids) == 1


def test_closing_ends_what_is_running(tmp_path: Path) -> None:
    processes = Processes[int, tuple[int, int]](functools.partial(opened, tmp_path), 1)
    processes.start(1)
    ((_, answer),) = processes.wait()
    assert answer is not None
    processes.start(2)
    processes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(answer[1], 0)


def collector() -> Callable[[int], tuple[bool, int]]:
    return lambda _: (gc.isenabled(), gc.get_freeze_count())


def test_processes_collect_what_they_make_themselves_and_not_what_was_loaded() -> None:
    with contextlib.closing(Processes[int, tuple[bool, int]](collector, 1)) as processes:
        ((_, answer),) = processes.map([1])
    assert answer is not None
    enabled, frozen = answer
    assert enabled
    assert frozen > 1000


def test_processes_that_a_program_forks_from_the_same_one_have_a_collector() -> None:
    load_ahead("")
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(gc.isenabled)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not loaded torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_comes_back_and_leaves_what_was_loaded_alone(fails: bool) -> None:
    before = gc.get_freeze_count()
    with contextlib.suppress(ImportError), loading():
        assert not gc.isenabled()
        loaded = [[] for _ in range(1000)]  # type: ignore[var-annotated]
        if fails:
            raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(loaded)


@pytest.mark.usefixtures("alone")
def test_a_program_without_a_collector_gets_none() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_the_collector_of_a_program_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


AHEAD = """
import os, pathlib, signal, sys, time
from uge.processes import Processes, load_ahead
signal.signal(signal.SIGINT, signal.default_int_handler)  # Jobs in the background may have begun without.
WAY
while not pathlib.Path("loading").exists():
    time.sleep(0.01)
try:
    os.killpg(0, signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
while not pathlib.Path("loaded").exists():
    time.sleep(0.01)
"""


@pytest.mark.parametrize("way", ['load_ahead("slow")', 'Processes(print, 1, preload="slow")'])
def test_what_loads_ahead_is_not_disturbed_by_an_interrupt(way: str, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group; only the process that asked may speak of it."""
    for name in ("torch", "torch/_dynamo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    slow = "import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(0.3)\npathlib.Path('loaded').touch()\n"
    (tmp_path / "slow.py").write_text(slow)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", AHEAD.replace("WAY", way)]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, start_new_session=True, capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "interrupted\n", "")


SCRIPT = """
import contextlib
from pathlib import Path
from uge.processes import Processes
with Path("runs").open("a") as file:
    file.write("x")
def opened():
    return abs
{guard}with contextlib.closing(Processes(opened, 1)) as processes:
    print(dict(processes.map([-1, -2])))
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_needs_a_main_guard(guarded: bool, tmp_path: Path) -> None:
    guard = 'if __name__ == "__main__":\n  ' if guarded else ""
    script = SCRIPT.format(guard=guard)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    if guarded:
        assert done.stdout == "{-1: 1, -2: 2}\n", done.stderr
        return
    assert done.returncode == 1
    assert "script.py would be run again by every worker process; put its calls under" in done.stderr
    assert (tmp_path / "runs").read_text() == "x"
