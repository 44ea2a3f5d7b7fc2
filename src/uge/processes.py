"""Tasks in processes of their own: one that dies takes nothing but its own task with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Opened = Callable[[], Callable[[Task], Answer]]
TRIES = 2
"""How often a task is started whose process dies."""
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Processes(Generic[Task, Answer]):
    """Runs tasks in several processes; idle ones are used again, dead ones replaced.

    Args:
        opened: Called in a new process, before its first task; gives what does tasks there. It and all tasks and
            answers are sent by pickle between these processes, never read from a file.
        size: Processes at the same time.
        preload: A module whose import takes long; where processes can be forked from one that has it, they are.
    """

    def __init__(self, opened: Opened[Task, Answer], size: int, *, preload: str = "") -> None:
        self.size, self._opened = size, opened
        load_ahead(preload)
        self._context: Any = multiprocessing.get_context(_START)
        self._idle, self._busy = list[_Process](), dict[_Process, Task]()

    @property
    def running(self) -> list[Task]:
        """The tasks in work."""
        return list(self._busy.values())

    def start(self, task: Task) -> None:
        """Hand a task to an idle process, or to a new one; only where fewer than ``size`` are running."""
        process = self._idle.pop() if self._idle else _Process(self._context, self._opened)
        self._busy[process] = task
        process.send(task)

    def wait(self) -> list[tuple[Task, Answer | None]]:
        """Wait for at least one running task: its answer, or None where its process died."""
        waiting: dict[Any, _Process] = {process.pipe: process for process in self._busy}
        waiting |= {process.process.sentinel: process for process in self._busy}
        found = list[tuple[Task, Answer | None]]()
        for process in dict.fromkeys(waiting[ready] for ready in wait(list(waiting))):
            task, answer = self._busy.pop(process), process.answer()
            if answer is None:
                process.end()
                found.append((task, None))
            else:
                self._idle.append(process)
                found.append((task, answer[0]))
        return found

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Answer | None]]:
        """Every task with its answer, as they come; None for one whose process died :data:`TRIES` times."""
        pending, died = list(reversed(tasks)), list[Task]()
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
        """End all processes, whatever they do."""
        for process in [*self._idle, *self._busy]:
            process.end()
        self._idle.clear()
        self._busy.clear()


def load_ahead(preload: str) -> None:
    """Begin to load what processes will need, while this one goes on; they start at once then.

    Libraries are loaded once, in a process from which the others are forked, where the system can do that.

    Args:
        preload: As :class:`Processes` will be given it.
    """
    if _START != "forkserver":
        return
    # The first optimizer of a process imports the last module, which takes as long as torch itself.
    modules = ["uge.preloading", __name__, *([preload] if preload else []), "torch._dynamo"]
    multiprocessing.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # It would unblock again what is blocked here: Ctrl-C is for this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """A process that does one task after the other, and the pipe to it."""

    def __init__(self, context: Any, opened: Opened[Any, Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, opened), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, task: Any) -> None:
        with contextlib.suppress(OSError):  # A process that is dead already is noticed when it is waited for.
            self.pipe.send(task)

    def answer(self) -> tuple[Any] | None:
        try:
            return (self.pipe.recv(),)
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, opened: Opened[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one; it ends it.
    do = opened()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(do(pipe.recv()))
