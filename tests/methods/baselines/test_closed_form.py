"""Methods that need no surrogate network, or only a linear one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from quick import with_room

from uge.data.loader import fetch
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.methods import METHODS
from uge.methods.baselines.ar import ArSettings, autoregress, class_processes, response
from uge.methods.baselines.base import Material, scaled
from uge.methods.baselines.cuda import CudaSettings, blurred, class_filters
from uge.methods.baselines.lsp import class_centres, patches
from uge.methods.baselines.ops import choose, corner_colours, scores
from uge.methods.baselines.pil import PilSettings, linear_loss, linear_surrogate

MakeMaterial = Callable[..., Material]


def whole(material: Material) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels in [0, 1], labels, and all indices."""
    indices = torch.arange(len(material.store))
    batch = fetch(material.store, indices)
    return batch.x, batch.y, indices


# CUDA.


def reference_convolution(x: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """One channel, zeros outside, as a double loop over the kernel."""
    side = len(kernel)
    before = (side - 1) // 2
    padded = np.pad(x, (before, side - 1 - before))
    return sum(
        (kernel[i, j] * padded[i : i + x.shape[0], j : j + x.shape[1]] for i in range(side) for j in range(side)),
        np.zeros(x.shape),
    )


@settings(max_examples=20, deadline=None)
@given(height=st.integers(3, 9), width=st.integers(3, 9), channels=st.sampled_from([1, 3]), side=st.integers(1, 4))
def test_cuda_is_the_reference_convolution(height: int, width: int, channels: int, side: int) -> None:
    random = np.random.default_rng(height * 100 + width)
    x, kernels = random.random((2, channels, height, width)), random.random((2, side, side))
    images = blurred(torch.from_numpy(x), torch.from_numpy(kernels)).numpy()
    for image in range(2):
        wanted = np.stack([reference_convolution(plane, kernels[image]) for plane in x[image]])
        np.testing.assert_allclose(images[image], wanted / wanted.max(), atol=1e-12)


def test_cuda_filters_are_as_published() -> None:
    filters = class_filters(200, CudaSettings(), seed=0)
    assert filters.shape == (200, 3, 3)
    assert ((filters == 1).sum((1, 2)) == 1).all()
    others = filters[filters != 1]
    assert others.min() >= 0
    assert 0.29 < others.max() <= 0.3
    taps = (filters == 1).float().mean(0)
    assert (taps > 0).all(), "every place must be drawn"


def test_cuda_stores_what_it_computes(make_material: MakeMaterial) -> None:
    material = make_material("cuda")
    x, labels, indices = whole(material)
    filters = class_filters(3, CudaSettings(), material.seed)
    wanted = (blurred(x, filters[labels]) * 255).round()
    stored = material.store.pixels.read(indices).float() + METHODS["cuda"].baseline.make(material).read(indices)
    assert (stored - wanted).abs().max() <= 1e-3


def test_cuda_leaves_black_images_black() -> None:
    assert not blurred(torch.zeros(1, 3, 5, 5), torch.ones(1, 3, 3)).any()


# LSP.


@settings(max_examples=8, deadline=None)
@given(size=st.integers(8, 40), patch=st.integers(1, 12), radius=st.sampled_from([0.1, 1.304, 3.0]))
def test_lsp_is_constant_on_cells_and_has_its_radius(size: int, patch: int, radius: float) -> None:
    cells = -(-size // patch)
    colours = torch.randn(2, 3, cells, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    noise = patches(colours, size, patch, radius)
    assert noise.shape == (2, 3, size, size)
    corner = torch.arange(size) // patch * patch  # Of the cell that a pixel lies in.
    assert (noise == noise[:, :, corner][:, :, :, corner]).all()
    assert (noise.flatten(1).norm(dim=1) - radius).abs().max() < 1e-9


def test_lsp_has_the_published_length_at_32_pixels(make_material: MakeMaterial) -> None:
    material = make_material("lsp", size=32)
    indices = torch.arange(24)
    lengths = METHODS["lsp"].baseline.make(material).read(indices).float().flatten(1).norm(dim=1) / 255
    assert (lengths - 1.304).abs().max() < 0.03  # Rounding to levels.


def test_lsp_without_spread_gives_one_pattern_per_class(make_material: MakeMaterial) -> None:
    material = with_room(make_material("lsp"))
    object.__setattr__(material, "options", {"spread": 0})
    delta = METHODS["lsp"].baseline.make(material).read(torch.arange(24))
    for label in range(3):
        own = delta[material.store.labels == label]
        assert (own == own[0]).all()
    assert not (delta[0] == delta[1]).all()


def test_lsp_is_linearly_separable(make_material: MakeMaterial) -> None:
    material = make_material("lsp", count=60)
    delta = METHODS["lsp"].baseline.make(material).read(torch.arange(60)).double().flatten(1)
    labels = material.store.labels
    means = torch.stack([delta[labels == label].mean(0) for label in range(3)])
    assert ((delta @ means.T).argmax(1) == labels).all()


def test_lsp_gives_no_two_classes_the_same_colours() -> None:
    centres = class_centres(8, (3, 1, 1), seed=0)
    assert len({tuple(centre) for centre in centres.flatten(1).tolist()}) == 8
    assert set(centres.flatten().tolist()) == {-1.0, 1.0}
    with pytest.raises(UsageError, match="only 8 patterns for 9 classes; lower its setting patch"):
        class_centres(9, (3, 1, 1), seed=0)


# AR.


@settings(max_examples=10, deadline=None)
@given(size=st.integers(3, 12), seed=st.integers(0, 99))
def test_ar_noise_satisfies_its_recurrence(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(2, 3, 3, 3, dtype=torch.float64, generator=generator) / 4
    coefficients[..., 2, 2] = 0
    start = torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)
    noise = autoregress(coefficients, start)
    assert (noise[..., :2, :] == start[..., :2, :]).all()
    assert (noise[..., :, :2] == start[..., :, :2]).all()
    for row in range(2, size):
        for column in range(2, size):
            window = noise[..., row - 2 : row + 1, column - 2 : column + 1]
            wanted = (window * coefficients).sum((-1, -2))
            np.testing.assert_allclose(noise[..., row, column], wanted, atol=1e-12)


def test_ar_processes_are_stable_and_answer_to_their_own_noise_only() -> None:
    processes = class_processes(3, 3, 16, ArSettings(pool=2), seed=0)
    np.testing.assert_allclose(processes.sum((2, 3)), torch.ones(3, 3, dtype=torch.float64))
    assert (processes[..., 2, 2] == 0).all()
    start = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    answers = response(processes, scaled(autoregress(processes, start), 1.0))
    assert answers.diagonal().max() < 1e-9
    assert answers[~torch.eye(3, dtype=torch.bool)].min() > 0.5


def test_ar_says_when_its_bound_admits_hardly_any_process() -> None:
    with pytest.raises(UsageError, match="stays within its setting bound, 1e-06; raise it"):
        class_processes(3, 3, 8, ArSettings(bound=1e-6), seed=0)


def test_ar_survives_rounding_to_levels(make_material: MakeMaterial) -> None:
    material = make_material("ar", size=32, separable=True)
    processes = class_processes(3, 3, 32, ArSettings(pool=2), material.seed)
    delta = METHODS["ar"].baseline.make(material).read(torch.arange(24)).double() / 255
    assert (response(processes, delta).argmin(1) == material.store.labels).all()
    lengths = delta.flatten(1).norm(dim=1)
    assert (lengths - 1).abs().max() < 0.05
    first, second = delta[material.store.labels == 0][:2]
    assert (first - second).norm() > 0.3, "noise is fresh for every image"


# OPS.


def test_ops_replaces_one_pixel_the_same_for_a_class(make_material: MakeMaterial) -> None:
    material = make_material("ops", separable=False)
    indices = torch.arange(24)
    clean = material.store.pixels.read(indices)
    stored = clean.int() + METHODS["ops"].baseline.make(material).read(indices)
    places = set()
    for label, replacement in enumerate(choose(material, 1)):
        ((row, column),) = (~replacement[0].isnan()).nonzero().tolist()
        colour = replacement[:, row, column]
        own = material.store.labels == label
        changed = (stored != clean.int()).any(1)[own]
        assert (changed.sum((1, 2)) <= 1).all()
        assert changed[:, row, column].all()
        assert (stored[own][:, :, row, column] == (colour * 255).int()).all()
        places.add((row, column, tuple(colour.tolist())))
    assert len(places) == 3, "no two classes share a pixel of one colour"


def test_ops_scores_are_the_mean_distance_over_its_deviation() -> None:
    x = torch.rand(7, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score = scores(x.mean(0), x.pow(2).mean(0))
    for number, colour in enumerate(corner_colours(3)):
        distance = (colour[:, None, None] - x).abs().permute(2, 3, 0, 1).flatten(2)
        np.testing.assert_allclose(score[number], distance.mean(2) / distance.std(2, correction=0))


def test_ops_takes_a_pixel_that_never_changes() -> None:
    x = torch.rand(5, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0, 1, 2] = 0
    score = scores(x.mean(0), x.pow(2).mean(0))
    assert torch.unravel_index(score.argmax(), score.shape) == (1, 1, 2)  # White where all are black.


@pytest.mark.parametrize("pixels", [2, 5])
def test_ops_with_more_pixels(pixels: int, make_material: MakeMaterial) -> None:
    material = make_material("ops", separable=False)
    object.__setattr__(material, "options", {"pixels": pixels})
    changed = METHODS["ops"].baseline.make(material).read(torch.arange(24)).bool().any(1).sum((1, 2))
    assert changed.max() == pixels


# PIL.


def test_pil_lowers_its_loss_and_names_the_class(make_material: MakeMaterial) -> None:
    material = make_material("pil", separable=False)
    object.__setattr__(material, "options", {"steps": 20})
    wanted = PilSettings(steps=20)
    x, labels, indices = whole(material)
    network = linear_surrogate(material.store, wanted, material.seed, material.runtime)
    delta = -METHODS["pil"].baseline.make(material).read(indices).float() / 255  # Published is x - δ.
    before, after = (linear_loss(network, x, each, labels, wanted.weight) for each in (torch.zeros_like(delta), delta))
    assert after < before - 0.01
    assert (network(delta).argmax(1) == labels).all()


def test_pil_loss_is_the_formula(make_store: Callable[..., PixelStore]) -> None:
    batch = fetch(make_store(count=6), torch.arange(6))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3))
    delta = 0.1 * torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(0))
    chosen = network(delta).softmax(1)[torch.arange(6), batch.y]
    even = (1 / 3 * ((1 / 3) / network(batch.x - delta).softmax(1)).log()).sum(1)
    wanted = (-0.7 * chosen.log() + 0.3 * even).mean()
    np.testing.assert_allclose(linear_loss(network, batch.x, delta, batch.y, 0.7).item(), wanted.item(), rtol=1e-5)


# Random noise.


def test_random_noise_fills_its_budget_evenly(make_material: MakeMaterial) -> None:
    material = make_material("random", count=30, size=32)
    clean = material.store.pixels.read(torch.arange(30))
    room = (clean >= 8) & (clean <= 247)
    levels = METHODS["random"].baseline.make(material).read(torch.arange(30))[room]
    counts = torch.bincount(levels.long() + 8, minlength=17).float() / len(levels)
    assert len(counts) == 17
    assert (counts - 1 / 17).abs().max() < 0.005
