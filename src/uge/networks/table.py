"""The table of networks, and ``build``, which makes one of them from a name and a seed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import nn

from uge.errors import UnknownNameError, UsageError
from uge.names import CHECKPOINT, KEYED, behind_key, is_keyed
from uge.networks import plugins
from uge.networks.base import BodyAndHead, ImageClassifier
from uge.networks.cnn import cnn
from uge.networks.keyed import KeyedClassifier
from uge.networks.lenet import lenet
from uge.networks.mobilenet import mobilenetv2
from uge.networks.resnet import resnet18
from uge.networks.resnetc import resnetc
from uge.networks.shufflenet import shufflenetv2
from uge.networks.wave_key import WaveKey
from uge.runtime import seeded, stream_seed

SMALLEST = 16
HINT = (
    "a network of your own is 'package.module:function', one of timm's 'timm:name', "
    "one that starts from a checkpoint on disk 'checkpoint:PATH'"
)


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        body: Makes the layers from normalised pixels (B, channels, H, W) to features (B, width).
        width: Features that the last linear layer sees.
        about: One line for listings.
    """

    body: Callable[[int], nn.Module]
    width: int
    about: str


NETWORKS: dict[str, Architecture] = {
    "lenet": Architecture(lenet, 84, "LeNet-5 with ReLU"),
    "cnn": Architecture(cnn, 128, "plain CNN of three convolutions, the paper's smallest"),
    "cnn-w64": Architecture(functools.partial(cnn, width=64), 256, "plain CNN of twice the width"),
    "resnet8": Architecture(functools.partial(resnetc, blocks=1), 64, "pre-activation ResNet of depth 8"),
    "resnetc20": Architecture(functools.partial(resnetc, blocks=3), 64, "pre-activation ResNet of depth 20"),
    "resnetc32": Architecture(functools.partial(resnetc, blocks=5), 64, "pre-activation ResNet of depth 32"),
    "resnet18": Architecture(resnet18, 512, "ResNet-18 with a stem for small images"),
    "resnet18-w16": Architecture(functools.partial(resnet18, width=16), 128, "ResNet-18 of a quarter of the width"),
    "mobilenetv2": Architecture(mobilenetv2, 1280, "MobileNetV2 for small images"),
    "shufflenetv2": Architecture(shufflenetv2, 1024, "ShuffleNetV2 1x for small images"),
}


def check_name(name: str) -> None:
    """Refuse a name that ``build`` could not know; plug-ins are looked up only when built.

    Raises:
        UnknownNameError: The name is in no table and has no plug-in form.
        UsageError: It names a checkpoint that is not there.
    """
    if name.startswith(CHECKPOINT):
        _checkpoints().checkpoint_path(name)
        return
    name = behind_key(name)
    if name.startswith((KEYED, CHECKPOINT)) or (name not in NETWORKS and not plugins.is_plugin(name)):
        raise UnknownNameError("network", name, NETWORKS, HINT)


def build(name: str, classes: int, *, seed: int, channels: int = 3, size: int = 32) -> ImageClassifier:
    """Make a network with fresh weights.

    Args:
        name: A key of ``NETWORKS``, ``"package.module:function"`` (called as
            ``function(classes, channels, size)``, returning a module that takes [0, 1] images),
            or ``"timm:name"``; any of them after ``"keyed:"``, which puts a secret wave key
            in front of it (:class:`uge.networks.keyed.KeyedClassifier`). ``"checkpoint:PATH"`` has
            the features of a checkpoint and only its last layer from the seed
            (:func:`uge.networks.checkpoint.build_checkpoint`).
        classes: Number of logits, at least 2.
        seed: The initial weights depend on this, the name and the shape, and on nothing else.
        channels: Colour channels: 1 for gray, 3 for RGB.
        size: Height and width in pixels, from 16. Table networks adapt to others when called.

    Returns:
        The network on the CPU, fp32, in training mode.

    Raises:
        UnknownNameError: There is no network of this name.
        MissingExtraError: timm is asked for and not installed.
        UsageError: A number is out of range, or a plug-in does not deliver a classifier.
    """
    check_name(name)
    for label, value, least in (("classes", classes, 2), ("channels", channels, 1), ("size", size, SMALLEST)):
        if not isinstance(value, int) or value < least:
            raise UsageError(f"network '{name}' needs {label} as a whole number of at least {least}, got {value}")
    if is_keyed(name):
        if channels not in (1, 3):
            raise UsageError(f"network '{name}' needs images of 1 or 3 channels, got {channels}")
        base = build(behind_key(name), classes, seed=seed, channels=channels, size=size)
        return KeyedClassifier(base, WaveKey(classes, seed=stream_seed(seed, "wave-key"), size=size), name)
    with seeded(seed, "network", name):
        if name.startswith(CHECKPOINT):
            network: ImageClassifier = _checkpoints().build_checkpoint(name, classes, channels, size)
            return network
        if plugins.is_plugin(name):
            return plugins.build_plugin(name, classes, channels, size)
        row = NETWORKS[name]
        return BodyAndHead(row.body(channels), row.width, name=name, classes=classes, channels=channels, size=size)


def _checkpoints() -> ModuleType:
    """The module of networks from checkpoints, which builds networks itself and so imports this one."""
    return importlib.import_module("uge.networks.checkpoint")
