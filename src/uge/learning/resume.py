"""Modules and an optimiser's state in one safetensors file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from uge.errors import WeightsError
from uge.files import write_atomic


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None, meta: Mapping[str, Any]
) -> None:
    """Write the state of ``modules`` and ``optimizer`` with ``meta`` (JSON values).

    Raises:
        StorageError: The disk is full or read-only.
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, state in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {
            f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in state.items() if value is not None
        }
    packed = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_atomic(path, save(packed, metadata={"meta": json.dumps(dict(meta), default=str)}))


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Restore what :func:`save_checkpoint` wrote, and return its ``meta``.

    Raises:
        WeightsError: The file is missing, damaged, or belongs to something else.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
            meta: dict[str, Any] = json.loads((handle.metadata() or {}).get("meta", "{}"))
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        if optimizer is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors)})
            _lay_out(optimizer)
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(f"checkpoint {path} cannot be used ({first}); start again with --overwrite") from error
    return meta


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = value
    return state


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give restored tensors the memory layout of their parameter, as in the run that was interrupted."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
