"""Networks that kill the process they are in, or fail, in the first training step; to be named as plug-ins."""

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

from torch import Tensor, nn


def allowance(pid: int) -> Path:
    """A file with the number of times that worker processes of a process may still be killed."""
    return Path(tempfile.gettempdir()) / f"uge-fragile-{pid}"


class Fragile(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        parent = multiprocessing.parent_process()
        if self.training and parent is not None:
            left = allowance(parent.pid or 0)
            if int(left.read_text()) > 0:
                left.write_text(str(int(left.read_text()) - 1))
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def fragile(classes: int, channels: int, size: int) -> nn.Module:
    return Fragile(nn.Flatten(), nn.Linear(channels * size * size, classes))


class Faulty(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("out of\nmemory")
        return super().forward(x)


def faulty(classes: int, channels: int, size: int) -> nn.Module:
    return Faulty(nn.Flatten(), nn.Linear(channels * size * size, classes))
