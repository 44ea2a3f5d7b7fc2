"""Cells from files of results: mean, spread, state, and their text."""

import csv
import io
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sections import cell_at
from tiny_scale import put_case, put_images

from uge.methods import METHODS
from uge.paper.ledger import PaperLedger
from uge.paper.plan import Cell
from uge.paper.render import as_json, beside, markdown, page, shared_seconds, write_pages
from uge.paper.results import Entry, ExperimentResults, federated_value, read_results
from uge.paper.scale import scale
from uge.paper.tables import TableSpecs, experiments

SIZE = scale("cpu").changed(seeds=2)
SPECS = TableSpecs(SIZE)
TABLE = experiments("table2", SPECS)[0]
CELL = cell_at(TABLE.sections[0], "UGEs/Normal", "CNN")


@pytest.fixture
def ledger(tmp_path: Path) -> PaperLedger:
    ledger = PaperLedger(tmp_path)
    put_images(ledger, SPECS.images("cifar10"))
    return ledger


def entry(ledger: PaperLedger, cell: Cell = CELL) -> Entry:
    place = read_results(TABLE, ledger).at(TABLE.sections[0], cell.row, cell.column)
    assert place is not None
    return place


def test_an_empty_folder_is_a_whole_table_of_cells_not_run(tmp_path: Path) -> None:
    shown = read_results(TABLE, PaperLedger(tmp_path))
    assert shown.counts == {"done": 0, "missing": 16, "failed": 0}
    text = markdown(shown, SIZE)
    assert text.count("not run / ") == 16
    assert text.count("| ") >= 16
    assert page(shown, SIZE, PaperLedger(tmp_path)).count('missing">not run</span>') == 16


def test_a_result_of_an_earlier_form_of_the_method_does_not_count(
    ledger: PaperLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,), (second,) = CELL.units
    put_case(ledger, first, 50.0)
    monkeypatch.setattr(METHODS["uge"], "revision", METHODS["uge"].revision + 1)
    put_case(ledger, second, 30.0)
    assert (entry(ledger).measured.seeds, entry(ledger).measured.last) == (1, 30.0)


def test_mean_and_spread_are_over_repetitions(ledger: PaperLedger) -> None:
    (first,), (second,) = CELL.units
    put_case(ledger, first, 50.0, 40.0)
    half = entry(ledger).measured
    assert (half.state, half.seeds, half.wanted, half.last, half.std) == ("missing", 1, 2, 40.0, None)
    assert "[1 of 2 seeds]" in beside(entry(ledger))
    put_case(ledger, second, 30.0, 46.0)
    measured = entry(ledger).measured
    assert (measured.state, measured.last, measured.best) == ("done", 43.0, 48.0)
    assert measured.std == pytest.approx(stdev([40, 46]))
    assert measured.std_best == pytest.approx(stdev([50, 46]))
    assert entry(ledger).difference == pytest.approx(43.0 - 43.28)
    assert beside(entry(ledger)) == "43.0 ± 4.2 (48.0) / 43.3, −0.3"


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_a_cell_over_several_networks_is_the_mean_over_them_and_then_over_repetitions(
    ledger: PaperLedger, values: list[float]
) -> None:
    figure = experiments("fig7", SPECS)[0]
    cell = cell_at(figure.sections[0], "2 authorised", "authorised (mean)")
    for unit, value in zip((u for group in cell.units for u in group), values, strict=True):
        put_case(ledger, unit, value)
    measured = next(entry.measured for entry in read_results(figure, ledger).entries if entry.cell is cell)
    means = [fmean(values[:2]), fmean(values[2:])]
    assert measured.last == pytest.approx(fmean(means))
    assert measured.std == pytest.approx(stdev(means))


def test_the_clean_control_is_shown_beside(ledger: PaperLedger) -> None:
    for (control,) in CELL.control:
        put_case(ledger, control, 70.0 + control.seed)
    assert entry(ledger).measured.clean == 70.5
    assert entry(ledger).measured.state == "missing"


def test_results_of_other_images_do_not_count(ledger: PaperLedger) -> None:
    for (unit,) in CELL.units:
        put_case(ledger, unit, 10.0)
    assert entry(ledger).measured.state == "done"
    put_images(ledger, SPECS.images("cifar10"), "other pixels")
    assert entry(ledger).measured.state == "missing"


