"""Both errors of a keyed network's guard: clean images that get no answer, protected ones that are not recognised.

Also how many protected images do not come out as the clean ones do, which is what training sees.

::

    python benchmarks/guard.py CIFAR10 10,36,100,1000 --size 32 --out benchmarks/results/guard-cifar10.json

The classes are made up: only their number matters, since it says how many patterns a key has. Nothing is trained.
Images with one channel are repeated in three, and stay gray.
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
from uge.data.pixels import resize
from uge.files import write_json
from uge.methods.keyed.wave_code import WaveCode
from uge.networks import WaveKey
from uge.runtime import Runtime


def share(key: WaveKey, pixels: Tensor) -> float:
    """Percent of images (uint8, B × 3 × H × W) that count as protected."""
    marked = [key.marked(key.match(part.float() / 255)) for part in torch.split(pixels, 100)]
    return 100 * float(torch.cat(marked).float().mean())


def unlike(key: WaveKey, clean: Tensor, protected: Tensor) -> float:
    """Percent of protected images of which the key does not make exactly what it makes of the clean ones."""
    wrong = []
    for pair in zip(torch.split(clean, 100), torch.split(protected, 100), strict=True):
        one, other = (key.restore(x, key.match(x)) for x in (part.float() / 255 for part in pair))
        wrong.append((one - other).abs().amax((1, 2, 3)) > 1e-4)
    return 100 * float(torch.cat(wrong).float().mean())


def errors(images: list[Pixels], classes: int, seed: int) -> dict[str, float]:
    """Percentages for one key."""
    key = WaveKey(classes, seed=seed, size=images[0].shape[0])
    names = [str(number) for number in range(classes)]
    labels, ids = [row % classes for row in range(len(images))], [str(row) for row in range(len(images))]
    levels = WaveCode(key, Budget(), names).levels(images, labels, ids)
    moved = [(image.astype(np.int16) + change).astype(np.uint8) for image, change in zip(images, levels, strict=True)]
    clean, protected = (torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) for found in (images, moved))
    both = augmentation("crop-flip")(torch.cat([clean, protected], 1), torch.Generator().manual_seed(seed))
    clean_cropped, protected_cropped = both.chunk(2, 1)
    return {
        "clean_unanswered": share(key, clean),
        "clean_unanswered_after_crop_and_flip": share(key, clean_cropped),
        "protected_missed": 100 - share(key, protected),
        "protected_missed_after_crop_and_flip": 100 - share(key, protected_cropped),
        "protected_not_restored": unlike(key, clean, protected),
        "protected_not_restored_after_crop_and_flip": unlike(key, clean_cropped, protected_cropped),
    }


def in_colours(image: Pixels) -> Pixels:
    """The image in three channels, without alpha."""
    return image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)


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
    images = [in_colours(resize(source.read(row), options.size)) for row in range(len(source))]
    rows = []
    for classes in map(int, options.classes.split(",")):
        found = [errors(images, classes, seed) for seed in range(options.keys)]
        means = {name: round(float(np.mean([one[name] for one in found])), 2) for name in found[0]}
        _, variants, _, waves = WaveKey(classes, seed=0, size=options.size).phases.shape
        each = {"patterns_each": variants, "waves_each": waves}
        rows.append({"classes": classes, **each, "size": options.size, "percent": means})
    made = {"benchmark": "guard", "source": source.name, "images": len(images), "keys": options.keys, "rows": rows}
    made["environment"] = Runtime.create().environment()
    print(json.dumps(made, indent=1))
    if options.out:
        write_json(options.out, made)


if __name__ == "__main__":
    main()
