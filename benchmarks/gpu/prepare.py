#!/usr/bin/env python3
"""Make the folder that the GPU command travels with: images, and wheels of packages that its machine may lack.

::

    benchmarks/gpu/prepare.py data/cifar10                          # benchmarks/gpu/bundle, about 50 MB
    benchmarks/gpu/prepare.py data/cifar10 --python 3.12 --wheels cyclopts,pydantic

Images are the first 20,000 training and 5,000 test images, as lossless WebP in Parquet. The folder is not committed.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uge.data import ImageSet, load_images
from uge.data.codec import encode
from uge.errors import DataError
from uge.publishing.layout import table_schema

BUNDLE = Path(__file__).parent / "bundle"
MOST = 60 * 2**20
WHEELS = ("cyclopts", "pydantic", "pyrage", "cryptography")
"""Dependencies that a machine with PyTorch and the usual scientific packages lacks; theirs travel as well."""


def write(images: ImageSet, path: Path) -> None:
    """Images as lossless WebP, in the columns of a published folder."""
    rows = []
    for row in range(len(images)):
        content = bytes(encode(images.read(row), "webp"))
        rows.append({"image": {"bytes": content, "path": None}, "label": int(images.labels[row]), "id": str(row)})
    pq.write_table(pa.Table.from_pylist(rows, table_schema(images.classes)), path, compression="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="any source with a training and a test split")
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--python", default="3.12", help="Python of the GPU's machine (x86-64 Linux)")
    parser.add_argument("--wheels", default=",".join(WHEELS), help="packages to take along, or none")
    options = parser.parse_args()
    shutil.rmtree(BUNDLE, ignore_errors=True)
    data = BUNDLE / "data"
    data.mkdir(parents=True)
    for split, count in (("train", options.train), ("test", options.test)):
        write(load_images(options.source, split=split, limit=count), data / f"{split}-00000-of-00001.parquet")
    names = [] if options.wheels == "none" else options.wheels.split(",")
    if names:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--implementation=cp"]
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)]
        target = [f"--python-version={options.python}", *platforms, "--platform=manylinux2014_x86_64"]
        subprocess.run([*pip, *target, f"--dest={BUNDLE / 'wheels'}", *names], check=True)
    size = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    if size > MOST:
        raise DataError(f"the bundle must be at most 60 MiB, got {size / 2**20:.1f}; give fewer images by --train")
    print(f"{BUNDLE}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
