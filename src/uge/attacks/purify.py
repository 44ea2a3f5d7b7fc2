"""Attacks that purify the published images: pattern estimation, projection, a denoising autoencoder, inversion."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.attacks.augment import strong
from uge.attacks.base import BOTH_TESTS, Context, Entry, Transform, batched, changing, learn, prepared, stored
from uge.attacks.leak import REVISION, leaked_rows, originals
from uge.attacks.waves import estimated_patterns_out
from uge.data.loader import Batch, to_unit
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.objectives import Objective, augmented, cutmix, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import History, fit
from uge.runtime import Runtime, seeded, stream

# Recipe of the linear classifier, as published for the 50,000 images of CIFAR-10 (Sandoval-Segura et al., 2023).
LINEAR = Recipe(
    epochs=20,
    lr=0.1,
    batch_size=1024,
    momentum=0.0,
    weight_decay=0.0,
    schedule="multistep",
    milestones=(10, 15),
    augment="none",
)
# Largest structured noise that the autoencoder learns to remove, and spread of the noise that it adds, in [0, 1].
NOISE = 16 / 255
STEPS = 400  # Steps of the image networks.
WIDTH = 24  # Channels of the image networks.
SIZE = 32  # Batch size of the image networks.
RATE = 5e-3  # First learning rate of the image networks.


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


def linear_directions(store: PixelStore, *, seed: int, runtime: Runtime) -> Tensor:
    """An orthonormal basis of the weights of a linear classifier on pixels, (pixels, at most classes).

    The classifier has no bias and sees pixels in [0, 1] as they are. With fewer images batches are smaller in
    proportion, so that it takes as many steps.
    """
    recipe = LINEAR.model_copy(update={"batch_size": min(1024, max(16, LINEAR.batch_size * len(store) // 50_000))})
    with seeded(seed, "linear"):
        network = _Linear(store.channels * store.size**2, len(store.classes), bias=False)
    fit(network, store, recipe, seed=seed, runtime=runtime)
    basis: Tensor = torch.linalg.qr(network.weight.detach().float().T).Q
    return basis


def projected_out(x: Tensor, basis: Tensor) -> Tensor:
    """Images, batch × channels × height × width, without their part along ``basis`` (pixels, directions); unclipped."""
    flat = x.flatten(1)
    return (flat - flat @ basis @ basis.T).view(x.shape)


def _orthogonal_projection(context: Context) -> History:
    """Project the published images and train on them strongly augmented; test images stay as they are."""
    basis = linear_directions(context.store, seed=context.seed, runtime=context.runtime)
    draw = stream(context.seed, "orthogonal-projection")

    def change(x: Tensor, generator: torch.Generator) -> Tensor:
        return strong(projected_out(x, basis), generator)

    # The projection is of whole images, so that it comes before crops and flips.
    plain = replace(context, recipe=context.recipe.model_copy(update={"augment": "none"}))
    return learn(plain, augmented(change, draw, _half_cutmix(draw)))


def _half_cutmix(generator: torch.Generator) -> Objective:
    mixed = cutmix(generator)

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return (mixed if float(torch.rand((), generator=generator)) < 0.5 else supervised)(network, batch)

    return objective


def convolution(before: int, after: int, stride: int = 1, gap: int = 1) -> list[nn.Module]:
    """Convolution of 3 × 3, batch norm and ReLU, from ``before`` to ``after`` channels."""
    return [
        nn.Conv2d(before, after, 3, stride, padding=gap, dilation=gap, bias=False),
        nn.BatchNorm2d(after),  # Pictures have far more contrast than the changes that are to be found in them.
        nn.ReLU(),
    ]


class ImageNetwork(nn.Module):
    """Residual network on images, the identity before training (after DnCNN, Zhang et al., 2017).

    Args:
        body: From (B, channels, H, W) to (B, width, H, W).
        width: Channels of the result of ``body``.
        channels: Colour channels of the images.
    """

    def __init__(self, body: Sequence[nn.Module], width: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1], (B, channels, H, W) of any size, to the same shape, about [0, 1]."""
        out: Tensor = x + 0.1 * self.last(F.interpolate(self.body(x), size=x.shape[2:], mode="nearest"))
        return out


