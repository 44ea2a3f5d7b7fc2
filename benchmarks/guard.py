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


def marked(key: WaveKey, pixels: Tensor) -> Tensor:
    """True for images (uint8, B × 3 × H × W) that count as protected."""
    return torch.cat([key.marked(key.match(part / 255)) for part in pixels.split(100)])


def restored(key: WaveKey, pixels: Tensor) -> Tensor:
    """Images as the network behind the key sees them."""
    return torch.cat([key.restore(part / 255, key.match(part / 255)) for part in pixels.split(100)])


def percent(values: Tensor) -> float:
    return 100 * float(values.float().mean())


def errors(images: list[Pixels], classes: int, seed: int) -> dict[str, float]:
    """Percentages for one key."""
    key = WaveKey(classes, seed=seed, size=images[0].shape[0])
    names = [str(number) for number in range(classes)]
    labels = [row % classes for row in range(len(images))]
    levels = WaveCode(key, Budget(), names).levels(images, labels, [str(row) for row in range(len(images))])
    moved = [(image.astype(np.int16) + change).astype(np.uint8) for image, change in zip(images, levels, strict=True)]
    clean, protected = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) for pixels in (images, moved))
    both = augmentation("crop-flip")(torch.cat([clean, protected], 1), torch.Generator().manual_seed(seed))
    result = {}
    for suffix, first, second in (("", clean, protected), ("_after_crop_and_flip", *both.chunk(2, 1))):
        result[f"clean_unanswered{suffix}"] = percent(marked(key, first))
        result[f"protected_missed{suffix}"] = 100 - percent(marked(key, second))
        apart = (restored(key, first) - restored(key, second)).abs().amax((1, 2, 3))
        result[f"protected_not_restored{suffix}"] = percent(apart > 1e-4)
    return result


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
        results = [errors(images, classes, seed) for seed in range(options.keys)]
        means = {name: round(float(np.mean([result[name] for result in results])), 2) for name in results[0]}
        _, variants, _, waves = WaveKey(classes, seed=0, size=options.size).phases.shape
        counts = {"classes": classes, "patterns_each": variants, "waves_each": waves}
        rows.append({**counts, "size": options.size, "percent": means})
    head = {"benchmark": "guard", "source": source.name, "images": len(images), "keys": options.keys}
    report = {**head, "rows": rows, "environment": Runtime.create().environment()}
    print(json.dumps(report, indent=1))
    if options.out:
        write_json(options.out, report)


if __name__ == "__main__":
    main()
