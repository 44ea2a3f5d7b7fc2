"""Weights on disk: safetensors only (never pickles), with what they are for in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from uge.errors import WeightsError
from uge.files import stable_safetensors, write_atomic
from uge.names import behind_key, is_keyed
from uge.networks.base import ImageClassifier
from uge.networks.plugins import is_plugin
from uge.networks.table import build

State = dict[str, Tensor]
PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # a bare pickle, and the zip archive of torch.save


def describe(network: ImageClassifier) -> dict[str, str]:
    """What a network is, as the metadata of a weights file says it."""
    fields = {"network": network.name, "classes": network.classes, "channels": network.channels, "size": network.size}
    return {key: str(value) for key, value in fields.items()}


def save_weights(path: Path | str, network: ImageClassifier, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's weights and buffers, all or nothing.

    Args:
        path: The safetensors file.
        network: Its name, classes, channels and size go into the metadata.
        metadata: More of it; text only.

    Raises:
        StorageError: The disk is full or read-only.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    data = safetensors.torch.save(state, {**(metadata or {}), **describe(network)})
    write_atomic(Path(path), stable_safetensors(data))


def load_weights(path: Path | str) -> tuple[State, dict[str, str]]:
    """Read the tensors, on the CPU, and the metadata of a safetensors file.

    Raises:
        WeightsError: The file is absent, no safetensors file, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"expected a safetensors file at {path}, but there is none")
    with path.open("rb") as handle:
        start = handle.read(9)
    # A safetensors file may start with the same bytes as a pickle (its header's length), but then comes a brace.
    if start.startswith(PICKLE_STARTS) and start[8:] != b"{":
        raise WeightsError(
            f"{path} is a pickle (torch.save), which can run code when it is opened; convert it to safetensors first"
        )
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # cloned, because the originals are a view into the file
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is no readable safetensors file ({error}); was it cut off?") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"tensor '{name}' in {path} holds NaN or infinity; its training diverged, start anew")
    return state, metadata


def restore(network: ImageClassifier, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Put weights into a network, in place.

    Args:
        network: Must have the very names and shapes of ``state``.
        state: From ``load_weights``.
        metadata: From ``load_weights``; makes the error say what the file was for.

    Raises:
        WeightsError: The weights belong to another architecture, or hold NaN or infinity.
    """
    problem = _first_mismatch(network.state_dict(), state)
    if problem:
        wanted = _sentence(describe(network))
        raise WeightsError(f"expected weights for {wanted}, got weights for {_sentence(metadata or {})}: {problem}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"tensor '{name}' holds NaN or infinity; its training diverged, start anew")
    network.load_state_dict(dict(state))


def from_weights(path: Path | str, *, plugins: bool = False) -> ImageClassifier:
    """Build the network that a weights file is for, with its weights, on the CPU.

    Args:
        path: A file of ``save_weights``.
        plugins: Also build a network that is not in the table. Its name is the name of code to
            import and run, and the file decides it: allow this only for files you trust.

    Raises:
        WeightsError: The file cannot be read, does not say what it is for, or does not fit that.
        UnknownNameError: It is for a network that this version does not know.
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
    foreign = is_plugin(behind_key(name))
    if foreign and not plugins:
        raise WeightsError(
            f"{path} is for the plug-in network '{name}', whose code would be run; "
            "in Python, pass plugins=True if you trust the file, or build the network yourself and use restore()"
        )
    waves = tuple(state.get("key.waves", torch.empty(0)).shape)
    if is_keyed(name) and waves[:1] != (classes,):  # before a key is made, which takes time for each class
        problem = f"tensor 'key.waves' must have {classes} rows, got shape {waves}"
        raise WeightsError(f"{path} says that it is for {_sentence(metadata)}, but does not fit: {problem}")
    if not foreign:
        with torch.device("meta"):  # no memory is spent before the numbers in the file are known to fit
            skeleton = build(name, classes, seed=0, channels=channels, size=size).state_dict()
        problem = _first_mismatch(skeleton, state)
        if problem:
            raise WeightsError(f"{path} says that it is for {_sentence(metadata)}, but does not fit: {problem}")
    network = build(name, classes, seed=0, channels=channels, size=size)
    restore(network, state, metadata)
    return network


def weights_hash(network: nn.Module | Mapping[str, Tensor]) -> str:
    """Hexadecimal sha256 of weights and buffers: names in sorted order, types, shapes, bytes.

    The same on every device and for every memory layout.
    """
    state = network.state_dict() if isinstance(network, nn.Module) else network
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_mismatch(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The first way in which a state differs from the expected one; empty if it fits."""
    for name, tensor in expected.items():
        if name not in state:
            return f"tensor '{name}' is missing"
        if state[name].shape != tensor.shape:
            return f"tensor '{name}' must have shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}"
    unexpected = sorted(set(state) - set(expected))
    return f"tensor '{unexpected[0]}' is not part of the network" if unexpected else ""


def _sentence(metadata: Mapping[str, str]) -> str:
    if "network" not in metadata:
        return "an unnamed network"
    parts = [f"{key} {metadata[key]}" for key in ("classes", "channels", "size") if key in metadata]
    return f"'{metadata['network']}'" + (f" ({', '.join(parts)})" if parts else "")
