"""Both errors of a keyed network's guard: clean images that get no answer, protected ones that are not recognised.

::

    python benchmarks/guard.py CIFAR10 10,36,100,1000 --size 32 --out benchmarks/results/guard-cifar10.json

The classes are made up: only their number matters, since it says how many waves a key has. Nothing is trained. Images
with one channel carry no waves and are left out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uge.budget import Budget
from uge.data import load_images
from uge.data.augment import augmentation
from uge.data.images import Pixels
from uge.data.resize import resize
from uge.networks import ColourKey
from uge.protect.colour_code import ColourCode
from uge.runs import write_json
from uge.runtime import Runtime


def share(key: ColourKey, pixels: Tensor) -> float:
    """Percent of images (uint8, B × 3 × H × W) that count as protected."""
    x = pixels.float() / 255
    marked = [key.marked(part, key.align(part)) for part in torch.split(x, 100)]
    return 100 * float(torch.cat(marked).float().mean())


def errors(images: list[Pixels], classes: int, seed: int) -> dict[str, float]:
    """Percentages for one key."""
    key = ColourKey(classes, seed=seed)
    names = [str(number) for number in range(classes)]
    labels, ids = [row % classes for row in range(len(images))], [str(row) for row in range(len(images))]
    levels = ColourCode(key, Budget(), names).levels(images, labels, ids)
    moved = [(image.astype(np.int16) + change).astype(np.uint8) for image, change in zip(images, levels, strict=True)]
    clean, protected = (torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) for found in (images, moved))
    cropped = augmentation("crop-flip")(protected, torch.Generator().manual_seed(seed))
    return {
        "clean_unanswered": share(key, clean),
        "protected_missed": 100 - share(key, protected),
        "protected_missed_after_crop_and_flip": 100 - share(key, cropped),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("classes", help="numbers of classes, separated by commas")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--keys", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = load_images(options.source, limit=options.limit)
    images = [pixels for row in range(len(source)) if (pixels := resize(source.read(row), options.size)).shape[2] == 3]
    rows = []
    for classes in map(int, options.classes.split(",")):
        found = [errors(images, classes, seed) for seed in range(options.keys)]
        means = {name: round(float(np.mean([one[name] for one in found])), 2) for name in found[0]}
        waves = ColourKey(classes, seed=0).waves.shape[1]
        rows.append({"classes": classes, "waves_each": waves, "size": options.size, "percent": means})
    made = {"benchmark": "guard", "source": source.name, "images": len(images), "keys": options.keys, "rows": rows}
    made["environment"] = Runtime.create().environment()
    print(json.dumps(made, indent=1))
    if options.out:
        write_json(options.out, made)


if __name__ == "__main__":
    main()
