"""Ungeneralizable examples: publish images that your network can learn from and others should not.

::

    images = uge.load_images("photos", split="train")
    authorized = uge.authorize("keyed:cnn", images, epochs=15, seed=0)
    protected = uge.protect(images, authorized, budget=uge.Budget(0.04))
    uge.publish(protected, "out/photos")
    report = uge.audit("out/photos", test="photos", networks=["resnet8"], attacks=["direct", "distill"], seeds=3)

Names are loaded on first use: ``import uge`` imports no torch.
"""

# One statement for each module: names that are exported again stand in groups.
# ruff: noqa: I001
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge import encoders as encoders
    from uge.api import (
        AuthorizedPath as AuthorizedPath,
        Protected as Protected,
        audit as audit,
        authorize as authorize,
        protect as protect,
        publish as publish,
        record_trajectory as record_trajectory,
        verify as verify,
    )
    from uge.attacks import attack as attack
    from uge.budget import Budget as Budget
    from uge.data import ImageSet as ImageSet, load_images as load_images
    from uge.encoders import encoder as encoder
    from uge.errors import UGEError as UGEError
    from uge.learning.recipes import Recipe as Recipe
    from uge.methods import method as method
    from uge.networks import network as network
    from uge.runtime import Runtime as Runtime
    from uge.sealing.opening import open as open

_HOMES = {
    "AuthorizedPath": "uge.api:AuthorizedPath",
    "Budget": "uge.budget:Budget",
    "ImageSet": "uge.data:ImageSet",
    "Protected": "uge.api:Protected",
    "Recipe": "uge.learning.recipes:Recipe",
    "Runtime": "uge.runtime:Runtime",
    "UGEError": "uge.errors:UGEError",
    "attack": "uge.attacks:attack",
    "audit": "uge.api:audit",
    "authorize": "uge.api:authorize",
    "encoder": "uge.encoders:encoder",
    "encoders": "uge.encoders",
    "load_images": "uge.data:load_images",
    "method": "uge.methods:method",
    "network": "uge.networks:network",
    "open": "uge.sealing.opening:open",
    "protect": "uge.api:protect",
    "publish": "uge.api:publish",
    "record_trajectory": "uge.api:record_trajectory",
    "verify": "uge.api:verify",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'uge' has no attribute '{name}'")
    return pkgutil.resolve_name(_HOMES[name])


def __dir__() -> list[str]:
    return __all__
