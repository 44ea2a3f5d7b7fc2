"""Protected pixels of stored images, at their native size, as a stream; files of perturbers."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
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


def protected_images(
    images: ImageSet,
    generator: Perturber | None,
    runtime: Runtime,
    *,
    delta: Records | None = None,
    budget: Budget | None = None,
) -> Iterator[tuple[Pixels, Pixels]]:
    """Clean and protected pixels of every image, in order.

    Args:
        images: Read one chunk at a time.
        generator: Gives the perturbation of pixels that ``delta`` does not cover; None leaves these as they are.
        runtime: Device and precision.
        delta: Refined perturbations at the training size, one per image. An image of another
            size gets it scaled onto its centre square, which training at that size sees.
        budget: The bound; by default the generator's. Required without one.

    Yields:
        uint8 arrays of the image's own shape; they differ by at most the budget.
    """
    if generator is not None:
        if isinstance(generator, nn.Module):
            runtime.place(generator).eval()
        budget = budget or generator.budget
        numbers = generator.numbers(images.classes)
    if budget is None:
        raise UsageError("without a generator a budget must be given")
    for start, clean in _chunks(images):
        refined = None if delta is None else delta.read(torch.arange(start, start + len(clean))).cpu()
        exact = refined is not None and all(image.shape[:2] == refined.shape[2:] for image in clean)
        if generator is None or exact:
            base = [np.zeros(0, np.int8)] * len(clean)
        else:
            rows = range(start, start + len(clean))
            labels = [numbers[images.labels[row]] for row in rows]
            ids = [images.ids[row] for row in rows]
            with runtime.autocast():
                base = list(generator.levels(clean, labels, ids))
        for number, (image, levels) in enumerate(zip(clean, base, strict=True)):
            own = levels if refined is None else place_delta(refined[number], image, levels)
            yield image, budget.add(image, own)


def _chunks(images: ImageSet) -> Iterator[tuple[int, list[Pixels]]]:
    """Runs of images with the number of the first, bounded in count and in bytes."""
    chunk: list[Pixels] = []
    for number in range(len(images)):
        chunk.append(images.read(number))
        if len(chunk) == _CHUNK or sum(image.nbytes for image in chunk) >= _CHUNK_BYTES:
            yield number + 1 - len(chunk), chunk
            chunk = []
    if chunk:
        yield len(images) - len(chunk), chunk


def place_delta(delta: torch.Tensor, image: Pixels, base: Levels) -> Levels:
    """A perturbation in levels on an image, over ``base`` (empty for none).

    Args:
        delta: channels × height × width; scaled onto the image's centre square if it is not of the image's size.
        image: height × width × channels.
        base: Perturbation where ``delta`` does not reach.
    """
    height, width, channels = image.shape
    colours = 1 if channels <= 2 else 3
    square, tall, wide = delta.float(), height, width
    if delta.shape[1:] != (height, width):
        tall = wide = min(height, width)
        if square.shape[1:] != (tall, wide):
            square = F.interpolate(square[None], size=(tall, wide), mode="bilinear", antialias=True)[0]
    if len(square) != colours:
        square = square.expand(colours, -1, -1) if len(square) == 1 else square.mean(0, keepdim=True)
    own = square.round().to(delta.dtype).permute(1, 2, 0).numpy()
    out: Levels = np.zeros(image.shape, own.dtype) if base.size == 0 else base.copy()
    top, left = (height - tall) // 2, (width - wide) // 2
    out[top : top + tall, left : left + wide, :colours] = own
    return out


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
