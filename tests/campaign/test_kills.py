"""A kill before every file operation of every writing command: nothing is lost, mixed, left or stuck."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import reproducible, run_uge, tiny
from faults import Kill, killed_at

from sealed import originals
from uge.cli.main import main
from uge.files import recover

Arguments = tuple[str, ...]
_TRAINING = ("--epochs", "2", "--threads", "1")


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        arguments: Made from the images and the folder in which it works.
        before: Commands that made what is there already.
        outputs: Files and folders that belong together; those that are not compared byte by byte end in ``*``.
        resumes: True for a command that takes ``--resume``.
    """

    arguments: Callable[[Path, Path], Arguments]
    before: Callable[[Path, Path], tuple[Arguments, ...]] = lambda images, place: ()
    outputs: tuple[str, ...] = ("copy", "copy.private")
    resumes: bool = True


def protect(images: Path, place: Path, *more: str, **changes: object) -> Arguments:
    return ("protect", str(images), str(place / "copy"), *tiny(**changes), "-q", *more)


def append(images: Path, place: Path) -> Arguments:
    return ("protect", str(images.with_name("twelve")), str(place / "copy"), "--append", "-q")


def request(images: Path, place: Path, *more: str, seed: int = 1, identity: Path | None = None) -> Arguments:
    signer = ("--identity", str(identity or images.with_name("me.pem")))
    flags = ("--network", "lenet", "--classes", "3", "--seed", str(seed), *signer, "-q", *more)
    return ("request", str(place / "alice.json"), *flags)


def key(place: Path) -> str:
    return str(place / "copy.private" / "authorized-0.key.safetensors")


COMMANDS = {
    "protect": Command(protect),
    "protect --overwrite": Command(
        lambda images, place: protect(images, place, "--overwrite", authorized_seed=7),
        lambda images, place: (protect(images, place),),
    ),
    "protect --method uge": Command(lambda images, place: protect(images, place, method="uge")),
    "protect --append": Command(
        append,
        lambda images, place: (protect(images, place),),
        resumes=False,
    ),
    "protect --append, as an image folder": Command(
        append,
        lambda images, place: (protect(images, place, "--format", "imagefolder"),),
        resumes=False,
    ),
    "federated": Command(
        lambda images, place: (
            *("federated", str(images.with_name("twelve")), str(place / "fed"), "--test", str(images)),
            *("--servers", "2", "--split", "iid"),
            *("--networks", "lenet", "--no-control", *tiny(), "-q"),
        ),
        outputs=tuple(f"fed/server-{number}/published{ending}" for number in (0, 1) for ending in ("", ".private")),
    ),
    "protect --method lsp": Command(lambda images, place: protect(images, place, method="lsp", authorized=None)),
    "apply": Command(
        lambda images, place: (
            "apply",
            str(place / "copy.private" / "generator.safetensors"),
            str(images),
            str(place / "more"),
            "-q",
        ),
        lambda images, place: (protect(images, place),),
        ("copy", "copy.private", "more"),
        resumes=False,
    ),
    "grant": Command(
        lambda images, place: ("grant", str(place / "copy"), "--to", str(images.with_name("lab.pub")), "-q"),
        lambda images, place: (protect(images, place),),
        resumes=False,
    ),
    "rekey": Command(
        lambda images, place: ("rekey", str(place / "copy"), "-q"),
        lambda images, place: (protect(images, place),),
        resumes=False,
    ),
    "sign": Command(
        lambda images, place: ("sign", str(place / "copy"), "--overwrite", "-q"),
        lambda images, place: (protect(images, place),),
        resumes=False,
    ),
    "request": Command(request, outputs=("alice.json", "alice.theta0.safetensors"), resumes=False),
    "first request": Command(
        lambda images, place: request(images, place, identity=place / "me.pem"),
        outputs=("alice.theta0.safetensors",),
        resumes=False,
    ),
    "request --overwrite": Command(
        lambda images, place: request(images, place, "--overwrite", seed=2),
        lambda images, place: (request(images, place),),
        ("alice.json", "alice.theta0.safetensors"),
        resumes=False,
    ),
    "train --save": Command(
        lambda images, place: (
            "train",
            str(place / "copy"),
            "--key",
            key(place),
            "--save",
            str(place / "weights"),
            *_TRAINING,
            "-q",
        ),
        lambda images, place: (protect(images, place),),
        ("copy", "copy.private", "weights"),
    ),
    "audit": Command(
        lambda images, place: (
            *("audit", str(place / "copy"), "--test", str(images), "--networks", "lenet", "--attacks", "direct"),
            *("--workers", "1", *_TRAINING, "-q"),
        ),
        lambda images, place: (protect(images, place),),
        ("copy", "copy.private", "copy.audit*"),
    ),
}
STEPS = {"protect --method uge": 5, "federated": 11}
"""Distance of the kills of commands that take long, in the campaign."""
EXTRACT = {
    "protect": 29,
    "protect --overwrite": 23,
    "protect --append": 13,
    "apply": 41,
    "request --overwrite": 17,
    "train --save": 23,
}
"""Commands of the extract that every run of the tests has, and the distance of their kills."""


