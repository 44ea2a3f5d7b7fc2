"""Clusters of features in place of classes: they follow the pictures, come again, and stay private."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import uge
from uge.api import Protected
from uge.data.images import ImageSet
from uge.data.store import PixelStore
from uge.errors import DataError, UsageError
from uge.methods.apply import protected_images
from uge.methods.robust.clusters import clustered, clusters, default_clusters, features
from uge.methods.robust.settings import RobustSettings
from uge.runtime import Runtime

TINY = RobustSettings(surrogates="cnn", epochs=1, steps=3)


@pytest.fixture
def make_striped(make_store: Callable[..., PixelStore]) -> Callable[..., PixelStore]:
    """Makes 40 images of one class: noise with horizontal stripes in even ones, with vertical ones in odd ones."""

    def make(**options: object) -> PixelStore:
        store = make_store(count=40, classes=1, **options)
        pixels = store.pixels.read(torch.arange(40)).float() / 2
        stripes = 120 * (torch.arange(store.size) // 3 % 2).float()
        pixels[0::2] += stripes[:, None]
        pixels[1::2] += stripes
        store.pixels.write(torch.arange(40), pixels)
        return store

    return make


@pytest.mark.parametrize("options", [{}, {"channels": 1}, {"size": 40}])
def test_pictures_of_one_kind_are_one_cluster(
    options: dict[str, object], make_striped: Callable[..., PixelStore]
) -> None:
    store = make_striped(**options)
    found = clustered(store, 2, seed=0)
    assert found.classes == ("0", "1")
    assert len(set(found.labels[0::2].tolist())) == len(set(found.labels[1::2].tolist())) == 1
    assert found.labels[0] != found.labels[1]
    assert torch.equal(found.labels, clustered(store, 2, seed=0).labels)
    assert found.pixels is store.pixels


def test_features_are_uncorrelated_and_come_again(make_store: Callable[..., PixelStore]) -> None:
    store = make_store(count=60)
    found = features(store, seed=0)
    covariance = np.cov(found.T, bias=True)
    spread = np.diag(covariance)
    assert found.shape == (60, 32)
    assert np.abs(covariance - np.diag(spread)).max() < 0.01 * spread.max()
    assert np.array_equal(features(store, seed=0), found)
    assert not np.array_equal(features(store, seed=1), found)


def test_no_cluster_is_empty_and_equal_images_share_one() -> None:
    points = np.repeat([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]], 4, axis=0)
    found = clusters(points, 8, seed=0).reshape(3, 4)
    assert (found == found[:, :1]).all()
    assert sorted(found[:, 0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "count", "message"),
    [(3, 4, r"as many images as clusters \(4\), got 3; .*--method preview"), (6, 2, "got 6 that are alike")],
)
def test_too_few_or_equal_images_are_refused(rows: int, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        clusters(np.zeros((rows, 3)), count, seed=0)


def test_the_number_of_clusters_follows_the_images() -> None:
    assert [default_clusters(count) for count in (4, 60, 200, 50_000)] == [2, 3, 10, 10]


def test_clusters_are_kept_in_a_file_and_read_from_it(
    make_striped: Callable[..., PixelStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_striped()
    first = clustered(store, 2, 0, tmp_path / "clusters.json")
    monkeypatch.setattr("uge.methods.robust.clusters.features", None)
    assert torch.equal(clustered(store, 2, 0, tmp_path / "clusters.json").labels, first.labels)


@pytest.fixture
def protect_by(runtime: Runtime) -> Callable[..., Protected]:
    """Protects images by the method, with other settings where they are given."""

    def protect(images: ImageSet, **settings: object) -> Protected:
        return uge.protect(images, method="robust", robust=TINY.model_copy(update=settings), runtime=runtime)

    return protect


def pixels(protected: Protected) -> list[bytes]:
    return [sample.pixels.tobytes() for sample in protected]


def test_labels_play_no_part_where_clusters_do(
    make_images: Callable[..., ImageSet], protect_by: Callable[..., Protected]
) -> None:
    images = make_images(count=24)
    unlabelled = replace(images, classes=(), labels=np.full(24, -1))
    one_class = replace(images, classes=("all",), labels=np.zeros(24, np.int64))
    alone = protect_by(images, clusters=2)
    assert pixels(alone) == pixels(protect_by(unlabelled)) == pixels(protect_by(one_class))
    assert pixels(alone) != pixels(protect_by(images))


def test_the_number_of_clusters_is_all_that_is_published(
    make_images: Callable[..., ImageSet], protect_by: Callable[..., Protected], caplog: pytest.LogCaptureFixture
) -> None:
    unlabelled = replace(make_images(count=60), classes=(), labels=np.full(60, -1))
    details = protect_by(unlabelled).provenance.method_details
    assert details["robust"]["clusters"] == 3
    assert all(len(value) <= 3 for value in details.values() if isinstance(value, list))
    assert "such a copy holds back little" in caplog.text
    assert protect_by(make_images(count=12)).provenance.method_details["robust"]["clusters"] is None


def test_a_generator_by_clusters_sees_the_image_alone(
    make_images: Callable[..., ImageSet], protect_by: Callable[..., Protected], runtime: Runtime
) -> None:
    unlabelled = replace(make_images(count=24), classes=(), labels=np.full(24, -1))
    generator = protect_by(unlabelled, generator=2).perturbation.perturber
    for images in (unlabelled, make_images(count=6, size=20)):
        for clean, copy in protected_images(images, generator, runtime):
            assert 0 < np.abs(np.asarray(copy).astype(int) - clean).max() <= 10
    by_class = protect_by(make_images(count=24), generator=2).perturbation.perturber
    with pytest.raises(UsageError, match="got images without labels"):
        next(protected_images(unlabelled, by_class, runtime))


def test_one_image_of_a_class_needs_clusters(
    make_images: Callable[..., ImageSet], protect_by: Callable[..., Protected]
) -> None:
    images = replace(make_images(count=12), labels=np.array([0, 1] * 5 + [0, 2]))
    with pytest.raises(DataError, match=r"class 2' has one image.*--robust\.clusters N"):
        protect_by(images)
    assert len(protect_by(images, clusters=2)) == 12
