"""The plain CNN that the nasty-teacher work (Ma et al., ICLR 2021) and the paper use on CIFAR-10."""

from __future__ import annotations

from torch import nn

from uge.networks.base import FlattenGrid, stages


def cnn(channels: int) -> nn.Module:
    """Three 3×3 convolutions with batch norm, each halving the image, then 128 units; (B, 128) features."""
    layers: list[nn.Module] = []
    for before, after in stages(channels, (32, 64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*layers, FlattenGrid(4), nn.Linear(128 * 4 * 4, 128), nn.BatchNorm1d(128), nn.ReLU())
