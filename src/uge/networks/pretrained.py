"""Checkpoints of transformers on disk: how they are read, and what they expect of images."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uge.errors import MissingExtraError, UsageError

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


def import_transformers(feature: str) -> Any:
    """The library, which is an extra.

    Args:
        feature: What needs it, for the message.

    Raises:
        MissingExtraError: It is not installed.
        UsageError: It is, but its models cannot be loaded.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError("transformers", "clip", feature) from error
    try:
        _ = transformers.CLIPModel, transformers.CLIPTokenizer, transformers.AutoModel
    except Exception as error:
        raise UsageError(
            f"transformers cannot load its models ({first_line(error)}); is a torchvision installed that was built "
            "for another torch? Remove it, this package needs none"
        ) from error
    return transformers


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """One of a checkpoint's JSON files.

    Args:
        path: The file.
        otherwise: What to do without it, for the message.

    Raises:
        UsageError: It cannot be read, or holds no object.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"a checkpoint needs a readable {path} ({first_line(error)}); {otherwise}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(found).__name__}; {otherwise}")
    return found


def preprocessing(folder: Path, otherwise: str) -> dict[str, Any]:
    """What a checkpoint says of its images: ``image_mean``, ``image_std``, ``size``; empty where it says nothing.

    Raises:
        UsageError: The file that says it cannot be read.
    """
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            found = read_json(folder / name, otherwise)
            inner: dict[str, Any] = found.get("image_processor", found)
            return inner
    return {}


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images with their whole content at another size: bicubic with antialiasing, differentiable.

    Unlike 8-bit preprocessing, values that the filter carries beyond [0, 1] stay: clamping would erase the gradient
    in white and black areas.

    Args:
        x: (B, C, H, W), fp32.
        size: Height and width that are wanted.

    Returns:
        (B, C, height, width).
    """
    for dim, side in zip((2, 3), size, strict=True):
        if x.shape[dim] != side:
            x = (_resize_matrix(x.shape[dim], side, x.device) @ x.transpose(2, dim)).transpose(2, dim)
    return x


@functools.lru_cache(maxsize=64)
def _resize_matrix(before: int, after: int, device: torch.device) -> Tensor:
    """The (after, before) matrix of bicubic resizing along one axis.

    Resizing is linear and separable. As a matrix product it has, other than torch's own kernel, a
    deterministic gradient on every device.
    """
    with torch.inference_mode(False), torch.no_grad():  # the cached matrix must serve later gradients
        identity = torch.eye(before)[None, None]
        matrix: Tensor = torch.nn.functional.interpolate(identity, (after, before), mode="bicubic", antialias=True)
        return matrix[0, 0].to(device)


def first_line(error: BaseException) -> str:
    """The first line of a foreign error, for one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
