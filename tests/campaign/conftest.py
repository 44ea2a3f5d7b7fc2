"""Command line and tiny data of ``tests/cli``, and smaller ones."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cli"))

from command import make_folder


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training images of 16 pixels in three classes, and three test images."""
    return make_folder(tmp_path_factory.mktemp("six") / "six", train=2, test=1)
