"""`uge audit` on folders of which nothing is known, with a budget, with workers, and with everything there is."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import CLASSES, make_folder, refused, run_uge, tiny
from PIL import Image
from torch import nn

from uge.auditing.summary import Summary
from uge.cases.pool import LocalProcesses
from uge.cli import audit as verbs_audit

SHORT = ("--networks", "lenet", "--epochs", "1")


@pytest.fixture
def foreign(toy: Path, tmp_path: Path) -> Path:
    """Somebody's protected copy of the toy set: other file names, other format, no manifest, no splits."""
    out = tmp_path / "foreign"
    for name in CLASSES:
        (out / name).mkdir(parents=True)
        for file in sorted((toy / "train" / name).iterdir()):
            pixels = np.asarray(Image.open(file)).astype(int) + 8
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out / name / f"x{file.stem}.bmp")
    return out


def test_a_folder_of_which_nothing_is_known(foreign: Path, toy: Path, tmp_path: Path) -> None:
    test, clean = toy / "test", toy / "train"
    arguments = ("audit", foreign, "--test", test, *SHORT, "--json")
    listed = run_uge(*arguments, "--attacks", "direct,train,transfer", "--dry-run").json["left_out"]
    assert {one["attack"] for one in listed} >= {"mix-clean-10", "backbone-frozen"}
    ways = ("give --clean", "give --public", "give --worst-case", "needs a manifest")
    assert all(any(way in one["reason"] for way in ways) for one in listed)
    without = run_uge(*arguments, "--attacks", "direct", "--folder", tmp_path / "without", "--fail-under", "-100")
    assert without.code == 3, without.err  # There is no gap at all.
    assert (without.json["gap"], without.json["clean"], without.json["authorized"]) == (None, {}, None)

    found = run_uge(*arguments, "--attacks", "direct,mix-clean-50", "--clean", clean)
    assert found.code == 0, found.err
    assert set(found.json["clean"]) == {"lenet"}
    assert {hacker["scheme"] for hacker in found.json["hackers"]} == {"direct", "mix-clean-50"}
    assert found.json["facts"]["linf_levels"] == 8
    assert found.json["facts"]["overlap"] == 0


def test_test_images_that_are_the_originals_are_refused(toy: Path, tmp_path: Path) -> None:
    source, copy = toy / "train", tmp_path / "copy"
    assert run_uge("protect", source, copy, "--method", "random").code == 0
    refused(1, "the test images are the originals", "audit", copy, "--test", source, *SHORT, inside=tmp_path)