def kill_everywhere(command: Command, images: Path, tmp_path: Path, step: int) -> int:
    base = tmp_path / "base"
    base.mkdir()
    for arguments in command.before(images, base):
        assert run_uge(*arguments).code == 0
    whole = tmp_path / "whole"
    before = shutil.copytree(base, whole) and pair(base, command)
    with killed_at(0, whole) as operations:
        assert run_uge(*command.arguments(images, whole)).code == 0
    after = pair(whole, command)
    sealed, salts = originals(whole)
    names = sorted(os.listdir(whole))
    # The first and the last operations, and every one of those that change places, are in every extract.
    swaps = [number for number, name in enumerate(operations.names, 1) if name.startswith(("rename", "rmdir"))]
    numbers = range(1, len(operations.names) + 1)
    chosen = numbers if step == 1 else sorted({*numbers[::step], *swaps[:: max(1, step // 8)], len(operations.names)})
    for number in chosen:
        place = tmp_path / "killed"
        shutil.copytree(base, place)
        with pytest.raises(Kill), killed_at(number, place):
            main(list(command.arguments(images, place)))
        where = f"killed before operation {number}: {operations.names[number - 1]}"
        if number % 2:
            for name in command.outputs:
                recover(place / name)
            assert_whole(place, command, before, after, where)
        go_on(command, images, place, where)
        assert pair(place, command) == after, where
        assert sorted(os.listdir(place)) == names, where
        again, drawn = originals(place)
        assert again == sealed, where
        if not command.before(images, place):
            assert not drawn & salts, f"{where}: a shard was written twice with one key"
        salts |= drawn
        shutil.rmtree(place)
    return len(operations.names)


def assert_whole(place: Path, command: Command, before: dict[str, bytes], after: dict[str, bytes], where: str) -> None:
    """The old outputs are there or the new ones; of the first run perhaps a private folder under way."""
    exact = {name: data for name, data in pair(place, command).items() if data or name in before}
    assert not any(name.startswith("copy/") for name in exact if name not in before) or exact == after, where
    if any(name.startswith("copy/") for name in before) or "alice.json" in before:
        assert exact in (before, after), where


def go_on(command: Command, images: Path, place: Path, where: str) -> None:
    """Repeat the command, first with ``--resume``, until it does not go on; a finished file may be in the way."""
    arguments = command.arguments(images, place)
    resumed = [part for part in arguments if part != "--overwrite"]
    ran = run_uge(*resumed, "--resume") if command.resumes else None
    if ran is None or ran.code:
        plain = run_uge(*arguments)
        finished = ("is an existing file", "is not empty; choose another name", "is sealed for that key already")
        assert plain.code == 0 or any(words in plain.err for words in finished), (where, ran, plain)


def pair(place: Path, command: Command) -> dict[str, bytes]:
    """Files of a command's outputs that an undisturbed run writes the same way; no logs and no measured times."""
    files = reproducible(place)
    exact = [name for name in command.outputs if not name.endswith("*")]
    chosen = {
        name: data
        for name, data in files.items()
        if any(name == output or name.startswith(f"{output}/") for output in exact)
        and not name.endswith((".jsonl", "run.json", "trajectory.json", ".checkpoint.safetensors"))
    }
    counted = {name: b"" for name in files if "/." not in name and name.partition("/")[0] + "*" in command.outputs}
    return chosen | counted


@pytest.mark.campaign
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_kill_is_survived(name: str, six: Path, tmp_path: Path) -> None:
    count = kill_everywhere(COMMANDS[name], six, tmp_path, STEPS.get(name, 1))
    print(f"{name}: {count} file operations, a kill before every {STEPS.get(name, 1)}.")  # noqa: T201


@pytest.mark.parametrize("name", EXTRACT)
def test_some_kills_are_survived(name: str, six: Path, tmp_path: Path) -> None:
    assert kill_everywhere(COMMANDS[name], six, tmp_path, EXTRACT[name]) > 20


READERS = {
    "verify": ("verify", "copy"),
    "inspect": ("inspect", "copy"),
    "inspect the private folder": ("inspect", "copy.private"),
    "train": ("train", "copy", "--key", "copy.private/authorized-0.key.safetensors"),
    "apply": ("apply", "copy.private/generator.safetensors", "SIX", "more"),
    "audit": ("audit", "copy", "--test", "SIX", "--networks", "lenet", "--attacks", "direct", "--dry-run"),
    "protect": ("protect", "SIX", "copy", *tiny(authorized_seed=7), "--resume"),
}


@pytest.mark.parametrize(("reader", "rename"), tuple(zip(READERS, (-3, -2, -1, -3, -2, -1, -3), strict=True)))
def test_any_command_completes_the_exchange(
    reader: str, rename: int, monkeypatch: pytest.MonkeyPatch, six: Path, tmp_path: Path
) -> None:
    """The last four renames: the old public folder goes, the new one comes; then the private ones."""
    command = COMMANDS["protect --overwrite"]
    base = tmp_path / "base"
    assert run_uge(*command.before(six, base)[0]).code == 0
    for name in ("whole", "killed"):
        shutil.copytree(base, tmp_path / name)
    with killed_at(0, tmp_path / "whole") as operations:
        assert run_uge(*command.arguments(six, tmp_path / "whole")).code == 0
    renames = [number for number, name in enumerate(operations.names, 1) if name.startswith("rename")]
    place = tmp_path / "killed"
    with pytest.raises(Kill), killed_at(renames[rename], place):
        main(list(command.arguments(six, place)))
    assert pair(place, command) != pair(base, command)
    monkeypatch.chdir(place)
    ran = run_uge(*(str(six) if part == "SIX" else part for part in READERS[reader]), "-q")
    assert ran.code == 0, ran.err
    assert pair(place, command) == pair(tmp_path / "whole", command)
    assert sorted(os.listdir(place)) == ["copy", "copy.private", *["more", "more.private"] * (reader == "apply")]
