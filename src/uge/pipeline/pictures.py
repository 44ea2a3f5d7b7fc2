"""Pictures for the report of an audit: originals, what was published, and what attacks make of it."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from uge.attacks import ATTACKS
from uge.cases.case import Case, Job
from uge.cases.material import CopyMaterial
from uge.data import ImageSet
from uge.data.images import Pixels
from uge.data.store import PixelStore
from uge.files import staged_folder, write_json

_PICTURES = 9
_ATTACKED = 3
_SAMPLE = 200
"""Images that a transform may learn from, for instance where the spectrum has its peaks."""


def save_pictures(folder: Path, originals: ImageSet, published: ImageSet, count: int = _PICTURES) -> None:
    """Originals and their protected form as PNG files for the report, of different classes where there are."""
    entries = []
    with staged_folder(folder, overwrite=True) as stage:
        for number, index in enumerate(_one_a_class(published, count)):
            entry = {"id": published.ids[index], "class": published.classes[int(published.labels[index])]}
            for kind, images in (("original", originals), ("protected", published)):
                entry[kind] = f"{number:02d}-{kind}.png"
                _save(images.read(index), stage / entry[kind])
            entries.append(entry)
        write_json(stage / "pictures.json", {"pictures": entries})


def save_attacked(folder: Path, material: CopyMaterial, cases: Iterable[Case], published: ImageSet) -> None:
    """What the preprocessing attacks that were run make of some published images, at the training size.

    Args:
        folder: The new folder, which takes the place of an older one.
        material: Images, recipe and seeds of the audit.
        cases: Its finished cases.
        published: The published images, in the order of the audit's.
    """
    schemes = dict.fromkeys(case.scheme for case in cases if case.role == "hacker" and case.family == "preprocess")
    chosen = _one_a_class(published, _ATTACKED)
    others = [row for row in range(min(len(published), _SAMPLE)) if row not in chosen]
    sample = material.protected.subset(torch.tensor(chosen + others))
    job = Job("hacker", "lenet", "random", "direct", "protected", 0)
    context = replace(material.context(job), store=sample, test=sample)
    entries: list[dict[str, Any]] = []
    with staged_folder(folder, overwrite=True) as stage:

        def keep(name: str, store: PixelStore) -> None:
            shown = store.pixels.read(torch.arange(len(chosen))).permute(0, 2, 3, 1).cpu().numpy()
            for number, (index, pixels) in enumerate(zip(chosen, shown, strict=True)):
                file = f"{name}-{number:02d}.png"
                _save(pixels, stage / file)
                label = published.classes[int(published.labels[index])]
                entries.append({"attack": name, "file": file, "class": label, "id": published.ids[index]})

        keep("published", sample)
        for name in schemes:
            prepare = ATTACKS[name].prepare if name in ATTACKS else None
            if prepare is not None:
                keep(name, prepare(context).store)
        write_json(stage / "attacked.json", {"pictures": entries})


def _one_a_class(images: ImageSet, count: int) -> list[int]:
    """The first image of each of up to ``count`` classes."""
    _, first = np.unique(images.labels, return_index=True)
    return [int(index) for index in first[:count]]


def _save(pixels: Pixels, path: Path) -> None:
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
