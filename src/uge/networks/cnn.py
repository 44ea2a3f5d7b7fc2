"""The plain CNN of the nasty-teacher work (Ma et al., ICLR 2021), which the paper uses on CIFAR-10."""

from itertools import pairwise

from torch import nn

from uge.networks.base import FlattenGrid


def cnn(channels: int, width: int = 32) -> nn.Module:
    """Three 3×3 convolutions with batch norm, each halving the image, then a hidden layer; (B, 4 * width) features."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, width, 2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU()]
    units = 4 * width
    return nn.Sequential(*layers, FlattenGrid(4), nn.Linear(16 * units, units), nn.BatchNorm1d(units), nn.ReLU())
