"""The HTML page: self-contained, escaped, deterministic, and complete with any part missing."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fixture_run import make_run
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from PIL import Image

from uge.auditing.quality import write_quality
from uge.auditing.summarize import summarize
from uge.cases.case import Case, read_cases, write_case
from uge.errors import DataError, OutputExistsError, UsageError
from uge.files import locked, write_json
from uge.learning.naming import Renamed
from uge.report import curves, rows, text_table, write_report
from uge.report.description import limits, protection
from uge.report.heat_map import heat_map, shade
from uge.report.line_plot import Line, plot, ticks
from uge.report.page import load_audit, page_environment
from uge.report.pictures import load_attacked, load_pictures, load_quality
from uge.report.tables import csv_text, markdown_table

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "$\\frac{1}{0$",
    "-->",
    "猫 & 犬",
]


class Tags(HTMLParser):
    """Collects tags, attributes and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run, run.parent / "report.html", overwrite=True).read_text()


def hostile_run(folder: Path) -> Path:
    run = make_run(folder, seeds=1, classes=HOSTILE)
    for case in read_cases(run):
        if case.role == "hacker":
            changed = {**case.as_json(), "network": HOSTILE[case.seed], "scheme": HOSTILE[1]}
            write_case(
                run / "cases", Case.model_validate({**changed, "recipe": {"classes": 6, HOSTILE[0]: HOSTILE[1]}})
            )
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "name": HOSTILE[0], "method": HOSTILE[1]}))
    return run


def test_self_contained(page: str) -> None:
    parsed = Tags(page)
    assert not {"script", "iframe", "object", "base"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "http" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_shows_the_numbers_and_every_part(run: Path, page: str) -> None:
    text = Tags(page).text
    summary = summarize(read_cases(run))
    assert summary.authorized is not None
    assert summary.gap is not None
    for value in [summary.authorized.last, summary.gap, *(hacker.last for hacker in summary.hackers)]:
        assert f"{value:.1f}" in text
    for title in ["Who learns", "looks like", "training went", "What was done", "does not show", "Settings"]:
        assert title in text
    for words in ["PSNR 31.8 dB", "gradient matching", "airplane", "one-cycle", "8 rounds", "95 % interval"]:
        assert words in text
    assert "for doubt" in text
    assert summary.label in text.replace(summary.label[0].upper() + summary.label[1:], summary.label)


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    attributes = [attributes for _, attributes in Tags(page).tags]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert {a or b for a, b in used} <= set(ids)


def test_every_picture_and_figure_has_a_description(page: str) -> None:
    tags = Tags(page).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    figures = [attributes for tag, attributes in tags if tag == "svg" and "plot" in (attributes.get("class") or "")]
    assert len(figures) == 2 + 5 + 2  # Two attacks; losses by step and by pass.
    assert all(attributes.get("aria-label") for attributes in figures)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = write_report(hostile_run(tmp_path / "run"), tmp_path / "report.html").read_text()
    parsed = Tags(page)
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert HOSTILE[0] in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    assert "猫 & 犬" in parsed.text


def test_equal_input_gives_equal_bytes(run: Path, page: str, tmp_path: Path) -> None:
    assert write_report(run, tmp_path / "again.html").read_text() == page


def test_with_cases_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seeds=1, parts="")
    text = Tags(write_report(run, tmp_path / "report.html").read_text()).text
    assert "looks like" not in text
    assert "Who learns" in text
    assert "One seed: differences under about 3 points mean nothing" in text


@pytest.mark.parametrize("kept", ["hacker", "authorized", "clean"])
def test_with_one_role_only(tmp_path: Path, kept: str) -> None:
    run = make_run(tmp_path / "run", seeds=1, parts="manifest")
    for path in (run / "cases").iterdir():
        if not path.name.startswith(kept):
            path.unlink()
    assert "for doubt" in Tags(write_report(run, tmp_path / "report.html").read_text()).text


