"""Examples in the docstrings of losses."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["feature_distance", "hackers", "matching", "undistill"])
def test_examples_give_what_they_show(name: str) -> None:
    module = importlib.import_module(f"uge.methods.uge.{name}")
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
