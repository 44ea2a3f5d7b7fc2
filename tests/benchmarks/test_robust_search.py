"""The search for the method robust: figures of renamed outputs, and a trial on a handful of images."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uge.files import read_json
from uge.methods.robust.settings import RobustSettings
from uge.runtime import Runtime

PLACE = Path(__file__).resolve().parents[2] / "benchmarks" / "robust_search.py"
spec = importlib.util.spec_from_file_location("robust_search", PLACE)
assert spec is not None
assert spec.loader is not None
search = importlib.util.module_from_spec(spec)
sys.modules["robust_search"] = search  # Where dataclasses look for the names of their annotations.
spec.loader.exec_module(search)


def test_renamed_outputs() -> None:
    answers = torch.tensor([[1, 0, 4], [9, 2, 0], [0, 8, 6]])  # Rows are answers, columns are classes.
    assert search.accuracies(answers) == {"plain": 30.0, "one_to_one": 70.0, "many_to_one": 70.0}
    shared = torch.tensor([[5, 0, 0], [5, 0, 0], [0, 6, 4]])
    assert search.accuracies(shared) == {"plain": 45.0, "one_to_one": 55.0, "many_to_one": 80.0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("a", 60), ("b", 190)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(level - 40, level + 40, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_a_trial_goes_on_where_it_was_cut_off(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = search.Variant("small", RobustSettings(surrogates="cnn", epochs=1, steps=2))
    monkeypatch.setitem(search.VARIANTS, "tiny", tiny)
    trial = search.Trial(str(data), 24, tmp_path / "keep", 0, Runtime(torch.device("cpu"), "fp32"))
    place = tmp_path / "results" / "tiny.json"
    search.measure(trial, "tiny", ["jpeg10"], 1, 1, place)
    first = read_json(place)
    monkeypatch.setattr(search, "perturb", None)
    search.measure(trial, "tiny", ["jpeg10", "filters"], 1, 1, place)
    both = read_json(place)
    assert list(both["attacks"]) == ["jpeg10", "filters"]
    assert both["attacks"]["jpeg10"] == first["attacks"]["jpeg10"]
    assert set(both["attacks"]["jpeg10"]["curve"][0]) == {"clean", "changed"}
    assert 25 < both["psnr_db"] < 60
    line = search.table(place.parent).splitlines()[-1]
    assert line.startswith("| tiny | 24 | 1 |")
    assert line.endswith(f"| {max(each['worst'] for each in both['attacks'].values()):.1f} |")