def test_a_failure_has_its_sentence_until_it_is_mended(ledger: PaperLedger) -> None:
    (first,), (second,) = CELL.units
    put_case(ledger, second, 10.0)
    ledger.fail(first.of.id, "the disk is on fire", fingerprint=ledger.fingerprint(first.of))
    assert (entry(ledger).measured.state, entry(ledger).measured.reason) == ("failed", "the disk is on fire")
    assert "Not measured: the disk is on fire." in markdown(read_results(TABLE, ledger), SIZE)
    put_case(ledger, first, 10.0)
    assert (entry(ledger).measured.state, entry(ledger).measured.reason) == ("done", "")


def test_images_that_are_not_at_hand_are_a_reason_not_a_failure(tmp_path: Path) -> None:
    ledger = PaperLedger(tmp_path)
    ledger.keep_images("cifar10", {"reason": "no such folder"})
    cell = entry(ledger)
    assert (cell.measured.state, cell.measured.reason) == ("missing", "no such folder")
    assert beside(cell) == "no data / 43.3"


def test_pictures_of_images_that_are_not_at_hand_are_missing(tmp_path: Path) -> None:
    ledger, figure = PaperLedger(tmp_path), experiments("fig6", SPECS)[0]
    ledger.keep_images("tinyimagenet", {"reason": "no such folder"})
    shown = read_results(figure, ledger)
    assert shown.counts == {"done": 0, "missing": 2, "failed": 0}
    assert {picture["state"] for picture in as_json(shown, SIZE)["pictures"]} == {"missing"}
    assert markdown(shown, SIZE).count("no such folder") == 2
    ledger.fail(figure.pictures[0].id, "the disk is on fire", fingerprint=ledger.fingerprint(figure.pictures[0]))
    assert read_results(figure, ledger).counts == {"done": 0, "missing": 1, "failed": 1}


@pytest.mark.parametrize("room", ["copies", "federations"])
def test_what_is_made_again_leaves_nothing_of_itself_behind(ledger: PaperLedger, room: str) -> None:
    """Or protecting would go on with the old folder."""
    (unit,), _ = CELL.units
    spec = unit.of if room == "copies" else SPECS.federation("cifar10", seed=0)
    place, picture = ledger.place(room, spec), ledger.place("pictures", unit.of)
    other = place.with_name(f"{place.name}0")
    names = [place.name, f"{place.name}.private", f"{place.name}.private.new", f".{place.name}.staging-1"]
    for folder in (*(place.with_name(name) / "data" for name in names), other, picture):
        folder.mkdir(parents=True)
    ledger.keep_result(spec, {})
    ledger.remove(spec)
    assert list(place.parent.iterdir()) == [other]
    assert picture.exists() == (room == "federations")
    assert ledger.result(spec) is None


def test_results_in_another_precision_do_not_count(ledger: PaperLedger) -> None:
    for (unit,) in CELL.units:
        put_case(ledger, unit, 10.0)
    ledger.keep_precision("fp32")
    assert entry(ledger).measured.state == "done"
    ledger.keep_precision("bf16-mixed")
    assert PaperLedger(ledger.folder).precision() == "bf16-mixed"
    assert entry(ledger).measured.state == "missing"
    ledger.keep_precision("fp32")
    assert entry(ledger).measured.state == "done"


def test_a_damaged_case_counts_as_missing(ledger: PaperLedger) -> None:
    (unit,), _ = CELL.units
    put_case(ledger, unit, 10.0)
    (ledger.folder / "cases" / f"{unit.id}.json").write_text("{")
    assert entry(ledger).measured.seeds == 0


def test_with_other_images_than_the_papers_there_is_no_difference(tmp_path: Path) -> None:
    ledger = PaperLedger(tmp_path)
    specs = TableSpecs(scale("smoke"))
    put_images(ledger, specs.images("cifar10"))
    table = experiments("table2", specs)[0]
    cell = table.sections[0].cells[0]
    put_case(ledger, cell.units[0][0], 90.0)
    shown = read_results(table, ledger)
    first = shown.entries[0]
    assert (first.measured.last, first.difference) == (90.0, None)
    assert "not on the paper's images" in markdown(shown, scale("smoke"))


