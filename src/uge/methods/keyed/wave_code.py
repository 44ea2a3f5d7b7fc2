"""Waves of a key, written into images: every class has patterns of its own (method ``keyed``).

An ordinary network takes the waves for the class, since they are easier to learn than the picture. A network with the
key takes them out first and is left with the clipped original. Its gradients are therefore the same with and without
them, and L_gm (Eq. 6) is zero at every θ, for every data order, recipe and architecture behind the key. Nothing is
trained, and a new image costs next to nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.images import Pixels, Strips
from uge.errors import UsageError
from uge.methods.uge.generator import Levels, class_numbers
from uge.networks import ImageClassifier, KeyedClassifier, WaveKey, weights_hash
from uge.networks.wave_key import MOST_LEVELS, coloured, is_gray
from uge.runtime import stream

_PIXELS = 2**22


class WaveCode(nn.Module):
    """Adds one of the patterns of an image's class, drawn from the image's id and the key.

    Args:
        key: The authorised networks' secret, with the strength of its patterns in levels.
        budget: Bound on the stored change.
        classes: Names of the classes, in the order of the key's waves.

    Raises:
        UsageError: There are not as many names as waves, or the key's patterns are stronger than the budget or than
            any key allows.
    """

    def __init__(self, key: WaveKey, budget: Budget, classes: Sequence[str]) -> None:
        super().__init__()
        if len(classes) != len(key.waves):
            raise UsageError(f"the key has waves for {len(key.waves)} classes, got {len(classes)} names")
        if not 1 <= int(key.levels) <= MOST_LEVELS:
            raise UsageError(
                f"the key's patterns must be 1 to {MOST_LEVELS} levels strong, got {int(key.levels)}; make the key anew"
            )
        if int(key.levels) > budget.levels:
            raise UsageError(
                f"the key's patterns are {int(key.levels)} levels strong, but rho {budget.rho:g} allows only "
                f"{budget.levels}; give --rho {int(key.levels)}/255 or more, or have the key made for this budget"
            )
        self.key = key
        self.budget = budget
        self.classes = tuple(classes)
        self.channels = 3
        self.options = {"classes": list(classes)}
        self.requires_grad_(False)
        self._secret = weights_hash(key)

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Numbers of classes in this code, by name: other images may have fewer, in another order.

        Raises:
            UsageError: The key has no waves for one of them.
        """
        return class_numbers(self.classes, names, "key has waves for")

    @torch.no_grad()
    def levels(self, images: Sequence[Pixels], labels: Sequence[int], ids: Sequence[str]) -> Iterator[Levels]:
        """Perturbation of stored images at their own size, in whole 8-bit levels, in order; alpha gets none.

        Gray images stay gray: all their colours get the first wave.

        Args:
            images: uint8, height × width × (1 to 4).
            labels: Number of each one's class, see :meth:`numbers`.
            ids: Stable sample id of each.

        Yields:
            Signed integers of each image's shape; adding them leaves every pixel in 0..255.
        """
        drawn = [self._drawn(label, name) for label, name in zip(labels, ids, strict=True)]
        for _, group in groupby(range(len(images)), key=lambda row: images[row].shape):
            same = list(group)
            height, width, _ = images[same[0]].shape
            step = max(1, _PIXELS // (height * width))
            for few in (same[start : start + step] for start in range(0, len(same), step)):
                numbers = torch.tensor([drawn[row] for row in few], device=self.key.waves.device)
                with torch.autocast(numbers.device.type, enabled=False):
                    fields = self.key.patterns(height, width, numbers=numbers)
                yield from self._added(np.stack([images[row] for row in few]), fields)

    @torch.no_grad()
    def level_strips(self, image: Pixels, label: int, id: str) -> Iterator[Levels]:
        """Perturbation of one image, strip by strip from top to bottom, as :meth:`levels` gives it.

        Args:
            image: uint8, height × width × (1 to 4).
            label: Number of its class, see :meth:`numbers`.
            id: Its stable sample id.
        """
        numbers = torch.tensor([self._drawn(label, id)], device=self.key.waves.device)
        gray = torch.tensor([all(_is_gray(strip) for strip in Strips.of(image))], device=numbers.device)
        top = 0
        for strip in Strips.of(image):
            bottom = top + len(strip)
            with torch.autocast(numbers.device.type, enabled=False):
                fields = self.key.patterns(*image.shape[:2], numbers=numbers, rows=(top, bottom))
            yield self._added(strip[None], fields, gray)[0]
            top = bottom

    def _drawn(self, label: int, id: str) -> int:
        return self.key.random_number(label, stream(0, self._secret, id))

    def _added(self, images: Pixels, fields: Tensor, gray: Tensor | None = None) -> Levels:
        colours = 1 if images.shape[3] < 3 else 3
        x = torch.from_numpy(images[..., :colours].astype(np.int16)).to(fields.device).permute(0, 3, 1, 2)
        step = self.key.levels * coloured(fields, is_gray(x) if gray is None else gray, colours).short()
        out: Levels = np.zeros(images.shape, np.int8)
        out[..., :colours] = ((x + step).clamp(0, 255) - x).to(torch.int8).permute(0, 2, 3, 1).cpu().numpy()
        return out


def _is_gray(pixels: Pixels) -> bool:
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    return bool((colours == colours[..., :1]).all())


def shared_key(networks: Sequence[nn.Module]) -> WaveKey:
    """Wave key of authorised networks.

    Raises:
        UsageError: A network has none, or they differ.
    """
    keys = [network.key for network in networks if isinstance(network, KeyedClassifier)]
    if len(keys) != len(networks) or len({weights_hash(key) for key in keys}) != 1:
        raise UsageError(
            f"method 'keyed' needs authorised networks with one wave key, got {len(keys)} keys for {len(networks)} "
            "networks; name them keyed:ARCHITECTURE, or choose --method uge"
        )
    return keys[0]


def share_key(networks: Sequence[ImageClassifier], levels: int) -> None:
    """Give new keyed networks the key of the first one, with patterns of ``levels``: one copy serves all."""
    keyed = [network for network in networks if isinstance(network, KeyedClassifier)]
    for network in keyed:
        network.key = keyed[0].key
    keyed[0].key.levels.fill_(levels)
