"""Where and how tensors are computed: device, precision, and named streams of random numbers."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from uge.errors import UsageError
from uge.files import code_version

Network = TypeVar("Network", bound=torch.nn.Module)
PRECISIONS = ("auto", "fp32", "bf16-mixed")


def stream_seed(root: int, *names: str | int) -> int:
    """The seed of one named stream, derived from the root seed.

    Streams with different names are independent, and none depends on how much another
    has been used, so an interrupted run that starts again at step k draws what it would
    have drawn.
    """
    text = "/".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(root: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator at the start of one named stream."""
    return torch.Generator(device=device).manual_seed(stream_seed(root, *names))


@contextlib.contextmanager
def seeded(root: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block only (for layers that take no generator)."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(root, *names))
        yield


@dataclass(frozen=True)
class Runtime:
    """Device and precision of one run.

    Attributes:
        device: Where tensors live.
        precision: ``"fp32"``, or ``"bf16-mixed"`` (autocast).
    """

    device: torch.device
    precision: str

    @classmethod
    def create(cls, device: str = "auto", precision: str = "auto") -> Runtime:
        """Resolve ``"auto"``: a GPU if there is one, and bf16 where the hardware computes it.

        Raises:
            UsageError: The device is absent or unknown, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "gpu":
            device = "cuda"
        try:
            found = torch.device(device)
        except RuntimeError:
            raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got '{device}'") from None
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UsageError(f"device '{device}' was asked for, but {count} CUDA devices are here; use --device auto")
        if found.type == "mps" and not torch.backends.mps.is_available():
            raise UsageError("device 'mps' was asked for, but it is not available here; use --device auto")
        if found.type not in ("cpu", "cuda", "mps"):
            raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got '{device}'")
        if found.type == "cpu":
            _keep_freed_memory()
        if precision == "auto":
            precision = "bf16-mixed" if _has_fast_bf16(found) else "fp32"
        return cls(found, precision)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to bf16 where the precision says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout in which convolutions, batch norm and pooling are fastest, on every device measured so far."""
        return torch.channels_last

    def place(self, network: Network) -> Network:
        """Move a network to the device, in the layout that is fastest there; returns it."""
        network.to(self.device)
        network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        return network

    def environment(self) -> dict[str, Any]:
        """What a result must name to be read later: hardware, threads, precision, versions."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "uge": code_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(self.device),
            "hardware": gpu or _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "precision": self.precision,
        }


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of handing it back to the kernel after every step.

    A training step on a CPU allocates and frees the same large tensors again and again; fresh
    pages for each of them cost a quarter of the step (benchmarks/training.py).
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**30)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and "avx512_bf16" in _cpu_info("flags")


def _processor() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(field: str) -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.split(":")[0].strip() == field:
                return line.split(":", 1)[1].strip()
    return ""