def autoencoder(channels: int, width: int = WIDTH) -> ImageNetwork:
    """Convolutions down to half the size, there, and up again."""
    layers = [
        *convolution(channels, width),
        *convolution(width, 2 * width, stride=2),
        *convolution(2 * width, 2 * width),
        *convolution(2 * width, 4 * width),
        nn.PixelShuffle(2),
    ]
    return ImageNetwork(layers, width, channels)


class UNet(nn.Module):
    """Convolutions at full, half and quarter size with short cuts (Ronneberger et al., 2015), normalised by batch.

    Args:
        channels: Colour channels of the images.
        width: Channels at full size and of the result; doubled with every halving.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.top = nn.Sequential(*convolution(channels, width), *convolution(width, width))
        self.middle = nn.Sequential(*convolution(width, 2 * width, stride=2), *convolution(2 * width, 2 * width))
        self.bottom = nn.Sequential(*convolution(2 * width, 4 * width, stride=2), *convolution(4 * width, 4 * width))
        self.up = nn.Sequential(*convolution(6 * width, 2 * width), *convolution(2 * width, 2 * width))
        self.last = nn.Sequential(*convolution(3 * width, width), *convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels, (B, channels, H, W), to (B, width, H, W)."""
        top = self.top(x)
        middle = self.middle(top)
        bottom = F.interpolate(self.bottom(middle), size=middle.shape[2:], mode="nearest")
        up = F.interpolate(self.up(torch.cat([middle, bottom], 1)), size=top.shape[2:], mode="nearest")
        out: Tensor = self.last(torch.cat([top, up], 1))
        return out


def restorer(channels: int, width: int = WIDTH) -> ImageNetwork:
    """Convolutions with growing gaps: their receptive field covers most of a small image."""
    layers = convolution(channels, width)
    layers += [layer for gap in (1, 2, 4) for layer in convolution(width, width, gap=gap)]
    return ImageNetwork(layers, width, channels)


def descend(network: nn.Module, loss: Callable[[int], Tensor], runtime: Runtime, steps: int | None = None) -> nn.Module:
    """Fit a network of an attack by Adam, with a learning rate that falls from :data:`RATE` to zero.

    Args:
        network: Trained in place, in fp32; comes back in evaluation mode, without gradients.
        loss: Gives the loss of a step, a scalar.
        runtime: Device.
        steps: Number of steps; :data:`STEPS` by default.

    Raises:
        UsageError: The loss is not finite at the end.
    """
    runtime.place(network).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    steps = STEPS if steps is None else steps
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        # In fp32: some CPUs compute NaN for the gradient of convolutions with gaps in bf16 (torch 2.13).
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not bool(value.isfinite()):
        raise UsageError(f"the network of the attack diverged, its loss became {value.item()}; leave the attack out")
    return network.eval().requires_grad_(False)


def regress(
    network: nn.Module,
    pairs: Callable[[int], tuple[Tensor, Tensor]],
    runtime: Runtime,
    steps: int | None = None,
) -> nn.Module:
    """Fit an image network to (input, wanted) pairs by mean squared error; see :func:`descend`.

    Args:
        network: Pixels in [0, 1] to pixels; trained in place.
        pairs: Gives the batch of a step.
        runtime: Device.
        steps: Number of steps; :data:`STEPS` by default.

    Raises:
        UsageError: The loss is not finite at the end.
    """

    def loss(step: int) -> Tensor:
        given, wanted = pairs(step)
        return F.mse_loss(network(given), wanted)

    return descend(network, loss, runtime, steps)


