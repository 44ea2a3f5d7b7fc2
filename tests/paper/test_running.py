"""Experiments really run, at a scale smaller than smoke: resumable, shared, honest about what is missing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_scale import TINY

from uge.cases import case
from uge.cases.case import Case, read_cases
from uge.cli.main import main
from uge.paper import laboratory
from uge.paper.ledger import PaperLedger
from uge.paper.request import Request
from uge.paper.results import Measured, read_results
from uge.paper.run import carry_out
from uge.paper.specs import ORIGINAL
from uge.runtime import Runtime
from uge.session import Session

Run = Callable[..., Request]


def states(request: Request, *rows: str) -> dict[str, Measured]:
    """What was measured, by ``DATA/ROW/COLUMN``; only rows that start with one of ``rows``."""
    kept = PaperLedger(request.folder)
    return {
        f"{entry.section.title}/{entry.cell.row}/{entry.cell.column}": entry.measured
        for experiment in request.wanted
        for entry in read_results(experiment, kept).entries
        if not rows or entry.cell.row.startswith(rows)
    }


def accuracies(folder: Path) -> dict[str, list[float]]:
    return {case.id: [epoch.test_accuracy for epoch in case.history] for case in read_cases(folder)}


def untouchable(*_: object, **__: object) -> object:
    raise AssertionError("nothing was left to do")


def test_a_whole_table_runs_once_and_only_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    request = run("table2")
    found = states(request)
    assert len(found) == 16
    assert {one.state for one in found.values()} == {"done"}
    control = found["CIFAR-10/Original/Normal/CNN"]
    assert found["CIFAR-10/UGEs/Normal/CNN"].clean == control.last
    assert all(one.hardware and one.recipes and one.costs for one in found.values())
    before = accuracies(request.folder)
    monkeypatch.setattr(laboratory, "run_case", untouchable)
    monkeypatch.setattr(laboratory, "ProtectRun", untouchable)
    assert {one.state for one in states(run("table2")).values()} == {"done"}
    shared = states(run("fig7", "2 authorised"), "2 authorised")
    assert {one.state for one in shared.values()} == {"done"}
    assert accuracies(request.folder) == before


def test_a_killed_run_goes_on_to_the_same_numbers(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: Runtime
) -> None:
    whole = Request.at("table1", TINY, {}, tmp_path / "whole", ("CIFAR-10/Keyed",))
    carry_out(whole.plan, whole.folder, whole.sources, Session(runtime))
    known = accuracies(whole.folder)
    keep = case.write_case
    count = 0

    def killed(folder: Path, case: Case) -> Path:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return keep(folder, case)

    monkeypatch.setattr(case, "write_case", killed)
    with pytest.raises(KeyboardInterrupt):
        run("table1", "CIFAR-10/Keyed")
    assert 0 < len(accuracies(tmp_path)) < len(known)
    assert {one.state for one in states(run("table1", "CIFAR-10/Keyed"), "Keyed").values()} == {"done"}
    assert accuracies(tmp_path) == known


def test_a_lost_teacher_is_trained_again_for_its_students(run: Run) -> None:
    folder = run("table2", "CIFAR-10/Original").folder
    known = accuracies(folder)
    weights = sorted((folder / "weights").iterdir())
    assert len(weights) == 2
    for path in (*weights, *(folder / "cases").glob("hacker-*-distill-*")):
        path.unlink()
    run("table2", "CIFAR-10/Original")
    assert accuracies(folder) == known
    assert sorted((folder / "weights").iterdir()) == weights


def test_one_failure_costs_no_other_cell(run: Run) -> None:
    broken = TINY.model_copy(update={"protect": {**TINY.protect, "hacker": "resnet-of-nobody"}})
    only = ("CIFAR-10/Original/Normal", "CIFAR-10/UnDistill/Normal", "CIFAR-10/Keyed (ours)/Normal")
    request = run("table1", *only, scale=broken)
    found = states(request)
    failed = found["CIFAR-10/UnDistill/Normal/CNN"]
    assert failed.state == "failed"
    assert "resnet-of-nobody" in failed.reason
    assert found["CIFAR-10/Original/Normal/CNN"].state == found["CIFAR-10/Keyed (ours)/Normal/CNN"].state == "done"
    assert found["CIFAR-10/UGEs/Normal/CNN"].state in ("missing", "failed")
    request.write()
    assert "failed" in (request.folder / "table1.md").read_text()


def test_images_that_cannot_be_had_leave_their_cells_empty_with_the_reason(run: Run, tmp_path: Path) -> None:
    request = run("table1", "CIFAR-10/Original/Normal", "CIFAR-100/Original/Normal", cifar100=str(tmp_path / "absent"))
    found = states(request)
    assert found["CIFAR-10/Original/Normal/CNN"].state == "done"
    missing = found["CIFAR-100/Original/Normal/ResNet-18"]
    assert missing.state == "missing"
    assert "absent" in missing.reason
    assert str(tmp_path) not in json.dumps(PaperLedger(request.folder).images("photos"))


def test_other_images_under_the_same_name_are_measured_again(run: Run, tmp_path: Path) -> None:
    source, random = tmp_path / "mine.npz", np.random.default_rng(0)

    def write(low: int) -> None:
        pixels = {f"x_{split}": random.integers(low, 256, (40, 16, 16, 3), np.uint8) for split in ("train", "test")}
        np.savez(source, **pixels, y_train=np.arange(40) % 4, y_test=np.arange(40) % 4)

    write(0)
    first = states(run("table3", "random noise/CIFAR-10 ", cifar10=str(source)), "random noise")
    prints = {case.fingerprint for case in read_cases(tmp_path)}
    write(100)
    second = states(run("table3", "random noise/CIFAR-10 ", cifar10=str(source)), "random noise")
    there = {one.state for found in (first, second) for name, one in found.items() if "CIFAR-10 " in name}
    assert there == {"done"}
    assert not prints & {case.fingerprint for case in read_cases(tmp_path)}


def test_table_3_has_baselines_at_their_own_budget(run: Run) -> None:
    request = run("table3", "/EM/CIFAR-10", "/CUDA/CIFAR-10", "/LSP/CIFAR-10")
    found = states(request, "EM", "CUDA", "LSP")
    assert {name: one.state for name, one in found.items() if "CIFAR-10 " in name} == {
        f"ResNet-18/{row}/CIFAR-10 {kind}": "done" for row in ("EM", "CUDA", "LSP") for kind in ("clean", "protected")
    }
    kept = PaperLedger(request.folder)
    budgets = {copy.method: (kept.result(copy) or {})["budget"]["levels"] for copy in request.plan.copies}
    assert budgets["em"] == 8
    assert budgets["cuda"] == 255


def test_figures_4_and_6_are_pictures(run: Run) -> None:
    request = run("fig4")
    (copy, count), *_ = request.plan.pictured
    folder = PaperLedger(request.folder).place("pictures", copy)
    original, noise, protected = (
        np.asarray(Image.open(folder / f"00-{kind}.png")).astype(int) for kind in ("original", "noise", "protected")
    )
    levels = json.loads((folder / "pictures.json").read_text())["levels"]
    assert count == TINY.pictures == len(list(folder.glob("*-noise.png")))
    assert 0 < np.abs(protected - original).max() <= levels == 10
    assert np.abs((noise - 128) - 12.7 * (protected - original)).max() <= 0.5
    request.write()
    assert (request.folder / "fig4.html").read_text().count("data:image/png") == 3 * 2 * TINY.pictures


def test_table_9_is_a_federated_run(run: Run) -> None:
    request = run("table9")
    found = states(request)
    assert len(found) == 29
    assert {one.state for one in found.values()} == {"done"}, [one.reason for one in found.values()]
    halves = [found[f"CIFAR-10/{row} 5 classes/Global"].last for row in ("first", "last")]
    assert found["CIFAR-10/average/Global"].last == pytest.approx(sum(half or 0 for half in halves) / 2, abs=0.01)


def test_several_processes_give_the_same_numbers(run: Run, tmp_path: Path, runtime: Runtime) -> None:
    only = ("CIFAR-10/Original",)
    alone = run("table1", *only)
    many = Request.at("table1", TINY, {}, tmp_path / "many", only)
    carry_out(many.plan, many.folder, many.sources, Session(runtime), workers=2)
    assert accuracies(many.folder) == accuracies(alone.folder) != {}


def test_a_repetition_protects_with_another_key(run: Run) -> None:
    request = run("table1", "CIFAR-10/Keyed (ours)/Normal/authorised", scale=TINY.changed(seeds=2))
    found = states(request)["CIFAR-10/Keyed (ours)/Normal/authorised"]
    assert (found.state, found.seeds) == ("done", 2)
    assert found.std is not None
    copies = [copy for copy in request.plan.copies if copy.method != ORIGINAL]
    keys = [next(request.folder.glob(f"copies/{copy.id}*.private/authorized-0.key.safetensors")) for copy in copies]
    assert keys[0].read_bytes() != keys[1].read_bytes()


def uge(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["reproduce", *words])
    shown = capsys.readouterr()
    return int(left.value.code or 0), shown.out, shown.err


def test_the_verb_says_what_it_would_do_and_reports_an_empty_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, _ = uge(capsys, "table2", "--out", str(out), "--dry-run", "--json")
    found = json.loads(text)
    assert (code, found["parts"], out.exists()) == (0, found["pending"], False)
    code, text, _ = uge(capsys, "table2", "--scale", "cpu", "--out", str(out), "--report-only")
    assert (code, text.splitlines()[0]) == (0, "table2: 0 done, 16 missing, 0 failed")
    assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".html", ".json", ".md"]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["tabel1"], "table1"),
        (["table1", "--scale", "papper"], "paper"),
        (["table1", "--data", "cifar10"], "NAME=SOURCE"),
        (["table1", "--seeds", "0"], "--seeds"),
        (["table1", "--workers", "0"], "--workers"),
        (["table1", "--only", "nothing like it"], "no cell matches"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, complaint = uge(capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert hint in complaint
    assert len(complaint.splitlines()) == 1
