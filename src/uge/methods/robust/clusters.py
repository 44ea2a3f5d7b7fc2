"""Clusters of images in place of classes, for sets without labels or of one class.

Clusters stand for classes as in Unlearnable Clusters (Zhang et al., CVPR 2023). Features come from whitened patches of
the images themselves (Coates, Lee and Ng, 2011): nothing is trained, 5,000 images take seconds, and time grows with
their number alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from uge.data.loader import to_unit
from uge.data.store import PixelStore
from uge.errors import DataError
from uge.files import read_json, write_json
from uge.runtime import stream, stream_seed

MOST = 10
"""Clusters by default, at most: as many as the paper takes."""
IMAGES = 20
"""Images of a cluster by default, on average at least."""
SIDE = 32  # Pixels at which features are found, whatever the images' size.
PATCH = 6
STRIDE = 2
FILTERS = 128
DIMENSIONS = 32
_RESTARTS = 5
_PATCHES = 20_000
_FITTED = 5_000  # Images from which the directions of the features follow.
_CHUNK = 250
_THRESHOLD = 0.25
_CONTRAST = 1.5e-3  # Added to the variance of a patch, so that flat ones stay flat.
_RIDGE = 0.1  # Added to the variances of patches that are whitened.
_LEAST = 1e-8  # Added to the variances of features.


def default_clusters(count: int) -> int:
    """Number of clusters of ``count`` images: one for every 20 of them, from 2 to 10."""
    return min(MOST, max(2, count // IMAGES))


def clustered(store: PixelStore, count: int | None, seed: int, place: Path | None = None) -> PixelStore:
    """Same images with clusters of features as classes.

    Args:
        store: Images; their labels play no part.
        count: Number of clusters; None for :func:`default_clusters`.
        seed: Root seed.
        place: File in the private folder that keeps the clusters; they are read from it where it is there.

    Raises:
        DataError: There are fewer images than clusters, or all images are alike.
    """
    if place is not None and place.is_file():
        numbers = np.array(read_json(place)["clusters"], dtype=np.int64)
    else:
        numbers = clusters(features(store, seed), count or default_clusters(len(store)), seed)
        if place is not None:
            write_json(place, {"clusters": numbers.tolist()})
    names = tuple(str(number) for number in range(int(numbers.max()) + 1))
    return replace(store, labels=torch.from_numpy(numbers).to(store.device), classes=names)


def clusters(values: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    """Number of each row's cluster by k-means, the best of five spread starts (k-means++); none is empty.

    Args:
        values: Features, N × D.
        count: Clusters to look for; fewer come where rows are alike.
        seed: Root seed.

    Raises:
        DataError: There are fewer rows than clusters, or all rows are alike.
    """
    advice = "give more images, or --method preview, which needs neither classes nor clusters"
    if len(values) < count:
        raise DataError(f"expected at least as many images as clusters ({count}), got {len(values)}; {advice}")
    random = np.random.default_rng(stream_seed(seed, "robust", "clusters"))
    distinct = len(np.unique(values, axis=0))
    if distinct < 2:
        raise DataError(f"expected images that form two clusters at least, got {len(values)} that are alike; {advice}")
    found = []
    for _ in range(_RESTARTS):
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # Empty clusters are dropped below.
            centres, numbers = kmeans2(values, min(count, distinct), iter=50, minit="++", seed=random)
        found.append((float(np.square(values - centres[numbers]).sum()), numbers))
    best = min(found, key=lambda trial: trial[0])[1]
    return np.unique(best, return_inverse=True)[1].astype(np.int64)


def features(store: PixelStore, seed: int) -> NDArray[np.float64]:
    """Features of every image, N × 32.

    Patches of 6 × 6 pixels are compared with 128 others of the same images, all of them without mean and contrast, and
    whitened. Cosines above a threshold, of either sign, are averaged over the quarters of the image. Their square
    roots, as a unit vector, are projected on the leading directions of all images, each divided by the square root of
    its deviation.

    Args:
        store: Images of any size, gray or in colour.
        seed: Root seed.
    """
    bank = _Bank.of(store, stream(seed, "robust", "patches"))
    fitted = torch.cat([bank.responses(x) for x in _images(store, _spread(len(store), _FITTED))])
    mean = fitted.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov((fitted - mean).T.double(), correction=0))
    # Half whitened: unscaled, brightness and colour decide alone; fully whitened, noise does where images are few.
    scaled = directions[:, -DIMENSIONS:] / (variances[-DIMENSIONS:].clamp_min(0) + _LEAST) ** 0.25
    parts = [(bank.responses(x) - mean).double() @ scaled for x in _images(store, torch.arange(len(store)))]
    return torch.cat(parts).cpu().numpy()


@dataclass(frozen=True)
class _Bank:
    """Whitened patches that others are compared with.

    Attributes:
        mean: Mean of normalised patches, (D,).
        whitening: D × D.
        filters: Unit vectors, D × 128.
    """

    mean: Tensor
    whitening: Tensor
    filters: Tensor

    @classmethod
    def of(cls, store: PixelStore, generator: torch.Generator) -> _Bank:
        """Bank of patches that are drawn from evenly spread images."""
        rows = _spread(len(store), _PATCHES)
        each = -(-_PATCHES // len(rows))
        drawn = []
        for x in _images(store, rows):
            found = _patches(x)
            places = torch.randint(found.shape[1], (len(x), each), generator=generator).to(x.device)
            drawn.append(found.gather(1, places[:, :, None].expand(-1, -1, found.shape[2])).flatten(0, 1))
        patches = torch.cat(drawn)
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T, correction=0))
        whitening = directions @ torch.diag((variances.clamp_min(0) + _RIDGE).rsqrt()) @ directions.T
        chosen = torch.randperm(len(patches), generator=generator)[:FILTERS].to(patches.device)
        return cls(mean, whitening, F.normalize((patches[chosen] - mean) @ whitening, dim=1).T)

    def responses(self, x: Tensor) -> Tensor:
        """Unit vectors of images, batch × 1,024."""
        found = _patches(x)
        cosines = ((found - self.mean) @ self.whitening) @ self.filters
        positive = torch.cat([cosines - _THRESHOLD, -cosines - _THRESHOLD], 2).clamp_min(0)
        side = (SIDE - PATCH) // STRIDE + 1
        maps = positive.transpose(1, 2).reshape(len(x), -1, side, side)
        return F.normalize(F.adaptive_avg_pool2d(maps, 2).flatten(1).sqrt(), dim=1)


def _patches(x: Tensor) -> Tensor:
    """Patches without mean and contrast, batch × places × values."""
    found = F.unfold(x, PATCH, stride=STRIDE).transpose(1, 2)
    found = found - found.mean(2, keepdim=True)
    return found / (found.square().mean(2, keepdim=True) + _CONTRAST).sqrt()


def _images(store: PixelStore, rows: Tensor) -> Iterator[Tensor]:
    """Pixels in [0, 1] at :data:`SIDE`, in chunks."""
    for own in torch.split(rows, _CHUNK):
        x = to_unit(store.pixels.read(own))
        yield F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True) if store.size != SIDE else x


def _spread(count: int, most: int) -> Tensor:
    """Up to ``most`` of ``count`` rows, evenly spread."""
    return torch.arange(min(count, most)) * count // min(count, most)
