"""Random noise of the same budget: the control that shows what optimisation adds."""

from __future__ import annotations

import torch
from torch import Tensor

from uge.data.store import Records
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.runtime import stream


class RandomSettings(Settings):
    """Random noise has nothing to set: every level of the budget is equally likely."""


def _noise(count: int, material: Material, *names: str | int) -> Tensor:
    """``count`` patterns of whole levels, each equally likely between plus and minus the budget."""
    levels, shape = material.budget.levels, material.store.pixels.shape
    drawn = torch.randint(-levels, levels + 1, (count, *shape), generator=stream(material.seed, *names))
    return drawn.to(material.store.device)


def _sample_wise(material: Material) -> Records:
    material.settings(RandomSettings)
    records = material.records()
    for indices, pixels, _ in material.chunks():
        noise = _noise(len(indices), material, "random-noise", int(indices[0]))
        records.write(indices, material.stored(pixels, noise / 255))
    return records


def _class_wise(material: Material) -> Records:
    material.settings(RandomSettings)
    patterns = _noise(len(material.store.classes), material, "random-noise-class")
    records = material.records()
    for indices, pixels, labels in material.chunks():
        records.write(indices, material.stored(pixels, patterns[labels] / 255))
    return records


RANDOM = Baseline(
    _sample_wise,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="Uniform random noise, another for every image: a control without optimisation.",
    settings=RandomSettings,
)
RANDOM_CLASS = Baseline(
    _class_wise,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="class",
    about="Uniform random noise, one pattern per class: a control without optimisation.",
    settings=RandomSettings,
)
