"""Images per second of ``uge apply`` on one core, whole command and generator alone.

::

    python benchmarks/apply.py DATA --limit 10000

The command is a process of its own, bound to one core: it reads, protects, encodes, decodes again, measures and
writes. "Generator alone" is the perturbation of the same images in memory, on one thread.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from uge.budget import Budget
from uge.data import load_images
from uge.methods.apply import save_perturber
from uge.methods.uge.generator import Generator
from uge.runtime import Runtime, seeded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    runtime = Runtime.create()
    with seeded(0, "benchmark"):
        generator = runtime.place(Generator(3, Budget(0.04))).eval()
        # The last convolution starts at zero; random weights make the stored noise cost what real noise does.
        torch.nn.init.normal_(generator.decoder[-1].weight, std=0.05)
    images = load_images(arguments.source, limit=arguments.limit)
    pixels = [images.read(row) for row in range(min(2048, len(images)))]
    with runtime.autocast():
        for part in (pixels[:256], pixels):  # The first warms up.
            began = time.perf_counter()
            list(generator.levels(part))
    alone = len(pixels) / (time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "generator.safetensors"
        save_perturber(weights, generator)
        command = [sys.executable, "-m", "uge", "apply", str(weights), arguments.source, f"{folder}/out"]
        command += ["--limit", str(arguments.limit), "--threads", "1", "--quiet", "--json"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
    result = {
        "benchmark": "apply",
        "images": len(images),
        "images_per_second_whole_command": round(len(images) / seconds, 1),
        "images_per_second_generator_alone": round(alone, 1),
        "environment": runtime.environment(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
