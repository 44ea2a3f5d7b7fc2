"""UGE: publish labelled images that named recipients learn from in full, and others as little as possible.

::

    images = uge.load_images("photos")                     # a folder, Parquet, npz, tar, hf://owner/name
    protected = uge.protect(images)                        # method "robust", ρ = 0.04
    uge.publish(protected, "out/photos", recipients=["age1…"])          # originals sealed, key in out/photos.private
    uge.verify("out/photos").raise_for_problems()
    originals = uge.open("out/photos", key="me.agekey")    # for recipients: an image set
    summary = uge.audit("out/photos", test="photos", worst_case=True)
    print(summary.headline, summary.to_pandas())

====================================  ===================================================================
load_images, ImageSet                 images of any source, as a stream
protect, Protected, Budget            perturb them; authorize and record_trajectory for methods with keys
publish, verify, apply                a folder that is checked from disk; further images
open, train                           a recipient's side
audit, compare                        the strongest attack; audits side by side
attack, method, network, encoder      decorators that register your own
====================================  ===================================================================

Names are loaded on first use: ``import uge`` imports no torch. Every function has its own help.
"""

# One statement for each module: names that are exported again stand in groups.
# ruff: noqa: I001
import importlib.metadata
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uge import encoders as encoders
    from uge.api import (
        AuthorizedPath as AuthorizedPath,
        Protected as Protected,
        apply as apply,
        audit as audit,
        authorize as authorize,
        compare as compare,
        protect as protect,
        publish as publish,
        record_trajectory as record_trajectory,
        train as train,
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
    "apply": "uge.api:apply",
    "attack": "uge.attacks:attack",
    "audit": "uge.api:audit",
    "authorize": "uge.api:authorize",
    "compare": "uge.api:compare",
    "encoder": "uge.encoders:encoder",
    "encoders": "uge.encoders",
    "load_images": "uge.data:load_images",
    "method": "uge.methods:method",
    "network": "uge.networks:network",
    "open": "uge.sealing.opening:open",
    "protect": "uge.api:protect",
    "publish": "uge.api:publish",
    "record_trajectory": "uge.api:record_trajectory",
    "train": "uge.api:train",
    "verify": "uge.api:verify",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("uge")
    if name not in _HOMES:
        raise AttributeError(f"module 'uge' has no attribute '{name}'")
    return pkgutil.resolve_name(_HOMES[name])


def __dir__() -> list[str]:
    return __all__
