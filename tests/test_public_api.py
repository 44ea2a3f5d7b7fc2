"""The public names, and that the library does what the command line does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import uge
from uge.data.images import ImageSet
from uge.errors import OutputExistsError, UnknownNameError, UsageError
from uge.protect.settings import GeneratorSettings, RefineSettings
from uge.recipes import Recipe
from uge.runtime import Runtime

ROOT = Path(__file__).parents[1]
SMALL = GeneratorSettings(width=8, blocks=1, max_steps=6, lr=0.02)
QUICK = Recipe(epochs=1)

NAMES = [
    "AuthorizedPath",
    "Budget",
    "ImageSet",
    "Protected",
    "Recipe",
    "Runtime",
    "UGEError",
    "audit",
    "encoders",
    "load_images",
    "protect",
    "publish",
    "record_trajectory",
    "verify",
]


@pytest.fixture
def images(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(count=24, separable=True)


def protect(images: ImageSet, runtime: Runtime, **options: object) -> uge.Protected:
    path = uge.record_trajectory("lenet", images, epochs=1, seed=3, runtime=runtime)
    settings = {"hacker": "lenet", "generator": SMALL, "encoder_recipe": QUICK, "runtime": runtime} | options
    return uge.protect(images, path, **settings)


def test_public_names() -> None:
    assert uge.__all__ == dir(uge) == sorted(NAMES)
    for name in uge.__all__:
        assert getattr(uge, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'protekt'"):
        _ = uge.protekt


@pytest.mark.parametrize("first", ["import uge.protect.losses, uge.publish, uge.audit.cases", "pass"])
def test_verbs_can_be_called_whatever_was_imported_before(first: str) -> None:
    code = f"import uge\n{first}\nassert all(callable(verb) for verb in (uge.protect, uge.publish, uge.audit))"
    code += "\nimport uge.protect.settings as settings; settings.METHODS"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_protected_set_is_a_set_of_samples(images: ImageSet, runtime: Runtime) -> None:
    protected = protect(images, runtime, budget=uge.Budget(8 / 255))
    samples = list(protected)
    assert len(samples) == len(protected) == len(images)
    assert [sample.id for sample in samples] == list(images.ids)
    changes = [uge.Budget.measure(images.read(number), sample.pixels) for number, sample in enumerate(samples)]
    assert 0 < max(changes) <= protected.budget.levels == 8


def test_equal_calls_give_equal_pixels(images: ImageSet, runtime: Runtime) -> None:
    options = {"refine": True, "refinement": RefineSettings(passes=1, rounds=2)}
    first, second = (protect(images, runtime, **options) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    assert first.noise.delta is not None


def test_an_encoder_of_ones_own(images: ImageSet, runtime: Runtime) -> None:
    space = uge.encoders.local(images, recipe=QUICK, runtime=runtime)
    protected = protect(images, runtime, encoder=space)
    assert protected.noise.provenance.encoder == space.identity()


def test_publish_writes_both_folders_or_none(images: ImageSet, runtime: Runtime, tmp_path: Path) -> None:
    protected, out = protect(images, runtime), tmp_path / "copy"
    manifest = uge.publish(protected, out)
    assert uge.verify(out, against=images).ok
    assert manifest.authorized[0].network == "lenet"
    assert (tmp_path / "copy.private" / "authorized-0.key.safetensors").is_file()
    assert (tmp_path / "copy.private").stat().st_mode & 0o777 == 0o700
    before = manifest.model_dump()
    with pytest.raises(OutputExistsError, match="not empty"):
        uge.publish(protected, out)
    assert uge.publish(protected, out, overwrite=True).model_dump() == before
    with pytest.raises(UsageError, match="format: input should be 'parquet' or 'imagefolder', got 'zip'"):
        uge.publish(protected, tmp_path / "new", format="zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.private"]


def test_wrong_arguments(images: ImageSet, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lenet'"):
        uge.record_trajectory("lennet", images)
    with pytest.raises(UnknownNameError, match="unknown encoder"):
        protect(images, runtime, encoder="locl")
    with pytest.raises(UsageError, match="method: input should be"):
        protect(images, runtime, method="ugee")
    with pytest.raises(UsageError, match="rho"):
        protect(images, runtime, budget=2.0)
    with pytest.raises(UsageError, match="at least one"):
        uge.protect(images, [])
    one, other = (uge.record_trajectory("lenet", images, epochs=n, runtime=runtime) for n in (1, 2))
    with pytest.raises(UsageError, match="one size and recipe"):
        uge.protect(images, [one, other])
    with pytest.raises(UsageError, match="missing"):
        uge.verify(tmp_path / "missing")
    with pytest.raises(UsageError, match="seeds: input should be greater"):
        uge.audit(tmp_path, test="photos", seeds=0)


def test_example_runs(tmp_path: Path) -> None:
    example = ROOT / "examples" / "library.py"
    assert len(example.read_text().splitlines()) < 60
    out = tmp_path / "photos"
    ran = subprocess.run([sys.executable, str(example), str(out)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "gap:" in ran.stdout
    assert (tmp_path / "photos.audit" / "report.html").is_file()
