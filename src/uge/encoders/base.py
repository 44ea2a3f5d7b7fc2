"""Feature spaces, in which images and class names are compared (the encoders E_i and E_t of Eq. 7–9)."""

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class FeatureSpace(Protocol):
    """Image and text features of unit length, so that a dot product is a cosine similarity.

    Attributes:
        name: Name of the space on the command line, for instance ``"local"``.
    """

    name: str

    def image_features(self, x: Tensor) -> Tensor:
        """Features of images; differentiable with respect to the pixels, the space itself is frozen.

        Args:
            x: (B, C, H, W) in [0, 1].

        Returns:
            (B, D), fp32, each row of length 1.
        """

    def text_features(self, classes: Sequence[str]) -> Tensor:
        """Features of class names: (K, D), fp32, each row of length 1, without gradient."""

    def to(self, device: torch.device | str) -> Self:
        """Move the space to a device, in place; returns itself."""

    def identity(self) -> dict[str, Any]:
        """Values that determine the features, as JSON for the manifest: ``kind``, and name and hash of the weights."""
