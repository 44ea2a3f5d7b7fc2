"""Pre-activation ResNets for 32-pixel images.

After He et al., *Identity mappings in deep residual networks*, 2016.
"""

import math
from itertools import pairwise

from torch import Tensor, nn

from uge.networks.base import GlobalAverage, conv3

WIDTHS = (16, 32, 64)


def resnetc(channels: int, blocks: int) -> nn.Module:
    """A ResNet of depth 6·blocks + 2 with widths 16/32/64; (B, 64) features."""
    layers: list[nn.Module] = [conv3(channels, WIDTHS[0])]
    for before, after in pairwise((WIDTHS[0], *WIDTHS)):
        layers += [
            PreActivationBlock(before, after, stride=1 if before == after else 2),
            *(PreActivationBlock(after, after) for _ in range(blocks - 1)),
        ]
    body = nn.Sequential(*layers, nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU(), GlobalAverage())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):  # He initialisation by fan-out
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size))))
    return body


class PreActivationBlock(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv, added to the block's input (through a 1×1 convolution where sizes change)."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            conv3(before, after, stride),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            conv3(after, after),
        )
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H/stride, W/stride)."""
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out
