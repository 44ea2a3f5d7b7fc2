"""A fixed part of the campaign, small enough for every run of the tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from run import campaign

sys.path.remove(str(Path(__file__).parent))


@pytest.mark.parametrize(("part", "every"), [("bad input", 60), ("flipped bytes", 12)])
def test_nothing_is_found(part: str, every: int) -> None:
    trials, findings = campaign([part], seed=11, every=every, workers=1)[part]
    assert trials > 10
    assert not findings
