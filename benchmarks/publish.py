"""Images per second of ``uge.publish`` against the bare encoder with the same codec, images and threads.

::

    python benchmarks/publish.py                       # random 224-pixel crops of scikit-image's photographs
    python benchmarks/publish.py DATA --size 32        # images of any source that uge reads, as they are

Both run in turn, several times, in one process; the fastest time of each counts. ``publish`` decodes every image
again, measures it, hashes and writes the files on top of encoding, so the ratio tells what that costs. ``encode`` hands
one image after the other to a thread, ``encode_in_batches`` as many at once as publishing does, which is the harder
measure: for small images the handing over takes a tenth of encoding.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import skimage.data

from uge.budget import Budget
from uge.data import load_images
from uge.data.images import ImageSet, Pixels
from uge.publishing import Provenance, publish
from uge.publishing.codec import OPTIONS, decode, encode, storable
from uge.publishing.stream import batches
from uge.runtime import Runtime

PHOTOGRAPHS = ("astronaut", "coffee", "rocket")


class Arrays:
    def __init__(self, pixels: list[Pixels]) -> None:
        self.pixels = pixels

    def read(self, row: int) -> Pixels:
        return self.pixels[row]


def crops(count: int, size: int, rng: np.random.Generator) -> list[Pixels]:
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    found = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (int(rng.integers(side - size + 1)) for side in photograph.shape[:2])
        found.append(np.ascontiguousarray(photograph[top : top + size, left : left + size]))
    return found


def image_set(arguments: argparse.Namespace, rng: np.random.Generator) -> ImageSet:
    if arguments.source is None:
        pixels = crops(arguments.count, arguments.size, rng)
    else:
        source = load_images(arguments.source)
        pixels = [source.read(index) for index in range(min(arguments.count, len(source)))]
    count = len(pixels)
    ids = [f"{index:08d}" for index in range(count)]
    return ImageSet("benchmark", "train", ("a", "b"), np.arange(count) % 2, ids, Arrays(pixels), np.arange(count))


def protect(images: ImageSet, budget: Budget, rng: np.random.Generator) -> list[tuple[int, Pixels, Pixels]]:
    """Noise in blocks of 8 pixels at the full budget: about as hard to compress as a generator's."""
    pairs = []
    for index, sample in enumerate(images):
        height, width, channels = sample.pixels.shape
        blocks = rng.integers(-budget.levels, budget.levels + 1, (-(-height // 8), -(-width // 8), channels))
        noise = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
        noise[..., 3:] = 0
        pairs.append((index, sample.pixels, budget.add(sample.pixels, noise)))
    return pairs


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of all threads; the second hardly minds what else the machine does."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="any image source; random crops of photographs without one")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--codec", choices=sorted(OPTIONS), default="webp")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    budget = Budget()
    images = image_set(arguments, rng)
    pairs = protect(images, budget, rng)
    protected = [pixels for _, _, pixels in pairs]
    folder = Path(tempfile.mkdtemp())

    def mapped(function: Callable[[Pixels], object]) -> Callable[[], object]:
        def run() -> None:
            with ThreadPoolExecutor(arguments.workers) as pool:
                for _ in pool.map(function, protected):
                    pass

        return run

    def bare_batch(batch: list[Pixels]) -> list[bytes]:
        return [bare(pixels) for pixels in batch]

    def in_batches() -> None:
        with ThreadPoolExecutor(arguments.workers) as pool:
            for _ in pool.map(bare_batch, batches(protected, lambda pixels: pixels.nbytes)):
                pass

    def bare(pixels: Pixels) -> bytes:
        return encode(pixels, storable(pixels, arguments.codec))

    def whole() -> None:
        provenance = Provenance(method="benchmark")
        settings = {"codec": arguments.codec, "workers": arguments.workers, "overwrite": True}
        publish(pairs, folder / "out", images=images, budget=budget, provenance=provenance, **settings)

    jobs = {
        "encode": mapped(bare),
        "encode_in_batches": in_batches,
        "encode_and_decode": mapped(lambda pixels: decode(bare(pixels))),
        "publish": whole,
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    try:
        for _ in range(arguments.repeats):
            for name, job in jobs.items():
                times[name].append(seconds(job))
        stored = sum(path.stat().st_size for path in (folder / "out").rglob("*.parquet"))
    finally:
        shutil.rmtree(folder)
    wall = {name: min(one for one, _ in found) for name, found in times.items()}
    cpu = {name: min(one for _, one in found) for name, found in times.items()}
    result = {
        "benchmark": "publish",
        "images": len(images),
        "shape": list(protected[0].shape),
        "codec": arguments.codec,
        "workers": arguments.workers,
        "bytes_per_image": round(stored / len(images)),
        "images_per_second": {name: round(len(images) / one, 1) for name, one in wall.items()},
        "publish_to_encode": round(wall["encode"] / wall["publish"], 3),
        "publish_to_encode_in_batches": round(wall["encode_in_batches"] / wall["publish"], 3),
        "publish_to_encode_and_decode": round(wall["encode_and_decode"] / wall["publish"], 3),
        "publish_to_encode_processor_time": round(cpu["encode"] / cpu["publish"], 3),
        "environment": Runtime.create("cpu").environment(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
