"""Peak memory of ``uge protect`` above the framework's own, and with the same images given ten times.

::

    python benchmarks/memory.py DATA --limit 50000 --times 1 10

DATA is a folder of Parquet shards; "ten times" is a folder with ten links to each. Every run is a process of its own;
its peak is the kernel's ``ru_maxrss``. The framework's own is a process that imports torch and trains the same network
on one batch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FRAMEWORK = """
import torch
from uge.networks import build
from uge.runtime import Runtime
network = Runtime.create().place(build("cnn", 10, seed=0))
network(torch.rand(128, 3, 32, 32)).sum().backward()
"""
SHORT = ["--max-steps", "20", "--recipe.epochs", "1", "--encoder-recipe.epochs", "1"]


def peak_mib(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed with status {status}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--limit", type=int, default=50_000)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--method", default="uge", help="of uge protect; uge needs the most memory")
    arguments = parser.parse_args()
    framework = peak_mib([sys.executable, "-c", FRAMEWORK])
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for times in arguments.times:
            source = Path(folder) / f"source-{times}"
            source.mkdir()
            for shard in sorted(arguments.source.glob("train*.parquet")):
                for copy in range(times):
                    (source / f"train-{copy:03d}-{shard.name}").symlink_to(shard.resolve())
            command = [sys.executable, "-m", "uge", "protect", str(source), f"{folder}/out-{times}", "--quiet", *SHORT]
            command += ["--limit", str(arguments.limit * times), "--method", arguments.method]
            peaks[times] = peak_mib(command)
    result = {
        "benchmark": "memory",
        "images": arguments.limit,
        "method": arguments.method,
        "framework_mib": round(framework),
        "protect_mib_above_framework": {str(times): round(peak - framework) for times, peak in peaks.items()},
        "settings": " ".join(SHORT),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
