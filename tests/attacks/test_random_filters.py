"""Random filters as augmentation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uge.attacks import filters
from uge.attacks.filters import FILTERS, random_filters


def images(count: int = 40, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("channels", "size"), [(3, 16), (1, 16), (3, 19)])
def test_filtered_images_are_images(channels: int, size: int) -> None:
    x = images(channels=channels, size=size)
    first, again, other = (random_filters(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_filter_gets_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def spy(name: str) -> filters.Filter:
        def change(pixels: Tensor, place: float) -> Tensor:
            assert pixels.dtype == torch.uint8
            assert 0 <= place <= 1
            used.append(name)
            return pixels

        return change

    monkeypatch.setattr(filters, "FILTERS", {name: (share, spy(name)) for name, (share, _) in FILTERS.items()})
    monkeypatch.setattr(filters, "GROUP", 1)
    random_filters(images(2000, size=2), torch.Generator().manual_seed(0))
    for name, (share, _) in FILTERS.items():
        assert used.count(name) / 2000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_keeps_what_is_flat(name: str) -> None:
    flat = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    assert torch.equal(FILTERS[name][1](flat, 0.3), flat)


def test_tones_change_and_a_group_has_one_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "FILTERS", {})
    x = torch.full((3, 3, 16, 16), 0.5)
    out = random_filters(x, torch.Generator().manual_seed(0))
    assert len(out[:, :, 0, 0].unique()) == 9
    assert (out - 0.5).abs().max() <= 0.5 * filters.GAIN + filters.SHIFT / 255
