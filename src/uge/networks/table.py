"""The table of networks; ``build`` makes one from a name and a seed, ``from_weights`` from a weights file."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from uge.errors import UnknownNameError, UsageError, WeightsError
from uge.names import CHECKPOINT, KEYED, behind_key, is_keyed
from uge.networks.base import BodyAndHead, ImageClassifier
from uge.networks.checkpoint import build_from_folder, checkpoint_path
from uge.networks.cnn import cnn
from uge.networks.head import feature_state
from uge.networks.keyed import KeyedClassifier
from uge.networks.lenet import lenet
from uge.networks.mobilenet import mobilenetv2
from uge.networks.plugins import Wrapped, build_plugin, is_plugin, made_by
from uge.networks.resnet import resnet18
from uge.networks.resnetc import resnetc
from uge.networks.shufflenet import shufflenetv2
from uge.networks.wave_key import WaveKey
from uge.networks.weights import first_mismatch, load_weights, restore, stated
from uge.registry import Made, Registry, summary_of
from uge.runtime import seeded, stream_seed

Maker = TypeVar("Maker", bound=Callable[..., nn.Module])
HINT = (
    "a network of your own is 'package.module:function', one of timm's 'timm:name', "
    "one that starts from a checkpoint on disk 'checkpoint:PATH'"
)


@dataclass(frozen=True)
class Architecture:
    """A network of this package.

    Attributes:
        body: Makes the layers from normalised pixels (B, channels, H, W) to features (B, width).
        width: Features that the last linear layer sees.
        about: One line for listings.
    """

    body: Callable[[int], nn.Module]
    width: int
    about: str


def _row(name: str, entry: Any, about: str = "") -> Architecture | Made:
    if is_plugin(name) or not callable(entry):
        raise UsageError(
            f"the network '{name}' must have a name without a colon and be a function (classes, channels, size), "
            f"got {entry!r}"
        )
    return Made(entry, summary_of(entry, about))


#: Networks by name.
NETWORKS: Registry[Architecture | Made] = Registry(
    "network",
    {
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
    },
    "uge.networks",
    adapt=_row,
    hint=HINT,
)


def network(name: str, *, about: str = "") -> Callable[[Maker], Maker]:
    """Register a function as a network.

    The function is called with (classes, channels, size) and returns a ``torch.nn.Module`` from images in [0, 1],
    batch × channels × size × size, to logits, batch × classes; its last layer is a ``Linear`` or a 1×1 convolution.
    Initial weights may come from torch's generator, which is seeded. The name works wherever a network is named:
    hackers, the authorised network (with ``keyed:`` in front of it, too), surrogates.

    A package registers the same function for every process, and for the command line, by an entry point of the group
    ``uge.networks``. A decorator registers in processes that run its line; see :func:`uge.attack`.

    Args:
        name: Name of the network, without a colon.
        about: One line for listings; by default the first line of the docstring.

    Raises:
        UsageError: UGE has a network of that name, or the object is no function.

    Example:
        >>> @network("perceptron")
        ... def perceptron(classes, channels, size):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))
        >>> build("perceptron", 10, seed=0).classes
        10
    """
    return lambda maker: NETWORKS.register(name, maker, about=about)


def check_name(name: str) -> None:
    """Refuse a name that ``build`` could not know; ``package.module:function`` is imported only when built.

    Raises:
        UnknownNameError: The name is in no table and has no plug-in form.
        UsageError: It names a checkpoint that is not there.
    """
    if name.startswith(CHECKPOINT):
        checkpoint_path(name)
        return
    name = behind_key(name)
    if name.startswith((KEYED, CHECKPOINT)) or (name not in NETWORKS and not is_plugin(name)):
        raise UnknownNameError("network", name, NETWORKS, HINT)


def build(name: str, classes: int, *, seed: int, channels: int = 3, size: int = 32) -> ImageClassifier:
    """Make a network with fresh weights.

    Args:
        name: A key of ``NETWORKS``, ``"package.module:function"`` (called as
            ``function(classes, channels, size)``, returning a module that takes [0, 1] images),
            or ``"timm:name"``; any of them after ``"keyed:"``, which puts a secret wave key
            in front of it (:class:`uge.networks.keyed.KeyedClassifier`). ``"checkpoint:PATH"`` has
            the features of a checkpoint and only its last layer from the seed: a file is one of
            :func:`save_weights`, a folder one of transformers.
        classes: Number of logits, at least 2.
        seed: The initial weights depend on this, the name and the shape, and on nothing else.
        channels: Colour channels: 1 for gray, 3 for RGB.
        size: Height and width in pixels, from 16. Table networks adapt to others when called.

    Returns:
        The network on the CPU, fp32, in training mode.

    Raises:
        UnknownNameError: There is no network of this name.
        MissingExtraError: timm or transformers is needed and not installed.
        UsageError: A number is out of range, or a plug-in or checkpoint gives no classifier of this shape.
        WeightsError: The weights of a checkpoint cannot be read, or do not fit the architecture that they name.
    """
    check_name(name)
    for label, value, least in (("classes", classes, 2), ("channels", channels, 1), ("size", size, 16)):
        if not isinstance(value, int) or value < least:
            raise UsageError(f"network '{name}' needs {label} as a whole number of at least {least}, got {value}")
    if is_keyed(name):
        if channels not in (1, 3):
            raise UsageError(f"network '{name}' needs images of 1 or 3 channels, got {channels}")
        return KeyedClassifier(
            build(behind_key(name), classes, seed=seed, channels=channels, size=size),
            WaveKey(classes, seed=stream_seed(seed, "wave-key"), size=size),
            name,
        )
    with seeded(seed, "network", name):
        if name.startswith(CHECKPOINT):
            path = checkpoint_path(name)
            if path.is_file():
                return _transplanted(from_weights(path), name, classes, channels, size)
            return build_from_folder(path, name, classes, channels, size)
        if is_plugin(name):
            return build_plugin(name, classes, channels, size)
        row = NETWORKS[name]
        shape = {"classes": classes, "channels": channels, "size": size}
        if isinstance(row, Made):
            return Wrapped(made_by(row.make, name, **shape), name=name, **shape)
        return BodyAndHead(row.body(channels), row.width, name=name, **shape)


def _transplanted(trained: ImageClassifier, name: str, classes: int, channels: int, size: int) -> ImageClassifier:
    """A network of the same architecture with every tensor of ``trained`` but those of its last layer."""
    if trained.channels != channels:
        raise UsageError(f"'{name}' is for images of {trained.channels} channels, these have {channels}")
    network = build(trained.name, classes, seed=int(torch.randint(2**31, ())), channels=channels, size=size)
    state = feature_state(trained)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    other = next((key for key, value in state.items() if shapes[key] != value.shape), None)
    if other is not None:
        raise UsageError(
            f"'{name}' does not fit {classes} classes at {size} px: tensor '{other}' is {tuple(state[other].shape)}, "
            f"expected {tuple(shapes[other])}"
        )
    network.load_state_dict(state, strict=False)
    network.name = name
    return network


def from_weights(path: Path | str, *, plugins: bool = False) -> ImageClassifier:
    """Build the network that a weights file is for, with its weights, on the CPU.

    Args:
        path: A file of ``save_weights``.
        plugins: Also build a network ``package.module:function`` or ``timm:name``. This name is the name of code to
            import and run, and the file decides it: allow this only for files you trust.

    Raises:
        WeightsError: The file cannot be read, lacks a name or a shape, or does not fit them.
        UnknownNameError: It is for a network that is not installed here.
    """
    state, metadata = load_weights(path)
    name = metadata.get("network", "")
    try:
        classes, channels, size = (int(metadata[key]) for key in ("classes", "channels", "size"))
    except (KeyError, ValueError):
        name = ""
    if not name:
        raise WeightsError(
            f"the metadata of {path} must give network, classes, channels and size, got {json.dumps(metadata)}; "
            "build the network yourself and use restore()"
        )
    if is_plugin(behind_key(name)) and not plugins:
        raise WeightsError(
            f"{path} is for the plug-in network '{name}', whose code would be run; "
            "in Python, pass plugins=True if you trust the file, or build the network yourself and use restore()"
        )
    problem = ""
    waves = tuple(state.get("key.waves", torch.empty(0)).shape)
    if is_keyed(name) and waves[:1] != (classes,):  # before a key is made, which takes time for each class
        problem = f"tensor 'key.waves' must have {classes} rows, got shape {waves}"
    elif isinstance(NETWORKS.get(behind_key(name)), Architecture):
        with torch.device("meta"):  # no memory is spent before the numbers in the file are known to fit
            problem = first_mismatch(build(name, classes, seed=0, channels=channels, size=size).state_dict(), state)
    if problem:
        raise WeightsError(f"{path} says that it is for {stated(metadata)}, but does not fit: {problem}")
    result = build(name, classes, seed=0, channels=channels, size=size)
    restore(result, state, metadata)
    return result
