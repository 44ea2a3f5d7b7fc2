"""Protected pixels of stored images, at their native size, as a stream; files of perturbers."""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.images import NO_LABEL, ImageSet, Pixels, Strips, is_large, strip_rows
from uge.data.pixels import resize, to_channels
from uge.data.store import Records
from uge.errors import UsageError, WeightsError
from uge.files import canonical_json, stable_safetensors, write_atomic
from uge.methods.keyed.wave_code import WaveCode
from uge.methods.uge.generator import Generator, Levels
from uge.networks import WaveKey, load_weights
from uge.runtime import Runtime

GENERATOR_KIND = "uge-generator"
CODE_KIND = "uge-wave-code"
_CHUNK = 256
_CHUNK_BYTES = 64 * 2**20

GENERATOR = "generator.safetensors"
"""File in a private folder by which new images are protected."""

Savable = Generator | WaveCode
"""Perturbers that have a file format; ``uge apply`` reads it."""


class Perturber(Protocol):
    """Gives the perturbation of any stored image, by its pixels, its label and its sample id.

    Attributes:
        budget: Bound on the stored change.
    """

    budget: Budget

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Numbers of classes in this perturber, by name.

        Raises:
            UsageError: A class is unknown to it.
        """

    def levels(self, images: Sequence[Pixels], labels: Sequence[int], ids: Sequence[str]) -> Iterator[Levels]:
        """Perturbation of each image at its own size, in whole 8-bit levels, in order.

        Args:
            images: uint8, height × width × (1 to 4).
            labels: Number of each one's class, see :meth:`numbers`.
            ids: Stable sample id of each.
        """


@runtime_checkable
class StripPerturber(Protocol):
    """Perturber that needs a few rows of a large image at a time."""

    def level_strips(self, image: Pixels, label: int, id: str) -> Iterator[Levels]:
        """Perturbation of one image in strips of :func:`uge.data.images.strip_rows` rows, from top to bottom."""


def protected_images(
    images: ImageSet,
    generator: Perturber | None,
    runtime: Runtime,
    *,
    delta: Records | None = None,
    budget: Budget | None = None,
) -> Iterator[tuple[Pixels | Strips, Pixels | Strips]]:
    """Clean and protected pixels of every image, in order.

    Args:
        images: Read one chunk at a time, large ones alone.
        generator: Gives the perturbation of pixels that ``delta`` does not cover; None leaves these as they are.
        runtime: Device and precision.
        delta: Refined perturbations at the training size, one per image. An image of another
            size gets it scaled onto its centre square, which training at that size sees, and mirrored beyond. So does
            the perturbation of a generator with a size of its own.
        budget: The bound; by default the generator's. Required without one.

    Yields:
        uint8 arrays of the image's own shape; they differ by at most the budget. Large images come as strips, and
        their perturbation is computed while these are read.
    """
    if generator is not None:
        if isinstance(generator, nn.Module):
            runtime.place(generator).eval()
        budget = budget or generator.budget
        numbers = generator.numbers(images.classes) or [NO_LABEL]  # Without labels every index is -1.
    if budget is None:
        raise UsageError("without a generator a budget must be given")
    sized = generator if isinstance(generator, Generator) and generator.size else None
    under = None if sized is not None else generator  # Gives what the refined perturbation does not cover.
    for start, clean in _chunks(images):
        refined = None if delta is None else delta.read(torch.arange(start, start + len(clean))).cpu()
        if refined is None and sized is not None:
            classes = [numbers[images.labels[row]] for row in range(start, start + len(clean))]
            refined = _at_own_size(sized, clean, classes, runtime)
        exact = refined is not None and all(image.shape[:2] == refined.shape[2:] for image in clean)
        if is_large(clean[0].shape):
            strips = None
            if under is not None and not exact:
                place = numbers[images.labels[start]], images.ids[start], runtime
                strips = functools.partial(_level_strips, under, clean[0], *place)
            pair = add_delta(clean.pop(), None if refined is None else refined[0], budget, strips)
            del strips
            yield pair
            continue
        if under is None or exact:
            base = [np.zeros(0, np.int8)] * len(clean)
        else:
            rows = range(start, start + len(clean))
            labels = [numbers[images.labels[row]] for row in rows]
            ids = [images.ids[row] for row in rows]
            with runtime.autocast():
                base = list(under.levels(clean, labels, ids))
        for number, (image, levels) in enumerate(zip(clean, base, strict=True)):
            own = levels if refined is None else place_delta(refined[number], image, levels)
            yield image, budget.add(image, own)


def _chunks(images: ImageSet) -> Iterator[tuple[int, list[Pixels]]]:
    """Runs of images with the number of the first, bounded in count and in bytes."""
    chunk: list[Pixels] = []
    for number in range(len(images)):
        image = images.read(number)
        if is_large(image.shape):
            if chunk:
                yield number - len(chunk), chunk
                chunk = []
            large = [image]
            del image  # Not kept while the next one is read.
            yield number, large
            continue
        chunk.append(image)
        if len(chunk) == _CHUNK or sum(image.nbytes for image in chunk) >= _CHUNK_BYTES:
            yield number + 1 - len(chunk), chunk
            chunk = []
    if chunk:
        yield len(images) - len(chunk), chunk


def _at_own_size(generator: Generator, images: Sequence[Pixels], labels: Sequence[int], runtime: Runtime) -> Tensor:
    """Perturbations of images at the size of the generator, images × channels × size × size."""
    small = [to_channels(resize(image, generator.size), generator.channels) for image in images]
    with runtime.autocast():
        levels = np.stack(list(generator.levels(small, labels if generator.classes else None)))
    return torch.from_numpy(levels).permute(0, 3, 1, 2)


def _level_strips(generator: Perturber, image: Pixels, number: int, id: str, runtime: Runtime) -> Iterator[Levels]:
    """Perturbation of a large image, strip by strip where the perturber can."""
    if isinstance(generator, StripPerturber):
        yield from generator.level_strips(image, number, id)
        return
    with runtime.autocast():
        levels = next(iter(generator.levels([image], [number], [id])))
    rows = strip_rows(image.shape[1])
    yield from (levels[top : top + rows] for top in range(0, len(levels), rows))


def add_delta(
    image: Pixels, delta: torch.Tensor | None, budget: Budget, base: Callable[[], Iterator[Levels]] | None = None
) -> tuple[Pixels | Strips, Pixels | Strips]:
    """Pixels of one image, clean and with its perturbation within ``budget``; strips of a large image.

    Args:
        image: uint8, height × width × channels.
        delta: As :func:`place_delta` takes it.
        budget: The bound.
        base: Gives the strips of the perturbation of the whole image, over which ``delta`` is placed.
    """
    if not is_large(image.shape):
        levels = np.zeros(0, np.int8) if base is None else np.concatenate(list(base()))
        return image, budget.add(image, levels if delta is None else place_delta(delta, image, levels))
    clean = Strips.of(image)

    def protected() -> Iterator[Pixels]:
        placed = None if delta is None else PlacedDelta(delta, image.shape)
        parts = itertools.repeat(np.zeros(0, np.int8)) if base is None else base()
        top = 0
        for strip, part in zip(clean, parts, strict=False):
            bottom = top + len(strip)
            yield budget.add(strip, part if placed is None else placed.rows(top, bottom, part))
            top = bottom

    return clean, Strips(image.shape, protected)


def place_delta(delta: torch.Tensor, image: Pixels, base: Levels) -> Levels:
    """A perturbation in levels on an image, over ``base`` (empty for none).

    Args:
        delta: channels × height × width; scaled onto the image's centre square if it is not of the image's size.
            Beyond the square it is mirrored, so that no part of the image stays as it was.
        image: height × width × channels.
        base: Perturbation of the whole image, which stays where ``delta`` does not reach.
    """
    return PlacedDelta(delta, image.shape).rows(0, len(image), base)


class PlacedDelta:
    """A perturbation at the size of an image; of a large one, as many rows of it as are asked for.

    Args:
        delta: channels × height × width, see :func:`place_delta`.
        shape: Of the image: height × width × channels.
    """

    def __init__(self, delta: torch.Tensor, shape: tuple[int, ...]) -> None:
        height, width, channels = shape
        self._dtype = delta.dtype
        self._colours = 1 if channels <= 2 else 3
        self._channels = channels
        self._taps: tuple[torch.Tensor, torch.Tensor] | None = None
        tall = wide = min(height, width)
        if delta.shape[1:] == (height, width):
            tall = height
            wide = width
        elif is_large(shape):
            down = _interpolated(torch.eye(delta.shape[1])[None], tall, delta.shape[1])[0]
            order = down.count_nonzero(1).max()
            places = down.topk(int(order), 1).indices.sort(1).values
            self._taps = places, down.gather(1, places)
            delta = _interpolated(delta, delta.shape[1], wide)
        else:
            delta = _interpolated(delta, tall, wide)
        self._top = (height - tall) // 2
        self._left = (width - wide) // 2
        self._size = tall, wide
        self._values = delta
        self._across = None if wide == width else _mirrored(width, wide)
        self._down = None if tall == height and self._taps is None else torch.from_numpy(_mirrored(height, tall))

    def rows(self, top: int, bottom: int, base: Levels | None = None) -> Levels:
        """Levels of the rows from ``top`` up to ``bottom``, height × width × channels.

        Args:
            top: First row.
            bottom: Row after the last.
            base: Perturbation of these rows beyond the centre square; None, or empty, to mirror the square there.
        """
        tall, wide = self._size
        if base is None or base.size == 0:
            own = self._own(top, bottom)
            own = own if self._across is None else own[:, self._across]
            if self._colours == self._channels:
                return own
            alpha = np.zeros((*own.shape[:2], 1), own.dtype)
            return np.concatenate([own, alpha], 2)
        out: Levels = base.copy()
        first = max(top, self._top)
        last = min(bottom, self._top + tall)
        if first < last:
            square = out[first - top : last - top, self._left : self._left + wide]
            square[..., : self._colours] = self._own(first, last)
        return out

    def _own(self, top: int, bottom: int) -> Levels:
        """Rows of the centre square, and of what is mirrored below and above it, rows × side × colours."""
        rows = slice(top, bottom) if self._down is None else self._down[top:bottom]
        if self._taps is None:
            values = self._values[:, rows]
        else:
            places, weights = (tap[rows] for tap in self._taps)
            # One product after another: the sum of a pixel does not depend on how many rows are asked for.
            values = self._values[:, places[:, 0]] * weights[:, :1]
            for tap in range(1, places.shape[1]):
                values += self._values[:, places[:, tap]] * weights[:, tap : tap + 1]
        if len(values) != self._colours:
            values = values.expand(self._colours, -1, -1) if len(values) == 1 else values.float().mean(0, keepdim=True)
        if values.is_floating_point():
            values = values.round().to(self._dtype)
        return values.permute(1, 2, 0).numpy()


def _interpolated(delta: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if delta.shape[1:] == (height, width):
        return delta
    return F.interpolate(delta.float()[None], size=(height, width), mode="bilinear", antialias=True)[0]


def _mirrored(length: int, side: int) -> NDArray[np.int64]:
    """Place in a centre part of ``side`` pixels for each of ``length`` pixels; beyond it, the part is mirrored."""
    places = (np.arange(length) - (length - side) // 2) % (2 * side)
    return np.minimum(places, 2 * side - 1 - places)


def save_perturber(path: Path, perturber: Savable) -> None:
    """Write a generator or a wave code with its options and budget as safetensors.

    Raises:
        StorageError: The disk is full or read-only.
    """
    kind, module = (CODE_KIND, perturber.key) if isinstance(perturber, WaveCode) else (GENERATOR_KIND, perturber)
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    metadata = {"kind": kind, "options": canonical_json({**perturber.options, "rho": perturber.budget.rho})}
    write_atomic(path, stable_safetensors(save(tensors, metadata=metadata)), secret=True)


def load_perturber(path: Path) -> Savable:
    """Read what :func:`save_perturber` wrote, in eval mode.

    Raises:
        WeightsError: The file is missing, of another kind, damaged, or holds NaN.
    """
    tensors, metadata = load_weights(path)
    kind = metadata.get("kind")
    if kind not in (GENERATOR_KIND, CODE_KIND):
        raise WeightsError(f"{path} holds no generator of this project; give OUT.private/{GENERATOR}")
    try:
        options = json.loads(metadata["options"])
        budget = Budget(options.pop("rho"))
        if kind == CODE_KIND:
            key = WaveKey(len(tensors["waves"]), seed=0)
            key.load_state_dict(tensors)
            return WaveCode(key, budget, options["classes"]).eval()
        generator = Generator(budget=budget, **options)
        generator.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the generator at {path} does not fit its own description; it is damaged") from error
    return generator.eval()


def load_generator(path: Path) -> Generator:
    """Read a trained generator, in eval mode.

    Raises:
        WeightsError: The file is no generator; see :func:`load_perturber`.
    """
    perturber = load_perturber(path)
    if not isinstance(perturber, Generator):
        raise WeightsError(f"{path} holds a wave code, where a trained generator was expected; start anew")
    return perturber
