"""What files of results say of a cell: mean, spread, state, and how it is written."""

import csv
import io
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_scale import put_case, put_images

from uge.paper.cells import Cell
from uge.paper.ledger import PaperLedger
from uge.paper.page import page, shared
from uge.paper.render import FIELDS, as_csv, as_json, beside, latex, markdown, tex, write_all
from uge.paper.results import Entry, Shown, federated_value, look
from uge.paper.scale import scale
from uge.paper.specifications import Lists
from uge.paper.tables import experiments

SIZE = scale("cpu").changed(seeds=2)
LISTS = Lists(SIZE)
TABLE = experiments("table2", LISTS)[0]
CELL = TABLE.sections[0].cell("UGEs/Normal", "CNN")
assert CELL is not None


@pytest.fixture
def kept(tmp_path: Path) -> PaperLedger:
    kept = PaperLedger(tmp_path)
    put_images(kept, LISTS.images("cifar10"))
    return kept


def entry(kept: PaperLedger, cell: Cell = CELL) -> Entry:
    shown = look(TABLE, kept)
    found = shown.at(TABLE.sections[0], cell.row, cell.column)
    assert found is not None
    return found


def test_an_empty_folder_is_a_whole_table_of_cells_not_run(tmp_path: Path) -> None:
    shown = look(TABLE, PaperLedger(tmp_path))
    assert shown.counts == {"done": 0, "missing": 16, "failed": 0}
    text = markdown(shown, SIZE)
    assert text.count("not run / ") == 16
    assert text.count("| ") >= 16
    assert page(shown, SIZE, PaperLedger(tmp_path)).count('missing">not run</span>') == 16


def test_mean_and_spread_are_over_repetitions(kept: PaperLedger) -> None:
    (first,), (second,) = CELL.units
    put_case(kept, first, 50.0, 40.0)
    half = entry(kept).measured
    assert (half.state, half.seeds, half.wanted, half.last, half.std) == ("missing", 1, 2, 40.0, None)
    assert "[1 of 2 seeds]" in beside(entry(kept))
    put_case(kept, second, 30.0, 46.0)
    found = entry(kept).measured
    assert (found.state, found.last, found.best) == ("done", 43.0, 48.0)
    assert found.std == pytest.approx(stdev([40, 46]))
    assert found.std_best == pytest.approx(stdev([50, 46]))
    assert entry(kept).difference == pytest.approx(43.0 - 43.28)
    assert beside(entry(kept)) == "43.0 ± 4.2 (48.0) / 43.3, −0.3"


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_a_cell_over_several_networks_is_the_mean_over_them_and_then_over_repetitions(
    kept: PaperLedger, values: list[float]
) -> None:
    figure = experiments("fig7", LISTS)[0]
    cell = figure.sections[0].cell("2 authorised", "authorised (mean)")
    assert cell is not None
    for unit, value in zip((u for group in cell.units for u in group), values, strict=True):
        put_case(kept, unit, value)
    found = next(one.measured for one in look(figure, kept).entries if one.cell is cell)
    means = [fmean(values[:2]), fmean(values[2:])]
    assert found.last == pytest.approx(fmean(means))
    assert found.std == pytest.approx(stdev(means))


def test_the_clean_control_is_shown_beside(kept: PaperLedger) -> None:
    for (control,) in CELL.control:
        put_case(kept, control, 70.0 + control.seed)
    assert entry(kept).measured.clean == 70.5
    assert entry(kept).measured.state == "missing"


def test_results_of_other_images_do_not_count(kept: PaperLedger) -> None:
    for (unit,) in CELL.units:
        put_case(kept, unit, 10.0)
    assert entry(kept).measured.state == "done"
    put_images(kept, LISTS.images("cifar10"), "other pixels")
    assert entry(kept).measured.state == "missing"


def test_a_failure_has_its_sentence_until_it_is_mended(kept: PaperLedger) -> None:
    (first,), (second,) = CELL.units
    put_case(kept, second, 10.0)
    kept.fail(first.of, "the disk is on fire")
    assert (entry(kept).measured.state, entry(kept).measured.reason) == ("failed", "the disk is on fire")
    assert "Not measured: the disk is on fire." in markdown(look(TABLE, kept), SIZE)
    put_case(kept, first, 10.0)
    assert (entry(kept).measured.state, entry(kept).measured.reason) == ("done", "")


def test_images_that_are_not_at_hand_are_a_reason_not_a_failure(tmp_path: Path) -> None:
    kept = PaperLedger(tmp_path)
    kept.keep_images("cifar10", {"reason": "no such folder"})
    found = entry(kept)
    assert (found.measured.state, found.measured.reason) == ("missing", "no such folder")
    assert beside(found) == "no data / 43.3"


def test_pictures_of_images_that_are_not_at_hand_are_missing(tmp_path: Path) -> None:
    kept, figure = PaperLedger(tmp_path), experiments("fig6", LISTS)[0]
    kept.keep_images("tinyimagenet", {"reason": "no such folder"})
    shown = look(figure, kept)
    assert shown.counts == {"done": 0, "missing": 2, "failed": 0}
    assert {one["state"] for one in as_json(shown, SIZE)["pictures"]} == {"missing"}
    assert markdown(shown, SIZE).count("no such folder") == 2
    kept.fail(figure.pictures[0], "the disk is on fire")
    assert look(figure, kept).counts == {"done": 0, "missing": 1, "failed": 1}


