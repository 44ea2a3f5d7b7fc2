"""Doing experiments at a scale smaller than smoke."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_scale import TINY

from uge.paper.request import Request
from uge.paper.run import carry_out
from uge.paper.scale import Scale
from uge.runtime import Runtime
from uge.session import Session


@pytest.fixture
def run(tmp_path: Path, runtime: Runtime) -> Callable[..., Request]:
    """Does an experiment at the tiny scale and returns the request."""

    def do(what: str, *only: str, scale: Scale = TINY, overwrite: bool = False, **sources: str) -> Request:
        request = Request.at(what, scale, sources, tmp_path, only)
        carry_out(request.plan, request.folder, request.sources, Session(runtime), overwrite=overwrite)
        return request

    return do
