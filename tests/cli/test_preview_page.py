"""uge preview: how protections look, on one page, with nothing published."""

import os
import re
from pathlib import Path

from command import refused, run_uge


def test_every_look_has_pictures_and_figures(toy: Path, tmp_path: Path) -> None:
    page = tmp_path / "preview.html"
    flags = ("--rho", "2/255,0.04", "--methods", "random", "--kinds", "pixel8", "--images", "12")
    ran = run_uge("preview", toy, *flags, "--out", page, "--json")
    assert ran.code == 0, ran.err
    first, second, pixels = ran.json["looks"]
    assert (first["title"], first["linf_levels"]) == ("random, ρ = 0.00784", 2)
    assert (second["linf_levels"], second["ssim"] < first["ssim"]) == (10, True)
    assert pixels["title"] == "preview, pixel8"
    text = page.read_text("utf-8")
    assert text.count("<section") == 4
    assert text.count("data:image/png") == 4 * 3 * 2
    assert f"SSIM {second['ssim']:.3f}" in text
    assert not re.search(r"https?://", text)
    assert os.listdir(tmp_path) == ["preview.html"]


def test_the_default_shows_robust(toy: Path, tmp_path: Path) -> None:
    ran = run_uge("preview", toy, "--rho", "0.04", "--kinds", "blur2", "--out", tmp_path / "a.html", "--json")
    assert [look["title"] for look in ran.json["looks"]] == ["robust, ρ = 0.04", "preview, blur2"]


def test_wrong_wishes(toy: Path, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    for flags, words in (
        (("--methods", "keyed"), "protects for a network"),
        (("--kinds", "blur99"), "expected kinds of"),
        (("--rho", "much"), "much"),
    ):
        refused(2, words, "preview", toy, *flags, "--out", page, inside=tmp_path)
    refused(2, "ends in .html", "preview", toy, "--out", tmp_path / "a.png", inside=tmp_path)
    page.write_text("mine")
    refused(2, "--overwrite", "preview", toy, "--out", page, inside=tmp_path)
