"""Attack by the owner's own method: it is run again with other secrets, and its inverse is learned from the pairs."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from uge.attacks.base import Claims, Context, Entry, Transform, batched, prepared
from uge.attacks.purify import ImageNetwork, UNet, checked_public, regress, restored
from uge.data import ImageSet, load_images
from uge.data.formats.base import image_set
from uge.data.images import Pixels, whole
from uge.data.loader import to_unit
from uge.data.store import PixelStore, load_pixels
from uge.errors import UsageError
from uge.methods import METHODS, ImagesInfo, Method, MethodSettings, Task
from uge.runtime import Runtime, seeded, stream, stream_seed

log = logging.getLogger(__name__)
PAIRS = 3000  # Public images that are protected at most.
ROUNDS = 4  # Secrets that a method without training is run with.
HELD_OUT = 0.1  # Share of the public images that measure the inverse.
STEPS = 1000
SIZE = 32  # Images of a step.
WINDOW = 64  # Side in pixels of the largest part of an image that a step sees: the memory of photographs stays small.
WIDTH = 24
PHOTOGRAPHS = "photos"
# Settings that no manifest may set: secrets, paths on the auditor's disk, and what the claims say in another place.
_OWN = {"authorized", "authorized_seed", "authorized_weights", "baseline", "encoder", "method", "rho", "seed", "size"}


@dataclass(frozen=True)
class StoredPixels:
    """Reader of a store's images."""

    store: PixelStore

    def read(self, row: int) -> Pixels:
        """Image of a row: size × size × channels."""
        pixels = self.store.pixels.read(torch.tensor([row]))[0]
        return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


@dataclass(frozen=True)
class Pairs:
    """Clean public images and what a method made of them with several secrets.

    Attributes:
        clean: The images.
        protected: One store a secret, row by row the same images.
        held_out: Rows that measure the inverse, int64.
        learned: Rows that it is learned from, int64.
    """

    clean: PixelStore
    protected: list[PixelStore]
    held_out: Tensor
    learned: Tensor


def settings_of(claims: Claims, method: Method, seed: int) -> MethodSettings:
    """Settings of a copy's method by its public claims, with secrets of another seed.

    Args:
        claims: Claims of the copy.
        method: The method.
        seed: Root of the secrets, and of everything else random.

    Returns:
        Settings without a budget where the copy's is 1.0, which bounds nothing: such methods take none.

    Raises:
        UsageError: The claims hold settings that this version does not know.
    """
    given = {name: value for name, value in claims.details.items() if name in MethodSettings.model_fields}
    given = {name: value for name, value in given.items() if name not in _OWN and value is not None}
    if method.authorizes and claims.networks:
        given["authorized"] = ",".join(claims.networks)
    given |= {"refine": given.get("refinement") is not None} if method.refines else {}
    try:
        settings = MethodSettings(
            **given,
            method=claims.method,
            rho=None if claims.rho >= 1 else repr(claims.rho),
            seed=seed,
            authorized_seed=seed,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"the manifest's settings of method '{claims.method}' cannot be read at "
            f"'{'.'.join(map(str, first['loc']))}'; leave the attack out"
        ) from None
    published = claims.details.get("settings")
    if method.has_options and isinstance(published, Mapping):
        settings = settings.model_copy(update={"baseline": dict(published)})
    method.check(settings)
    return settings


def protected_again(images: PixelStore, claims: Claims, *, seed: int, runtime: Runtime) -> PixelStore:
    """Images protected by the method that a copy's claims name, with secrets of another seed.

    Args:
        images: Clean images.
        claims: Claims of the copy.
        seed: Root of the secrets.
        runtime: Device and precision.

    Raises:
        UnknownNameError: No method has that name here.
        UGEError: The method cannot be run on these images.
    """
    method = METHODS[claims.method]
    settings = settings_of(claims, method, seed)
    source: ImageSet = image_set("public", "train", images.labels.cpu().numpy(), images.classes, StoredPixels(images))
    task = Task(
        images=source,
        settings=settings,
        budget=method.budget(settings),
        networks=method.networks(ImagesInfo.of(source), settings),
        runtime=runtime,
        read=lambda: images,
    )
    result = images.empty_like()
    for row, (_, pixels) in enumerate(method.perturb(task).pairs(source, runtime)):
        result.pixels.write(torch.tensor([row]), torch.from_numpy(whole(pixels)).permute(2, 0, 1)[None])
    return result


