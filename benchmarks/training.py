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

VARIANTS = {"ours": None, "textbook, 0 loader processes": 0, "textbook, 2 loader processes": 2}


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


def textbook_epoch(network: torch.nn.Module, loader: DataLoader, recipe: Recipe) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()


def measure(variant: str, source: str, limit: int, name: str) -> dict[str, object]:
    """Seconds of the second of two epochs (the first warms up), in this process."""
    store = load_pixels(load_images(source, limit=limit))
    recipe = Recipe(epochs=1)
    runtime = Runtime.create() if variant == "ours" else None
    loader = DataLoader(Textbook(store), recipe.batch_size, shuffle=True, num_workers=VARIANTS[variant] or 0)
    for _ in range(2):
        began = time.perf_counter()
        network = build(name, len(store.classes), seed=0)
        if runtime:
            fit(network, store, recipe, seed=0, runtime=runtime)
        else:
            textbook_epoch(network, loader, recipe)
    return {"seconds": time.perf_counter() - began, "environment": runtime and runtime.environment()}


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
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.repeats):
        for variant, results in runs.items():
            command = [sys.executable, *sys.argv, "--variant", variant]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    seconds = {name: [round(run["seconds"], 3) for run in results] for name, results in runs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    textbook = min(medians[name] for name in VARIANTS if name != "ours")
    result = {
        "benchmark": "training",
        "network": arguments.network,
        "images": arguments.limit,
        "seconds_per_epoch": seconds,
        "median_seconds_per_epoch": medians,
        "times_faster_than_textbook": round(textbook / medians["ours"], 2),
        "environment": runs["ours"][-1]["environment"],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
