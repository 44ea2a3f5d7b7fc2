"""Requests with a weak public key or an absurd recipe are refused."""

from pathlib import Path
from typing import Any

import pytest
from test_requests import ask, resign

from uge.errors import UsageError
from uge.requests.request import check_signature, read_request


def test_a_public_key_that_any_signature_fits_is_refused() -> None:
    body = {"public_key": (1).to_bytes(32, "little").hex(), "signature": (b"\x01" + bytes(63)).hex()}
    with pytest.raises(UsageError, match="point of small order"):
        check_signature(Path("request.json"), body)


def test_recipes_of_requests_are_bounded(tmp_path: Path) -> None:
    request = tmp_path / "alice.json"
    recipe: dict[str, Any] = ask(request)["recipe"]
    changes = ({"recipe": {**recipe, name: 10**9}} for name in ("epochs", "batch_size"))
    for change in (*changes, {"recipe": recipe, "size": 10**6}):
        resign(request, **change)
        with pytest.raises(UsageError, match=r"expected at most|less than or equal to 4096"):
            read_request(request)
