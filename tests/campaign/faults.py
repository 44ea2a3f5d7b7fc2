"""Kills before file operations, in this process: from the given one on, none takes place any more."""

import builtins
import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

CHANGING = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "chmod", "truncate", "fsync")
"""Functions of ``os`` that change the disk; pathlib and shutil call them."""


class Kill(BaseException):
    """End of a process without any clean-up."""


@dataclass
class Operations:
    """File operations below a folder since the block began.

    Attributes:
        root: The folder; operations elsewhere are not counted.
        number: Operation, from 1, that does not take place; 0 for none.
        names: Operations so far, as ``rename .copy.staging-…``.
    """

    root: Path
    number: int
    names: list[str] = field(default_factory=list)

    def count(self, name: str, path: Any = None) -> None:
        """Note an operation, or raise ``Kill`` if the process is dead by then."""
        self.names.append(f"{name} {path}")
        if self.number and len(self.names) >= self.number:
            raise Kill(self.names[self.number - 1])

    def below(self, path: Any) -> bool:
        """True for a path under the folder, or a descriptor of one; of a descriptor without a known path too."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return True
        return Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.root)


@contextlib.contextmanager
def killed_at(number: int, root: Path) -> Iterator[Operations]:
    """Kill the block before its file operation ``number``, or count the operations where that is 0.

    Opening a file for writing counts twice: before it is made, and when it is there and still empty.
    """
    operations = Operations(root, number)

    def changing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("dir_fd") is not None or operations.below(args[0]):
                operations.count(name, args[0])
            return real(*args, **kwargs)

        return operation

    real_open = builtins.open
    real_os_open = os.open

    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+") or not operations.below(file):
            return real_open(file, mode, *args, **kwargs)
        operations.count("open", file)
        handle = real_open(file, mode, *args, **kwargs)
        with handle if number and len(operations.names) + 1 >= number else contextlib.nullcontext():
            operations.count("write", file)
        return handle

    def os_opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and kwargs.get("dir_fd") is None and operations.below(path):
            operations.count("os.open", path)
        return real_os_open(path, flags, *args, **kwargs)

    with contextlib.ExitStack() as patches:
        # This process lives on, so that its folder of sockets must not be taken for that of a killed one.
        patches.enter_context(mock.patch.dict(multiprocessing.current_process()._config)).pop("tempdir", None)
        for name in CHANGING:
            patches.enter_context(mock.patch.object(os, name, changing(name, getattr(os, name))))
        patches.enter_context(mock.patch.object(builtins, "open", opening))
        patches.enter_context(mock.patch.object(io, "open", opening))
        patches.enter_context(mock.patch.object(os, "open", os_opening))
        yield operations
