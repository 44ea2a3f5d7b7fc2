"""The table of methods at the command line: plug-ins, and images that are read no more than needed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command import TINY, contents, make_folder, run_uge
from PIL import Image

from uge.data import load_images
from uge.data.images import Pixels

PLUGIN = """
import numpy as np

def stripes(images, labels, levels, seed):
    "Stripes, one direction per class."
    rows, columns = np.indices(images.shape[1:3])
    sign = np.stack([np.where(axis % 2, 1, -1) for axis in (rows, columns)])[labels % 2]
    return np.broadcast_to(levels * sign[..., None], images.shape)
"""


def test_a_plug_in_of_another_package(toy: Path, tmp_path: Path) -> None:
    """A package with one function and one entry point: in help, in the copy, in the manifest."""
    info = tmp_path / "site" / "stripes-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[uge.methods]\nstripes = stripes_plugin:stripes\n")
    (tmp_path / "site" / "stripes_plugin.py").write_text(PLUGIN)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "uge", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert "stripes" in run("list", "methods").stdout
    ran = run("protect", toy, tmp_path / "out", "--method", "stripes", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["measured"]["linf_levels"] == 10
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["method"], manifest["method_details"]["about"]) == ("stripes", "Stripes, one direction per class")
    assert run("verify", tmp_path / "out", "--against", toy).returncode == 0
    wrong = run("protect", toy, tmp_path / "b", "--method", "stripe")
    assert (wrong.returncode, "did you mean 'stripes'?" in wrong.stderr) == (2, True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Counter[int]]:
    """A source of 120 images, and how often each of its images was read."""
    source = make_folder(tmp_path / "source", train=40, test=1)
    kind = type(load_images(str(source)).reader)
    counts: Counter[int] = Counter()
    real = kind.read

    def read(reader: object, row: int) -> Pixels:
        counts[row] += 1
        return real(reader, row)

    monkeypatch.setattr(kind, "read", read)
    return source, counts


def test_keyed_reads_every_image_once_besides_the_probe(reads: tuple[Path, Counter[int]], tmp_path: Path) -> None:
    source, counts = reads
    assert run_uge("protect", source, tmp_path / "out", *TINY, "-q").code == 0
    probe, probe_of_the_writer = 64, 8
    assert len(counts) == 120
    assert counts.total() <= 120 + probe + probe_of_the_writer


def test_a_finished_keyed_run_notices_other_images(reads: tuple[Path, Counter[int]], tmp_path: Path) -> None:
    source, counts = reads
    out = tmp_path / "out"
    assert run_uge("protect", source, out, *TINY, "-q").code == 0
    before = contents(out)
    assert "finished already" in run_uge("protect", source, out, *TINY, "--resume").err
    seen = {row for row, count in counts.items() if count > 2}
    unprobed = next(row for row in range(120) if row not in seen)
    images = sorted((source / "train").rglob("*.png"))
    images[unprobed].write_bytes(images[unprobed - 1].read_bytes())
    ran = run_uge("protect", source, out, *TINY, "--resume", "-q")
    assert (ran.code, "has other settings, images or precision" in ran.err) == (2, True), ran.err
    assert contents(out) == before


def test_a_damaged_image_beyond_the_probe_leaves_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", train=40, test=1)
    images = sorted((source / "train").rglob("*.png"))
    images[1].write_bytes(images[1].read_bytes()[:60])
    ran = run_uge("protect", source, tmp_path / "out", *TINY, "-q")
    assert (ran.code, "001.png" in ran.err) == (1, True), ran.err
    assert sorted(os.listdir(tmp_path)) == ["source"]


@pytest.mark.parametrize("method", ["random", "random-class", "keyed"])
def test_every_part_of_a_wide_frame_is_perturbed(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        place = tmp_path / "frames" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(30, 220, (18, 32, 3), dtype=np.uint8)).save(place)
    out = tmp_path / "out"
    ran = run_uge("protect", tmp_path / "frames", out, "--method", method, "--size", "16", "-q")
    assert ran.code == 0, ran.err
    originals, published = load_images(tmp_path / "frames"), load_images(out)
    pairs = zip(originals, published, strict=True)
    changed = np.mean([(clean.pixels != copy.pixels).any(2) for clean, copy in pairs], 0)
    assert changed.shape == (18, 32)
    assert changed.mean(0).min() > 0.5
    assert changed.mean(1).min() > 0.5
