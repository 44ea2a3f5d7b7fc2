"""Ctrl-C, kill -9 and failures: what is finished is kept, and a resumed run ends with the same bytes."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import PAPER, TINY, contents, refused, reproducible, run_uge, tiny

Interrupt = Callable[..., None]
REFINED = (
    *tiny(method="uge", refinement__rounds=2, refinement__passes=3, refinement__batch_size=12, generator__imitate=4),
    *("--refine", "--refinement.hackers=lenet", "--refinement.hacker-steps=3", "--refinement.hacker-term=student"),
    *("--generator.skips", "--generator.conditional", "--loss.lambda-pm=0.1", "--loss.lambda-vm=0.1"),
)

# A run that kills itself the hard way inside the given call of a function.
SUICIDE = """
import importlib, os, signal, sys
from uge.cli.main import main
module, name, call = sys.argv[1], sys.argv[2], int(sys.argv[3])
home = importlib.import_module(module)
real, calls = getattr(home, name), [0]
def dying(*args, **kwargs):
    calls[0] += 1
    if calls[0] == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(home, name, dying)
main(sys.argv[4:])
"""


def same_results(first: Path, second: Path) -> None:
    assert reproducible(first) == reproducible(second)
    for out in (first, second):
        key = out.with_name(f"{out.name}.private") / "owner.agekey"
        assert run_uge("verify", out, "--key", key, "-q").code == 0
    one, other = (secrets(out) for out in (first, second))
    assert one == other
    assert {"authorized-0.key.safetensors", "generator.safetensors"} <= set(one)


def secrets(out: Path) -> dict[str, bytes]:
    private = out.with_name(f"{out.name}.private")
    return {path.name: path.read_bytes() for path in sorted(private.glob("*.safetensors"))}


def test_interrupted_in_the_generator_resumes_to_the_same_bytes(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, toy: Path, paper: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    interrupt("uge.methods.uge.protector.add_perturbation", KeyboardInterrupt, call=4)
    ran = run_uge("protect", toy, out, *PAPER)
    assert (ran.code, ran.out) == (130, "")
    hint = ran.err.splitlines()[-1]
    assert "interrupted; finished parts were kept, go on with: uge protect" in hint
    assert not out.exists()
    monkeypatch.undo()
    again = shlex.split(hint.partition("go on with: ")[2])
    assert again[-1] == "--resume"
    resumed = run_uge(*again[1:])
    assert resumed.code == 0, resumed.err
    assert "trajectory" not in resumed.err
    same_results(out, paper)
    assert "encoder.safetensors" in secrets(out)
    assert "finished already" in run_uge(*again[1:]).err


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("uge.methods.uge.protector", "move", 14),
        ("uge.methods.uge.protector", "imitation", 3),
        ("uge.publishing.writer", "encode", 20),
        ("uge.pipeline.private_folder", "write_json", 2),
    ],
    ids=["second round", "imitation", "publishing", "after publishing"],
)
def test_killed_runs_resume_to_the_same_bytes(
    module: str, name: str, call: int, refined: Path, toy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    arguments = ["protect", str(toy), str(out), *REFINED, "--threads", "1", "-q"]
    killed = subprocess.run([sys.executable, "-c", SUICIDE, module, name, str(call), *arguments])
    assert killed.returncode == -signal.SIGKILL
    state = json.loads((tmp_path / "copy.private" / "run" / "refine.json").read_text())
    assert state["passes"] == (4 if name == "move" else 6)
    resumed = run_uge(*arguments, "--resume")
    assert resumed.code == 0, resumed.err
    same_results(out, refined)
    assert sorted(os.listdir(tmp_path)) == ["copy", "copy.private"]


@pytest.mark.parametrize(
    ("module", "name", "call", "kept"),
    [
        ("uge.methods.apply", "save_perturber", 1, {"authorized-0.key.safetensors"}),
        ("uge.publishing.writer", "encode", 20, {"authorized-0.key.safetensors", "generator.safetensors"}),
        ("uge.pipeline.private_folder", "write_json", 2, {"authorized-0.key.safetensors", "generator.safetensors"}),
    ],
    ids=["before the code", "publishing", "after publishing"],
)
def test_killed_keyed_runs_resume_to_the_same_bytes(
    module: str, name: str, call: int, kept: set[str], finished: Path, toy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    arguments = ["protect", str(toy), str(out), *TINY, "-q"]
    killed = subprocess.run([sys.executable, "-c", SUICIDE, module, name, str(call), *arguments])
    assert killed.returncode == -signal.SIGKILL
    assert set(secrets(out)) == kept
    before = secrets(out)
    resumed = run_uge(*arguments, "--resume")
    assert resumed.code == 0, resumed.err
    same_results(out, finished)
    assert {file: secrets(out)[file] for file in kept} == before
    assert sorted(os.listdir(tmp_path)) == ["copy", "copy.private"]
    assert "finished already" in run_uge(*arguments[:-1], "--resume").err


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_resuming_publishes_again_what_is_gone(damage: str, finished: Path, toy: Path, copy: Path) -> None:
    shard = next((copy / "data").iterdir())
    shard.unlink() if damage == "missing" else shard.write_bytes(b"x")
    ran = run_uge("protect", toy, copy, *TINY, "--resume")
    assert ran.code == 0
    assert "are missing or changed; it is published again" in ran.err
    same_results(copy, finished)


def test_a_terminated_run_leaves_no_staging_folder(toy: Path, tmp_path: Path) -> None:
    ending = SUICIDE.replace("SIGKILL", "SIGTERM")
    arguments = ["protect", str(toy), str(tmp_path / "copy"), *TINY, "-q"]
    ended = subprocess.run([sys.executable, "-c", ending, "uge.publishing.writer", "closing", "1", *arguments])
    assert ended.returncode == 143
    assert os.listdir(tmp_path) == ["copy.private"]


@pytest.fixture(scope="module")
def refined(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("refined") / "copy"
    ran = run_uge("protect", toy, out, *REFINED, "-q")
    assert ran.code == 0, ran.err
    return out


def test_verbs_that_cannot_resume_do_not_say_so(interrupt: Interrupt, toy: Path, finished: Path) -> None:
    interrupt("uge.publishing.verify.read_manifest", KeyboardInterrupt)
    ran = run_uge("verify", finished)
    assert ran.code == 130
    assert "--resume" not in ran.err
    assert "start again" in ran.err


def test_a_killed_training_of_the_receiver_goes_on(toy: Path, finished: Path, key: Path, tmp_path: Path) -> None:
    def arguments(name: str, *more: str) -> list[str]:
        flags = ("--test", str(toy), "--epochs", "3", "--threads", "1", "-q")
        return ["train", str(finished), "--key", str(key), "--save", str(tmp_path / name), *flags, *more]

    assert run_uge(*arguments("whole")).code == 0
    killing = [sys.executable, "-c", SUICIDE, "uge.learning.training", "predict", "3", *arguments("half")]
    assert subprocess.run(killing).returncode == -signal.SIGKILL
    assert sum(name.endswith(".checkpoint") for name in os.listdir(tmp_path)) == 1
    other = run_uge(*arguments("half", "--resume", "--seed", "9"))
    assert (other.code, "had other images, settings" in other.err) == (2, True)
    resumed = run_uge(*arguments("half", "--resume", "--json"))
    assert resumed.code == 0, resumed.err
    assert len(resumed.json["epochs"]) == 3
    assert sorted(os.listdir(tmp_path)) == ["half", "whole"]
    assert (tmp_path / "half").read_bytes() == (tmp_path / "whole").read_bytes()
    refused(2, "give --save FILE", *arguments("x")[:4], "--resume", inside=tmp_path)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("uge", "uge.methods.uge.stages.train_generator"),
        ("uge", "uge.publishing.writer.encode"),
        ("keyed", "uge.publishing.writer.encode"),
    ],
    ids=["uge-generator", "uge-encode", "keyed-encode"],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")], ids=["Ctrl-C", "disk full"])
def test_overwrite_keeps_the_old_copy_and_its_keys_until_the_end(
    method: str,
    target: str,
    error: BaseException,
    interrupt: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
    toy: Path,
    copy: Path,
    tmp_path: Path,
) -> None:
    before, flags = contents(tmp_path), tiny(method=method, seed=7, authorized_seed=7)
    interrupt(target, error)
    arguments = ("protect", toy, copy, *flags, "--overwrite")
    assert run_uge(*arguments, "-q").code in (1, 2, 130)
    monkeypatch.undo()
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert run_uge("train", copy, "--key", tmp_path / "copy.private" / "authorized-0.key.safetensors").code == 0

    resumed = run_uge("protect", toy, copy, *flags, "--resume", "-q")
    assert resumed.code == 0, resumed.err
    assert sorted(os.listdir(tmp_path)) == ["copy", "copy.private"]
    assert contents(copy) != {name.removeprefix("copy/"): data for name, data in before.items()}
    fresh = tmp_path / "fresh" / "copy"
    assert run_uge("protect", toy, fresh, *flags, "-q").code == 0
    same_results(copy, fresh)


def test_overwrite_replaces_both_folders(toy: Path, copy: Path, tmp_path: Path) -> None:
    old = contents(tmp_path)
    ran = run_uge("protect", toy, copy, *tiny(authorized_seed=3), "--overwrite", "-q")
    assert ran.code == 0, ran.err
    new = contents(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["copy", "copy.private"]
    private = ("generator.safetensors", "authorized-0.key.safetensors", "run/run.json")
    for name in ("copy/manifest.json", *(f"copy.private/{name}" for name in private)):
        assert new[name] != old[name]


def test_the_resume_hint_of_an_overwriting_run_does_not_overwrite(interrupt: Interrupt, toy: Path, copy: Path) -> None:
    interrupt("uge.methods.uge.stages.train_generator", KeyboardInterrupt)
    ran = run_uge("protect", toy, copy, *tiny(method="uge", seed=7), "--overwrite", "-q")
    assert "--overwrite" not in ran.err
    assert ran.err.rstrip().endswith("--resume")


def test_an_interrupted_audit_goes_on(
    interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, toy: Path, copy: Path
) -> None:
    arguments = ("audit", copy, "--test", toy, "--networks", "lenet", "--attacks", "direct,distill")
    interrupt("uge.cases.case.write_case", KeyboardInterrupt, call=3)
    ran = run_uge(*arguments)
    assert ran.code == 130
    monkeypatch.undo()
    again = run_uge(*arguments, "--resume", "--json")
    assert again.code == 0
    assert again.err.count("audit ") == 4


def test_an_audit_interrupted_at_once_leaves_no_folder(interrupt: Interrupt, toy: Path, copy: Path) -> None:
    interrupt("uge.cases.case.write_case", KeyboardInterrupt)
    assert run_uge("audit", copy, "--test", toy, "--networks", "lenet").code == 130
    assert sorted(os.listdir(copy.parent)) == ["copy", "copy.private"]


@pytest.mark.parametrize("method", ["keyed", "random", "lsp"])
def test_a_late_error_of_a_method_that_trains_nothing_leaves_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch, toy: Path, tmp_path: Path
) -> None:
    def fail(manifest: object) -> str:
        raise ValueError("no page")

    monkeypatch.setattr("uge.publishing.writer.PAGES", (("README.md", fail),))
    authorized = {} if method == "keyed" else {"authorized": None}
    ran = run_uge("protect", toy, tmp_path / "copy", *tiny(method=method, **authorized), "-q")
    assert (ran.code, "unexpected ValueError: no page" in ran.err) == (1, True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("seed", ["x", -1, 1.5, [1], True])
def test_a_damaged_seed_of_a_run_is_one_sentence(seed: object, toy: Path, tmp_path: Path) -> None:
    arguments = ("protect", toy, tmp_path / "copy", *tiny(authorized_seed=None), "-q")
    assert run_uge(*arguments).code == 0
    state = tmp_path / "copy.private" / "run" / "run.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"authorized_seed": seed}))
    ran = run_uge(*arguments, "--resume")
    assert ran.code == 1
    assert f"should hold a whole number as authorized_seed, got {seed!r}; it is damaged, start again" in ran.err
