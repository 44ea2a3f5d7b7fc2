"""Pictures of Figures 4 and 6: originals, perturbations and protected images as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from uge.data import load_images
from uge.data.images import Pixels
from uge.files import read_json, staged_folder, write_json
from uge.paper.laboratory import Laboratory
from uge.paper.specs import Copy

KINDS = ("original", "noise", "protected")
GRAY = 128


def amplified(original: Pixels, protected: Pixels, levels: int) -> Pixels:
    """Perturbation as a picture: gray where nothing changed, black or white where the budget is used up.

    Args:
        original: uint8, height × width × channels.
        protected: The same shape.
        levels: The budget in 8-bit levels, at least 1.
    """
    change = protected.astype(np.int16) - original.astype(np.int16)
    picture: Pixels = (GRAY + np.rint(change * (127 / levels))).clip(0, 255).astype(np.uint8)
    return picture


def save_pictures(laboratory: Laboratory, copy: Copy, count: int) -> Path:
    """Write the pictures of a copy, of different classes where there are, unless they are there.

    Args:
        laboratory: Clean images and copies.
        copy: A copy that was published.
        count: Number of images.

    Returns:
        Folder with ``NN-KIND.png`` and ``pictures.json``.
    """
    folder = laboratory.ledger.picture(copy)
    if (folder / "pictures.json").is_file() and len(read_json(folder / "pictures.json")["pictures"]) == count:
        return folder
    published = load_images(str(laboratory.protect(copy)))
    originals = laboratory.open(copy.images).images
    result = laboratory.ledger.result(copy)
    levels = max(1, int(result["budget"]["levels"])) if result else 1
    _, first = np.unique(originals.labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(originals)), first)
    entries = []
    with staged_folder(folder, overwrite=True) as stage:
        for number, index in enumerate(map(int, np.concatenate([np.sort(first), rest])[:count])):
            before = originals.read(index)
            after = published.read(index)
            pixels = dict(zip(KINDS, (before, amplified(before, after, levels), after), strict=True))
            entry = {"class": originals.classes[int(originals.labels[index])]}
            for kind, picture in pixels.items():
                entry[kind] = f"{number:02d}-{kind}.png"
                Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(stage / entry[kind])
            entries.append(entry)
        write_json(stage / "pictures.json", {"levels": levels, "pictures": entries})
    return folder
