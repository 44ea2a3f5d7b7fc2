"""Settings under which baselines take a fraction of a second, and images with room."""

import torch

from uge.methods.baselines.base import Material

QUICK = {
    "em": {"surrogate": "lenet", "theta_steps": 2, "steps": 2},
    "em-class": {"surrogate": "lenet", "rounds": 2, "theta_batches": 2},
    "tap": {"surrogate": "lenet", "epochs": 1, "steps": 2, "restarts": 2},
    "tap-untargeted": {"surrogate": "lenet", "epochs": 1, "steps": 2, "restarts": 1},
    "ntga": {"block": 12, "held_out": 12, "steps": 2},
    "rem": {"surrogate": "lenet", "theta_steps": 1, "steps": 1, "adversary_steps": 1, "samples": 1},
    "ar": {"pool": 2},
    "pil": {"epochs": 2, "steps": 2},
}
"""Settings under which a method takes a fraction of a second."""


def with_room(material: Material) -> Material:
    """The same material with pixels between 40 and 215, so that 0 and 255 cut nothing off."""
    indices = torch.arange(len(material.store))
    material.store.pixels.write(indices, material.store.pixels.read(indices).clamp(40, 215))
    return material
