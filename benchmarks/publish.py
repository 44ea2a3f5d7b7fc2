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
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import skimage.data

from uge.budget import Budget
from uge.data import load_images
from uge.data.codec import OPTIONS, decode, encode, storable
from uge.data.images import ImageSet, Pixels
from uge.publishing import Provenance, publish
from uge.publishing.stream import batches
from uge.runtime import Runtime

PHOTOGRAPHS = ("astronaut", "coffee", "rocket")


def crops(count: int, size: int, rng: np.random.Generator) -> list[Pixels]:
    """Random crops of photographs."""
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    pixels = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (int(rng.integers(side - size + 1)) for side in photograph.shape[:2])
        pixels.append(np.ascontiguousarray(photograph[top : top + size, left : left + size]))
    return pixels


def protect(pixels: Pixels, budget: Budget, rng: np.random.Generator) -> Pixels:
    """Noise in blocks of 8 pixels at the full budget: about as hard to compress as a generator's."""
    height, width, channels = pixels.shape
    blocks = rng.integers(-budget.levels, budget.levels + 1, (-(-height // 8), -(-width // 8), channels))
    noise = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    noise[..., 3:] = 0
    return budget.add(pixels, noise)


def seconds(job: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of all threads; the second hardly minds what else the machine does."""
    wall = time.perf_counter()
    cpu = time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


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
    if arguments.source is None:
        clean = crops(arguments.count, arguments.size, rng)
    else:
        clean = [sample.pixels for sample in load_images(arguments.source, limit=arguments.count)]
    rows = np.arange(len(clean))
    source = SimpleNamespace(read=clean.__getitem__)
    images = ImageSet("benchmark", "train", ("a", "b"), rows % 2, [f"{row:08d}" for row in rows], source, rows)
    protected = [protect(pixels, budget, rng) for pixels in clean]

    def encoded(pixels: Pixels) -> bytes:
        return encode(pixels, storable(pixels, arguments.codec))

    def in_threads(function: Callable[[Any], object], items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(arguments.workers) as pool:
            for _ in pool.map(function, items):
                pass

    def published(folder: str) -> None:
        settings = {"codec": arguments.codec, "workers": arguments.workers, "overwrite": True}
        triples = zip(range(len(clean)), clean, protected, strict=True)
        provenance = Provenance(method="benchmark")
        publish(triples, f"{folder}/out", images=images, budget=budget, provenance=provenance, **settings)

    def in_batches() -> None:
        parts = batches(protected, lambda pixels: pixels.nbytes)
        in_threads(lambda part: [encoded(pixels) for pixels in part], parts)

    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, Callable[[], None]] = {
            "encode": lambda: in_threads(encoded, protected),
            "encode_in_batches": in_batches,
            "encode_and_decode": lambda: in_threads(lambda pixels: decode(encoded(pixels)), protected),
            "publish": lambda: published(folder),
        }
        rounds = [{name: seconds(job) for name, job in jobs.items()} for _ in range(arguments.repeats)]
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    wall, cpu = ({name: min(times[name][kind] for times in rounds) for name in jobs} for kind in (0, 1))
    result = {
        "benchmark": "publish",
        "images": len(clean),
        "shape": list(protected[0].shape),
        "codec": arguments.codec,
        "workers": arguments.workers,
        "bytes_per_image": round(stored / len(clean)),
        "images_per_second": {name: round(len(clean) / time, 1) for name, time in wall.items()},
        "publish_to_encode": round(wall["encode"] / wall["publish"], 3),
        "publish_to_encode_in_batches": round(wall["encode_in_batches"] / wall["publish"], 3),
        "publish_to_encode_and_decode": round(wall["encode_and_decode"] / wall["publish"], 3),
        "publish_to_encode_processor_time": round(cpu["encode"] / cpu["publish"], 3),
        "environment": Runtime.create("cpu").environment(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
