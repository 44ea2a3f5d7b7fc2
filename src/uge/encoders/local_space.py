"""A small feature space trained on the protector's own images, which needs no download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.images import ImageSet
from uge.data.store import PixelStore, load_pixels
from uge.errors import UsageError
from uge.learning.objectives import evaluating
from uge.learning.recipes import Recipe
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.learning.training import evaluate, fit
from uge.networks import build, weights_hash
from uge.progress import Progress, part_of
from uge.runtime import Runtime, seeded, stream_seed

RECIPE = Recipe(epochs=12, lr=0.1)


class PrototypeNetwork(nn.Module):
    """An image tower and one learned text prototype per class, trained contrastively.

    Logits are the cosines of image features and prototypes over a temperature. Cross-entropy pulls an image to its
    class's prototype and pushes it from the others, as CLIP does with captions. A linear projection gives features of
    either sign (those of the towers end in a ReLU, so no two can be opposite), and the temperature is high, so that
    logits do not saturate: both let a perturbation move features much further (docs/method.md).

    Args:
        tower: A network with ``features(x)`` of shape batch × width.
        width: Width of its features.
        classes: Number of prototypes.
        dim: Dimension of the feature space.
        scale: Inverse temperature.
    """

    def __init__(self, tower: nn.Module, width: int, classes: int, *, dim: int = 64, scale: float = 6.0) -> None:
        super().__init__()
        self.tower = tower
        self.scale = scale
        self.projection = nn.Linear(width, dim)
        self.prototypes = nn.Parameter(torch.randn(classes, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, batch × classes."""
        return self.scale * (self.image_features(x) @ self.text_features().T)

    def image_features(self, x: Tensor) -> Tensor:
        """L2-normalised features, batch × dim."""
        features: Tensor = self.tower.features(x)  # type: ignore[operator]
        return F.normalize(self.projection(features).float(), dim=1)

    def text_features(self) -> Tensor:
        """L2-normalised prototypes, classes × dim."""
        return F.normalize(self.prototypes, dim=1)


class LocalSpace:
    """A :class:`~uge.encoders.base.FeatureSpace` of several prototype networks.

    Features of the members are joined and scaled: a squared distance is the mean of the members' squared distances.
    """

    name = "local"

    def __init__(self, members: Sequence[PrototypeNetwork], classes: Sequence[str], options: dict[str, Any]) -> None:
        self._members = list(members)
        self.modules = nn.ModuleList(members).eval().requires_grad_(False)
        self.classes = tuple(classes)
        self.options = options

    @classmethod
    def train(
        cls,
        store: PixelStore,
        *,
        seed: int,
        runtime: Runtime,
        members: Sequence[str] = ("cnn", "resnet8"),
        recipe: Recipe = RECIPE,
        path: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train the towers and prototypes on labelled images.

        Args:
            store: The protector's clean images.
            seed: Root seed.
            runtime: Device and precision.
            members: Architectures of the image towers.
            recipe: Short recipes suffice.
            path: File of the trained space, loaded if it exists, else written.
            progress: Called after every epoch with (epochs done, epochs of all members, figures).
        """
        networks = [_prototype_network(name, store, seed) for name in members]
        options = {"members": list(members), "recipe": recipe.json_dict(), "seed": seed}
        named = {f"member{number}": network for number, network in enumerate(networks)}
        if path is not None and path.exists():
            options = load_checkpoint(path, named)
            runtime.place(nn.ModuleDict(named))
            return cls(networks, store.classes, options)
        for number, (name, network) in enumerate(zip(members, networks, strict=True)):
            fit(
                network,
                store,
                recipe,
                seed=stream_seed(seed, "encoder", name),
                runtime=runtime,
                progress=part_of(progress, number, len(members)),
            )
        options["train_accuracy"] = [round(evaluate(network, store, runtime), 2) for network in networks]
        if path is not None:
            save_checkpoint(path, named, None, options)
        return cls(networks, store.classes, options)

    def image_features(self, x: Tensor) -> Tensor:
        """L2-normalised features of pixels in [0, 1]: batch × dim, differentiable."""
        return _joined([member.image_features(x) for member in self._members])

    def text_features(self, classes: Sequence[str]) -> Tensor:
        """L2-normalised prototypes, classes × dim.

        Raises:
            UsageError: The space was trained on other classes.
        """
        if tuple(classes) != self.classes:
            raise UsageError(
                f"the local encoder knows the classes {list(self.classes)}, got {list(classes)}; "
                "train one on these images"
            )
        return _joined([member.text_features() for member in self._members])

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; returns itself."""
        self.modules.to(device)
        return self

    def identity(self) -> dict[str, Any]:
        """Kind, settings and hash of the weights, for the manifest."""
        return {"kind": "local", **self.options, "weights_sha256": weights_hash(self.modules)}


def train(
    images: ImageSet, *, size: int | None = None, seed: int = 0, recipe: Recipe = RECIPE, runtime: Runtime | None = None
) -> LocalSpace:
    """Local feature space of a labelled image set: ``uge.encoders.local(images)``.

    Args:
        images: The protector's clean images.
        size: Side length of the images in training; by default that of the set.
        seed: Root seed.
        recipe: Recipe of its networks.
        runtime: Device and precision; chosen by the hardware by default.

    Raises:
        UsageError: Sizes are mixed and no ``size`` was given.
    """
    runtime = runtime or Runtime.create()
    return LocalSpace.train(
        load_pixels(images, size=size, device=runtime.device), seed=seed, runtime=runtime, recipe=recipe
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, 1) / float(len(parts) ** 0.5)


def _prototype_network(name: str, store: PixelStore, seed: int) -> PrototypeNetwork:
    root = stream_seed(seed, "encoder", name)
    tower = build(name, len(store.classes), channels=store.channels, size=store.size, seed=root)
    with torch.no_grad(), evaluating(tower):
        width = tower.features(torch.zeros(2, store.channels, store.size, store.size)).shape[1]
    with seeded(root, "prototypes"):
        return PrototypeNetwork(tower, width, len(store.classes))
