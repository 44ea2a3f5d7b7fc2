"""The HTML page: self-contained, escaped, deterministic, and complete with any part missing."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fixture_run import make_run
from PIL import Image

from uge.audit.cases import Case, read_cases, write_case
from uge.audit.metrics import summarize
from uge.errors import DataError, OutputExistsError, UsageError
from uge.report import rows, text_table, write_report
from uge.report.pictures import load_pictures
from uge.report.svg import canvas, to_svg

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
    for words in ["Table 1.", "Figure 5.", "PSNR 31.8 dB", "± standard deviation", "airplane", "one-cycle", "8 rounds"]:
        assert words in text
    assert "Reasons for doubt" in text


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    attributes = [attributes for _, attributes in Tags(page).tags]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert {a or b for a, b in used} <= set(ids)


def test_every_picture_and_figure_has_a_description(page: str) -> None:
    tags = Tags(page).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    figures = [attributes for tag, attributes in tags if tag == "svg" and "line" not in (attributes.get("class") or "")]
    assert len(figures) == 8
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
    assert "Reasons for doubt" in Tags(write_report(run, tmp_path / "report.html").read_text()).text


def test_stored_summary(run: Path, tmp_path: Path) -> None:
    copy = make_run(tmp_path / "run", parts="")
    summary = summarize(read_cases(copy), classes=10)
    (copy / "summary.json").write_text(
        summary.model_copy(update={"warnings": ["The disk was slow."]}).model_dump_json()
    )
    assert "The disk was slow." in write_report(copy, tmp_path / "a.html").read_text()
    assert summary.authorized is not None
    other = summary.model_copy(update={"authorized": summary.authorized.model_copy(update={"last": 99.0})})
    (copy / "summary.json").write_text(other.model_dump_json())
    assert "does not match the cases" in write_report(copy, tmp_path / "b.html").read_text()
    (copy / "summary.json").write_text('{"hackers": 3}')
    with pytest.raises(DataError, match=r"summary\.json"):
        write_report(copy, tmp_path / "c.html")


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


def test_noise_is_signed_and_spans_the_range(tmp_path: Path) -> None:
    clean = np.full((8, 8, 3), 100, np.uint8)
    protected = clean.copy()
    protected[0, 0], protected[0, 1] = 110, 90
    for name, pixels in (("original", clean), ("protected", protected)):
        Image.fromarray(pixels).save(tmp_path / f"00-{name}.png")
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
    with pytest.raises(DataError, match="one size"):
        load_pictures(tmp_path)
    (tmp_path / "00-protected.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="00-protected"):
        load_pictures(tmp_path)
    (tmp_path / "pictures.json").write_text('[{"original": 3}]')
    with pytest.raises(DataError, match=r"pictures\.json"):
        load_pictures(tmp_path)
    assert load_pictures(tmp_path / "none") is None


def test_picture_index_cannot_reach_other_folders(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "pictures").mkdir()
    listed = [{"original": "../secret.png", "protected": str(tmp_path / "secret.png")}]
    (tmp_path / "pictures" / "pictures.json").write_text(json.dumps(listed))
    with pytest.raises(DataError, match="cannot read the picture"):
        load_pictures(tmp_path / "pictures")


def test_svg_is_inline_and_follows_the_page() -> None:
    with canvas(200, 100) as figure:
        figure.add_subplot().set_title("<b>$x$ -->")
        svg = to_svg(figure, "one", 'a "figure"')
    assert svg.startswith("<svg viewBox=")
    assert "&lt;b&gt;$x$" in svg
    assert "var(--ink)" in svg
    assert "DejaVu" not in svg
    assert "#010101" not in svg
    assert 'aria-label="a &quot;figure&quot;"' in svg


def test_text_table(run: Path) -> None:
    summary = summarize(read_cases(run))
    lines = text_table(summary).splitlines()
    assert lines[0].split() == ["who", "network", "how", "last", "%", "best", "%", "clean", "%", "Δ", "clean", "seeds"]
    assert len([line for line in lines if line.startswith(("authorised ", "hacker "))]) == len(rows(summary)) == 7
    assert len([line for line in lines if " * " in line]) == 1
    assert summary.gap is not None
    assert any(f"gap: {summary.gap:.1f} points" in line for line in lines)
    assert "\x1b" not in text_table(summary)


def test_needs_no_torch() -> None:
    code = "import sys, uge.report; uge.report.text_table; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
