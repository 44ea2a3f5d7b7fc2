"""Feature spaces in which the perturbation is steered: CLIP, or one trained on the protector's own images.

Names are loaded on first use, because torch and transformers take seconds to import.
"""

from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge.encoders.base import FeatureSpace
    from uge.encoders.clip_space import ClipSpace
    from uge.encoders.local_space import LocalSpace
    from uge.encoders.local_space import train as local

    clip = ClipSpace.load

_HOMES = {
    "ClipSpace": ("uge.encoders.clip_space", "ClipSpace"),
    "FeatureSpace": ("uge.encoders.base", "FeatureSpace"),
    "LocalSpace": ("uge.encoders.local_space", "LocalSpace"),
    "clip": ("uge.encoders.clip_space", "ClipSpace.load"),
    "local": ("uge.encoders.local_space", "train"),
}

__all__ = ["ClipSpace", "FeatureSpace", "LocalSpace", "clip", "local"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, path = _HOMES[name]
    return attrgetter(path)(import_module(module))
