"""Tiny material for every method."""

from collections.abc import Callable
from pathlib import Path

import pytest
from quick import QUICK

from uge.budget import Budget
from uge.data.store import PixelStore
from uge.methods import METHODS
from uge.methods.baselines.base import Material
from uge.runtime import Runtime


@pytest.fixture
def make_material(make_store: Callable[..., PixelStore], runtime: Runtime) -> Callable[..., Material]:
    """Makes material of 24 images with 16 pixels for a method; takes what ``make_store`` takes."""

    def make(
        name: str, *, rho: float | None = None, seed: int = 0, folder: Path | None = None, **images: object
    ) -> Material:
        store = make_store(**{"count": 24, "classes": 3, "separable": True, **images})
        options = QUICK.get(name, {})
        return Material(store, Budget(rho or METHODS[name].baseline.rho), seed, runtime, options, folder)

    return make
