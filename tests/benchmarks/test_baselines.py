"""The benchmark of methods against one another, on a handful of images."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uge.config import ProtectConfig
from uge.methods.baselines import BASELINES

PLACE = Path(__file__).resolve().parents[2] / "benchmarks" / "baselines.py"
spec = importlib.util.spec_from_file_location("baselines_benchmark", PLACE)
assert spec is not None
assert spec.loader is not None
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

TINY = {"surrogate": "lenet", "theta_steps": 2, "steps": 2, "batch_size": 8}


@pytest.fixture
def data(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(8):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{index}.png")
    return str(tmp_path)


def test_a_baseline_counts_its_own_gradients(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.CPU_SETTINGS, "em", TINY)
    found = bench.measure("em", data, 16, False)
    # Two steps of 8 images by 2 + 1, and a last pass of 2: 80 evaluations for 16 images.
    assert found["gradients_per_1000"] == 80 / 16 * 1000
    assert found["seconds_per_1000"] > 0
    assert {**found["settings"], **TINY} == found["settings"]
    assert (found["images"], found["scaled_down"], found["rho"]) == (16, True, round(8 / 255, 5))


def test_our_default_evaluates_no_gradient_and_the_paper_s_method_does(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bench.measure("keyed", data, 16, False)
    assert found["gradients_per_1000"] == 0
    assert found["seconds_per_1000"] > 0
    quick = {
        "authorized": "lenet",
        "hacker": "lenet",
        "recipe": {"epochs": 1},
        "encoder_recipe": {"epochs": 1},
        "generator": {"max_steps": 1, "batch_size": 8, "width": 4, "blocks": 1},
    }
    monkeypatch.setitem(bench.OURS, "uge", quick)
    # At least: one epoch of the authorised network, and one batch through the generator.
    assert bench.measure("uge", data, 16, False)["gradients_per_1000"] >= (16 + 8) / 16 * 1000


def test_every_method_can_be_named() -> None:
    assert [row.name for row in BASELINES] == bench.METHODS[2:]
    for name, settings in bench.OURS.items():
        assert ProtectConfig.checked(method=name, **settings).method == name


def test_one_run_puts_all_side_by_side(data: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "--method" not in command:  # The version of the code is asked of git, unless another test did so before.
            return real(command, **options)
        name, limit = command[command.index("--method") + 1], int(command[command.index("--limit") + 1])
        return SimpleNamespace(stdout=json.dumps(bench.measure(name, command[2], limit, "--published" in command)))

    monkeypatch.setattr(subprocess, "run", run)
    bench.main([data, "--limit", "12", "--methods", "keyed", "random", "lsp"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["methods"]) == ["keyed", "random", "lsp"]
    assert found["images"] == 12
    assert found["environment"]["torch"]
    parts = [row["part_of_the_slowest"] for row in found["methods"].values()]
    assert max(parts) == 1
    assert all(0 < part <= 1 for part in parts)
