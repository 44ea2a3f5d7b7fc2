from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uge.budget import Budget
from uge.data.images import Pixels
from uge.errors import UsageError, WeightsError
from uge.methods.apply import load_generator, save_perturber
from uge.methods.uge import generator as module
from uge.methods.uge.generator import Generator, add_perturbation
from uge.networks import build, save_weights, weights_hash

MORE: dict[str, Any] = {"skips": True, "classes": ("a", "b")}


def wild(channels: int = 3, rho: float = 0.04, *, blocks: int = 1, strength: float = 1.0, **more: Any) -> Generator:
    """A generator with a random last layer, so that it perturbs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(channels, Budget(rho), width=4, blocks=blocks, **more)
        torch.nn.init.normal_(generator.decoder[-1].weight, std=strength)
    return generator.eval()


def random_images(count: int, *shape: int) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


def test_starts_as_the_identity_with_a_gradient() -> None:
    generator = Generator(3, Budget(), width=4, blocks=1)
    x = torch.rand(2, 3, 8, 8)
    delta = generator(x)
    assert torch.equal(delta, torch.zeros_like(x))
    (delta * torch.rand_like(delta)).sum().backward()
    assert generator.decoder[-1].weight.grad.abs().sum() > 0


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 21), width=st.integers(1, 21), channels=st.sampled_from([1, 3]), levels=st.integers(1, 255)
)
def test_any_size_within_the_bound_after_rounding(height: int, width: int, channels: int, levels: int) -> None:
    generator = wild(channels, levels / 255, strength=50)
    x = torch.randint(0, 256, (2, channels, height, width), generator=torch.Generator().manual_seed(1)) / 255
    with torch.no_grad():
        delta = generator(x)
    assert delta.shape == x.shape
    assert delta.abs().max() <= levels / 255 * (1 + 1e-6)
    change = (add_perturbation(x, delta) * 255).round() - (x * 255).round()
    assert change.abs().max() <= levels
    for image, moved in zip(x, generator.levels(list(_pixels(x))), strict=True):
        assert np.abs(moved.astype(int)).max() <= levels
        assert moved.shape == (height, width, channels) == (*image.shape[1:], image.shape[0])


def _pixels(x: torch.Tensor) -> Pixels:
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("rho", "levels", "dtype"), [(10.9 / 255, 10, np.int8), (0.5, 127, np.int8), (1, 255, np.int16)]
)
def test_the_bound_is_reached_exactly(rho: float, levels: int, dtype: type) -> None:
    generator = wild(rho=rho, strength=1000)
    moved = np.stack(list(generator.levels(random_images(2, 16, 16, 3))))
    assert moved.dtype == dtype
    assert (moved.min(), moved.max()) == (-levels, levels)


def test_add_perturbation_is_on_the_grid_and_passes_gradients() -> None:
    x = torch.tensor([[0.0, 100 / 255, 1.0]])
    delta = torch.tensor([[-0.02, 3.4 / 255, 0.01]], requires_grad=True)
    x_u = add_perturbation(x, delta)
    torch.testing.assert_close(x_u.detach(), torch.tensor([[0.0, 103 / 255, 1.0]]))
    (gradient,) = torch.autograd.grad((x_u * torch.tensor([[1.0, 2.0, 3.0]])).sum(), delta)
    assert gradient.tolist() == [[0.0, 2.0, 0.0]]


def test_skips_bring_detail_to_the_last_layer() -> None:
    """Noise of the finest scale, which two halvings would blur, moves the output far more with skip connections."""

    def moved(**more: Any) -> float:
        generator, x = wild(strength=0.1, **more), torch.full((1, 3, 32, 32), 0.5)
        checker = x + 0.1 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1)
        with torch.no_grad():
            delta = generator(checker)[..., 8:24, 8:24] - generator(x)[..., 8:24, 8:24]
        return (delta - delta.mean((2, 3), keepdim=True)).abs().max().item()

    assert moved(skips=True) > 2 * moved()


def test_a_stride_of_four_reaches_a_quarter_at_once() -> None:
    """Table 4: 56 × 56 of 224 × 224 after the first block, and after the next."""
    generator = wild(stride=4)
    shapes = []
    for layer in (generator.encoder[2], generator.encoder[5], generator.encoder[8]):
        layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[-2:])))
    assert generator(torch.rand(1, 3, 224, 224)).shape == (1, 3, 224, 224)
    assert shapes == [(56, 56)] * 3
    with pytest.raises(UsageError, match="a stride of 1, got 4"):
        wild(stride=4, skips=True)


def test_an_image_is_clamped_around_the_clean_one() -> None:
    """Eq. 3 as written: Clamp(G(x), x - ρ, x + ρ); where G(x) is outside, nothing moves it."""
    generator, x = wild(output="image", strength=0.1), torch.rand(2, 3, 8, 8)
    bound = generator.budget.levels / 255
    given = []
    generator.decoder[-1].register_forward_hook(lambda _, __, raw: given.append(raw.sigmoid()))
    delta = generator(x)
    torch.testing.assert_close(x + delta, torch.maximum(torch.minimum(given[0], x + bound), x - bound))
    outside = (given[0] - x).abs() > bound
    assert outside.any()
    (gradient,) = torch.autograd.grad(delta[outside].sum(), generator.decoder[-1].weight)
    assert not gradient.any()


def test_a_generator_with_classes_follows_labels_by_name() -> None:
    generator, images = wild(classes=("cat", "dog", "owl")), random_images(2, 8, 8, 3)
    first, second = (np.stack(list(generator.levels(images, labels))) for labels in ([0, 1], [2, 1]))
    assert not np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert generator.numbers(["owl", "cat"]) == [2, 0]
    assert wild().numbers(["owl", "cat"]) == [0, 1]
    with pytest.raises(UsageError, match="trained for the classes cat, dog, owl, got 'emu'"):
        generator.numbers(["cat", "emu"])


def test_labels_go_with_images_of_mixed_shapes() -> None:
    generator = wild(classes=("cat", "dog"), strength=3)
    images, labels = [*random_images(2, 8, 8, 3), *random_images(1, 12, 9, 3), *random_images(1, 8, 8, 3)], [0, 1, 1, 0]
    together = list(generator.levels(images, labels))
    for image, label, moved in zip(images, labels, together, strict=True):
        (alone,) = generator.levels([image], [label])
        (other,) = generator.levels([image], [1 - label])
        assert np.abs(moved.astype(int) - alone).max() <= 1
        assert np.abs(moved.astype(int) - other).max() > 1


@pytest.mark.parametrize("more", [{}, {"skips": True, "classes": ("a", "b")}])
@pytest.mark.parametrize("blocks", [1, 3])
def test_tiles_give_what_the_whole_image_gives(
    blocks: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = wild(blocks=blocks, strength=3, **more)
    image = random_images(1, 153, 210, 3)
    (whole,) = generator.levels(image, [1])
    monkeypatch.setattr(module, "_TILE", 64)
    sizes = []
    generator.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[-2:]))
    (tiled,) = generator.levels(image, [1])
    assert len(sizes) == 12
    assert len(np.unique(whole)) > 5
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert (whole != tiled).mean() < 0.001  # rounding of a sum in another order


@pytest.mark.parametrize(("channels", "blocks", "stride"), [(3, 1, 1), (3, 6, 1), (1, 3, 1), (3, 1, 4), (3, 3, 4)])
def test_halo_covers_the_receptive_field(channels: int, blocks: int, stride: int) -> None:
    """A pixel of the output does not depend on input beyond the halo (measured by the gradient)."""
    generator = wild(channels, blocks=blocks, strength=0.1, skips=stride == 1, stride=stride)
    side = 2 * generator.halo + 40
    x = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    for offset in range(4):
        centre = side // 2 + offset
        (gradient,) = torch.autograd.grad(generator(x)[0, 0, centre, centre], x)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        reach = max(centre - int(rows.min()), int(rows.max()) - centre)
        assert 8 * blocks < reach <= generator.halo


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_gray_stays_gray_and_alpha_is_untouched(channels: int, kind: int) -> None:
    generator = wild(channels)
    for moved in generator.levels(random_images(3, 9, 14, kind)):
        assert moved.shape == (9, 14, kind)
        assert moved.dtype == np.int8
        colours = 1 if kind <= 2 else 3
        assert np.abs(moved[..., :colours]).max() > 0
        assert not moved[..., colours:].any()


def test_a_gray_generator_moves_all_colours_alike() -> None:
    (moved,) = wild(1).levels(random_images(1, 8, 8, 3))
    assert np.array_equal(moved[..., 0], moved[..., 1])
    assert np.array_equal(moved[..., 0], moved[..., 2])


def test_images_of_mixed_shapes_keep_their_order() -> None:
    images = [*random_images(2, 8, 8, 3), *random_images(1, 12, 9, 1), *random_images(2, 8, 8, 3)]
    generator = wild()
    together = list(generator.levels(images))
    alone = [next(generator.levels([image])) for image in images]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
        assert (a != b).mean() < 0.02


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[], Path]:
    def save() -> Path:
        save_perturber(tmp_path / "generator.safetensors", wild(1, 8 / 255, **MORE))
        return tmp_path / "generator.safetensors"

    return save


def test_comes_back_as_saved(saved: Callable[[], Path]) -> None:
    generator = load_generator(saved())
    assert (generator.channels, generator.budget.levels, generator.training) == (1, 8, False)
    assert generator.options == wild(1, **MORE).options
    assert weights_hash(generator) == weights_hash(wild(1, **MORE))


def test_other_files_are_refused(saved: Callable[[], Path], tmp_path: Path) -> None:
    path = saved()
    save_weights(tmp_path / "key.safetensors", build("lenet", 2, seed=0))
    with pytest.raises(WeightsError, match="no generator"):
        load_generator(tmp_path / "key.safetensors")
    content = path.read_bytes()
    key = b'\\"blocks\\"'
    for before, after in ((key + b":1", key + b":2"), (key, key.replace(b"lo", b"ri")), (b"options", b"opinion")):
        assert before in content
        path.write_bytes(content.replace(before, after))
        with pytest.raises(WeightsError, match="damaged"):
            load_generator(path)
