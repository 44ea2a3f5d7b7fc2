"""Networks and feature spaces small enough for finite differences."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class LinearSpace:
    """A feature space of one random projection, with random class features."""

    name = "linear"

    def __init__(self, inputs: int, classes: int, *, dim: int = 5, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.projection = torch.randn(inputs, dim, generator=generator)
        self.text = nn.functional.normalize(torch.randn(classes, dim, generator=generator), dim=1)

    def image_features(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(((x - 0.5).flatten(1) @ self.projection).float(), dim=1)

    def text_features(self, classes: Sequence[str]) -> Tensor:
        return self.text

    def to(self, device: torch.device | str) -> "LinearSpace":
        return self

    def identity(self) -> dict[str, Any]:
        return {"kind": self.name}


def _smooth(seed: int = 0, classes: int = 3, bias: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 3, 3, bias=bias), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, classes)]
        network = nn.Sequential(*layers).double()
        nn.init.uniform_(network[1].running_mean, -0.2, 0.2)
        nn.init.uniform_(network[1].running_var, 0.5, 1.5)
        nn.init.uniform_(network[1].weight, 0.5, 1.5)
    return network


def _linear(seed: int = 0, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, classes)).double()


@pytest.fixture
def smooth() -> Callable[..., nn.Module]:
    """Makes small networks with batch norm, without kinks, in float64, for 2 × 4 × 4 images."""
    return _smooth


@pytest.fixture
def linear() -> Callable[..., nn.Module]:
    """Makes linear classifiers in float64 for 2 × 4 × 4 images: their gradient is known in closed form."""
    return _linear


@pytest.fixture
def linear_space() -> Callable[..., LinearSpace]:
    return LinearSpace


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Clean and protected images of 2 × 4 × 4 pixels in float64, and labels of 3 classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    x_u = (x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return x, x_u, torch.tensor([0, 2, 1, 1, 0])
