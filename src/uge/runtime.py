"""Device and precision of a run, and named streams of random numbers."""

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import torch

from uge.errors import UsageError
from uge.files import code_version
from uge.heap import keep_freed_memory

Network = TypeVar("Network", bound=torch.nn.Module)
PRECISIONS = ("auto", "fp32", "bf16-mixed")


def stream_seed(root: int, *names: str | int) -> int:
    """Seed of one named stream, derived from the root seed.

    Streams with different names are independent, and none depends on the use of another. So an interrupted run that
    starts again at a step draws the numbers of an uninterrupted one.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, (root, *names))).encode()).digest()[:8], "big") >> 1


def stream(root: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator at the start of one named stream."""
    return torch.Generator(device=device).manual_seed(stream_seed(root, *names))


@contextlib.contextmanager
def seeded(root: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators inside the block only (for layers that take no generator)."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream_seed(root, *names))
        yield


@dataclass(frozen=True)
class Runtime:
    """Device and precision of one run.

    Attributes:
        device: Device of networks and batches.
        precision: ``"fp32"``, or ``"bf16-mixed"`` (autocast).
        memory_format: Memory layout in which convolutions, batch norm and pooling are fastest on every device measured
            so far.
    """

    device: torch.device
    precision: str
    memory_format: ClassVar[torch.memory_format] = torch.channels_last

    @classmethod
    def create(cls, device: str = "auto", precision: str = "auto") -> Self:
        """Runtime of a device and a precision; ``"auto"`` is a GPU if there is one, and bf16 if the hardware has it.

        Raises:
            UsageError: The device is absent or unknown, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got '{precision}'")
        wanted = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(device, device)
        try:
            resolved = torch.device(wanted)
        except RuntimeError:
            resolved = torch.device("meta")
        if resolved.type not in ("cpu", "cuda", "mps"):
            raise UsageError(f"device must be auto, cpu, cuda, cuda:N or mps, got '{device}'")
        count = torch.cuda.device_count()
        if resolved.type == "cuda" and (resolved.index or 0) >= count:
            raise UsageError(f"device '{wanted}' was asked for, but {count} CUDA devices are here; use --device auto")
        if resolved.type == "mps" and not torch.backends.mps.is_available():
            raise UsageError("device 'mps' was asked for, but it is not available here; use --device auto")
        if resolved.type == "cpu":
            keep_freed_memory()
        if precision == "auto":
            fast = torch.cuda.is_bf16_supported() if resolved.type == "cuda" else "avx512_bf16" in _cpu_info("flags")
            precision = "bf16-mixed" if fast else "fp32"
        return cls(resolved, precision)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to bf16; without effect in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def place(self, network: Network) -> Network:
        """Move a network to the device, in the fastest memory layout; returns it."""
        network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        return network

    def environment(self) -> dict[str, Any]:
        """Hardware, threads, precision and versions, which every result names."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "uge": code_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(self.device),
            "hardware": gpu or _cpu_info("model name") or platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "precision": self.precision,
        }


def _cpu_info(field: str) -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.split(":")[0].strip() == field:
                return line.split(":", 1)[1].strip()
    return ""