def test_stored_summary(run: Path, tmp_path: Path) -> None:
    copy = make_run(tmp_path / "run", parts="")
    left = [{"attack": "jpeg10", "network": "cnn", "reason": "no time"}]
    more = {"warnings": ["The disk was slow."], "left_out": left, "facts": {"overlap": 7}}
    summary = summarize(read_cases(copy), classes=10, planned=40, failed=["hacker-cnn-blur-protected-s0"], **more)
    (copy / "summary.json").write_text(summary.model_dump_json())
    text = Tags(write_report(copy, tmp_path / "a.html").read_text()).text
    for words in [
        "The disk was slow.",
        "7 test images are among",
        "Partial: 30 of at least 40 cases; left out: jpeg10; failed",
    ]:
        assert words in text
    for words in ["Not a complete audit", "no time", "hacker-cnn-blur-protected-s0"]:
        assert words in text
    assert "does not match the cases" not in text
    assert summary.authorized is not None
    other = summary.model_copy(update={"authorized": summary.authorized.model_copy(update={"last": 99.0})})
    (copy / "summary.json").write_text(other.model_dump_json())
    assert "does not match the cases" in write_report(copy, tmp_path / "b.html").read_text()
    (copy / "summary.json").write_text('{"hackers": 3}')
    with pytest.raises(DataError, match=r"summary\.json"):
        write_report(copy, tmp_path / "c.html")


def test_cases_of_earlier_runs_do_not_count(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(run, folder)
    counted = summarize(load_audit(folder).cases)
    write_json(folder / "summary.json", counted.model_dump(mode="json"))
    stale = counted.hackers[0].model_dump()
    old = next(case for case in read_cases(folder) if case.role == "hacker")
    write_case(folder / "cases", old.model_copy(update={"id": "hacker-stale", "scheme": "mixup", "last": 99.0}))
    again = load_audit(folder)
    assert [case.id for case in again.cases] == counted.cases
    assert again.summary.hackers[0].model_dump() == stale


def test_refuses_to_overwrite(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_report(run, out)
    assert out.read_text() == "mine"
    assert write_report(run, out, overwrite=True).read_text() != "mine"
    with pytest.raises(OutputExistsError, match="folder"):
        write_report(run, tmp_path, overwrite=True)


def test_folder_without_cases(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run the audit first"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(UsageError, match="nowhere"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def write_index(folder: Path) -> None:
    entry = {"class": "cat", "original": "00-original.png", "protected": "00-protected.png"}
    write_json(folder / "pictures.json", {"pictures": [entry]})


def test_noise_is_signed_and_spans_the_range(tmp_path: Path) -> None:
    clean = np.full((8, 8, 3), 100, np.uint8)
    protected = clean.copy()
    protected[0, 0], protected[0, 1] = 110, 90
    for name, pixels in (("original", clean), ("protected", protected)):
        Image.fromarray(pixels).save(tmp_path / f"00-{name}.png")
    write_index(tmp_path)
    found = load_pictures(tmp_path, levels=4)
    assert found is not None
    assert (found.levels, found.factor) == (10, 12.7)
    assert found.items[0].levels == 10
    noise = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.items[0].noise.split(",")[1]))))
    assert noise[0, 0].tolist() == [255] * 3
    assert noise[0, 1].tolist() == [1] * 3
    assert noise[5, 5].tolist() == [128] * 3


