"""The private folder proves every field of a published manifest."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command import TINY, contents, run_uge

from uge.publishing import verify
from uge.sealing.signature import SIGNATURE


def leaves(value: Any, *place: str | int) -> list[tuple[str | int, ...]]:
    """Places of all fields, those that hold others included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for name, part in inner for each in [(*place, name), *leaves(part, *place, name)]]


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    assert run_uge("protect", toy, tmp_path / "copy", *TINY, "-q").code == 0
    (tmp_path / "copy" / SIGNATURE).unlink()  # It would find every change, too.
    return tmp_path / "copy"


def test_every_field_that_is_gone_changed_or_added_is_named(copy: Path) -> None:
    path = copy / "manifest.json"
    original = path.read_text()
    fields = leaves(json.loads(original))
    assert len(fields) > 60
    for field in fields:
        for change in ("gone", None, 10**6):
            manifest = json.loads(original)
            holder = manifest
            for name in field[:-1]:
                holder = holder[name]
            if change == "gone":
                del holder[field[-1]]
            elif holder[field[-1]] == change:
                continue
            else:
                holder[field[-1]] = change
            path.write_text(json.dumps(manifest))
            if field == ("schema_version",) and change == 10**6:
                continue  # Refused as a newer version's.
            problems = verify(copy).problems
            assert any("manifest.json" in problem and str(field[0]) in problem for problem in problems), (field, change)
    path.write_text(json.dumps({**json.loads(original), "method_details": {"added": 1}}))
    assert any("method_details.added was added" in problem for problem in verify(copy).problems)
    path.write_text(json.dumps(json.loads(original), indent=4))
    assert verify(copy).ok  # Another form of the same claims.


def test_without_the_private_folder_it_says_what_was_not_compared(copy: Path, tmp_path: Path) -> None:
    assert "not signed" not in run_uge("verify", copy).out
    moved = (tmp_path / "copy.private").rename(tmp_path / "elsewhere")
    ran = run_uge("verify", copy)
    assert ran.code == 0
    assert ran.out.count("manifest.json is not signed, and was not compared") == 1
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    assert run_uge("verify", copy).code == 0
    ran = run_uge("verify", copy, "--private", moved, "-q")
    assert ran.code == 1
    assert ran.err == "manifest.json: seeds.seed was changed since the copy was published; fetch the folder again\n"
    ran = run_uge("verify", copy, "--private", tmp_path)
    assert ran.code == 2
    assert "has no published.json" in ran.err


def test_another_version_in_the_manifest_hides_no_page(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tool_version": "0.0.1"}))
    assert any("tool_version was changed" in problem for problem in verify(copy).problems)


def test_resuming_a_finished_run_keeps_the_digests(toy: Path, copy: Path) -> None:
    before = contents(copy.with_name("copy.private"))
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    assert run_uge("protect", toy, copy, *TINY, "--resume", "-q").code == 0
    assert contents(copy.with_name("copy.private")) == before
    assert run_uge("verify", copy, "-q").code == 1
    assert run_uge("protect", toy, copy, *TINY, "--overwrite", "-q").code == 0
    assert run_uge("verify", copy, "-q").code == 0
