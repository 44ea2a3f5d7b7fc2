"""LSP: linearly separable patches for every class.

Yu, Zhang, Chen, Yin and Liu, KDD 2022, arXiv 2111.00898.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from uge.data.store import Records
from uge.errors import UsageError
from uge.methods.baselines.base import Baseline, Material, Settings, reference_radius, scaled
from uge.runtime import stream


class LspSettings(Settings):
    """Settings of LSP.

    Attributes:
        patch: Side of the patches of one colour, in pixels.
        radius: L2 length of a perturbation of 32 × 32 × 3 values in [0, 1] units (6/255 on average); it
            grows with the square root of the number of values.
        spread: Standard deviation within a class, where the class's own colours are ±1 (published: centres
            at ±10, spread of about 4).
    """

    patch: int = Field(8, ge=1)
    radius: float = Field(1.304, gt=0)
    spread: float = Field(0.4, ge=0)


def patches(colours: Tensor, size: int, patch: int, radius: float) -> Tensor:
    """Grids of colours as perturbations of one L2 length.

    Args:
        colours: batch × channels × cells × cells.
        size: Side of an image in pixels; the last cells are cut off where it is no multiple of ``patch``.
        patch: Side of a cell in pixels.
        radius: L2 length in [0, 1] units.

    Returns:
        batch × channels × size × size in [0, 1] units.
    """
    return scaled(colours.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :size, :size], radius)


def class_centres(classes: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Colours of ±1 for every class, classes × ``shape``; no two classes have the same colours.

    Raises:
        UsageError: There are fewer such patterns than classes.
    """
    if 2 ** math.prod(shape) < classes:
        raise UsageError(
            f"the lsp baseline has only {2 ** math.prod(shape)} patterns for {classes} classes; lower its setting patch"
        )
    generator = stream(seed, "lsp-centres")
    centres = torch.randint(2, (classes, *shape), generator=generator)
    taken = set[tuple[int, ...]]()
    for centre in centres.flatten(1):
        while tuple(centre.tolist()) in taken:
            centre.copy_(torch.randint(2, centre.shape, generator=generator))
        taken.add(tuple(centre.tolist()))
    return centres * 2.0 - 1


def _separable_patches(material: Material, settings: LspSettings) -> Records:
    store = material.store
    cells = -(-store.size // settings.patch)
    shape = (store.channels, cells, cells)
    centres = class_centres(len(store.classes), shape, material.seed)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        drawn = torch.randn(len(indices), *shape, generator=material.stream("lsp-colours", indices))
        colours = centres[labels.cpu()] + settings.spread * drawn
        return patches(colours, store.size, settings.patch, reference_radius(settings.radius, store)).to(x.device)

    return material.filled(change)


LSP = Baseline(
    _separable_patches,
    norm="L2",
    rho=1.0,
    scope="sample",
    about=(
        "LSP: patches of one colour, drawn around colours of the class, so that a linear rule tells classes apart "
        "(Yu, Zhang, Chen, Yin and Liu, KDD 2022)."
    ),
    settings=LspSettings,
    alone=True,
)
