"""Weights on disk: safetensors only (never pickles), with name and shape of their network in the metadata."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from uge.errors import WeightsError
from uge.files import WEIGHTS, open_regular, stable_safetensors, write_atomic
from uge.networks.base import ImageClassifier

State = dict[str, Tensor]


def describe(network: ImageClassifier) -> dict[str, str]:
    """Name and shape of a network as the metadata of a weights file."""
    return {"network": network.name, **{key: str(getattr(network, key)) for key in ("classes", "channels", "size")}}


def save_weights(path: Path | str, network: ImageClassifier, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's weights and buffers, all or nothing; its owner alone may read the file, for a key may be in it.

    Args:
        path: The safetensors file.
        network: Its name, classes, channels and size go into the metadata.
        metadata: More of it; text only.

    Raises:
        StorageError: The disk is full or read-only.
    """
    write_atomic(Path(path), weights_bytes(network, metadata), secret=True)


def weights_bytes(network: ImageClassifier, metadata: Mapping[str, str] | None = None) -> bytes:
    """Bytes of a safetensors file with a network's weights and buffers; see :func:`save_weights`."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    return stable_safetensors(safetensors.torch.save(state, {**(metadata or {}), **describe(network)}))


def load_weights(path: Path | str, *, values: bool = True) -> tuple[State, dict[str, str]]:
    """Read the tensors, on the CPU, and the metadata of a safetensors file.

    Args:
        path: The file, of at most 4 GiB.
        values: False reads names and shapes only: the tensors are on the device ``meta``, and take no memory.

    Raises:
        WeightsError: The file is absent, no safetensors file, or holds NaN or infinity.
        UnreadableError: The file is too large.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"expected a safetensors file at {path}, but there is none")
    with open_regular(path, WEIGHTS) as handle:
        start = handle.read(9)
    # A bare pickle, or the zip archive of torch.save. A safetensors file may start with the same bytes (its header's
    # length), but then comes a brace.
    if start.startswith((b"\x80", b"PK\x03\x04")) and start[8:] != b"{":
        raise WeightsError(
            f"{path} is a pickle (torch.save), which can run code when it is opened; convert it to safetensors first"
        )
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if not values:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
                return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, metadata
            # cloned, because the originals are a view into the file
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is no readable safetensors file ({error}); was it cut off?") from error
    _check_finite(state, f" in {path}")
    return state, metadata


def restore(network: ImageClassifier, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Put weights into a network, in place.

    Args:
        network: Must have the very names and shapes of ``state``.
        state: From ``load_weights``.
        metadata: From ``load_weights``; names the file's network in the error.

    Raises:
        WeightsError: The weights belong to another architecture, or hold NaN or infinity.
    """
    problem = first_mismatch(network.state_dict(), state)
    if problem:
        raise WeightsError(
            f"expected weights for {stated(describe(network))}, got weights for {stated(metadata or {})}: {problem}"
        )
    _check_finite(state)
    network.load_state_dict(dict(state))


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


def first_mismatch(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The first difference of a state from the expected one, as a sentence; empty if it fits."""
    for name, tensor in expected.items():
        if name not in state:
            return f"tensor '{name}' is missing"
        if state[name].shape != tensor.shape:
            return f"tensor '{name}' must have shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}"
    unexpected = sorted(set(state) - set(expected))
    return f"tensor '{unexpected[0]}' is not part of the network" if unexpected else ""


def stated(metadata: Mapping[str, str]) -> str:
    """Name and shape in a file's metadata, for a message."""
    if "network" not in metadata:
        return "an unnamed network"
    parts = [f"{key} {metadata[key]}" for key in ("classes", "channels", "size") if key in metadata]
    return f"'{metadata['network']}'" + (f" ({', '.join(parts)})" if parts else "")


def _check_finite(state: Mapping[str, Tensor], where: str = "") -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"tensor '{name}'{where} holds NaN or infinity; its training diverged, start anew")
