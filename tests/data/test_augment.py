import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uge.data.augment import AUGMENTATIONS, augmentation, crop_flip, rotate_flip
from uge.errors import UnknownNameError

RANDOM = [name for name in AUGMENTATIONS if name != "none"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_crop_flip(x: Tensor, draw: torch.Generator, crop: bool, flip: bool) -> Tensor:
    """One image after the other, one pixel after the other, with the same random numbers."""
    batch, _, height, width = x.shape
    pad_y, pad_x = (height // 8, width // 8) if crop else (0, 0)
    tops = torch.randint(0, 2 * pad_y + 1, (batch, 1), generator=draw)
    mirrored = torch.rand((batch, 1), generator=draw) < 0.5 if flip else torch.zeros(batch, 1, dtype=torch.bool)
    lefts = torch.randint(0, 2 * pad_x + 1, (batch, 1), generator=draw)
    out = torch.zeros_like(x)
    for n in range(batch):
        for row in range(height):
            for column in range(width):
                source_row = row + int(tops[n]) - pad_y
                source_column = (width - 1 - column if mirrored[n] else column) + int(lefts[n]) - pad_x
                if 0 <= source_row < height and 0 <= source_column < width:
                    out[n, :, row, column] = x[n, :, source_row, source_column]
    return out


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 3),
    size=st.integers(1, 17),
    crop=st.booleans(),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_crop_flip_is_the_naive_loop(batch: int, channels: int, size: int, crop: bool, flip: bool, seed: int) -> None:
    x = torch.randint(1, 256, (batch, channels, size, size), dtype=torch.uint8, generator=generator(seed))
    augmented = crop_flip(x, generator(seed), crop=crop, flip=flip)
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented, naive_crop_flip(x, generator(seed), crop, flip))


def test_offsets_and_flips_take_every_value() -> None:
    x = torch.zeros(400, 1, 32, 32)
    x[:, :, 16, 8] = 1
    places = {tuple(place) for place in crop_flip(x, generator()).nonzero()[:, 2:].tolist()}
    rows, columns = ({place[axis] for place in places} for axis in (0, 1))
    assert rows == set(range(12, 21))
    assert columns == set(range(4, 13)) | set(range(31 - 12, 31 - 3))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_shape_type_and_determinism(name: str) -> None:
    x = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator())
    original = x.clone()
    transform = augmentation(name)
    augmented = transform(x, generator(1))
    assert (augmented.shape, augmented.dtype) == (x.shape, torch.uint8)
    assert torch.equal(transform(x, generator(1)), augmented)
    assert torch.equal(x, original)
    if name != "none":
        assert not torch.equal(transform(x, generator(2)), augmented)


@pytest.mark.parametrize("name", RANDOM)
def test_noise_stays_attached_to_its_image(name: str) -> None:
    """Augmenting image plus noise is augmenting both alike: noise is content."""
    draw = generator()
    x, noise = (torch.rand(8, 3, 16, 16, generator=draw) for _ in range(2))
    transform = augmentation(name)
    together = transform(x + noise, generator(1))
    apart = transform(x, generator(1)) + transform(noise, generator(1))
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("name", RANDOM)
def test_differentiable_for_floats(name: str) -> None:
    x = torch.rand(3, 2, 8, 8, generator=generator()).requires_grad_(True)
    weight = torch.rand(3, 2, 8, 8, generator=generator(5))
    transform = augmentation(name)
    (gradient,) = torch.autograd.grad((transform(x, generator(1)) * weight).sum(), x)
    # The transforms are linear, so the gradient is their transpose: <T v, w> = <v, T^t w>.
    v = torch.rand(3, 2, 8, 8, generator=generator(6))
    torch.testing.assert_close((transform(v, generator(1)) * weight).sum(), (v * gradient).sum())
    assert gradient.abs().sum() > 0


def test_rotation_by_nothing_is_a_flip_or_the_image() -> None:
    x = torch.randint(0, 256, (12, 3, 9, 9), dtype=torch.uint8, generator=generator())
    rotated = rotate_flip(x, generator(), degrees=0)
    kinds = {(torch.equal(a, b), torch.equal(a, b.flip(2))) for a, b in zip(rotated, x, strict=True)}
    assert kinds == {(True, False), (False, True)}


def test_rotation_turns_by_at_most_what_was_asked() -> None:
    """A point on the axis stays within the angle, and reaches near it."""
    x = torch.zeros(300, 1, 65, 65)
    x[:, :, 32, 57] = 1
    weight = rotate_flip(x, generator(), degrees=20)[:, 0]
    total = weight.sum((1, 2))
    axis = torch.arange(65) - 32.0
    row, column = (weight * axis[:, None]).sum((1, 2)) / total, (weight * axis).sum((1, 2)) / total
    angle = torch.rad2deg(torch.atan(row / column)).abs()
    assert 18 < angle.max() <= 21
    assert {-1.0, 1.0} == set(column.sign().tolist())


def test_unknown_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'crop-flip'"):
        augmentation("crop_flip")