@pytest.mark.parametrize("room", ["copies", "federations"])
def test_what_is_made_again_leaves_nothing_of_itself_behind(kept: PaperLedger, room: str) -> None:
    """Or protecting would go on with the old folder."""
    (unit,), _ = CELL.units
    spec = unit.of if room == "copies" else LISTS.federation("cifar10", 0)
    place, picture = kept.place(room, spec), kept.picture(unit.of)
    other = place.with_name(f"{place.name}0")
    names = [place.name, f"{place.name}.private", f"{place.name}.private.new", f".{place.name}.staging-1"]
    for folder in (*(place.with_name(name) / "data" for name in names), other, picture):
        folder.mkdir(parents=True)
    kept.keep_result(spec, {})
    kept.forget(spec)
    assert list(place.parent.iterdir()) == [other]
    assert picture.exists() == (room == "federations")
    assert kept.result(spec) is None


def test_results_in_another_precision_do_not_count(kept: PaperLedger) -> None:
    for (unit,) in CELL.units:
        put_case(kept, unit, 10.0)
    kept.keep_precision("fp32")
    assert entry(kept).measured.state == "done"
    kept.keep_precision("bf16-mixed")
    assert PaperLedger(kept.folder).precision() == "bf16-mixed"
    assert entry(kept).measured.state == "missing"
    kept.keep_precision("fp32")
    assert entry(kept).measured.state == "done"


def test_a_damaged_case_counts_as_missing(kept: PaperLedger) -> None:
    (unit,), _ = CELL.units
    put_case(kept, unit, 10.0)
    (kept.folder / "cases" / f"{unit.id}.json").write_text("{")
    assert entry(kept).measured.seeds == 0


def test_with_other_images_than_the_papers_there_is_no_difference(tmp_path: Path) -> None:
    kept, lists = PaperLedger(tmp_path), Lists(scale("smoke"))
    put_images(kept, lists.images("cifar10"))
    table = experiments("table2", lists)[0]
    cell = table.sections[0].cells[0]
    put_case(kept, cell.units[0][0], 90.0)
    shown = look(table, kept)
    first = shown.entries[0]
    assert (first.measured.last, first.difference) == (90.0, None)
    assert "not on the paper's images" in markdown(shown, scale("smoke"))


def test_time_that_cells_share_is_counted_once(kept: PaperLedger) -> None:
    shared_unit = CELL.units[0][0]
    put_case(kept, shared_unit, 10.0, seconds=60.0)
    found = look(TABLE, kept).entries
    doubled = (*found, *found)
    assert sum(shared(doubled).values()) == sum(shared(found).values()) == 60.0


def test_table_9_reads_its_columns() -> None:
    run = LISTS.federation("cifar10", 0)
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


def filled(kept: PaperLedger) -> Shown:
    for number, cell in enumerate(TABLE.sections[0].cells):
        for group in cell.units:
            for unit in group:
                put_case(kept, unit, 20.0 + number, 10.0 + number + unit.seed)
    return look(TABLE, kept)


def test_all_formats_say_the_same(kept: PaperLedger) -> None:
    shown = filled(kept)
    lines = list(csv.DictReader(io.StringIO(as_csv(shown))))
    cells = as_json(shown, SIZE)["cells"]
    assert len(lines) == len(cells) == 16
    assert tuple(lines[0]) == FIELDS
    for line, cell, one in zip(lines, cells, shown.entries, strict=True):
        assert float(line["ours"]) == cell["ours"] == round(one.measured.last or 0.0, 3)
        assert float(line["paper"]) == cell["paper"] == one.cell.paper
        assert cell["difference"] == pytest.approx(cell["ours"] - cell["paper"], abs=2e-3)
        assert beside(one) in markdown(shown, SIZE)
        assert tex(beside(one)) in latex(shown, SIZE)
    assert as_json(shown, SIZE)["states"] == {"done": 16, "missing": 0, "failed": 0}


def test_latex_has_balanced_rows() -> None:
    text = latex(look(TABLE, PaperLedger(Path("nowhere"))), SIZE)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in rows} == {len(TABLE.sections[0].columns)}
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_pages_need_nothing_from_outside_and_come_out_the_same_twice(kept: PaperLedger) -> None:
    shown = filled(kept)
    paths = write_all(shown, SIZE, kept)
    before = {path: path.read_bytes() for path in paths}
    write_all(look(TABLE, kept), SIZE, kept)
    assert {path: path.read_bytes() for path in paths} == before
    html = (kept.folder / "table2.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "<script" not in html


def test_a_figure_is_drawn_where_there_are_points(kept: PaperLedger) -> None:
    figure = experiments("fig3", LISTS)[0]
    assert '<svg class="plot"' not in page(look(figure, kept), SIZE, kept)
    for cell in figure.sections[0].cells:
        for group in cell.units:
            put_case(kept, group[0], 30.0)
    drawn = page(look(figure, kept), SIZE, kept)
    assert drawn.count('<svg class="plot"') == 1
    dots = re.findall(r'<path class="line dots \w+" d="([^"]+)"', drawn)
    assert [len(path.split("M")) - 1 for path in dots] == [len(figure.sections[0].rows)] * len(
        figure.sections[0].columns
    )
    assert "ρ = 0.04" in drawn
