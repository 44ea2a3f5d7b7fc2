"""Networks that start from a checkpoint on disk, with a fresh last layer: what a hacker may take off the shelf."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uge.errors import UsageError
from uge.names import CHECKPOINT
from uge.networks.base import ImageClassifier
from uge.networks.head import feature_state
from uge.networks.plugins import Wrapped
from uge.networks.pretrained import first_line, import_transformers, preprocessing, read_json, resized
from uge.networks.table import build
from uge.networks.weights import from_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for checkpoints that do not say what they expect."""
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
    """Hexadecimal sha256 of everything that ``checkpoint:PATH`` is read from.

    Raises:
        UsageError: There is no such file or folder.
    """
    path = checkpoint_path(name)
    files = [path] if path.is_file() else sorted([*path.glob("*.json"), *path.glob("*.safetensors")])
    found = [(file, file.stat()) for file in files]
    return _sha256(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in found))


@functools.lru_cache(maxsize=16)
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of all files together; sizes and times only tell whether one was changed since it was read."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def build_checkpoint(name: str, classes: int, channels: int, size: int) -> ImageClassifier:
    """The network ``checkpoint:PATH``: pretrained features, and a last layer drawn from the current generator.

    A file is one of this package's weights files. A folder is a checkpoint of transformers (any image model with
    safetensors: ViT, ResNet, CLIP's image tower, ...); images are resized to what it was trained on.

    Args:
        name: ``checkpoint:PATH``.
        classes: Number of logits.
        channels: Colour channels of the images.
        size: Their height and width.

    Raises:
        MissingExtraError: It is a folder, and transformers is not installed.
        UsageError: There is no checkpoint, or it is no image model, or for other images.
        WeightsError: The weights cannot be read, or are for another architecture than they say.
    """
    path = checkpoint_path(name)
    if path.is_file():
        return _transplanted(from_weights(path), name, classes, channels, size)
    module = _OnTop(*_body(path), classes)
    return Wrapped(module, name=name, classes=classes, channels=channels, size=size, mean=0.0, std=1.0)


def _transplanted(trained: ImageClassifier, name: str, classes: int, channels: int, size: int) -> ImageClassifier:
    """A network of the same architecture with everything of ``trained`` but its last layer."""
    if trained.channels != channels:
        raise UsageError(f"'{name}' is for images of {trained.channels} channels, these have {channels}")
    draw = int(torch.randint(2**31, ()))
    network = build(trained.name, classes, seed=draw, channels=channels, size=size)
    state, mine = feature_state(trained), network.state_dict()
    other = next((key for key, value in state.items() if mine[key].shape != value.shape), None)
    if other is not None:
        raise UsageError(
            f"'{name}' does not fit {classes} classes at {size} px: tensor '{other}' is {tuple(state[other].shape)}, "
            f"expected {tuple(mine[other].shape)}"
        )
    network.load_state_dict(state, strict=False)
    network.name = name
    return network


def _body(folder: Path) -> tuple[nn.Module, tuple[int, int] | None, tuple[Any, Any]]:
    """An image model of transformers, the size it wants (None for any), and mean and standard deviation."""
    transformers = import_transformers("a network from a checkpoint")
    config, asked = read_json(folder / "config.json", OTHERWISE), preprocessing(folder, OTHERWISE)
    try:
        model = transformers.AutoModel.from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # many kinds, by file and by version of transformers
        raise UsageError(f"the checkpoint in {folder} cannot be read ({first_line(error)}); {OTHERWISE}") from error
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        kind = config.get("model_type", "unknown")
        raise UsageError(f"the checkpoint in {folder} is no image model, its type is '{kind}'; {OTHERWISE}")
    statistics = asked.get("image_mean") or MEAN, asked.get("image_std") or STD
    return model, _side(getattr(model.config, "image_size", None) or asked.get("size")), statistics


def _side(found: Any) -> tuple[int, int] | None:
    """Height and width from the forms in which checkpoints write a size."""
    if isinstance(found, dict):
        side = found.get("shortest_edge")
        found = [found.get("height", side), found.get("width", side)]
    if isinstance(found, int):
        found = [found, found]
    return (found[0], found[1]) if found and all(isinstance(side, int) for side in found) else None


class _OnTop(nn.Module):
    """A body of transformers with a linear layer on its pooled features."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: nn.Module, size: tuple[int, int] | None, statistics: tuple[Any, Any], classes: int
    ) -> None:
        super().__init__()
        self.body, self.size = body, size
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.head = nn.Linear(self._width(), classes)

    def _width(self) -> int:
        training = self.training
        with torch.no_grad():
            width = self.eval().pooled(torch.zeros(1, 3, *(self.size or (64, 64)))).shape[1]
        self.train(training)
        return width

    def pooled(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [0, 1] to features (B, D): the model's own pooling, or the mean over places."""
        with torch.autocast(x.device.type, enabled=False):
            x = (resized(x.float(), self.size or x.shape[2:]) - self.mean) / self.std
        output = self.body(pixel_values=x)
        found: Tensor | None = getattr(output, "pooler_output", None)
        if found is not None:
            return found.flatten(1)
        places: Tensor = output.last_hidden_state  # (B, places, D) or (B, D, height, width)
        return places.mean(1) if places.dim() == 3 else places.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        out: Tensor = self.head(self.pooled(x))
        return out
