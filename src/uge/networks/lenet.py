"""LeNet-5 (LeCun et al., *Gradient-based learning applied to document recognition*, 1998)."""

from torch import nn

from uge.networks.base import FlattenGrid


def lenet(channels: int) -> nn.Module:
    """Two 5×5 convolutions with max-pooling, then 120 and 84 units, with ReLU; (B, 84) features."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        FlattenGrid(5),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
