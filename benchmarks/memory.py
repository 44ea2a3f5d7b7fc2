"""Peak memory of ``uge protect`` above the framework's own: of many images, and of large photographs.

::

    python benchmarks/memory.py DATA --limit 50000 --times 1 10
    python benchmarks/memory.py --photos 1x48 4x12 24x12

DATA is a folder of Parquet shards; "ten times" is a folder with ten links to each. Every run is a process of its own;
its peak is the kernel's ``ru_maxrss``. The framework's own is a process that imports torch and trains the same network
on one batch.

``1x48`` is one JPEG photograph of 48 megapixels (a gradient with grain), among small images. The framework's own is a
process that imports what the command imports, and torch for ``protect``. Seconds are of the processor, less those of
that process, for each photograph. Encoders are measured apart.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uge.data.codec import OPTIONS, encode
from uge.publishing.manifest import Codec
from uge.runtime import Runtime

FRAMEWORK = """
import torch
from uge.networks import build
from uge.runtime import Runtime
network = Runtime.create().place(build("cnn", 10, seed=0))
network(torch.rand(128, 3, 32, 32)).sum().backward()
"""
RUN = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([status, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime]))
"""
"""Runs a command from a small process: a new process counts the peak of the one that it was forked from as its own."""
SHORT = ["--max-steps", "20", "--recipe.epochs", "1", "--encoder-recipe.epochs", "1"]


def peak_mib(command: list[str]) -> float:
    return measured(command)[0]


def measured(command: list[str]) -> tuple[float, float]:
    """Peak memory in MiB, and seconds of the processor."""
    ran = subprocess.run([sys.executable, "-c", RUN, *command], stdout=subprocess.PIPE, check=True)
    status, peak, seconds = json.loads(ran.stdout)
    if status:
        raise SystemExit(f"{command} failed with status {status}")
    return peak, seconds


IMPORTS = {
    "protect": "import torch, scipy.ndimage, uge.cli.main, uge.pipeline.protect, uge.methods.apply",
    "verify": "import scipy, uge.cli.main, uge.publishing.verify",
}
ARROW = "\nimport pyarrow; pyarrow.array([1])"
"""Arrow imports pandas where that is installed, as soon as it makes an array."""


def photograph(height: int, width: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.uint8)
    across = np.linspace(20, 220, width, dtype=np.float32)[:, None]
    for top in range(0, height, 100):
        rows = pixels[top : top + 100]
        smooth = across * np.float32([1, 0.5, 0.8]) + np.float32([0, top / height * 100, 20])
        rows[:] = (smooth + random.normal(0, 6, rows.shape)).clip(0, 255)
    return Image.fromarray(pixels)


def photos(kinds: list[str], methods: list[str]) -> dict[str, Any]:
    """Memory and time of ``uge protect`` and ``uge verify --against`` for sets such as ``4x12``."""
    own = {name: measured([sys.executable, "-c", code + ARROW]) for name, code in IMPORTS.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            count, megapixels = map(int, kind.split("x"))
            height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
            source = Path(folder) / kind
            for number in range(4 + count):
                (source / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
                size = (96, 128) if number < 4 else (height, height * 4 // 3)
                photograph(*size, number).save(source / "ab"[number % 2] / f"{number:03d}.jpg", quality=90)
            for method in methods:
                out = f"{folder}/{kind}-{method}"
                uge = [sys.executable, "-m", "uge"]
                commands = {
                    "protect": [
                        *uge,
                        "protect",
                        source,
                        out,
                        "--method",
                        method,
                        "--size",
                        "64",
                        "--threads",
                        "1",
                        "-q",
                    ],
                    "verify": [*uge, "verify", out, "--against", source, "-q"],
                }
                row: dict[str, Any] = {"photos": kind, "method": method}
                for name, command in commands.items():
                    peak, seconds = measured(list(map(str, command)))
                    row[f"{name}_mib_above_framework"] = round(peak - own[name][0])
                    row[f"{name}_seconds_each"] = round((seconds - own[name][1]) / count, 1)
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return {
        "benchmark": "memory-photos",
        "framework_mib": {name: round(peak) for name, (peak, _) in own.items()},
        "rows": rows,
        "encoders_12_megapixels": encoders(photograph(3000, 4000, 0)),
        "environment": Runtime.create("cpu").environment(),
    }


def encoders(image: Image.Image) -> dict[str, dict[str, float]]:
    """Seconds and megabytes of one photograph with the codecs for small images and for large ones."""
    pixels = np.array(image)

    def by_pillow(codec: Codec) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, **OPTIONS[codec])
        return buffer.getvalue()

    ways = {"webp": lambda: by_pillow("webp"), "png": lambda: by_pillow("png"), "strips": lambda: encode(pixels, "png")}
    rows = {}
    for name, way in ways.items():
        start = time.process_time()
        data = way()
        seconds = time.process_time() - start
        rows[name] = {"seconds": round(seconds, 1), "megabytes": round(len(data) / 1e6, 1)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--photos", nargs="+", help="sets of COUNTxMEGAPIXELS, instead of a source")
    parser.add_argument("--limit", type=int, default=50_000)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--method", default="uge", help="of uge protect; uge needs the most memory")
    arguments = parser.parse_args()
    if arguments.photos:
        print(json.dumps(photos(arguments.photos, ["keyed", "random"]), indent=1))
        return
    if arguments.source is None:
        parser.error("give a folder of Parquet shards, or --photos")
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
