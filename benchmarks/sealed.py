"""Time and size of sealing originals while they are published, and rates of opening them again.

::

    python benchmarks/sealed.py DATA --limit 50000     # any source that uge reads
    python benchmarks/sealed.py DATA --arrays          # the same images without their files: sealed as lossless WebP

Publishing with and without sealing run in turn, several times, in one process; the least processor time of each counts,
and its difference is what sealing costs. ``open`` reads, decrypts and authenticates every row of the sealed shards in
one thread and decodes nothing; ``decode`` decodes these rows. Ratios compare the two publications of one run. Peak
memory is measured by ``benchmarks/memory.py``.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uge.budget import Budget
from uge.data import load_images
from uge.data.images import ImageSet, Pixels
from uge.data.pixels import decode
from uge.publishing import Protected, Provenance, publish
from uge.runtime import Runtime
from uge.sealing import SealedFolder, Sealing, make_identity, open_folder, read_identity


@dataclass
class Arrays:
    """Reader of arrays, which have no files."""

    pixels: list[Pixels]

    def read(self, row: int) -> Pixels:
        """Array of a row."""
        return self.pixels[row]


def protected(images: ImageSet, budget: Budget) -> Iterator[Protected]:
    """Images with one pattern of noise at the full budget."""
    noise = np.random.default_rng(0).integers(-budget.levels, budget.levels + 1, (1024, 1024, 3))
    for index in range(len(images)):
        clean = images.read(index)
        change = noise[: clean.shape[0], : clean.shape[1], : clean.shape[2]]
        yield index, clean, budget.add(clean, change)


def seconds(job: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor time of a job."""
    wall = time.perf_counter()
    cpu = time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="any image source")
    parser.add_argument("--limit", type=int, default=50_000)
    parser.add_argument("--arrays", action="store_true", help="decode the images first, so that they have no files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    images = load_images(arguments.source, limit=arguments.limit)
    if arguments.arrays:
        images = replace(images, reader=Arrays([sample.pixels for sample in images]), rows=np.arange(len(images)))
    budget = Budget()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sealing = Sealing({"owner": make_identity(folder / "owner.agekey")})
        identity = read_identity(folder / "owner.agekey")

        def published(out: str, sealing: Sealing | None) -> None:
            shutil.rmtree(folder / out, ignore_errors=True)
            settings = {"budget": budget, "provenance": Provenance(method="benchmark"), "workers": arguments.workers}
            publish(protected(images, budget), folder / out, images=images, sealing=sealing, **settings)

        def opened() -> SealedFolder:
            sealed = open_folder(folder / "sealed", identity)
            for _ in sealed.rows():
                pass
            return sealed

        publications = [
            {
                "plain": seconds(lambda: published("plain", None)),
                "sealed": seconds(lambda: published("sealed", sealing)),
            }
            for _ in range(arguments.repeats)
        ]
        openings = [seconds(opened) for _ in range(arguments.repeats)]
        rows = list(open_folder(folder / "sealed", identity).rows())
        decoding = min(
            seconds(lambda: [decode(row.image, row.id) for row in rows])[1] for _ in range(arguments.repeats)
        )
        public = sum(path.stat().st_size for path in (folder / "sealed" / "data").iterdir())
        shards = sum(path.stat().st_size for path in (folder / "sealed" / "sealed").iterdir())
        originals = sum(len(row.image) for row in rows)
    wall, cpu = ({name: min(run[name][kind] for run in publications) for name in publications[0]} for kind in (0, 1))
    opening = min(time for _, time in openings)
    result = {
        "benchmark": "sealed",
        "images": len(images),
        "files": not arguments.arrays,
        "workers": arguments.workers,
        "publish_wall_seconds": {name: round(value, 2) for name, value in wall.items()},
        "publish_cpu_seconds": {name: round(value, 2) for name, value in cpu.items()},
        "sealing_wall_seconds": round(wall["sealed"] - wall["plain"], 2),
        "sealing_cpu_seconds": round(cpu["sealed"] - cpu["plain"], 2),
        "open_rows_per_second": round(len(images) / opening),
        "decode_rows_per_second": round(len(images) / decoding),
        "sealed_over_originals": round(shards / originals, 5),
        "sealed_over_public": round(shards / public, 3),
        "environment": Runtime.create(device="cpu").environment(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
