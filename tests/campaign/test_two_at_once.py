"""Two commands that meet at one output: one wins, the other names it, and keys are never lost or mixed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import reproducible, run_uge, tiny

from uge.networks import from_weights, weights_hash
from uge.publishing import read_manifest

# A command that says when it publishes, and waits for a line then.
PAUSING = """
import sys
import uge.publishing.writer as writer
from uge.cli.main import main
real = writer.ordered_map
def pausing(*args, **kwargs):
    print("publishes", flush=True)
    sys.stdin.readline()
    return real(*args, **kwargs)
writer.ordered_map = pausing
main(sys.argv[1:])
"""


def protect(images: Path, out: Path, *more: str, seed: int = 0) -> list[str]:
    return ["protect", str(images), str(out), *tiny(authorized_seed=seed), "-q", *more]


def start(arguments: list[str], code: str = "from uge.cli.main import main; main()") -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **pipes)


def belongs_together(out: Path) -> bool:
    """True where the published folder was made for the key beside it, and no other file lies there."""
    key = from_weights(out.with_name(f"{out.name}.private") / "authorized-0.key.safetensors")
    (made_for,) = read_manifest(out).authorized
    alone = sorted(os.listdir(out.parent)) == [out.name, f"{out.name}.private"]
    return alone and made_for.weights_sha256 == weights_hash(key)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_second_is_refused_and_the_first_ends_undisturbed(overwrite: bool, six: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    flags = ["--overwrite"] if overwrite else []
    if overwrite:
        assert run_uge(*protect(six, out)).code == 0
    with start(protect(six, out, *flags, seed=1), PAUSING) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "publishes\n"
        for seed, more in ((1, flags), (2, flags), (2, ["--overwrite"]), (1, ["--resume"])):
            second = run_uge(*protect(six, out, *more, seed=seed))
            assert second.code == 2
            assert second.err.startswith(f"uge: process {first.pid}, begun ")
            assert second.err.count("\n") == 1
        applied = run_uge("apply", str(tmp_path / "absent"), str(six), str(out), "--overwrite")
        assert (applied.code, f"process {first.pid}" in applied.err) == (2, True)
        first.communicate("go\n")
    assert first.returncode == 0
    assert belongs_together(out)
    fresh = tmp_path / "fresh" / "copy"
    assert run_uge(*protect(six, fresh, seed=1)).code == 0
    assert reproducible(out) == reproducible(fresh)


@pytest.mark.campaign
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)], ids=["same seed", "other seed"])
def test_two_that_start_together(overwrite: bool, seeds: tuple[int, int], six: Path, tmp_path: Path) -> None:
    codes = []
    for number in range(12):
        out = tmp_path / str(number) / "copy"
        flags = ["--overwrite"] if overwrite else []
        if overwrite:
            assert run_uge(*protect(six, out)).code == 0
        both = [start(protect(six, out, *flags, seed=seed)) for seed in seeds]
        errors = [process.communicate()[1] for process in both]
        codes.append(sorted(process.returncode for process in both))
        assert 0 in codes[-1], errors
        for process, error in zip(both, errors, strict=True):
            names = f"process {both[process is both[0]].pid}, begun" in error or "holds an earlier run" in error
            assert process.returncode == 0 or (process.returncode == 2 and names), error
        assert belongs_together(out), errors
    print(json.dumps({"overwrite": overwrite, "seeds": seeds, "codes": codes}))  # noqa: T201


@pytest.mark.campaign
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", ["request", "train", "audit", "fulfil", "sign", "append"])
def test_other_commands_that_start_together(command: str, six: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    out = place / "copy"
    assert run_uge(*protect(six, out)).code == 0
    key = place / "copy.private" / "authorized-0.key.safetensors"
    training = ["--epochs", "1", "--threads", "1", "-q"]
    identity = ["--identity", str(tmp_path / "me.pem"), "-q", "--overwrite"]
    arguments = {
        "request": ["request", str(place / "a.json"), "--network", "lenet", "--classes", "3", *identity],
        "train": ["train", str(out), "--key", str(key), "--save", str(place / "w"), "--overwrite", *training],
        "fulfil": ["fulfil", str(place / "b.json"), str(six), str(place / "answer"), "--threads", "1", *identity],
        "sign": ["sign", str(out), "-q", "--overwrite"],
        "append": ["protect", str(six.with_name("twelve")), str(out), "--append", "-q"],
        "audit": ["audit", str(out), "--test", str(six), "--networks", "lenet", "--attacks", "direct", *training],
    }[command]
    if command == "fulfil":
        asked = ["--network", "lenet", "--classes", "3", "--size", "16", "--recipe.epochs", "1"]
        public = six.with_name("lab.pub").read_text()
        assert run_uge("request", place / "b.json", *asked, "--to", public, "--method", "uge", *identity[:3]).code == 0
    for _ in range(6):
        both = [start(arguments) for _ in range(2)]
        errors = [process.communicate()[1] for process in both]
        codes = {process.returncode for process in both}
        assert 0 in codes, errors
        assert codes <= {0, 2}, errors
        assert all(
            process.returncode == 0 or "is writing" in error for process, error in zip(both, errors, strict=True)
        )
        assert not [name for name in os.listdir(place) if name.startswith(".")]
        if command in ("sign", "append"):
            opened = run_uge("verify", out, "--key", place / "copy.private" / "owner.agekey", "--json").json
            assert (opened["problems"], opened["count"], opened["opened"]) == (
                [],
                *[16 if command == "append" else 6] * 2,
            )
        if command == "request":
            assert run_uge("inspect", place / "a.json").code == 0
