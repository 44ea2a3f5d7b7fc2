"""Tables with rows of other packages."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from uge.errors import UnknownNameError, UsageError
from uge.registry import Registry


def length(name: str, entry: Any, times: int = 1) -> int:
    if not isinstance(entry, str):
        raise UsageError(f"colour '{name}' must be text, got {entry!r}")
    return times * len(entry)


def colours() -> Registry[int]:
    return Registry("colour", {"red": 3}, "uge.test-colours", adapt=length, hint="mix one yourself")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an installed distribution with entry points in the group of the tests."""

    def make(points: dict[str, str], code: str = "") -> None:
        info = tmp_path / "paint-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paint\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[uge.test-colours]", *lines]) + "\n")
        (tmp_path / "paint_colours.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("paint_colours", None)

    return make


def test_rows_are_registered_and_found() -> None:
    table = colours()
    assert table.register("blue", "blue", times=2) == "blue"
    assert dict(table) == {"red": 3, "blue": 8}
    assert table.origin("blue") == ""
    assert table.get("green") is None


def test_registering_again_replaces_a_row_of_ones_own_but_not_one_of_the_package() -> None:
    table = colours()
    table.register("blue", "blue")
    table.register("blue", "navy blue")
    assert table["blue"] == 9
    with pytest.raises(UsageError, match="'red', which UGE has itself"):
        table.register("red", "red")
    with pytest.raises(UsageError, match="must be text, got 7"):
        table.register("seven", 7)


def test_an_unknown_name_lists_what_there_is() -> None:
    table = colours()
    table.register("blue", "blue")
    with pytest.raises(UnknownNameError, match=r"unknown colour 'bleu'; did you mean 'blue'\?.*blue, red.*mix one"):
        table["bleu"]


def test_entry_points_are_listed_without_being_loaded(install: Any) -> None:
    install({"green": "paint_colours:green"}, "raise RuntimeError('no paint')")
    table = colours()
    assert sorted(table) == ["green", "red"]
    assert "green" in table
    assert table.origin("green") == "paint"
    assert "paint_colours" not in sys.modules


def test_an_entry_point_is_loaded_on_look_up(install: Any) -> None:
    install({"green": "paint_colours:green"}, "green = 'green'")
    assert colours()["green"] == 5


@pytest.mark.parametrize("code", ["raise RuntimeError('dry')", "import sys; sys.exit(0)", "gold = 1", "green = 1"])
def test_a_broken_package_is_one_sentence(install: Any, code: str) -> None:
    install({"green": "paint_colours:green"}, code)
    with pytest.raises(UsageError, match=r"colour 'green' (cannot be loaded from 'paint_colours:green'|must be text)"):
        colours()["green"]


def test_a_broken_package_is_left_out_where_all_rows_are_asked_for(
    install: Any, caplog: pytest.LogCaptureFixture
) -> None:
    install({"green": "paint_colours:green"}, "raise RuntimeError('dry')")
    assert colours().loadable() == {"red": 3}
    assert "colour 'green' cannot be loaded" in caplog.text


def test_a_decorator_in_the_loaded_module_counts(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = colours()
    module = types.ModuleType("paint_tables")
    module.table = table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "paint_tables", module)
    install(
        {"green": "paint_colours:green"}, "import paint_tables as p\ngreen = p.table.register('green', 'g', times=7)"
    )
    assert table["green"] == 7


def test_a_package_cannot_take_a_name_that_is_taken(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    install({"red": "paint_colours:red"}, "red = 'crimson'")
    assert dict(colours()) == {"red": 3}
    assert "'red'" in caplog.text
