"""ResNet-18 with a stem for small images.

After He et al., *Deep residual learning for image recognition*, 2016.
"""

from itertools import pairwise

from torch import Tensor, nn

from uge.networks.base import GlobalAverage, conv3


def resnet18(channels: int, width: int = 64) -> nn.Module:
    """A 3×3 stride-1 stem, no max-pooling, four stages of two blocks; (B, 8·width) features.

    Args:
        channels: Colour channels of the input.
        width: Channels of the first stage; each later stage has twice as many.
    """
    layers: list[nn.Module] = [conv3(channels, width), nn.BatchNorm2d(width), nn.ReLU()]
    for before, after in pairwise((width, width, 2 * width, 4 * width, 8 * width)):
        layers += [BasicBlock(before, after, stride=1 if before == after else 2), BasicBlock(after, after)]
    return nn.Sequential(*layers, GlobalAverage())


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm; the shortcut is a 1×1 convolution with batch norm where sizes change."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv3(before, after, stride),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            conv3(after, after),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if before != after
            else nn.Identity()
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H/stride, W/stride)."""
        out: Tensor = self.activation(self.residual(x) + self.shortcut(x))
        return out
