"""Several audits side by side."""

import csv
import io
import json
from pathlib import Path

import pytest

from uge.cases.case import Case, read_cases, write_case
from uge.errors import OutputExistsError, UsageError
from uge.report.compare import compare, load_audits, write_comparison

BASE = {
    "start": "random",
    "data": "protected",
    "seed": 0,
    "key": 0,
    "best_epoch": 1,
    "history": [{"epoch": 1, "test_accuracy": 50.0}],
    "recipe": {"classes": 10, "epochs": 5},
}


def audit(folder: Path, *rows: tuple[str, str, str, float, float], epochs: int = 5, method: str = "em") -> Path:
    """An audit folder of (role, network, scheme, last, best)."""
    for role, network, scheme, last, best in rows:
        needs = {"mix-clean-10": ["clean"], "distill": ["key"]}.get(scheme, [])
        family = "combination" if "+" in scheme else "plain" if scheme == "direct" else "preprocess"
        data = {"data": "clean"} if role == "clean" else {}
        start = {"start": "theta0"} if role == "authorized" else {}
        what = {"role": role, "network": network, "scheme": scheme, "needs": needs, "family": family}
        figures = {"id": f"{role}-{network}-{scheme}", "last": last, "best": best}
        recipe = {"recipe": {"classes": 10, "epochs": epochs}}
        write_case(folder / "cases", Case.model_validate({**BASE, **what, **figures, **data, **start, **recipe}))
    (folder / "manifest.json").write_text(json.dumps({"method": method, "budget": {"levels": 8, "rho": 8 / 255}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    weak = audit(
        tmp_path / "weak.audit",
        ("clean", "cnn", "direct", 70.0, 70.0),
        ("hacker", "cnn", "direct", 20.0, 30.0),
        ("hacker", "cnn", "grayscale", 60.0, 61.0),
        ("hacker", "cnn", "grayscale+cutmix", 62.0, 62.0),
    )
    strong = audit(
        tmp_path / "strong",
        ("clean", "cnn", "direct", 71.0, 71.0),
        ("authorized", "cnn", "direct", 68.0, 68.0),
        ("hacker", "cnn", "direct", 15.0, 25.0),
        ("hacker", "cnn", "grayscale", 22.0, 30.0),
        ("hacker", "resnetc20", "grayscale", 24.0, 26.0),
        ("hacker", "cnn", "mix-clean-10", 50.0, 51.0),
        ("hacker", "cnn", "distill", 60.0, 66.0),
        ("hacker", "cnn", "jpeg10+mixup", 30.0, 31.0),
    )
    return [str(weak), f"ours={strong}"]


def test_the_one_whose_strongest_hacker_without_help_is_weakest_comes_first(runs: list[str]) -> None:
    ours, weak = compare(load_audits(runs)).standings
    assert (ours.name, weak.name) == ("ours", "weak")
    assert ours.free is not None
    assert (ours.free.scheme, ours.free.last) == ("jpeg10+mixup", 30.0)
    assert ours.strongest is not None
    assert ours.strongest.scheme == "distill"
    assert (ours.holds, weak.holds) == (True, False)
    assert (ours.clean, ours.budget, ours.gap) == (71.0, 8, 2.0)
    assert (weak.authorized, weak.gap) == (None, None)


def test_every_attack_is_a_line_with_the_strongest_network_in_each_cell(runs: list[str]) -> None:
    heat = compare(load_audits(runs)).heat
    assert heat.columns == ["ours", "weak"]
    lines = {line.name: line.cells for family in heat.families for line in family.shown}
    assert [cell and cell.last for cell in lines["grayscale"]] == [22.0, 60.0]  # 22 (30) is more than 24 (26)
    assert [cell and cell.last for cell in lines["mix-clean-10"]] == [50.0, None]
    assert [cell and (cell.last, cell.note) for cell in lines["the two best"]] == [
        (30.0, "jpeg10+mixup"),
        (62.0, "grayscale+cutmix"),
    ]
    marked = [name for name, cells in lines.items() for cell in cells if cell and cell.strongest]
    assert sorted(marked) == ["distill", "the two best"]


def test_what_forbids_comparing_is_named(runs: list[str], tmp_path: Path) -> None:
    longer = audit(tmp_path / "longer", ("hacker", "cnn", "direct", 60.0, 60.0), epochs=15)
    warnings = compare(load_audits([*runs, longer])).warnings
    assert "Not the same epochs (weak: 5; ours: 5; longer: 15)." in warnings
    assert any(warning.startswith("Not the same networks") for warning in warnings)
    assert any(warning.startswith("One seed") for warning in warnings)
    assert not any(warning.startswith("Not the same lr") for warning in warnings)
    assert any(w.startswith("Not the same attacks (longer: without grayscale)") for w in warnings)


def test_doubts_that_came_with_an_audit_are_carried_over(runs: list[str]) -> None:
    folder = Path(runs[0])
    summary = load_audits(runs)[folder.name.removesuffix(".audit")].summary
    assert compare(load_audits(runs)).warnings[0].startswith("Not")
    changed = summary.hackers[0].model_copy(update={"last": 1.0})
    other = summary.model_copy(update={"given": ["The disk was slow."], "hackers": [changed, *summary.hackers[1:]]})
    (folder / "summary.json").write_text(other.model_dump_json())
    first, second, *_ = compare(load_audits(runs)).warnings
    assert first == "weak: The disk was slow."
    assert second.startswith("weak: The stored summary does not match")


def test_an_early_peak_counts_in_the_order(runs: list[str], tmp_path: Path) -> None:
    early = audit(tmp_path / "early", ("clean", "cnn", "direct", 70.0, 70.0), ("hacker", "cnn", "direct", 15.0, 66.0))
    standings = compare(load_audits([*runs, str(early)])).standings
    assert [one.name for one in standings] == ["ours", "weak", "early"]
    assert standings[-1].holds is False


def test_an_audit_that_cannot_be_judged_is_named_in_headline_and_table(runs: list[str], tmp_path: Path) -> None:
    unjudged = audit(tmp_path / "dim", ("clean", "cnn", "direct", 12.0, 12.0), ("hacker", "cnn", "direct", 12.0, 12.0))
    _, (page, markdown, _, _) = write_comparison([*runs, str(unjudged)], tmp_path / "found.html")
    assert "Not judged, for want of a clean control that learns: dim." in page.read_text()
    (line,) = [line for line in markdown.read_text().splitlines() if line.startswith("| dim |")]
    assert "nothing learned, no judgement" in line


def test_all_files_say_the_same(runs: list[str], tmp_path: Path) -> None:
    _, (page, markdown, table, data) = write_comparison(runs, tmp_path / "found.html")
    text = page.read_text()
    assert "1 of 2 holds against hackers without help" in text
    assert "<script" not in text
    assert "| grayscale |  | 22.0 (30.0) | 60.0 (61.0) |" in markdown.read_text()
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    count = sum(case.data != "clean" for folder in runs for case in read_cases(Path(folder.rpartition("=")[2])))
    assert len(rows) == count
    assert {(row["role"], row["holds"]) for row in rows if row["scheme"] == "distill"} == {("hacker", "key")}
    found = json.loads(data.read_text())
    assert [one["name"] for one in found["standings"]] == ["ours", "weak"]
    assert set(found["summaries"]) == {"ours", "weak"}
    before = [path.read_bytes() for path in (page, markdown, table, data)]
    _, again = write_comparison(runs, tmp_path / "found.html", overwrite=True)
    assert [path.read_bytes() for path in again] == before


@pytest.mark.parametrize("name", ['"><img>', "{{ 7 * 7 }}", "a|b"])
def test_names_are_only_text(name: str, runs: list[str], tmp_path: Path) -> None:
    _, (page, markdown, *_) = write_comparison([f"{name}={runs[0]}", runs[1]], tmp_path / "found.html")
    assert "<img" not in page.read_text()
    assert "49" not in markdown.read_text()
    widths = {line.replace("\\|", "").count("|") for line in markdown.read_text().split("\n\n")[1].splitlines()}
    assert len(widths) == 1


def test_bad_input(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "found.html"
    for wrong, words in (
        (runs[:1], "at least two audit folders, got 1"),
        ([runs[0], runs[0]], "two audits are named 'weak'; give one as NAME=FOLDER"),
        ([runs[0], str(tmp_path)], "found none; run the audit first"),
    ):
        with pytest.raises(UsageError, match=words):
            write_comparison(wrong, out)
    with pytest.raises(UsageError, match=r"ends in \.html"):
        write_comparison(runs, tmp_path / "found")
    out.with_suffix(".csv").write_text("kept")
    with pytest.raises(OutputExistsError):
        write_comparison(runs, out)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("found")] == ["found.csv"]
