"""Signers of requests are shown or pinned, and requests with a weak key or an absurd recipe are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import refused, run_uge
from test_requests import ask, resign

from uge.errors import UsageError
from uge.requests.request import read_request
from uge.requests.signed import check_signature


@pytest.mark.parametrize("height", [1, 2**255 - 18, 2**255 - 1], ids=["small order", "second form", "largest"])
def test_a_public_key_that_any_signature_fits_is_refused(height: int) -> None:
    body = {"public_key": height.to_bytes(32, "little").hex(), "signature": (b"\x01" + bytes(63)).hex()}
    with pytest.raises(UsageError, match="point of small order or not in its only form"):
        check_signature(Path("request.json"), body)


def test_the_signer_is_pinned_by_its_fingerprint(toy: Path, tmp_path: Path) -> None:
    request, owners = tmp_path / "alice.json", tmp_path / "owner"
    owners.mkdir()
    fingerprint = ask(request)["fingerprint"]
    words = "is signed by the key"
    refused(2, words, "protect", toy, owners / "out", "--for", request, f"--expect-signer={'0' * 64}", inside=tmp_path)
    ran = run_uge("protect", toy, owners / "out", "--for", request, f"--expect-signer={fingerprint}", "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    refused(2, "--for", "protect", toy, owners / "two", f"--expect-signer={fingerprint}", inside=tmp_path)


def test_pinning_changes_no_byte_that_is_published(toy: Path, tmp_path: Path) -> None:
    fingerprint = ask(tmp_path / "alice.json")["fingerprint"]
    manifests = []
    for out, flags in (("a", []), ("b", [f"--expect-signer={fingerprint}"])):
        request = ("--for", tmp_path / "alice.json", "--no-seal", "-q")
        assert run_uge("protect", toy, tmp_path / out, *request, *flags).code == 0
        manifests.append((tmp_path / out / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_signer_that_is_not_pinned_is_shown_even_when_quiet(toy: Path, tmp_path: Path) -> None:
    fingerprint = ask(tmp_path / "alice.json")["fingerprint"]
    spoken = " ".join(fingerprint[start : start + 4] for start in range(0, 64, 4))
    ran = run_uge("protect", toy, tmp_path / "out", "--for", tmp_path / "alice.json", "-q")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.count(spoken) == 1


def test_the_recipe_is_shown_before_work_starts(toy: Path, tmp_path: Path, interrupt: Callable[..., None]) -> None:
    ask(tmp_path / "alice.json")
    interrupt("uge.pipeline.protect.publish_stream", RuntimeError("work started"))
    ran = run_uge("protect", toy, tmp_path / "out", "--for", tmp_path / "alice.json")
    assert ran.code == 1
    shown, _, rest = ran.err.partition("work started")
    assert "asks for 'keyed:lenet' (3 classes, 3 channels, size 16), 2 epochs in batches of 128" in shown
    assert "2 epochs" not in rest


def test_recipes_of_requests_are_bounded(tmp_path: Path) -> None:
    request = tmp_path / "alice.json"
    recipe: dict[str, Any] = ask(request)["recipe"]
    changes = ({"recipe": {**recipe, name: 10**9}} for name in ("epochs", "batch_size"))
    for change in (*changes, {"recipe": recipe, "size": 10**6}):
        resign(request, **change)
        with pytest.raises(UsageError, match=r"expected at most|less than or equal to 4096"):
            read_request(request)