def test_other_originals_are_refused(foreign: Path, toy: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", train=5, test=0)
    words = "has not the originals of the published images: expected 36 images"
    refused(1, words, "audit", foreign, "--test", toy / "test", "--clean", other, *SHORT, inside=tmp_path)


def test_a_partial_audit_says_so(foreign: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("audit", foreign, "--test", toy, *SHORT, "--attacks", "direct,mixup")
    refused(2, "take about", *arguments, "--budget", "0.001s", inside=foreign)
    monkeypatch.setattr("uge.auditing.schedule.warm_up", lambda audit, network, threads: 1.0)
    monkeypatch.setattr("uge.auditing.schedule.Pace.learn", lambda pace, job, seconds: None)
    monkeypatch.setattr("uge.auditing.schedule.Pace.seconds", lambda pace, job: 1e9 * (job.scheme == "mixup"))
    partial = run_uge(*arguments, "--budget", "6h")
    assert partial.code == 0, partial.err
    assert "partial audit: 2 of 3 cases; without mixup" in partial.out
    assert "would run 1 of 3 cases, in about " in run_uge(*arguments, "--dry-run").out
    assert "would run 3 of 3 cases" in run_uge(*arguments, "--dry-run", "--overwrite").out
    whole = run_uge(*arguments)
    assert "partial audit" not in whole.out
    assert whole.err.count("audit ") == 1


def test_a_trial_says_what_runs_how_long_and_what_has_no_time(foreign: Path, toy: Path) -> None:
    arguments = ("audit", foreign, "--test", toy, *SHORT, "--attacks", "direct,mixup,transfer", "--dry-run")
    would = run_uge(*arguments, "--json").json
    assert would["seconds"].keys() == set(would["cases"])
    assert would["total_seconds"] == pytest.approx(sum(would["seconds"].values()), abs=0.5)
    assert would["no_time_for"] == []
    text = run_uge(*arguments, "--budget", "0.0001s").out
    assert "no time for" in text
    assert "cannot run: backbone-frozen" in text
    assert not foreign.with_name("foreign.audit").exists()


def unbuildable(classes: int, channels: int, size: int) -> nn.Module:
    """A plug-in whose library is broken."""
    raise RuntimeError("operator does not exist")


def test_a_network_that_cannot_be_built_is_said_before_anything_is_trained(foreign: Path, toy: Path) -> None:
    flags = ("--networks", "lenet,test_audit:unbuildable", "--attacks", "direct", "--epochs", "1")
    words = "network 'test_audit:unbuildable' failed for 3 classes"
    refused(2, words, "audit", foreign, "--test", toy, *flags, inside=foreign.parent)
    refused(2, words, "audit", foreign, "--test", toy, *flags, "--dry-run", inside=foreign.parent)


def test_an_audit_without_any_attack_that_worked_has_failed() -> None:
    control = Summary(cases=["clean-cnn-direct-clean-s0"], ran=1, seeds=1, failed=["hacker-cnn-direct-protected-s0"])
    assert verbs_audit.nothing_attacked(control)
    assert not verbs_audit.nothing_attacked(control.model_copy(update={"failed": []}))


def linear(classes: int, channels: int, size: int) -> nn.Module:
    """A plug-in."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_key_for_a_plug_in_needs_trust(workers: str, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    ran = run_uge("protect", toy, out, *tiny(authorized="test_audit:linear"), "-q")
    assert ran.code == 0, ran.err
    arguments = ("audit", out, "--test", toy, *SHORT, "--attacks", "direct", "--workers", workers)
    refused(2, "'keyed:test_audit:linear', whose code would be run; give --trust-plugins", *arguments, inside=tmp_path)
    found = run_uge(*arguments, "--trust-plugins", "--json")
    assert found.code == 0, found.err
    assert found.json["authorized"]["network"] == "keyed:test_audit:linear"
    assert found.json["failed"] == []


def test_a_keyed_network_is_not_audited_with_rotations(toy: Path, copy: Path) -> None:
    arguments = ("audit", copy, "--test", toy, *SHORT, "--attacks", "direct")
    words = "'keyed:lenet' cannot follow rotations, got the augmentation 'rotate-flip'"
    refused(2, words, *arguments, "--recipe", "paper-tinyimagenet", inside=copy.parent)
    listed = run_uge(*arguments, "--variants", "rotate", "--dry-run", "--json").json["cases"]
    assert any("-rotate-" in name for name in listed)


@pytest.mark.parametrize("flags", [("--budget", "soon"), ("--workers", "0"), ("--variants", "x")])
def test_wrong_settings(flags: tuple[str, str], foreign: Path, toy: Path) -> None:
    refused(2, flags[1], "audit", foreign, "--test", toy, *SHORT, *flags, inside=foreign.parent)


def test_what_loads_ahead_is_what_workers_run() -> None:
    """A name that no longer exists would be passed over in silence, and every worker would load it by itself."""
    assert LocalProcesses.__module__ == verbs_audit._WORKERS


def test_workers_and_variants(toy: Path, copy: Path) -> None:
    arguments = ("audit", copy, "--test", toy, *SHORT, "--attacks", "direct,grayscale", "--json")
    ran = run_uge(*arguments, "--workers", "2", "--variants", "order,jpeg95", "--combine")
    assert ran.code == 0, ran.err
    assert {one["scheme"] for one in ran.json["variants"]} == {"order", "jpeg95"}
    assert (ran.json["failed"], ran.json["left_out"]) == ([], [])
    assert ran.err.count("audit ") == ran.json["planned"] == ran.json["ran"]
    summary = json.loads((copy.with_name("copy.audit") / "summary.json").read_text())
    assert summary["hackers"] == ran.json["hackers"]
    attacked = json.loads((copy.with_name("copy.audit") / "attacked" / "attacked.json").read_text())["pictures"]
    assert [one["attack"] for one in attacked] == ["published"] * 3 + ["grayscale"] * 3
    for one in attacked[3:]:
        pixels = np.asarray(Image.open(copy.with_name("copy.audit") / "attacked" / one["file"]))
        assert np.array_equal(pixels[..., 0], pixels[..., 2])
    again = run_uge(*arguments, "--variants", "order,jpeg95")
    assert again.err.count("audit ") == 0
    assert again.json["hackers"] == ran.json["hackers"]


def test_the_worst_case(foreign: Path, toy: Path, tmp_path: Path) -> None:
    test, folder = toy / "test", tmp_path / "worst"
    arguments = ("audit", foreign, "--worst-case", "--test", test, "--clean", toy / "train", "--folder", folder)
    arguments += ("--networks", "lenet", "--epochs", "1", "--attacks", "direct,grayscale", "--strongest", "1")
    would = run_uge(*arguments, "--json", "--dry-run").json
    assert {name.rpartition("-s")[2] for name in would["cases"]} == {"0"}
    found = run_uge(*arguments)
    assert found.code == 0, found.err
    assert found.out.startswith("worst case, 1 epoch: ")
    stored = json.loads((folder / "summary.json").read_text())
    worst = stored["worst_case"]
    assert (worst["short"]["epochs"], worst["long"]["epochs"]) == (1, 3)
    assert worst["labelled"] + stored["facts"]["test_images"] == len(list(test.rglob("*.*")))
    assert worst["short"]["no_copy"]["scheme"] == "few-labelled"
    assert worst["short"]["attacks"][0]["seeds"] == 3  # Of the strongest; three are the default.
    assert "Worst case" in (folder / "report.html").read_text()
    again = run_uge(*arguments, "--dry-run", "--json").json
    assert again["cases"] == []
    page = tmp_path / "both.html"
    compared = run_uge("compare", folder, f"again={folder}", "--out", page)
    assert compared.code == 0, compared.err
    assert "worst case " in compared.out
    assert "The lowest worst case is that of" in page.read_text()
    assert "| protection | worst case | long form |" in page.with_suffix(".md").read_text()
