"""Command line and tiny data of ``tests/cli``, and smaller ones."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "cli"))

from command import make_folder

from uge.sealing import make_identity
from uge.sealing.signing_key import open_identity


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training images of 16 pixels in three classes, and three test images; an identity beside them."""
    images = make_folder(tmp_path_factory.mktemp("six") / "six", train=2, test=1)
    make_folder(images.with_name("twelve"), train=4, test=1)  # For two servers.
    open_identity(images.with_name("me.pem"))
    recipient = make_identity(images.with_name("lab.agekey"))
    images.with_name("lab.pub").write_text(recipient.text)
    open_identity()  # So that every run finds the owner's and has as many file operations.
    return images
