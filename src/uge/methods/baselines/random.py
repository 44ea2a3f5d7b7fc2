"""Uniform random noise: a control that shows the effect of optimisation."""

import dataclasses

import torch
from torch import Tensor

from uge.data.store import Records
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.runtime import stream


def _uniform(count: int, material: Material, generator: torch.Generator) -> Tensor:
    """``count`` patterns in [0, 1] units; whole levels between plus and minus the budget are equally likely."""
    shape = (count, *material.store.pixels.shape)
    most = material.budget.levels
    levels = torch.randint(-most, most + 1, shape, generator=generator)
    return levels.to(material.store.device) / 255


def _sample_wise(material: Material, settings: Settings) -> Records:
    return material.filled(
        lambda indices, x, labels: _uniform(len(indices), material, material.stream("random-noise", indices))
    )


def _class_wise(material: Material, settings: Settings) -> Records:
    patterns = _uniform(len(material.store.classes), material, stream(material.seed, "random-noise-class"))
    return material.filled(lambda indices, x, labels: patterns[labels])


RANDOM = Baseline(
    _sample_wise,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="Uniform random noise, another for every image: a control without optimisation.",
    settings=Settings,
    alone=True,
)
RANDOM_CLASS = dataclasses.replace(
    RANDOM,
    function=_class_wise,
    scope="class",
    about="Uniform random noise, one pattern per class: a control without optimisation.",
)
