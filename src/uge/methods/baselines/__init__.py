"""Published protections of other people, all through one signature: :data:`BASELINES`."""

from __future__ import annotations

from uge.errors import UnknownNameError
from uge.methods.baselines.ar import AR
from uge.methods.baselines.base import Baseline, Material, kept, read_settings, sizes
from uge.methods.baselines.cuda import CUDA
from uge.methods.baselines.em import EM, EM_CLASS
from uge.methods.baselines.lsp import LSP
from uge.methods.baselines.ntga import NTGA
from uge.methods.baselines.ops import OPS
from uge.methods.baselines.pil import PIL
from uge.methods.baselines.random import RANDOM, RANDOM_CLASS
from uge.methods.baselines.rem import REM
from uge.methods.baselines.tap import TAP, TAP_UNTARGETED

BASELINES: dict[str, Baseline] = {
    "em": EM,
    "em-class": EM_CLASS,
    "tap": TAP,
    "tap-untargeted": TAP_UNTARGETED,
    "ntga": NTGA,
    "rem": REM,
    "cuda": CUDA,
    "lsp": LSP,
    "ar": AR,
    "ops": OPS,
    "pil": PIL,
    "random": RANDOM,
    "random-class": RANDOM_CLASS,
}
"""Every published protection by name."""


def baseline(name: str) -> Baseline:
    """One row of the table.

    Raises:
        UnknownNameError: There is no such method.
    """
    if name not in BASELINES:
        raise UnknownNameError("baseline", name, BASELINES)
    return BASELINES[name]


__all__ = ["BASELINES", "Baseline", "Material", "baseline", "kept", "read_settings", "sizes"]
