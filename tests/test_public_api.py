"""The public names, and that the library does what the command line does."""

import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import uge
from uge.data.images import ImageSet
from uge.errors import OutputExistsError, UnknownNameError, UsageError
from uge.learning.recipes import Recipe
from uge.methods.uge.settings import GeneratorSettings, RefineSettings
from uge.networks import weights_hash
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
    "apply",
    "attack",
    "audit",
    "authorize",
    "compare",
    "encoder",
    "encoders",
    "load_images",
    "method",
    "network",
    "open",
    "protect",
    "publish",
    "record_trajectory",
    "train",
    "verify",
]


@pytest.fixture
def images(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(count=24, separable=True)


def keyed(images: ImageSet, runtime: Runtime, **options: object) -> uge.Protected:
    strength = {"budget": options["budget"]} if "budget" in options else {}
    path = uge.authorize("keyed:lenet", images, epochs=1, seed=3, **strength)
    return uge.protect(images, path, runtime=runtime, **options)


def protect(images: ImageSet, runtime: Runtime, **options: object) -> uge.Protected:
    path = uge.record_trajectory("lenet", images, epochs=1, seed=3, runtime=runtime)
    settings = {"hacker": "lenet", "generator": SMALL, "encoder_recipe": QUICK, "runtime": runtime} | options
    return uge.protect(images, path, **settings)


def test_help_is_one_screen_and_every_verb_has_its_own() -> None:
    assert uge.__doc__.count("\n") <= 34
    assert uge.__version__ == importlib.metadata.version("uge")
    for name in ("protect", "publish", "apply", "verify", "open", "train", "audit", "compare"):
        verb = getattr(uge, name)
        assert inspect.signature(verb).parameters
        assert "Raises:" in verb.__doc__, name


def test_public_names() -> None:
    assert uge.__all__ == dir(uge) == sorted(NAMES)
    for name in uge.__all__:
        assert getattr(uge, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'protekt'"):
        _ = uge.protekt


@pytest.mark.parametrize("first", ["import uge.methods.uge.losses, uge.publishing, uge.cases.case", "pass"])
def test_verbs_can_be_called_whatever_was_imported_before(first: str) -> None:
    code = f"import uge\n{first}\nassert all(callable(verb) for verb in (uge.protect, uge.publish, uge.audit))"
    code += "\nimport uge.methods.uge.settings as settings; settings.LOSSES"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("way", "method"), [(keyed, "keyed"), (protect, "uge")])
def test_a_protected_set_is_a_set_of_samples(
    way: Callable[..., uge.Protected], method: str, images: ImageSet, runtime: Runtime
) -> None:
    protected = way(images, runtime, budget=uge.Budget(8 / 255))
    assert protected.provenance.method == method
    samples = list(protected)
    assert len(samples) == len(protected) == len(images)
    assert [sample.id for sample in samples] == list(images.ids)
    changes = [uge.Budget.measure(images.read(number), sample.pixels) for number, sample in enumerate(samples)]
    assert 0 < max(changes) <= protected.budget.levels == 8


@pytest.mark.parametrize("out", ["s3://bucket/x", Path("s3://bucket/x"), "file:///x"])
def test_nothing_is_written_to_an_address(
    out: str | Path, images: ImageSet, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    protected = keyed(images, runtime)
    for write in (lambda: uge.publish(protected, out), lambda: uge.audit("copy", test="photos", folder=out)):
        with pytest.raises(UsageError, match="expected a path on this machine to write to, got the address"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_authorize_trains_nothing_and_makes_the_key_of_a_trajectory(images: ImageSet, runtime: Runtime) -> None:
    for name in ("keyed:lenet", "lenet"):
        path = uge.authorize(name, images, seed=3, epochs=1)
        recorded = uge.record_trajectory(name, images, seed=3, epochs=1, runtime=runtime)
        assert path.trajectory is None
        assert recorded.trajectory is not None
        assert (path.theta0.name, path.recipe) == (name, recorded.recipe)
        assert weights_hash(path.theta0) == weights_hash(recorded.theta0)
        assert weights_hash(uge.authorize(name, images, seed=4).theta0) != weights_hash(path.theta0)


def test_a_trajectory_does_not_change_a_keyed_protection(images: ImageSet, runtime: Runtime) -> None:
    recorded = uge.record_trajectory("keyed:lenet", images, epochs=1, seed=3, runtime=runtime)
    for one, other in zip(uge.protect(images, recorded, runtime=runtime), keyed(images, runtime), strict=True):
        assert np.array_equal(one.pixels, other.pixels)


def test_methods_that_need_no_path_take_an_authorised_network(images: ImageSet, runtime: Runtime) -> None:
    path = uge.authorize("lenet", images, epochs=1)
    options = {"generator": SMALL, "encoder_recipe": QUICK, "runtime": runtime}
    assert uge.protect(images, path, method="unlearn", **options).provenance.method == "unlearn"
    for method in (None, "uge", "uge-no-ud", "undistill"):
        with pytest.raises(UsageError, match="needs the networks' paths; make them with record_trajectory"):
            uge.protect(images, path, method=method, **options)


def test_equal_calls_give_equal_pixels(images: ImageSet, runtime: Runtime) -> None:
    options = {"refine": True, "refinement": RefineSettings(passes=1, rounds=2)}
    first, second = (protect(images, runtime, **options) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    assert first.perturbation.delta is not None


def test_an_encoder_of_ones_own(images: ImageSet, runtime: Runtime) -> None:
    space = uge.encoders.local(images, recipe=QUICK, runtime=runtime)
    protected = protect(images, runtime, encoder=space)
    assert protected.provenance.encoder == space.identity()


@pytest.mark.parametrize(("way", "name"), [(keyed, "keyed:lenet"), (protect, "lenet")])
def test_publish_writes_both_folders_or_none(
    way: Callable[..., uge.Protected], name: str, images: ImageSet, runtime: Runtime, tmp_path: Path
) -> None:
    protected, out = way(images, runtime), tmp_path / "copy"
    manifest = uge.publish(protected, out)
    assert uge.verify(out, against=images).ok
    assert manifest.authorized[0].network == name
    assert (tmp_path / "copy.private" / "authorized-0.key.safetensors").is_file()
    assert (tmp_path / "copy.private").stat().st_mode & 0o777 == 0o700
    before = manifest.model_dump(exclude={"sealed"})
    with pytest.raises(OutputExistsError, match="not empty"):
        uge.publish(protected, out)
    assert uge.publish(protected, out, overwrite=True).model_dump(exclude={"sealed"}) == before
    with pytest.raises(UsageError, match="format: input should be 'parquet', 'imagefolder' or 'webdataset', got 'zip'"):
        uge.publish(protected, tmp_path / "new", format="zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy.private"]


def test_no_epochs(images: ImageSet) -> None:
    for epochs in (0, -1):
        with pytest.raises(UsageError, match=f"epochs must be at least 1, got {epochs}"):
            uge.authorize("keyed:lenet", images, epochs=epochs)


def test_wrong_arguments(images: ImageSet, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lenet'"):
        uge.record_trajectory("lennet", images)
    with pytest.raises(UnknownNameError, match="unknown encoder"):
        protect(images, runtime, encoder="locl")
    with pytest.raises(UsageError, match="unknown method 'ugee'; did you mean 'uge'"):
        protect(images, runtime, method="ugee")
    with pytest.raises(UsageError, match="rho"):
        protect(images, runtime, budget=2.0)
    with pytest.raises(UsageError, match="at least one"):
        uge.protect(images, [], method="keyed")
    one, other = (uge.record_trajectory("lenet", images, epochs=n, runtime=runtime) for n in (1, 2))
    with pytest.raises(UsageError, match="one size and recipe"):
        uge.protect(images, [one, other])
    with pytest.raises(UsageError, match="missing"):
        uge.verify(tmp_path / "missing")
    with pytest.raises(UsageError, match="seeds: input should be greater"):
        uge.audit(tmp_path, test="photos", seeds=0)


def test_wrong_arguments_with_a_key(images: ImageSet, make_images: Callable[..., ImageSet], runtime: Runtime) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lenet'"):
        uge.authorize("keyed:lennet", images)
    assert uge.authorize("keyed:lenet", make_images(channels=1)).theta0.channels == 1
    with pytest.raises(UsageError, match=r"takes a rho of at most 64/255, got 0\.3"):
        uge.authorize("keyed:lenet", images, budget=0.3)
    with pytest.raises(UsageError, match="rho must be a number"):
        uge.authorize("keyed:lenet", images, budget="much")
    for budget in ("8/255", 8 / 255, uge.Budget(8 / 255)):
        assert int(uge.authorize("keyed:lenet", images, budget=budget).theta0.key.levels) == 8
    with pytest.raises(UsageError, match=r"10 levels strong, but rho .* allows only 8"):
        uge.protect(images, uge.authorize("keyed:lenet", images), budget="8/255", runtime=runtime)
    with pytest.raises(UsageError, match="nothing to refine"):
        keyed(images, runtime, refine=True)
    with pytest.raises(UsageError, match="cannot follow rotations"):
        uge.protect(images, uge.authorize("keyed:lenet", images, recipe=Recipe(augment="rotate-flip")))
    recorded = uge.record_trajectory("keyed:lenet", images, epochs=1, runtime=runtime)
    for method in ("uge", "unlearn"):
        with pytest.raises(UsageError, match=f"method '{method}' protects for networks without a wave key"):
            uge.protect(images, recorded, method=method, runtime=runtime)
    plain = uge.authorize("lenet", images)
    with pytest.raises(UsageError, match="one wave key, got 0 keys for 1 networks; name them keyed:ARCHITECTURE"):
        uge.protect(images, plain, method="keyed")
    one, other = (uge.authorize("keyed:lenet", images, seed=seed) for seed in (0, 1))
    with pytest.raises(UsageError, match="one wave key, got 2 keys for 2 networks"):
        uge.protect(images, [one, other])
    with pytest.raises(UsageError, match="one wave key, got 1 keys for 2 networks"):
        uge.protect(images, [one, plain])


def test_example_runs(tmp_path: Path) -> None:
    example = ROOT / "examples" / "library.py"
    assert len(example.read_text().splitlines()) < 60
    out = tmp_path / "photos"
    ran = subprocess.run([sys.executable, str(example), str(out)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "gap:" in ran.stdout
    assert (tmp_path / "photos.audit" / "report.html").is_file()
