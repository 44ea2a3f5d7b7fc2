"""MobileNetV2 for small images (Sandler et al., *Inverted residuals and linear bottlenecks*, 2018)."""

from torch import Tensor, nn

from uge.networks.base import GlobalAverage

# channels, blocks, stride of the first block, expansion factor t
STAGES = (
    (16, 1, 1, 1),
    (24, 2, 2, 6),
    (32, 3, 2, 6),
    (64, 4, 2, 6),
    (96, 3, 1, 6),
    (160, 3, 1, 6),
    (320, 1, 1, 6),
)


def mobilenetv2(channels: int) -> nn.Module:
    """The variant of the paper: 1×1 stem with padding 1, convolutions with bias; (B, 1280) features.

    Its 1×1-convolution classifier on pooled features is the linear head, which computes the same.
    """
    layers: list[nn.Module] = [*_conv_norm(channels, 32, 1, padding=1), nn.ReLU6()]
    before = 32
    for after, blocks, stride, expansion in STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(before, after, stride if block == 0 else 1, expansion))
            before = after
    return nn.Sequential(*layers, *_conv_norm(before, 1280, 1), nn.ReLU6(), GlobalAverage())


class InvertedResidual(nn.Module):
    """Expand by ``expansion``, filter each channel alone, project linearly; residual where the shape stays."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = before * expansion
        self.layers = nn.Sequential(
            *_conv_norm(before, inside, 1),
            nn.ReLU6(),
            *_conv_norm(inside, inside, 3, stride=stride, padding=1, groups=inside),
            nn.ReLU6(),
            *_conv_norm(inside, after, 1),
        )
        self.keeps_shape = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H/stride, W/stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.keeps_shape else out


def _conv_norm(
    before: int, after: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, kernel, stride, padding, groups=groups), nn.BatchNorm2d(after)
