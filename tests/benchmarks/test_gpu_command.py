"""The prepared command for a GPU runs on a CPU at a hundredth of its size."""

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run"


def test_a_trial_measures_everything(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    trial = [str(COMMAND), str(out), "--scale", "0.01", "--device", "cpu", "--data", "photos", "--network", "lenet"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(trial, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["data"] == {"training": 200, "test": 50, "classes": 10}
    checks = [part for name, item in result.items() if name.startswith("checks/") for part in item["parts"]]
    assert len(checks) > 30
    assert all(part["ok"] for part in checks)
    assert {case["id"] for case in result["cells/uge"]["cases"]} == {
        "authorized-lenet-direct-protected-s0",
        "clean-cnn-direct-clean-s0",
        "clean-lenet-direct-clean-s0",
        "clean-lenet-direct-clean-theta0-s0",
        "hacker-cnn-direct-protected-s0",
        "hacker-lenet-direct-protected-s0",
    }
    assert result["timings/generator"]["images_per_second_generator_alone"] > 0
