"""ShuffleNetV2 1× for small images (Ma et al., *Practical guidelines for efficient CNN architecture design*, 2018)."""

import torch
from torch import Tensor, nn

from uge.networks.base import GlobalAverage

# channels, units that keep the size after the one that halves it
STAGES = ((116, 3), (232, 7), (464, 3))


def shufflenetv2(channels: int) -> nn.Module:
    """The variant of the paper: 3×3 stride-1 stem without ReLU, convolutions with bias; (B, 1024) features."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 24, 3, padding=1), nn.BatchNorm2d(24)]
    before = 24
    for after, units in STAGES:
        layers += [DownUnit(before, after), *(SplitUnit(after) for _ in range(units))]
        before = after
    return nn.Sequential(*layers, *_pointwise(before, 1024), GlobalAverage())


class DownUnit(nn.Module):
    """Halves the image and changes the channels; both branches see all channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        half = after // 2
        self.left = nn.Sequential(*_depthwise(before, stride=2), *_pointwise(before, half))
        self.right = nn.Sequential(
            *_pointwise(before, before), *_depthwise(before, stride=2), *_pointwise(before, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H/2, W/2)."""
        return _shuffle(torch.cat([self.left(x), self.right(x)], 1))


class SplitUnit(nn.Module):
    """Keeps size and channels: half of the channels pass untouched, the others are filtered."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.right = nn.Sequential(*_pointwise(half, half), *_depthwise(half), *_pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        left, right = x.chunk(2, 1)
        return _shuffle(torch.cat([left, self.right(right)], 1))


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels, so that the next unit mixes them."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def _pointwise(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU()


def _depthwise(width: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, width, 3, stride, padding=1, groups=width), nn.BatchNorm2d(width)
