"""A network outside the table, to be named as a plug-in."""

from torch import nn


def linear(classes: int, channels: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
