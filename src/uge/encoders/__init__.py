"""Feature spaces in which the perturbation is steered: CLIP, or one trained on the protector's own images.

Names are loaded on first use, because transformers takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge.encoders.base import FeatureSpace
    from uge.encoders.clip import ClipSpace
    from uge.encoders.local import LocalSpace

_HOMES = {"ClipSpace": "uge.encoders.clip", "FeatureSpace": "uge.encoders.base", "LocalSpace": "uge.encoders.local"}

__all__ = ["ClipSpace", "FeatureSpace", "LocalSpace"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
