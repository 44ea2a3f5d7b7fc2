"""The yardstick of conditional learnability is a preset of `uge protect` and `uge audit`."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uge.cli.main import main
from uge.publishing import read_manifest

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "benchmarks" / "conditional.toml"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for number, name in enumerate(("a", "b", "c")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(60 + 60 * number, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def uge(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    with pytest.raises(SystemExit) as left:
        main([*map(str, words), "--config", str(PRESET), "--json"])
    shown = capsys.readouterr()
    assert not left.value.code, shown.err
    return json.loads(shown.out)


def test_the_preset_plans_every_case_of_the_yardstick(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "keyed-cnn-s1"
    uge(capsys, "protect", data, out, "--authorized", "cnn", "--seed", "1", "--authorized-seed", "1", "--limit", "24")
    assert (read_manifest(out).method, read_manifest(out).budget.levels) == ("keyed", 10)
    networks = "cnn,resnetc20,resnet18-w16,keyed:cnn"
    audit = uge(capsys, "audit", out, "--test", data, "--networks", networks, "--dry-run")
    keyed = "keyed_cnn.eea393"
    hackers = ["cnn", "resnetc20", "resnet18-w16", keyed]
    assert sorted(audit["cases"]) == sorted(
        [f"hacker-{name}-{scheme}-protected-s0" for name in hackers for scheme in ("direct", "distill")]
        + [f"clean-{name}-direct-clean-s0" for name in hackers]
        + [f"clean-{keyed}-direct-clean-theta0-s0", f"authorized-{keyed}-direct-protected-s0"]
        + [f"authorized-{keyed}-{name}-protected-s0" for name in ("order", "batch-double", "lr-half", "lr-double")]
    )
    assert audit["left_out"] == []


def test_the_drawing_of_the_frontier_is_that_of_the_published_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    frontier = importlib.import_module("frontier")
    rows = frontier.settings(ROOT / "results")
    assert frontier.drawing(rows) == (ROOT / "docs" / "images" / "frontier.svg").read_text(encoding="utf-8")
