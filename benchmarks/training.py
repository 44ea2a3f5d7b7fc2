"""Epoch time of ``uge.learning.training.fit`` against a textbook PyTorch loop: same network, images and augmentation.

::

    python benchmarks/training.py DATA --limit 10000     # DATA: any source with 32-pixel images

The textbook loop reads images one by one through a ``DataLoader``, crops, flips and normalises each with Pillow and
NumPy on the CPU, and trains in fp32. Both take turns, each in a process of its own; the median of each counts. The
textbook loop runs with 0 and with 2 loader processes, and the faster of the two is compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from uge.data import load_images
from uge.data.store import PixelStore, load_pixels
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.networks import build
from uge.runtime import Runtime


class Textbook(Dataset):
    def __init__(self, store: PixelStore) -> None:
        self.pixels = store.pixels.read(torch.arange(len(store))).permute(0, 2, 3, 1).numpy()
        self.labels = store.labels.numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.pixels[index]), 4)
        left, top = torch.randint(0, 9, (2,)).tolist()
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        x = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float().div(255)
        return x, int(self.labels[index])


def textbook_epoch(store: PixelStore, name: str, recipe: Recipe, workers: int) -> float:
    network = build(name, len(store.classes), seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Textbook(store), batch_size=recipe.batch_size, shuffle=True, num_workers=workers)
    began = time.perf_counter()
    network.train()
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    return time.perf_counter() - began


def our_epoch(store: PixelStore, name: str, recipe: Recipe, runtime: Runtime) -> float:
    began = time.perf_counter()
    fit(build(name, len(store.classes), seed=0), store, recipe, seed=0, runtime=runtime)
    return time.perf_counter() - began


VARIANTS = {"ours": None, "textbook, 0 loader processes": 0, "textbook, 2 loader processes": 2}


def measure(variant: str, source: str, limit: int, name: str) -> dict[str, object]:
    """Seconds of the second of two epochs (the first warms up), in this process."""
    store, recipe, workers = load_pixels(load_images(source, limit=limit)), Recipe(epochs=1), VARIANTS[variant]
    if workers is None:
        runtime = Runtime.create()
        seconds = [our_epoch(store, name, recipe, runtime) for _ in range(2)]
        return {"seconds": seconds[1], "environment": runtime.environment()}
    return {"seconds": [textbook_epoch(store, name, recipe, workers) for _ in range(2)][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments.source, arguments.limit, arguments.network)))
        return
    environment: object = None
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.repeats):
        for variant, values in times.items():
            command = [sys.executable, *sys.argv, "--variant", variant]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            values.append(found["seconds"])
            environment = found.get("environment") or environment
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    best = min(value for name, value in medians.items() if name != "ours")
    found = {
        "benchmark": "training",
        "network": arguments.network,
        "images": arguments.limit,
        "seconds_per_epoch": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "median_seconds_per_epoch": medians,
        "times_faster_than_textbook": round(best / medians["ours"], 2),
        "environment": environment,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
