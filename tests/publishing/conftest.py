from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_sets import BUDGET, image_set, protect, random_pixels

from uge.data.images import ImageSet
from uge.publishing import Manifest, Provenance, publish


@pytest.fixture
def images() -> ImageSet:
    return image_set(random_pixels(10))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Manifest]:
    """Publish to ``tmp_path / "out"`` with other arguments than the ordinary ones."""

    def run(images: ImageSet, out: Path = tmp_path / "out", **changes: Any) -> Manifest:
        arguments: dict[str, Any] = {"budget": BUDGET, "provenance": Provenance(method="noise"), **changes}
        return publish(arguments.pop("pairs", protect(images)), out, images=images, **arguments)

    return run
