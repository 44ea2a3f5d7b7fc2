"""Inputs that people have, through the command line: noise, parts of a set, columns, consoles, failures."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import make_folder, refused, run_uge
from PIL import Image

from uge.cli.main import main
from uge.data import load_images
from uge.data.formats.base import COLUMNS, Columns
from uge.data.pixels import public_id
from uge.publishing import read_manifest


def archive(place: Path, train: np.ndarray, test: np.ndarray) -> Path:
    """Images of pure noise with these labels."""
    random = np.random.default_rng(1)

    def images(count: int) -> np.ndarray:
        return random.normal(128, 40, (count, 16, 16, 3)).clip(0, 255).astype(np.uint8)

    np.savez(place, x_train=images(len(train)), y_train=train, x_test=images(len(test)), y_test=test)
    return place


def test_a_unit_settles_floats_of_two_readings(toy: Path, tmp_path: Path) -> None:
    noise = np.zeros((36, 16, 16, 3), np.float32)
    noise[:, 3, 3] = -1.0000002
    np.save(tmp_path / "a.npy", noise)
    refused(2, "--unit 1 or --unit 255", "apply", tmp_path / "a.npy", toy, tmp_path / "out", inside=tmp_path)
    for unit, name in (("1", "[0, 1]"), ("255", "levels")):
        ran = run_uge("apply", tmp_path / "a.npy", toy, tmp_path / unit, "--unit", unit, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["unit"] == name
        assert f"read as {name}, largest {255 if unit == '1' else 1} levels" in ran.err
        assert (ran.json["measured"]["linf_levels"] > 40) == (unit == "1")


def test_perturbed_images_are_taken_as_a_difference(toy: Path, tmp_path: Path) -> None:
    clean = np.stack([sample.pixels for sample in load_images(toy)]).astype(int)
    changed = (clean + np.random.default_rng(0).integers(-8, 9, clean.shape)).clip(0, 255)
    np.save(tmp_path / "a.npy", (changed / 255).astype(np.float32))
    refused(2, "give --perturbed", "apply", tmp_path / "a.npy", toy, tmp_path / "out", inside=tmp_path)
    ran = run_uge("apply", tmp_path / "a.npy", toy, tmp_path / "out", "--perturbed", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["measured"]["linf_levels"] == 8
    for number, sample in enumerate(load_images(tmp_path / "out")):
        np.testing.assert_array_equal(sample.pixels, changed[number])
    assert read_manifest(tmp_path / "out").method_details["perturbed"] is True


def test_a_limit_of_apply_takes_the_first_images(toy: Path, tmp_path: Path) -> None:
    levels = (np.arange(36) % 9 + 1).astype(np.int8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.int8)
    for name, rows in (("part", levels[:15]), ("whole", levels)):
        np.save(tmp_path / f"{name}.npy", rows)
        ran = run_uge("apply", tmp_path / f"{name}.npy", toy, tmp_path / name, "--limit", "15")
        assert ran.code == 0, ran.err
        clean, copy = load_images(toy), load_images(tmp_path / name)
        assert list(copy.ids) == list(map(public_id, clean.ids))[:15]
        for number in range(15):
            assert np.median(copy.read(number).astype(int) - clean.read(number)) == levels[number, 0, 0, 0]


def test_another_order_of_paths_is_said(toy: Path, tmp_path: Path) -> None:
    names = ("a.png", "z.png", "inner/b.png")
    for number, name in enumerate(f"{label}/{file}" for label in ("x", "y") for file in names):
        place = tmp_path / "set" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 100 + number, np.uint8)).save(place)
    np.save(tmp_path / "a.npy", np.arange(1, 7, dtype=np.int8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.int8))
    ran = run_uge("apply", tmp_path / "a.npy", tmp_path / "set", tmp_path / "out")
    assert "rows belong to images in the order of torchvision's ImageFolder" in ran.err
    order = ["x/a.png", "x/z.png", "x/inner/b.png", "y/a.png", "y/z.png", "y/inner/b.png"]
    copy = load_images(tmp_path / "out")
    assert list(copy.ids) == list(map(public_id, order))
    # The files were written with rising values, in the order of the names; row n adds n + 1.
    assert [int(copy.read(row)[0, 0, 0]) for row in range(6)] == [101 + 2 * row for row in range(6)]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
@pytest.mark.parametrize("as_json", [True, False])
def test_any_console_shows_any_name(encoding: str, as_json: bool, tmp_path: Path) -> None:
    names = ("Äpfel", "ネコ", "🐈")
    source = make_folder(tmp_path / "set", names, train=2) / "train"
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(["inspect", str(source), *(["--json"] if as_json else [])])
    assert left.value.code == 0
    out.seek(0)
    shown = out.read()
    if as_json:
        assert set(json.loads(shown)["splits"]["train"]["classes"]) == set(names)
    assert "pfel" in shown


def test_a_published_folder_does_not_depend_on_the_console(tmp_path: Path) -> None:
    make_folder(tmp_path / "ネコ", ("Äpfel", "ネコ"), train=2)
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-m", "uge", "protect", "ネコ", f"{encoding}-ネコ", "--method", "random"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    digests = [read_manifest(tmp_path / f"{encoding}-ネコ").files for encoding in ("ascii", "utf-8")]
    assert digests[0] == digests[1]


def test_guessing_is_worth_the_share_of_the_largest_class(tmp_path: Path) -> None:
    labels = (np.arange(60) % 20 == 0).astype(int)
    source = archive(tmp_path / "a.npz", labels, labels)
    assert run_uge("protect", source, tmp_path / "out", "--method", "random", "-q").code == 0
    flags = ("--networks", "lenet", "--attacks", "direct", "--epochs", "1", "--json")
    summary = run_uge("audit", tmp_path / "out", "--test", source, *flags).json
    assert summary["chance"] == 95
    assert "control-low" in [doubt["check"] for doubt in summary["doubts"]]
    assert summary["label"] == "nothing learned, no judgement"


def test_a_test_set_may_lack_a_class(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "set") / "train"
    test = make_folder(tmp_path / "clean", ("cat", "owl")) / "test"
    assert run_uge("protect", train, tmp_path / "out", "--method", "random", "-q").code == 0
    flags = ("--networks", "lenet", "--attacks", "direct", "--epochs", "1", "--json")
    ran = run_uge("audit", tmp_path / "out", "--test", test, *flags)
    assert ran.code == 0, ran.err
    assert "the test images lack 1 classes, such as 'dog'" in ran.err
    assert ran.json["chance"] == 50


def test_an_audit_of_which_every_case_fails(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_trains.py").write_text(
        "from torch import nn\n"
        "class Never(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise RuntimeError('no memory left')\n"
        "        return super().forward(x.flatten(1))\n"
        "def make(classes, channels, size):\n"
        "    return Never(channels * size * size, classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_uge("protect", toy, tmp_path / "out", "--method", "random", "-q").code == 0
    flags = ("--networks", "never_trains:make", "--attacks", "direct", "--epochs", "1")
    ran = run_uge("audit", tmp_path / "out", "--test", toy, *flags)
    assert ran.code == 1
    causes, last = ran.err.strip().splitlines()[-2:]
    assert causes.startswith("failed: ")
    assert causes.endswith("unexpected RuntimeError: no memory left")
    assert "no attack of the audit gave a result (2 failed)" in last
    assert (tmp_path / "out.audit" / "report.html").is_file()


def test_nearly_black_images_are_said_to_be_so(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=values, labels=[0, 1] * 3)
    ran = run_uge("protect", tmp_path / "a.npz", tmp_path / "out", "--method", "random")
    assert "a (train) is nearly black: the brightest value of the images looked at is 2 of 255" in ran.err
    checked = run_uge("verify", tmp_path / "out")
    assert checked.code == 0
    assert "a (train) is nearly black" in checked.err


def test_a_copy_is_protected_again_only_where_that_is_asked_for(toy: Path, tmp_path: Path) -> None:
    flags = ("--method", "random")
    assert "protected copy" not in run_uge("protect", toy, tmp_path / "once", *flags).err
    ran = run_uge("protect", tmp_path / "once", tmp_path / "twice", *flags)
    assert ran.code == 2
    assert "once is a protected copy already" in ran.err
    assert "--again" in ran.err
    assert not (tmp_path / "twice").exists()
    ran = run_uge("protect", tmp_path / "once", tmp_path / "twice", *flags, "--again")
    assert ran.code == 0
    assert "once is a protected copy already" in ran.err


def test_the_largest_image_can_be_set(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    small = run_uge("inspect", toy, "--max-image-pixels", "255")
    assert small.code == 1
    assert "has more than 255 pixels" in small.err
    assert "allow more by --max-image-pixels" in small.err
    assert run_uge("inspect", toy, "--max-image-pixels", "256").code == 0


def test_columns_are_those_of_the_flags(toy: Path) -> None:
    assert run_uge("inspect", toy, "--image-column", "scan", "--label-column", "kind").code == 0
    assert COLUMNS.get() == Columns("scan", "kind")
    assert run_uge("inspect", toy).code == 0
    assert COLUMNS.get() == Columns()
