"""Checkpoints on disk: how those of transformers are read, and networks with their features and a fresh last layer."""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uge import extras
from uge.errors import UsageError
from uge.files import file_sha256, parse, read_text
from uge.names import CHECKPOINT
from uge.networks.plugins import Wrapped

OTHERWISE = "give a weights file of this package or a folder with config.json and *.safetensors"


def checkpoint_path(name: str) -> Path:
    """File or folder of a network's name ``checkpoint:PATH``.

    Raises:
        UsageError: There is neither.
    """
    path = Path(name.removeprefix(CHECKPOINT))
    if not path.is_file() and not (path / "config.json").is_file():
        raise UsageError(f"there is no checkpoint at '{path}'; {OTHERWISE}")
    return path


def checkpoint_hash(name: str) -> str:
    """Hexadecimal sha256 of all files of ``checkpoint:PATH``.

    Raises:
        UsageError: There is no such file or folder.
    """
    path = checkpoint_path(name)
    files = [path] if path.is_file() else sorted([*path.glob("*.json"), *path.glob("*.safetensors")])
    return _sha256(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=16)
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Digest of all files together; a changed size or time makes it read them again."""
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def build_from_folder(folder: Path, name: str, classes: int, channels: int, size: int) -> Wrapped:
    """Pretrained features of a checkpoint of transformers, and a last layer drawn from the current generator.

    Any image model with safetensors serves (ViT, ResNet, CLIP's image tower, ...); images are resized to the size that
    it was trained on.

    Args:
        folder: The checkpoint.
        name: ``checkpoint:PATH``.
        classes: Number of logits.
        channels: Colour channels of the images.
        size: Their height and width.

    Raises:
        MissingExtraError: transformers is not installed.
        UsageError: The checkpoint cannot be read, or is no image model.
    """
    transformers = import_transformers("a network from a checkpoint")
    config = read_json(folder / "config.json", OTHERWISE)
    asked = preprocessing(folder, OTHERWISE)
    try:
        model = transformers.AutoModel.from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many kinds, by file and by version of transformers
        raise UsageError(f"the checkpoint in {folder} cannot be read ({first_line(error)}); {OTHERWISE}") from error
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise UsageError(
            f"the checkpoint in {folder} is no image model, its type is '{config.get('model_type', 'unknown')}'; "
            f"{OTHERWISE}"
        )
    statistics = {  # Those of ImageNet, for checkpoints without any of their own.
        "mean": asked.get("image_mean") or (0.485, 0.456, 0.406),
        "std": asked.get("image_std") or (0.229, 0.224, 0.225),
    }
    return Wrapped(
        _OnTop(model, _side(getattr(model.config, "image_size", None) or asked.get("size")), statistics, classes),
        name=name,
        classes=classes,
        channels=channels,
        size=size,
    )


def _side(size: Any) -> tuple[int, int] | None:
    """Height and width from the forms in which checkpoints write a size; None for any size."""
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = [size.get("height", side), size.get("width", side)]
    if isinstance(size, int):
        size = [size, size]
    return (size[0], size[1]) if size and all(isinstance(side, int) for side in size) else None


class _OnTop(nn.Module):
    """A body of transformers with a linear layer on its pooled features."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, size: tuple[int, int] | None, statistics: dict[str, Any], classes: int) -> None:
        super().__init__()
        self.body = body
        self.size = size
        for name, values in statistics.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(1, 3, 1, 1))
        with torch.no_grad():
            width = self.eval().pooled(torch.zeros(1, 3, *(size or (64, 64)))).shape[1]
        self.train()
        self.head = nn.Linear(width, classes)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [0, 1] to features (B, D): the model's own pooling, or the mean over places."""
        with torch.autocast(x.device.type, enabled=False):
            x = (resized(x.float(), self.size or x.shape[2:]) - self.mean) / self.std
        output = self.body(pixel_values=x)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        places: Tensor = output.last_hidden_state  # (B, places, D) or (B, D, height, width)
        return places.mean(1) if places.dim() == 3 else places.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pooled(x))
        return out


def import_transformers(feature: str) -> Any:
    """The library transformers, which is an extra.

    Args:
        feature: Feature that needs it, for the message.

    Raises:
        MissingExtraError: It is not installed.
        UsageError: Its models cannot be loaded.
    """
    transformers = extras.load("transformers", "clip", feature)
    try:  # Its modules are loaded when they are asked for.
        _ = transformers.CLIPModel, transformers.CLIPTokenizer, transformers.AutoModel
    except Exception as error:
        raise extras.broken("transformers", feature, error) from error
    return transformers


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Object in one of a checkpoint's JSON files.

    Args:
        path: The file.
        otherwise: Remedy, for the message.

    Raises:
        UsageError: It cannot be read, or holds no object.
    """
    try:
        value = parse(json.loads, read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"a checkpoint needs a readable {path} ({first_line(error)}); {otherwise}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object, got {type(value).__name__}; {otherwise}")
    return value


def preprocessing(folder: Path, otherwise: str) -> dict[str, Any]:
    """A checkpoint's ``image_mean``, ``image_std`` and ``size``; empty without a file that gives them.

    Raises:
        UsageError: That file cannot be read.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name, otherwise)
            return dict(settings.get("image_processor", settings))
    return {}


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Images with their whole content at another size: bicubic with antialiasing, differentiable.

    Unlike 8-bit preprocessing, values that the filter carries beyond [0, 1] stay: clamping would erase the gradient
    in white and black areas.

    Args:
        x: (B, C, H, W), fp32.
        size: Height and width of the result.

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
        matrix: Tensor = torch.nn.functional.interpolate(
            torch.eye(before)[None, None], (after, before), mode="bicubic", antialias=True
        )
        return matrix[0, 0].to(device)


def first_line(error: BaseException) -> str:
    """The first line of a foreign error, for one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
