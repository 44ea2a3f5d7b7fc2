"""Perturbations along the axes of a colour key: every class has its own waves (method ``keyed``).

An ordinary network takes the waves for the class, since they are easier to learn than the picture.
A network that carries the key never sees them: at the alignment that belongs to an image its
gradients are the same with and without them, so that L_gm (Eq. 6) is zero at every θ, for every data
order, recipe and architecture behind the key. (On the clean image the network picks an alignment of
its own, since there is none to find.) Nothing is trained, and a new image costs next to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import nn

from uge.budget import Budget
from uge.data.images import Pixels
from uge.errors import UsageError
from uge.networks import ColourKey, KeyedClassifier, weights_hash
from uge.protect.generator import Levels, level_type
from uge.runtime import stream

log = logging.getLogger(__name__)
_NUMPY = {torch.int8: np.int8, torch.int16: np.int16}


class ColourCode(nn.Module):
    """Writes the waves of an image's class along the axes of a key, as far as the budget and the pixel allow.

    Where the pattern of cells lies over an image is drawn from the image's id and the key.

    Args:
        key: The authorised networks' secret.
        budget: Bound on the stored change.
        classes: Names of the classes, in the order of the key's waves.

    Raises:
        UsageError: There are not as many names as waves.
    """

    def __init__(self, key: ColourKey, budget: Budget, classes: Sequence[str]) -> None:
        super().__init__()
        if len(classes) != len(key.waves):
            raise UsageError(f"the key has waves for {len(key.waves)} classes, got {len(classes)} names")
        self.key, self.budget, self.classes, self.channels = key, budget, tuple(classes), 3
        self.options = {"classes": list(classes)}
        self.requires_grad_(False)
        self._secret = weights_hash(key)
        self._told = False

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Numbers under which this code knows classes, by name: other images may have fewer, in another order.

        Raises:
            UsageError: It has no waves for one of them.
        """
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise UsageError(
                f"the key has waves for the classes {', '.join(self.classes)}, got '{unknown[0]}'; protect these "
                "images by a run of their own"
            )
        return [self.classes.index(name) for name in names]

    @torch.no_grad()
    def levels(self, images: Sequence[Pixels], labels: Sequence[int], ids: Sequence[str]) -> Iterator[Levels]:
        """Perturbation of stored images at their own size, in whole 8-bit levels, in order.

        Gray images get none, since a gray pixel has no colour to write in; alpha gets none.

        Args:
            images: uint8, height × width × (1 to 4).
            labels: Number of each one's class, see :meth:`numbers`.
            ids: Stable sample id of each.

        Yields:
            Signed integers of each image's shape; adding them leaves every pixel in 0..255.
        """
        rows = range(len(images))
        for _, group in groupby(rows, key=lambda row: images[row].shape):
            same = list(group)
            if images[same[0]].shape[2] < 3:
                if not self._told:
                    log.warning("gray images are left as they are: a keyed protection lies in the colours")
                self._told = True
                yield from (np.zeros(images[row].shape, np.int8) for row in same)
            else:
                stacked = np.stack([images[row] for row in same])
                yield from self._coloured(stacked, [labels[row] for row in same], [ids[row] for row in same])

    def _coloured(self, images: Pixels, labels: Sequence[int], ids: Sequence[str]) -> Levels:
        device = self.key.axes.device
        shifts = torch.stack([self.key.random_shift(stream(0, self._secret, name)) for name in ids]).to(device)
        classes = torch.tensor(labels, dtype=torch.int64, device=device)
        with torch.autocast(device.type, enabled=False):
            step = self.key.directions(classes, shifts, *images.shape[1:3])
        x = torch.from_numpy(images[..., :3]).to(device).permute(0, 3, 1, 2).float()
        # All three colours of a pixel move by the same number of levels, or the key could not take it out again.
        # Near black and white half of the budget makes room for the other half: nobody can tell the class from that.
        levels = self.budget.levels
        size = torch.minimum(x, 255 - x).amin(1, keepdim=True).add(levels).div(2, rounding_mode="floor")
        size = size.clamp(max=min(levels, 127))  # A byte has no room for a larger step both ways.
        moved = x.clamp(size, 255 - size) + size * step
        dtype = level_type(self.budget)
        out: Levels = np.zeros(images.shape, _NUMPY[dtype])
        out[..., :3] = (moved - x).to(dtype).permute(0, 2, 3, 1).cpu().numpy()
        return out


def shared_key(networks: Sequence[nn.Module]) -> ColourKey:
    """The colour key of authorised networks.

    Raises:
        UsageError: One has none, or they differ.
    """
    keys = [network.key for network in networks if isinstance(network, KeyedClassifier)]
    if len(keys) != len(networks) or len({weights_hash(key) for key in keys}) != 1:
        raise UsageError(
            f"method 'keyed' needs authorised networks with one colour key, got {len(keys)} keys for {len(networks)} "
            "networks; name them keyed:ARCHITECTURE, or choose --method uge"
        )
    return keys[0]
