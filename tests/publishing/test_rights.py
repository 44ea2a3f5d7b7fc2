"""Licence and reservation of rights in a published folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from uge.data.images import ImageSet
from uge.errors import UsageError
from uge.publishing import Manifest
from uge.publishing.rights import RESERVED, TDM_FILE, license_of
from uge.publishing.verify import verify

Make = Callable[..., Manifest]


def front_matter(out: Path) -> dict[str, object]:
    return dict(yaml.safe_load((out / "README.md").read_text("utf-8").split("---")[1]))


@pytest.mark.parametrize("typed", ["CC-BY-4.0", "cc-by-4.0", "MIT"])
def test_a_licence_is_an_spdx_identifier(typed: str, make: Make, images: ImageSet, tmp_path: Path) -> None:
    make(images, license=license_of(typed))
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert front_matter(tmp_path / "out")["license"] == typed.lower()
    assert f"https://spdx.org/licenses/{license_of(typed).id}.html" in card  # type: ignore[union-attr]
    assert not (tmp_path / "out" / TDM_FILE).exists()
    assert verify(tmp_path / "out").ok


def test_another_licence_has_a_name_and_a_link(make: Make, images: ImageSet, tmp_path: Path) -> None:
    make(images, license=license_of("other", "House rules", "https://example.org/rules"))
    expected = {"license": "other", "license_name": "House rules", "license_link": "https://example.org/rules"}
    assert expected.items() <= front_matter(tmp_path / "out").items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("CC-BY",), "expected an SPDX licence identifier"),
        (("other",), "needs a name and a link"),
        (("MIT", "x"), "has a name and a text"),
        ((None, "x"), "give --license other"),
    ],
)
def test_licences_that_do_not_exist(arguments: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        license_of(*arguments)


def test_a_reservation_is_on_the_card_and_in_the_protocol_s_file(make: Make, images: ImageSet, tmp_path: Path) -> None:
    make(images, license=license_of("MIT"), reservation=RESERVED)
    out = tmp_path / "out"
    assert f"{RESERVED} This is a sign, not a lock." in (out / "README.md").read_text("utf-8")
    (rule,) = json.loads((out / TDM_FILE).read_text())
    assert rule == {"location": "/", "tdm-reservation": 1, "tdm-policy": "https://spdx.org/licenses/MIT.html"}
    assert verify(out).ok
    (out / TDM_FILE).write_text("[]")
    assert [problem.split()[0] for problem in verify(out).problems] == [TDM_FILE]


def test_nothing_is_said_where_nothing_was_asked_for(make: Make, images: ImageSet, tmp_path: Path) -> None:
    make(images)
    assert "## Rights" not in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "license" not in front_matter(tmp_path / "out")
