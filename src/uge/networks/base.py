"""Image classifiers, which take pixels in [0, 1] and normalise them inside, and layers that several of them have."""

import abc

import torch
from torch import Tensor, nn

MEAN = 0.5
STD = 0.25


class ImageClassifier(nn.Module, abc.ABC):
    """A network from images to logits, with normalisation inside.

    ``mean`` and ``std`` are buffers of shape (1, channels, 1, 1): saved with the weights, never trained.

    Args:
        name: Name under which ``uge.networks.build`` makes this network.
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
        self.name = name
        self.classes = classes
        self.channels = channels
        self.size = size
        self.register_buffer("mean", torch.full((1, channels, 1, 1), mean))
        self.register_buffer("std", torch.full((1, channels, 1, 1), std))

    def normalise(self, x: Tensor) -> Tensor:
        """Images in [0, 1], less ``mean`` and divided by ``std``, same shape."""
        return (x - self.mean) / self.std

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Penultimate features.

        Args:
            x: (B, channels, H, W) in [0, 1].

        Returns:
            (B, D), input of the last linear layer.
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


class FlattenGrid(nn.Module):
    """Average-pool (B, C, H, W) to a fixed grid, then flatten to (B, C·side²).

    A map of the grid's size already passes unchanged, so at the size of the original network nothing changes (and
    CUDA's nondeterministic pooling gradient is not used).
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


def conv3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution that keeps height and width, divided by ``stride``; without bias."""
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
