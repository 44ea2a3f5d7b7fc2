"""Feature spaces in which the perturbation is steered: CLIP, or one trained on the protector's own images.

Names are loaded on first use, because torch and transformers take seconds to import.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge.encoders.base import FeatureSpace
    from uge.encoders.clip_space import ClipSpace
    from uge.encoders.local_space import LocalSpace
    from uge.encoders.local_space import train as local
    from uge.encoders.table import ENCODERS, Material, encoder, find_encoder, open_encoder

    clip = ClipSpace.load

_HOMES = {
    "ENCODERS": "uge.encoders.table:ENCODERS",
    "ClipSpace": "uge.encoders.clip_space:ClipSpace",
    "FeatureSpace": "uge.encoders.base:FeatureSpace",
    "LocalSpace": "uge.encoders.local_space:LocalSpace",
    "Material": "uge.encoders.table:Material",
    "clip": "uge.encoders.clip_space:ClipSpace.load",
    "encoder": "uge.encoders.table:encoder",
    "find_encoder": "uge.encoders.table:find_encoder",
    "local": "uge.encoders.local_space:train",
    "open_encoder": "uge.encoders.table:open_encoder",
}

__all__ = [
    "ENCODERS",
    "ClipSpace",
    "FeatureSpace",
    "LocalSpace",
    "Material",
    "clip",
    "encoder",
    "find_encoder",
    "local",
    "open_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return pkgutil.resolve_name(_HOMES[name])