def random_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Bounded noise of a random strength and a random grain from one pixel to a quarter of the side, in [0, 1] units.

    Half of the images get signs only, the strongest noise that a bound allows.
    """
    batch, channels, height, width = shape
    strength = NOISE * torch.rand((batch, 1, 1, 1), generator=generator)
    noise = torch.empty(shape)
    for rows in torch.arange(batch).chunk(4):
        cells = int(2 ** (2 + (max(height.bit_length() - 3, 1)) * float(torch.rand((), generator=generator))))
        grains = torch.rand((len(rows), channels, cells, cells), generator=generator) * 2 - 1
        noise[rows] = F.interpolate(grains, size=(height, width), mode="nearest")
    return strength * torch.where(torch.rand((batch, 1, 1, 1), generator=generator) < 0.5, noise.sign(), noise)


def checked_public(context: Context) -> PixelStore:
    """Public images, checked against the published ones.

    Raises:
        UsageError: There are none, or they are of another shape.
    """
    public = context.public()
    if public.pixels.shape != context.store.pixels.shape:
        raise UsageError(
            f"public images must have the published images' shape {context.store.pixels.shape}, got "
            f"{public.pixels.shape}; read them at that size and with those channels"
        )
    return public


def _autoencoder(context: Context) -> Transform:
    """Add noise, which drowns a protection, and remove it by an autoencoder (as AVATAR does)."""
    public = checked_public(context)
    generator = stream(context.seed, "autoencoder")

    def noisy(x: Tensor) -> Tensor:
        return x + NOISE * torch.randn(x.shape, generator=generator).to(x.device)

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        x = to_unit(public.pixels.read(torch.randint(len(public), (min(SIZE, len(public)),), generator=generator)))
        return noisy(x + random_noise(x.shape, generator).to(x.device)), x

    with seeded(context.seed, "autoencoder"):
        network = autoencoder(public.channels)
    regress(network, pairs, context.runtime)
    return lambda pixels: restored(network, noisy(to_unit(pixels)))


@torch.inference_mode()
def restored(network: nn.Module, x: Tensor) -> Tensor:
    """uint8 pixels that an image network makes of pixels in [0, 1]."""
    return stored(255 * network(x))


def inverted(context: Context, count: int) -> PixelStore:
    """Estimate of the originals of the published images, learned from ``count`` leaked pairs.

    First comes every class's mean difference, drawn towards the mean of all by one pair's weight. A residual network
    adds the part that depends on the image.

    Raises:
        UsageError: There are no originals.
    """
    store = context.store
    clean = originals(context)
    rows = leaked_rows(context, min(count, len(store)))
    offsets = _class_offsets(store, clean, rows)
    generator = stream(context.seed, "inversion")

    def given(indices: Tensor) -> Tensor:
        return to_unit(store.pixels.read(indices)) + offsets[store.labels[indices.to(store.device)]]

    def pairs(step: int) -> tuple[Tensor, Tensor]:
        picked = rows[torch.randint(len(rows), (min(SIZE, len(rows)),), generator=generator)]
        return given(picked), to_unit(clean.pixels.read(picked))

    with seeded(context.seed, "inversion"):
        network = restorer(store.channels)
    regress(network, pairs, context.runtime)
    result = store.empty_like()
    for indices in batched(store):
        result.pixels.write(indices, restored(network, given(indices)))
    return result


def _class_offsets(store: PixelStore, clean: PixelStore, rows: Tensor) -> Tensor:
    """Mean of original − published for each class, drawn towards the mean of all: classes × pixels, [0, 1] units."""
    sums = torch.zeros(len(store.classes), *store.pixels.shape, device=store.device)
    for indices in batched(store, rows):
        change = to_unit(clean.pixels.read(indices)) - to_unit(store.pixels.read(indices))
        sums.index_add_(0, store.labels[indices.to(store.device)], change)
    counts = torch.bincount(store.labels[rows.to(store.device)], minlength=len(sums))[:, None, None, None]
    return (sums + sums.sum(0) / len(rows)) / (counts + 1)


def _with_estimate(context: Context, count: int) -> Context:
    return replace(context, store=inverted(context, count))  # Only these: they then look like the test images.


PURIFICATION: dict[str, Entry] = {
    "pattern-estimation": prepared(
        estimated_patterns_out,
        "purify",
        "estimates the patterns that images of a class share, by clustering them, and takes them out",
        cost=1.3,
        expected=40.0,
        revision=BOTH_TESTS,
    ),
    "orthogonal-projection": Entry(
        _orthogonal_projection,
        "purify",
        "projects out the directions by which a linear classifier tells the published images apart, and trains with "
        "strong augmentation",
        cost=1.8,
        expected=30.0,
        revision=1,
    ),
    "denoise-autoencoder": prepared(
        changing(_autoencoder),
        "purify",
        "drowns the protection in noise that an autoencoder, trained on public images, takes out again",
        cost=2.0,
        expected=30.0,
        needs=frozenset({"public"}),
        revision=BOTH_TESTS,
    ),
    **{
        f"inversion-{count}": prepared(
            functools.partial(_with_estimate, count=count),
            "purify",
            f"learns from {count} leaked pairs of original and published image to undo the protection",
            cost=2.0,
            expected=gain,
            needs=frozenset({"clean"}),
            revision=REVISION,
        )
        for count, gain in ((100, 25.0), (500, 40.0))
    },
}