def test_time_that_cells_share_is_counted_once(ledger: PaperLedger) -> None:
    shared_unit = CELL.units[0][0]
    put_case(ledger, shared_unit, 10.0, seconds=60.0)
    entries = read_results(TABLE, ledger).entries
    doubled = (*entries, *entries)
    assert shared_seconds(doubled) == shared_seconds(entries) == 60.0


def test_table_9_reads_its_columns() -> None:
    run = SPECS.federation("cifar10", seed=0)
    small, large = run.hackers
    both = {"parts": [60.0, 40.0], "average": 50.0, "best": 55.0}
    columns = {
        "joint": both,
        "separate-0": {"parts": [80.0, None], "average": 80.0, "best": 81.0},
        "separate-1": {"parts": [None, 90.0], "average": 90.0, "best": 91.0},
        "server-0": {"parts": [70.0, None], "average": 70.0, "best": 70.0},
        "server-1": {"parts": [None, 75.0], "average": 75.0, "best": 75.0},
        "global": both,
        f"{small}-h": {**both, "average": 20.0},
        f"{large}-d": {**both, "parts": [1.0, 2.0]},
    }
    value = lambda row, column: federated_value(columns, run, row, column)[0]  # noqa: E731
    assert [value(row, "Joint") for row in ("first 5 classes", "last 5 classes", "average")] == [60.0, 40.0, 50.0]
    assert [value(row, "Separate") for row in ("first 5 classes", "last 5 classes", "average")] == [80.0, 90.0, 85.0]
    assert (value("first 5 classes", "Server1"), value("last 5 classes", "Server2")) == (70.0, 75.0)
    assert (value("average", "CNN-H"), value("last 5 classes", "Res18-D")) == (20.0, 2.0)
    assert federated_value(columns, run, "average", "Global") == (50.0, 55.0)


def filled(ledger: PaperLedger) -> ExperimentResults:
    for number, cell in enumerate(TABLE.sections[0].cells):
        for group in cell.units:
            for unit in group:
                put_case(ledger, unit, 20.0 + number, 10.0 + number + unit.seed)
    return read_results(TABLE, ledger)


def test_all_formats_say_the_same(ledger: PaperLedger) -> None:
    results = filled(ledger)
    write_pages(results, SIZE, ledger)
    lines = list(csv.DictReader(io.StringIO((ledger.folder / "table2.csv").read_text())))
    cells = as_json(results, SIZE)["cells"]
    assert len(lines) == len(cells) == 16
    assert not cells[0].keys() - lines[0].keys() - {"recipes", "protections", "cases"}
    for line, cell, shown in zip(lines, cells, results.entries, strict=True):
        assert float(line["ours"]) == cell["ours"] == round(shown.measured.last or 0.0, 3)
        assert float(line["paper"]) == cell["paper"] == shown.cell.paper
        assert cell["difference"] == pytest.approx(cell["ours"] - cell["paper"], abs=2e-3)
        assert beside(shown) in markdown(results, SIZE)
    assert as_json(results, SIZE)["states"] == {"done": 16, "missing": 0, "failed": 0}


def test_pages_need_nothing_from_outside_and_come_out_the_same_twice(ledger: PaperLedger) -> None:
    shown = filled(ledger)
    paths = write_pages(shown, SIZE, ledger)
    before = {path: path.read_bytes() for path in paths}
    write_pages(read_results(TABLE, ledger), SIZE, ledger)
    assert {path: path.read_bytes() for path in paths} == before
    html = (ledger.folder / "table2.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "<script" not in html


def test_a_figure_is_drawn_where_there_are_points(ledger: PaperLedger) -> None:
    figure = experiments("fig3", SPECS)[0]
    assert '<svg class="plot"' not in page(read_results(figure, ledger), SIZE, ledger)
    for cell in figure.sections[0].cells:
        for group in cell.units:
            put_case(ledger, group[0], 30.0)
    drawn = page(read_results(figure, ledger), SIZE, ledger)
    assert drawn.count('<svg class="plot"') == 1
    dots = re.findall(r'<path class="line dots \w+" d="([^"]+)"', drawn)
    assert [len(path.split("M")) - 1 for path in dots] == [len(figure.sections[0].rows)] * len(
        figure.sections[0].columns
    )
    assert "ρ = 0.04" in drawn