def test_pictures_of_different_size_or_damaged(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "00-original.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "00-protected.png")
    write_index(tmp_path)
    with pytest.raises(DataError, match="one size"):
        load_pictures(tmp_path)
    (tmp_path / "00-protected.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="00-protected"):
        load_pictures(tmp_path)
    (tmp_path / "pictures.json").write_text('{"pictures": [{"original": 3}]}')
    with pytest.raises(DataError, match=r"pictures\.json"):
        load_pictures(tmp_path)
    assert load_pictures(tmp_path / "none") is None


def test_picture_index_cannot_reach_other_folders(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "pictures").mkdir()
    listed = [{"original": "../secret.png", "protected": str(tmp_path / "secret.png")}]
    (tmp_path / "pictures" / "pictures.json").write_text(json.dumps({"pictures": listed}))
    with pytest.raises(DataError, match="cannot read the picture"):
        load_pictures(tmp_path / "pictures")


def test_plots_escape_names_and_stay_inside() -> None:
    drawn = plot([Line([(1, 0), (2, 250)], "hacker")], low=0, high=100, x_label="<b>", description='a "figure"')
    assert drawn.startswith("<svg")
    assert "&lt;b&gt;" in drawn
    assert 'aria-label="a &#34;figure&#34;"' in drawn
    places = [float(y) for y in re.findall(r"[ML][0-9.]+ ([0-9.-]+)", drawn)]
    assert min(places) >= 0


def test_epochs_have_whole_numbers() -> None:
    drawn = plot([Line([(1, 0), (2, 1), (3, 2)])], low=0, high=2, x_label="epoch", description="short")
    assert re.findall(r'class="x">([^<]+)<', drawn) == ["1", "2", "3"]


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3))
def test_ticks_are_inside_and_few(low: float, width: float) -> None:
    found = ticks(low, low + width, 4)
    assert 1 <= len(found) <= 6
    assert found == sorted(set(found))
    assert low - 1e-6 <= found[0] <= found[-1] <= low + width + 1e-6


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@given(st.floats(0, 1), st.floats(0, 1))
def test_colours_darken_with_accuracy_and_stay_legible(a: float, b: float) -> None:
    (low, ink), (high, _) = shade(min(a, b)), shade(max(a, b))
    assert luminance(high) <= luminance(low) + 1e-3
    light, dark = sorted((luminance(low), luminance(ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.0


def test_heat_map_holds_every_result_once(run: Path) -> None:
    summary = summarize(read_cases(run))
    found = heat_map(summary)
    assert found is not None
    cells = [cell for family in found.families for line in family.shown for cell in line.cells if cell]
    assert sorted(cell.last for cell in cells) == sorted(hacker.last for hacker in summary.hackers)
    assert [cell.last for cell in cells if cell.strongest] == [summary.hackers[0].last]
    assert found.clean is not None
    assert [cell.last for cell in found.clean.cells if cell] == [summary.clean[name] for name in found.columns]


def many(count: int) -> list[Case]:
    one = Case.model_validate(MANY)
    names = [f"attack-{number:02d}" for number in range(count)]
    families = ["preprocess", "augment", "train"]
    return [
        one.model_copy(update={"id": f"{name}-{net}", "scheme": name, "network": net, "family": families[i % 3]})
        for i, name in enumerate(names)
        for net in ("cnn", "resnet18", "lenet")
    ]


MANY = {
    "id": "x",
    "role": "hacker",
    "network": "cnn",
    "start": "random",
    "data": "protected",
    "seed": 0,
    "key": 0,
    "last": 20.0,
    "best": 22.0,
    "best_epoch": 1,
    "history": [{"epoch": 1, "test_accuracy": 22.0}, {"epoch": 2, "test_accuracy": 20.0}],
}


def test_many_attacks_are_folded_but_not_lost(tmp_path: Path) -> None:
    cases = many(60)
    for case in cases:
        write_case(tmp_path / "run" / "cases", case)
    found = heat_map(summarize(cases))
    assert found is not None
    assert sum(len(family.shown) for family in found.families) == 9
    page = write_report(tmp_path / "run", tmp_path / "report.html").read_text()
    assert all(f"attack-{number:02d}" in page for number in range(60))
    assert len(page) < 400_000
    assert len(text_table(summarize(cases)).splitlines()) < 30


def test_authorised_behind_a_key_stands_in_the_column_of_its_architecture() -> None:
    keyed = {**MANY, "id": "y", "role": "authorized", "network": "keyed:resnet18", "last": 50.0, "best": 50.0}
    found = heat_map(summarize([*many(3), Case.model_validate(keyed)]))
    assert found is not None
    (line,) = found.authorized
    assert [cell and (cell.last, cell.note) for cell in line.cells] == [None, None, (50.0, "keyed:resnet18")]
    assert found.columns == ["cnn", "lenet", "resnet18"]


def test_variants_are_judged_against_training_as_meant(tmp_path: Path) -> None:
    base = {**MANY, "role": "authorized", "start": "theta0"}
    for scheme, last in (("direct", 60.0), ("order", 59.0), ("lr-double", 54.0), ("adam", 30.0)):
        case = Case.model_validate({**base, "id": scheme, "scheme": scheme, "last": last, "best": last})
        write_case(tmp_path / "cases", case)
    text = Tags(write_report(tmp_path, tmp_path / "report.html").read_text()).text
    section = text[text.index("can afford") : text.index("What was done")]
    judged = re.findall(r"(order|lr-double|adam)\s.*?(yes|at a loss|no)\n", section, re.S)
    assert judged == [("order", "yes"), ("lr-double", "at a loss"), ("adam", "no")]


def two_keys(network: str = "cnn") -> list[Case]:
    """Two authorised networks, a student of each, and the controls; key 1 is the weaker."""
    found = []
    for role, scheme, start, values in (
        ("authorized", "direct", "theta0", (80.0, 40.0)),
        ("hacker", "distill", "random", (60.0, 20.0)),
    ):
        for number, last in enumerate(values):
            one = {"id": f"{role}-x-{scheme}-protected{'-key1' * number}-s0", "role": role, "scheme": scheme}
            history = [{"epoch": epoch, "test_accuracy": last} for epoch in (1, 2)]
            what = {"key": number, "network": network, "start": start, "last": last, "best": last, "history": history}
            found.append(Case.model_validate({**MANY, **one, **what}))
    return found


def test_every_key_has_a_line_of_its_own() -> None:
    cases = two_keys()
    ((panel,),) = curves.by_attack(cases, summarize(cases)).values()
    assert panel.drawing.count('class="line authorized thin"') == 2
    assert panel.drawing.count('class="line hacker"') == 2
    assert "cnn ends at 60.0 %, cnn, key 1 ends at 20.0 %" in panel.drawing
    assert [words for _, words in curves.legend(cases)] == [
        "hacker, cnn",
        "hacker, cnn, key 1",
        "authorised, cnn",
        "authorised, cnn, key 1",
    ]
    assert len({drawn for drawn, _ in curves.legend(cases)}) == 4


@pytest.mark.parametrize(("kind", "field"), [("step", "step"), ("refine", "name")])
def test_what_a_resumed_run_logs_again_counts_once(kind: str, field: str) -> None:
    places = [10, 20, 30, 20, 30, 40]
    events = [{"event": kind, field: place, "loss": float(number)} for number, place in enumerate(places)]
    (panel,) = curves.losses(events, kind, "step")
    across = [float(x) for x in re.findall(r"[ML]([0-9.]+) [0-9.]+", panel.drawing.split('class="line')[1])]
    assert across == sorted(set(across))
    assert len(across) == 4
    assert panel.note == "5"
    assert "from 0 to 5." in panel.drawing


@pytest.mark.parametrize("network", ["cnn", "keyed:cnn"])
def test_what_is_said_of_several_networks_suits_the_method(network: str) -> None:
    cases = two_keys(network)
    said = " ".join(limits(summarize(cases), cases))
    keyed = network != "cnn"
    assert ("weakens with every further network" in said) != keyed
    assert ("the architecture must stay secret too" in said) != keyed
    assert ("a leak by one receiver is a leak by all" in said) == keyed
    assert "leak by all" not in " ".join(limits(summarize(cases[::2]), cases[::2]))


def test_a_trained_start_is_told(tmp_path: Path) -> None:
    cases = [case.model_copy(update={"start_accuracy": 45.0, "recipe": {"classes": 10}}) for case in two_keys()[::2]]
    for case in cases:
        write_case(tmp_path / "cases", case)
    text = Tags(write_report(tmp_path, tmp_path / "report.html").read_text()).text
    assert text.count("θ0 of cnn reaches 45.0 % before any training.") == 2  # As a doubt, and in what was done.


def test_attacked_pictures(tmp_path: Path) -> None:
    assert load_attacked(tmp_path) == {}
    listed = [{"attack": "jpeg10", "file": f"../jpeg10-{n:02d}.png", "class": "cat"} for n in range(6)]
    for number in range(6):
        Image.new("RGB", (200, 8)).save(tmp_path / f"jpeg10-{number:02d}.png")
    (tmp_path / "attacked.json").write_text(json.dumps({"pictures": listed}))
    attacked = load_attacked(tmp_path)
    assert {attack: len(images) for attack, images in attacked.items()} == {"jpeg10": 4}
    shown = Image.open(io.BytesIO(base64.b64decode(attacked["jpeg10"][0][1].split(",")[1])))
    assert shown.size == (96, 8)
    (tmp_path / "attacked.json").write_text('{"pictures": [{"file": 3}]}')
    with pytest.raises(DataError, match=r"attacked\.json"):
        load_attacked(tmp_path)


def test_quality_of_a_written_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = rng.integers(40, 200, (4, 16, 16, 3)).astype(np.uint8)
    noise = rng.choice([-13, 13], (2, 16, 16, 3))
    run = make_run(tmp_path / "run", seeds=1, parts="manifest")
    write_quality(run, ((n % 2, c, (c + noise[n % 2]).astype(np.uint8)) for n, c in enumerate(clean)), ["a", "<b>"])
    view = load_quality(run / "quality")
    assert view is not None
    assert {name for name, _, _ in view.classes} == {"a", "<b>"}
    parsed = Tags(write_report(run, tmp_path / "report.html").read_text())
    assert "100.0 % of the noise" in " ".join(parsed.text.split())
    assert "change by up to 13 levels, 10 are claimed" in parsed.text
    assert len([tag for tag, attributes in parsed.tags if tag == "img"]) == 3
    (run / "quality" / "class-0000.png").write_text("no picture")
    with pytest.raises(DataError, match=r"cannot read the picture .*class-0000\.png"):
        load_quality(run / "quality")
    assert load_quality(tmp_path) is None


@pytest.mark.parametrize("name", ["colour-key/attacks", "cifar10-10k/unlearn", "audit-cifar10/keyed", "demo"])
def test_published_audits_can_be_rendered(name: str, tmp_path: Path) -> None:
    run = Path(__file__).parents[2] / "results" / name
    if not run.is_dir():
        pytest.skip(f"needs {run}")
    assert len(Tags(write_report(run, tmp_path / "report.html").read_text()).text) > 2000


def test_text_table(run: Path) -> None:
    summary = summarize(read_cases(run))
    lines = text_table(summary).splitlines()
    assert lines[0] == summary.headline
    assert lines[1] == f"verdict: {summary.label}"
    assert lines[3].split() == ["who", "network", "how", "last", "%", "best", "%", "clean", "%", "Δ", "clean", "seeds"]
    assert len(rows(summary)) == 7
    assert len([line for line in lines if line.startswith("hacker ")]) == 5
    assert len([line for line in lines if " * " in line]) == 1
    assert summary.gap is not None
    assert lines[0].startswith(f"gap: {summary.gap:.1f} points")
    assert any(line.startswith("30 cases, 2 attacks, 3 networks, 3 seeds") for line in lines)
    assert "\x1b" not in text_table(summary)


def test_needs_no_torch() -> None:
    code = "import sys, uge.report; uge.report.text_table; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_method_of_others_is_described_and_bounds_what_it_bounds() -> None:
    manifest = {"method": "cuda", "budget": {"rho": 1.0, "levels": 255}}
    details = {"about": "Filters of each class.", "linf_claimed": False}
    facts = dict(protection({**manifest, "method_details": details}))
    assert facts["Method"] == "cuda: Filters of each class."
    assert facts["Promised bound"].startswith("None")
    assert "255 levels" in dict(protection({**manifest, "method_details": {"linf_claimed": True}}))["Promised bound"]


def test_tables_are_written_in_one_way() -> None:
    assert markdown_table(["", "a|b"], [["x", "1"], ["y|z", ""]]) == [
        "| | a\\|b |",
        "|---|---|",
        "| x | 1 |",
        "| y\\|z |  |",
    ]
    assert csv_text(["a", "b"], [{"b": 2, "a": "x,y", "c": 3}, {"a": None}]) == 'a,b\n"x,y",2\n,\n'


@pytest.fixture
def worst_run(tmp_path: Path) -> Path:
    """A made-up worst case: outputs that are better after renaming, and training without the copy."""
    run = make_run(tmp_path / "worst", seeds=2, parts="manifest")
    for case in read_cases(run):
        if case.role == "authorized" or case.scheme == "distill":
            (run / "cases" / f"{case.id}.json").unlink()
            continue
        history = [
            epoch.model_copy(
                update={"renamed": Renamed((20, 40, 30), (epoch.test_accuracy, epoch.test_accuracy + 9, 30), (50, 51))}
            )
            for epoch in case.history
        ]
        write_case(run / "cases", case.model_copy(update={"history": history}))
        if case.role == "hacker" and case.network == "cnn":
            alone = {"id": f"alone-s{case.seed}", "scheme": "few-labelled", "family": "yardstick", "needs": ["few"]}
            write_case(run / "cases", case.model_copy(update={**alone, "last": 25.0, "best": 25.0}))
    return run


def test_the_worst_case_stands_first(worst_run: Path) -> None:
    facts = {"labelled": 100, "psnr_db": 29.51, "ssim": 0.927}
    (worst_run / "summary.json").write_text(json.dumps({"facts": facts, "chance": 10.0}))
    summary = load_audit(worst_run).summary
    assert summary.worst_case is not None
    row = summary.worst_case.short.worst
    text = " ".join(Tags(write_report(worst_run, worst_run.parent / "report.html").read_text()).text.split())
    first = text.partition("Clean control")[0]
    assert f"{row.reached.value:.1f} %" in first
    assert "renamed one to one" in first
    assert "Without the copy" in text
    assert "100 labelled images alone" in text
    assert "PSNR29.5 dB" in text
    assert "SSIM0.927" in text
    assert "Gap: authorised" not in text
    for sealed in (None, 5000):
        stored = {"facts": {**facts, "originals_opened": sealed}, "chance": 10.0}
        (worst_run / "summary.json").write_text(json.dumps(stored))
        page = write_report(worst_run, worst_run.parent / "report.html", overwrite=True).read_text()
        assert ("all 5,000 sealed originals were opened and compared" in page) == (sealed is not None)
    lines = text_table(summary).splitlines()
    assert lines[0] == summary.headline
    columns = ["attack", "network", "names", "reached", "last", "best", "chosen", "bound", "clean", "seeds"]
    assert [word for word in lines[3].split() if word != "%"] == columns
    assert len(lines) < 30


def test_names_cannot_reorder_or_hide_text() -> None:
    template = page_environment().from_string("<p>{{ name }}</p>{{ drawn }}")
    page = template.render(name="cat\u202egod <b>\x1b[2J", drawn=Markup("<svg>{}</svg>").format("\u2066x & y"))
    assert page == "<p>cat\\u202egod &lt;b&gt;\\u001b[2J</p><svg>\\u2066x &amp; y</svg>"


def test_a_page_that_another_thread_writes_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", seeds=1, parts="")
    out = tmp_path / "page.html"
    with locked(out), ThreadPoolExecutor(1) as pool, pytest.raises(UsageError, match=r"is writing .*page\.html"):
        pool.submit(write_report, run, out).result()
    assert sorted(os.listdir(tmp_path)) == ["run"]
    assert write_report(run, out).is_file()
