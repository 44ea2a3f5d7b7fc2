"""What every network of this package is: an image classifier that takes [0, 1] pixels."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uge.errors import UsageError

MEAN, STD = 0.5, 0.25


class ImageClassifier(nn.Module, abc.ABC):
    """Images in, logits out; normalisation lives inside.

    ``mean`` and ``std`` are buffers of shape (1, channels, 1, 1): saved with the weights, never trained.

    Args:
        name: The name under which ``uge.networks.build`` makes this network.
        classes: Number of logits.
        channels: Colour channels of the input.
        size: Height and width, in pixels, that the network was built for.
        mean: Subtracted from every channel, in [0, 1] units.
        std: Divides every channel, in [0, 1] units.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, name: str, classes: int, channels: int, size: int, mean: float = MEAN, std: float = STD
    ) -> None:
        super().__init__()
        self.name, self.classes, self.channels, self.size = name, classes, channels, size
        self.register_buffer("mean", torch.full((1, channels, 1, 1), mean))
        self.register_buffer("std", torch.full((1, channels, 1, 1), std))

    def normalise(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] to the range the layers were made for, same shape."""
        return (x - self.mean) / self.std

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Penultimate features.

        Args:
            x: (B, channels, H, W) in [0, 1].

        Returns:
            (B, D), what the last linear layer sees.
        """

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images ``x`` (B, channels, H, W) in [0, 1]."""


class BodyAndHead(ImageClassifier):
    """A body from normalised pixels to (B, width) features, and one linear layer on top."""

    def __init__(self, body: nn.Module, width: int, *, name: str, classes: int, channels: int, size: int) -> None:
        super().__init__(name=name, classes=classes, channels=channels, size=size)
        self.body = body
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, width); see the base class."""
        out: Tensor = self.body(self.normalise(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes); see the base class."""
        out: Tensor = self.head(self.features(x))
        return out


def last_layer(network: nn.Module) -> nn.Linear:
    """The last linear layer.

    Raises:
        UsageError: There is none.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(f"this needs a network that ends in a linear layer, got {type(network).__name__}")
    return layers[-1]


def feature_state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of everything but the last linear layer.

    Raises:
        UsageError: There is no such layer.
    """
    head = {id(parameter) for parameter in last_layer(network).parameters()}
    kept = {name for name, value in network.state_dict(keep_vars=True).items() if id(value) not in head}
    return {name: value for name, value in network.state_dict().items() if name in kept}


class FlattenGrid(nn.Module):
    """Average-pool (B, C, H, W) to a fixed grid, then flatten to (B, C·side²).

    A map that has the grid's size already passes untouched, so at the size of the original
    network nothing changes (and CUDA's nondeterministic pooling gradient is not used).
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C·side²)."""
        if tuple(x.shape[2:]) != (self.side, self.side):
            x = nn.functional.adaptive_avg_pool2d(x, self.side)
        return x.flatten(1)


class GlobalAverage(nn.Module):
    """Mean over height and width: (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


def stages(first: int, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs (channels in, channels out) of consecutive stages."""
    return list(zip((first, *widths), widths, strict=False))
