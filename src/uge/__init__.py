"""Ungeneralizable examples: publish images from which only the network that you authorise learns.

::

    images = uge.load_images("photos", split="train")
    authorized = uge.authorize("keyed:cnn", images, epochs=15, seed=0)
    protected = uge.protect(images, authorized, budget=uge.Budget(0.04))
    uge.publish(protected, "out/photos")
    report = uge.audit("out/photos", test="photos", networks=["resnet8"], attacks=["direct", "distill"], seeds=3)

Names are loaded on first use: ``import uge`` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge import encoders as encoders
    from uge.api import AuthorizedPath as AuthorizedPath
    from uge.api import Protected as Protected
    from uge.api import audit as audit
    from uge.api import authorize as authorize
    from uge.api import protect as protect
    from uge.api import publish as publish
    from uge.api import record_trajectory as record_trajectory
    from uge.api import verify as verify
    from uge.budget import Budget as Budget
    from uge.data import ImageSet as ImageSet
    from uge.data import load_images as load_images
    from uge.errors import UGEError as UGEError
    from uge.learning.recipes import Recipe as Recipe
    from uge.methods import method as method
    from uge.runtime import Runtime as Runtime

_HOMES = {
    "AuthorizedPath": "uge.api",
    "Budget": "uge.budget",
    "ImageSet": "uge.data",
    "Protected": "uge.api",
    "Recipe": "uge.learning.recipes",
    "Runtime": "uge.runtime",
    "UGEError": "uge.errors",
    "audit": "uge.api",
    "authorize": "uge.api",
    "load_images": "uge.data",
    "method": "uge.methods",
    "protect": "uge.api",
    "publish": "uge.api",
    "record_trajectory": "uge.api",
    "verify": "uge.api",
}

__all__ = [
    "AuthorizedPath",
    "Budget",
    "ImageSet",
    "Protected",
    "Recipe",
    "Runtime",
    "UGEError",
    "audit",
    "authorize",
    "encoders",
    "load_images",
    "method",
    "protect",
    "publish",
    "record_trajectory",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"uge.{name}")
    raise AttributeError(f"module 'uge' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
