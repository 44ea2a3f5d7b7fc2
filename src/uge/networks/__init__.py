"""Networks by name: every one takes images in [0, 1] and normalises inside."""

from uge.networks.base import ImageClassifier
from uge.networks.keyed import KeyedClassifier
from uge.networks.table import NETWORKS, Architecture, build, check_name, from_weights, network
from uge.networks.wave_key import WaveKey
from uge.networks.weights import describe, load_weights, restore, save_weights, weights_hash

__all__ = [
    "NETWORKS",
    "Architecture",
    "ImageClassifier",
    "KeyedClassifier",
    "WaveKey",
    "build",
    "check_name",
    "describe",
    "from_weights",
    "load_weights",
    "network",
    "restore",
    "save_weights",
    "weights_hash",
]
