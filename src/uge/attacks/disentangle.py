"""Purification by a disentangling variational autoencoder that is trained on the copy alone (D-VAE, Yu et al., 2024).

A bottleneck of limited rate cannot hold a perturbation that differs from image to image, and a second decoder, which
knows the class, takes up what all images of a class have in common.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.attacks.base import Context, Entry, batched, prepared, stored, transformed, with_images
from uge.attacks.purify import convolution, descend
from uge.data.loader import to_unit
from uge.data.store import PixelStore
from uge.runtime import Runtime, seeded, stream

STEPS = 1200  # Steps of each of the two stages.
SIZE = 64  # Images of a step at 32 pixels; fewer of larger ones.
LEAST = 8  # Images of a step at any size.
WIDTH = 32
LATENT = 16  # Channels of the bottleneck, at a quarter of the side.
EMBEDDED = 8  # Channels of a class at a quarter of the side.
RATES = (0.3, 1.0)  # Most nats for each pixel of an image that the bottleneck passes in the two stages.
PRICE = 0.02  # Loss of a nat above the rate, in units of the squared error of a value.


@dataclass(frozen=True)
class Parts:
    """Parts of images, all in [0, 1] units.

    Attributes:
        picture: Reconstruction from the bottleneck, (B, channels, H, W).
        pattern: Perturbation that the class and the bottleneck explain, of the same shape.
        rate: Nats for each pixel, mean of the batch, a scalar.
    """

    picture: Tensor
    pattern: Tensor
    rate: Tensor


class Disentangler(nn.Module):
    """Variational autoencoder with a second decoder for the perturbation of a class.

    Args:
        channels: Colour channels of the images.
        size: Their height and width in pixels.
        classes: Number of classes.
    """

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *convolution(channels, WIDTH, stride=2),
            *convolution(WIDTH, 2 * WIDTH, stride=2),
            nn.Conv2d(2 * WIDTH, 2 * LATENT, 3, padding=1),
        )
        self.picture = _decoder(LATENT, channels)
        self.pattern = _decoder(LATENT + EMBEDDED, channels)
        side = -(-size // 4)
        self.classes = nn.Parameter(torch.randn(classes, EMBEDDED, side, side))

    def forward(self, x: Tensor, labels: Tensor | None = None, noise: torch.Generator | None = None) -> Parts:
        """Parts of pixels in [0, 1], (B, channels, H, W).

        Args:
            x: Pixels.
            labels: Classes of the images, (B,); the pattern is zero without them.
            noise: Source of the bottleneck's noise, on the CPU; without it the bottleneck passes its mean.
        """
        mean, spread = self.encoder(x - 0.5).chunk(2, 1)
        spread = spread.clamp(-8, 4)
        rate = (mean.square() + spread.exp() - 1 - spread).sum() / (2 * len(x) * x.shape[2] * x.shape[3])
        code = mean
        if noise is not None:
            code = mean + (spread / 2).exp() * torch.randn(mean.shape, generator=noise).to(mean.device)
        picture = _fitted(self.picture(code), x) + 0.5
        if labels is None:
            return Parts(picture, torch.zeros_like(x), rate)
        own = self.classes[labels]
        return Parts(picture, 0.1 * _fitted(self.pattern(torch.cat([code.detach(), own], 1)), x), rate)


def _decoder(before: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        *convolution(before, 4 * WIDTH),
        nn.PixelShuffle(2),
        *convolution(WIDTH, 4 * WIDTH),
        nn.PixelShuffle(2),
        nn.Conv2d(WIDTH, channels, 3, padding=1),
    )


def _fitted(out: Tensor, x: Tensor) -> Tensor:
    """Output of a decoder cut to the size of its images, which need not be a multiple of four."""
    return out[..., : x.shape[2], : x.shape[3]]


def disentangled(store: PixelStore, most: float, generator: torch.Generator, runtime: Runtime) -> Disentangler:
    """Disentangler fitted to a store.

    The loss is |x − picture|² + |x − picture − pattern|² and :data:`PRICE` for each nat above the rate, where the
    second term teaches the pattern alone.

    Args:
        store: Images with their labels.
        most: Rate of the bottleneck in nats for each pixel.
        generator: Source of batches and of the bottleneck's noise.
        runtime: Device.

    Raises:
        UsageError: The loss is not finite at the end.
    """
    network = Disentangler(store.channels, store.size, len(store.classes))
    count = min(len(store), max(LEAST, min(SIZE, SIZE * 32**2 // store.size**2)))

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(store), (count,), generator=generator)
        x = to_unit(store.pixels.read(rows))
        parts: Parts = network(x, store.labels[rows.to(store.device)], generator)
        rest = x - parts.picture
        excess = (parts.rate - most).clamp_min(0)
        return rest.square().mean() + F.mse_loss(parts.pattern, rest.detach()) + PRICE * excess

    descend(network, loss, runtime, STEPS)
    return network


@torch.inference_mode()
def without_patterns(network: Disentangler, store: PixelStore) -> PixelStore:
    """The store's images without the patterns of their classes."""
    result = store.empty_like()
    for rows in batched(store):
        x = to_unit(store.pixels.read(rows))
        result.pixels.write(rows, stored(255 * (x - network(x, store.labels[rows.to(store.device)]).pattern)))
    return result


@torch.inference_mode()
def reconstructed(network: Disentangler, pixels: Tensor) -> Tensor:
    """uint8 pixels as they come through the bottleneck."""
    return stored(255 * network(to_unit(pixels)).picture)


def purified(context: Context) -> Context:
    """The context with every image reconstructed after two stages, of which the first leaves less of a picture."""
    store = context.store
    for stage, most in enumerate(RATES):
        generator = stream(context.seed, "d-vae", stage)
        with seeded(context.seed, "d-vae", "weights", stage):
            network = disentangled(store, most, generator, context.runtime)
        store = without_patterns(network, store)

    def through(images: PixelStore) -> PixelStore:
        return transformed(images, lambda pixels: reconstructed(network, pixels))

    return with_images(context, through(store), through)


DISENTANGLING: dict[str, Entry] = {
    "d-vae": prepared(
        purified,
        "purify",
        "trains a variational autoencoder on the published images that keeps apart pictures and patterns of classes",
        cost=12.0,
        expected=40.0,
    )
}