def public_images(context: Context) -> PixelStore:
    """Public images at the training size; patches of the embedded photographs where there are no others.

    Raises:
        UsageError: The public images are of another shape than the published ones.
    """
    try:
        context.public()
    except UsageError:
        photographs = load_images(PHOTOGRAPHS, split="train").take(PAIRS)
        store = context.store
        return load_pixels(photographs, size=store.size, channels=store.channels, device=store.device)
    public = checked_public(context)
    chosen = torch.randperm(len(public), generator=stream(context.seed, "own-key", "images"))[:PAIRS]
    return public.subset(chosen.sort().values)


def own_pairs(context: Context) -> Pairs:
    """Public images and what the copy's method makes of them with secrets of the attacker's own.

    A method without training is run with several secrets, each of which draws the labels of the images anew among as
    many classes as the copy has, since its construction may depend on their number.
    """
    claims = context.claims()
    method = METHODS[claims.method]
    public = public_images(context)
    draw = stream(context.seed, "own-key", "labels")
    protected = []
    for number in range(1 if method.trains else ROUNDS):
        images = public
        if not method.trains:
            labels = torch.randint(len(context.store.classes), (len(public),), generator=draw)
            images = replace(public, labels=labels.to(public.device), classes=context.store.classes)
        seed = stream_seed(context.seed, "own-key", "secret", number)
        protected.append(protected_again(images, claims, seed=seed, runtime=context.runtime))
    order = torch.randperm(len(public), generator=stream(context.seed, "own-key", "held out"))
    count = max(1, round(HELD_OUT * len(public)))
    return Pairs(public, protected, order[:count], order[count:])


def inverse(context: Context, pairs: Pairs) -> nn.Module:
    """Network from protected to clean pixels in [0, 1], fitted to pairs by mean squared error.

    PSNR of the pairs that were held out, before and after, is added to ``context.figures`` and logged.
    """
    generator = stream(context.seed, "own-key", "pairs")

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = pairs.learned[torch.randint(len(pairs.learned), (SIZE,), generator=generator)]
        given = pairs.protected[step % len(pairs.protected)]
        top, left = torch.randint(max(1, given.size - WINDOW + 1), (2,), generator=generator).tolist()
        window = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
        return to_unit(given.pixels.read(rows)[window]), to_unit(pairs.clean.pixels.read(rows)[window])

    channels = pairs.clean.channels
    with seeded(context.seed, "own-key"):
        network = ImageNetwork([UNet(channels, WIDTH)], WIDTH, channels)
    regress(network, batch, context.runtime, STEPS)
    before = psnr(pairs, lambda pixels: pixels)
    after = psnr(pairs, lambda pixels: inverted(network, pixels))
    context.figures.update(pairs=float(len(pairs.learned)), psnr_before=before, psnr_after=after)
    log.info("own-key: PSNR of held-out pairs %.2f dB before and %.2f dB after the inverse", before, after)
    return network


def inverted(network: nn.Module, pixels: Tensor) -> Tensor:
    """uint8 pixels behind the inverse, a few images at a time."""
    return torch.cat([restored(network, to_unit(part)) for part in torch.split(pixels, SIZE)])


def psnr(pairs: Pairs, change: Transform) -> float:
    """PSNR in dB between clean images and changed protected ones, over the pairs that were held out; at most 99."""
    total = 0.0
    count = 0
    for store in pairs.protected:
        for rows in batched(store, pairs.held_out):
            error = change(store.pixels.read(rows)).double() - pairs.clean.pixels.read(rows).double()
            total += float(error.square().sum())
            count += error.numel()
    return 10 * math.log10(255**2 / max(total / count, 255**2 / 10**9.9))


def purified(context: Context) -> Context:
    """The context with the inverse of the copy's method applied to the published images; test images stay."""
    network = inverse(context, own_pairs(context))
    result = context.store.empty_like()
    for rows in batched(context.store):
        result.pixels.write(rows, inverted(network, context.store.pixels.read(rows)))
    return replace(context, store=result)


OWN_KEY: dict[str, Entry] = {
    "own-key": prepared(
        purified,
        "purify",
        "runs the same method with secrets of the hacker's own on public images and learns to undo it",
        cost=8.0,
        expected=35.0,
        uses=frozenset({"claims", "public"}),
    )
}
