"""Tasks in several processes, of which one can die without the others, and the quick start of these processes."""

import ast
import contextlib
import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from uge.errors import UsageError

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Opened = Callable[[], Callable[[Task], Answer]]
TRIES = 2  # Starts of a task whose process dies.
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Processes(Generic[Task, Answer]):
    """Several processes that run tasks; idle ones are used again, dead ones replaced.

    Args:
        opened: Called in a new process, before its first task; returns the function that runs tasks. The function, all
            tasks and answers are sent by pickle between these processes, never read from a file.
        size: Processes at the same time.
        preload: A module that takes long to import; processes are forked from one that has it, if the system can.
    """

    def __init__(self, opened: Opened[Task, Answer], size: int, *, preload: str = "") -> None:
        _check_script()
        self.size = size
        self._opened = opened
        load_ahead(preload)
        self._idle = list[_Process]()
        self._busy = dict[_Process, Task]()

    @property
    def running(self) -> list[Task]:
        """Tasks that are running."""
        return list(self._busy.values())

    def start(self, task: Task) -> None:
        """Hand a task to an idle process, or to a new one; only while fewer than ``size`` are running."""
        process = self._idle.pop() if self._idle else _Process(self._opened)
        self._busy[process] = task
        with contextlib.suppress(OSError):  # A process that is dead already is noticed when it is waited for.
            process.pipe.send(task)

    def wait(self) -> list[tuple[Task, Answer | None]]:
        """Wait for at least one running task; gives its answer, or None if its process died."""
        waiting: dict[Any, _Process] = {
            ready: process for process in self._busy for ready in (process.pipe, process.process.sentinel)
        }
        answers = list[tuple[Task, Answer | None]]()
        for process in dict.fromkeys(waiting[ready] for ready in wait(list(waiting))):
            task = self._busy.pop(process)
            try:
                answers.append((task, process.pipe.recv()))
                self._idle.append(process)
            except (EOFError, OSError):
                answers.append((task, None))
                process.end()
        return answers

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Answer | None]]:
        """Every task with its answer, in the order of the answers; None after the second death of a task's process."""
        pending = list(reversed(tasks))
        died = list[Task]()
        while pending or self._busy:
            while pending and len(self._busy) < self.size:
                self.start(pending.pop())
            for task, answer in self.wait():
                if answer is None and died.count(task) < TRIES - 1:
                    died.append(task)
                    pending.append(task)
                else:
                    yield task, answer

    def close(self) -> None:
        """End all processes at once."""
        for process in [*self._idle, *self._busy]:
            process.end()
        self._idle.clear()
        self._busy.clear()


def _check_script() -> None:
    """Refuse to start processes for a script without a main guard, which every process would run once more."""
    main = sys.modules["__main__"]
    script = Path(getattr(main, "__file__", None) or "")
    if getattr(main, "__spec__", None) is not None or not script.is_file():
        return
    try:
        nodes = list(ast.walk(ast.parse(script.read_bytes())))
    except (SyntaxError, ValueError):  # No plain Python: nothing can be said about it.
        return
    if not any(isinstance(node, ast.Name) and node.id == "__name__" for node in nodes):
        raise UsageError(
            f"{script} would be run again by every worker process; put its calls under "
            "'if __name__ == \"__main__\":', or use one worker"
        )


class _Process:
    def __init__(self, opened: Opened[Any, Any]) -> None:
        context: Any = multiprocessing.get_context(_START)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, opened), daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, opened: Opened[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one; it ends it.
    run = opened()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(run(pipe.recv()))


def load_ahead(preload: str) -> None:
    """Begin to load the libraries of :class:`Processes`, while this process goes on.

    They are loaded once, in a process from which the others are forked, if the system can do that. A small audit with
    two workers starts a second sooner.

    Args:
        preload: The module that :class:`Processes` will be given.
    """
    if _START != "forkserver":
        return
    # The first optimizer of a process imports the last module, which takes as long as torch itself.
    multiprocessing.set_forkserver_preload(["uge.preloading", *([preload] if preload else []), "torch._dynamo"])
    resource_tracker.ensure_running()  # It would unblock again what is blocked here: Ctrl-C is for this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Switch the garbage collector off inside the block, and keep all objects of the block out of its later searches.

    Libraries make very many objects that stay. Searching them takes a third of the time of ``uge env``, and with that
    of the workers a second of an audit. The block changes nothing if torch is loaded already or the collector is off:
    then the process belongs to another program.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
