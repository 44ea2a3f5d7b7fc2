"""Files from which an interrupted run resumes: modules and an optimiser in one safetensors file, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from uge.errors import WeightsError
from uge.files import open_regular, write_atomic


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None, meta: Mapping[str, Any]
) -> None:
    """Write a file from which a run can resume, and which its owner alone may read.

    Args:
        path: The file.
        modules: Networks and other modules by name.
        optimizer: Optimiser whose state is written, too.
        meta: More about the run, as JSON values.

    Raises:
        StorageError: The disk is full or read-only.
    """
    groups = {name: module.state_dict() for name, module in modules.items()}
    if optimizer is not None:
        groups |= {f"optimizer/{index}": state for index, state in optimizer.state_dict()["state"].items()}
    tensors = {
        f"{group}/{key}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for group, state in groups.items()
        for key, value in state.items()
        if value is not None
    }
    write_atomic(path, save(tensors, metadata={"meta": json.dumps(dict(meta), default=str)}), secret=True)


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Bring ``modules`` and ``optimizer`` to the state of a file of :func:`save_checkpoint`; returns its ``meta``.

    Raises:
        WeightsError: The file is missing, damaged, or belongs to other modules.
    """
    try:
        with open_regular(path), safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
            meta: dict[str, Any] = json.loads((handle.metadata() or {}).get("meta", "{}"))
        for name, module in modules.items():
            module.load_state_dict(_under(f"{name}/", tensors))
        if optimizer is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for place, value in _under("optimizer/", tensors).items():
                index, _, name = place.partition("/")
                like = parameters[int(index)]
                if value.shape == like.shape:  # The memory layout is that of the parameter, as before the interruption.
                    value = torch.empty_like(like, dtype=value.dtype).copy_(value)
                state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    except (SafetensorError, OSError, RuntimeError, LookupError, ValueError) as error:
        raise WeightsError(
            f"checkpoint {path} cannot be used ({str(error).splitlines()[0]}); start again with --overwrite"
        ) from error
    return meta


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
