"""One table of methods: what is in it, what plug-ins may add, and what the names cost."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import uge
from uge.config import ProtectConfig
from uge.data.images import ImageSet
from uge.data.store import Records
from uge.errors import UnknownNameError, UsageError
from uge.methods import METHODS, Method, MethodSettings, Perturbation, Task, method, method_for
from uge.runtime import Runtime

Array = NDArray[Any]


@pytest.fixture(autouse=True)
def table_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one test are not those of the next."""
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))


def checkerboard(images: Array, labels: Array, levels: int, seed: int) -> Array:
    """A board whose sign is that of the class.

    It has whole levels.
    """
    rows, columns = np.indices(images.shape[1:3])
    board = np.where((rows + columns) % 2, levels, -levels)[None, :, :, None]
    return np.broadcast_to(board * np.where(labels % 2, 1, -1)[:, None, None, None], images.shape)


def changes(images: ImageSet, protected: uge.Protected) -> list[Array]:
    return [sample.pixels.astype(int) - images.read(row) for row, sample in enumerate(protected)]


def test_names_need_no_torch() -> None:
    code = "import sys; from uge.methods import METHODS\n"
    code += "assert METHODS['em'].about and METHODS['uge'].needs_paths and not METHODS['keyed'].reads_store\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", METHODS)
def test_rows_say_what_they_are(name: str) -> None:
    row = METHODS[name]
    assert row.name == name
    assert row.about
    assert not row.about.endswith(".")
    row.check(ProtectConfig(method=name))
    assert row.budget(ProtectConfig(method=name)).levels > 2
    assert row.budget(ProtectConfig(method=name, rho="2/255")).levels == 2
    assert name in ProtectConfig.model_json_schema()["properties"]["method"]["enum"]


def test_the_first_method_of_each_kind_is_the_default() -> None:
    assert (method_for(wave_key=True), method_for(wave_key=False)) == ("keyed", "uge")


def test_a_function_is_a_protection(make_images: Any, runtime: Runtime, tmp_path: Path) -> None:
    uge.method("board")(checkerboard)
    images = make_images(count=24, separable=True)
    protected = uge.protect(images, method="board", budget="6/255", runtime=runtime)
    for sample, change in zip(images, changes(images, protected), strict=True):
        room = np.minimum(sample.pixels, 255 - sample.pixels) >= 6
        wanted = checkerboard(sample.pixels[None], np.array([sample.label]), 6, 0)[0]
        assert (change == wanted)[room].all()
    manifest = uge.publish(protected, tmp_path / "copy")
    assert (manifest.method, manifest.authorized, manifest.budget.levels) == ("board", (), 6)
    assert manifest.method_details["about"] == METHODS["board"].about == "A board whose sign is that of the class"
    assert uge.verify(tmp_path / "copy", against=images).ok
    again = uge.publish(protected, tmp_path / "copy", overwrite=True)
    assert again.model_copy(update={"sealed": manifest.sealed}) == manifest


def test_a_function_knows_budget_and_seed_and_is_clipped(make_images: Any, runtime: Runtime) -> None:
    calls = []

    @method("loud", about="Too loud.")
    def loud(images: Array, labels: Array, levels: int, seed: int) -> Array:
        calls.append((images.shape, images.dtype, labels.tolist(), levels, seed))
        return np.full(images.shape, 1000)

    images = make_images(count=12, channels=1)
    protected = uge.protect(images, method="loud", seed=5, runtime=runtime)
    assert calls == [((12, 16, 16, 1), np.uint8, images.labels.tolist(), 10, 5)]
    assert METHODS["loud"].about == "Too loud."
    for sample, change in zip(images, changes(images, protected), strict=True):
        assert (change == np.minimum(10, 255 - sample.pixels.astype(int))).all()


@pytest.mark.parametrize("value", [np.zeros((12, 16, 16, 3)), np.zeros((12, 3, 16, 16), np.int8)])
def test_a_function_that_gives_something_else(value: Array, make_images: Any, runtime: Runtime) -> None:
    method("odd")(lambda images, labels, levels, seed: value)
    with pytest.raises(UsageError, match=r"method 'odd' must return whole levels, .*\(12, 16, 16, 3\), got "):
        uge.protect(make_images(), method="odd", runtime=runtime)


def test_a_method_of_ones_own(make_images: Any, runtime: Runtime) -> None:
    @method("brighter", about="One level brighter, read as it comes.")
    class Brighter(Method):
        reads_store = False

        def check(self, settings: MethodSettings) -> None:
            if settings.seed < 0:
                raise UsageError("the seed must be at least 0")

        def perturb(self, task: Task) -> Perturbation:
            assert task.networks == []
            delta = Records(len(task.images), (3, 16, 16), torch.int8)
            delta.write(torch.arange(len(task.images)), torch.ones(len(task.images), 3, 16, 16))
            return Perturbation(task.budget, delta=delta, details={"step": 1})

    images = make_images()
    protected = uge.protect(images, method="brighter", runtime=runtime)
    assert protected.provenance.method_details == {"step": 1}
    for sample, change in zip(images, changes(images, protected), strict=True):
        assert (change == (sample.pixels < 255)).all()
    with pytest.raises(UsageError, match="seed must be"):
        uge.protect(images, method="brighter", seed=-1, runtime=runtime)


def test_a_perturber_of_ones_own_is_asked_by_sample_id(make_images: Any, runtime: Runtime, tmp_path: Path) -> None:
    class ById:
        def __init__(self, budget: uge.Budget) -> None:
            self.budget = budget

        def numbers(self, names: Any) -> list[int]:
            return list(range(len(names)))

        def levels(self, images: Any, labels: Any, ids: Any) -> Iterator[Array]:
            for pixels, name in zip(images, ids, strict=True):
                yield np.full(pixels.shape, int(name) % 5, np.int8)

    @method("by-id")
    class OfId(Method):
        def perturb(self, task: Task) -> Perturbation:
            return Perturbation(task.budget, ById(task.budget))

    images = make_images()
    protected = uge.protect(images, method="by-id", runtime=runtime)
    for number, (sample, change) in enumerate(zip(images, changes(images, protected), strict=True)):
        assert (change == np.minimum(number % 5, 255 - sample.pixels.astype(int))).all()
    uge.publish(protected, tmp_path / "copy")
    private = sorted(path.name for path in (tmp_path / "copy.private").iterdir())
    assert private == ["owner.agekey", "published.json", "recipients.json"]


def test_a_published_protection_by_the_library(make_images: Any, runtime: Runtime) -> None:
    images = make_images(count=24)
    protected = uge.protect(images, method="ops", baseline={"pixels": 2}, runtime=runtime)
    assert protected.budget.rho == 1
    assert protected.provenance.method_details["settings"] == {"pixels": 2}
    with pytest.raises(UnknownNameError, match="setting of the baseline 'pixel'"):
        uge.protect(images, method="ops", baseline={"pixel": 2}, runtime=runtime)


def test_networks_where_they_belong(make_images: Any, runtime: Runtime) -> None:
    images = make_images(count=24)
    with pytest.raises(UsageError, match=r"'keyed' expects authorised networks of uge\.authorize, at least one, got 0"):
        uge.protect(images, method="keyed", runtime=runtime)
    with pytest.raises(UsageError, match="'random' expects no authorised network, got 1"):
        uge.protect(images, uge.authorize("keyed:lenet", images), method="random", runtime=runtime)
    with pytest.raises(UsageError, match="method 'random' protects for no network, got 'cnn'"):
        METHODS["random"].network_name("cnn")


def test_what_cannot_be_registered() -> None:
    with pytest.raises(UsageError, match="'em', which UGE has itself"):
        method("em")(checkerboard)
    for wrong in (7, dict):
        with pytest.raises(UsageError, match=r"the method 'mine' must be a function .*, got "):
            METHODS.register("mine", wrong)
    method("mine")(checkerboard)
    with pytest.raises(UsageError, match=r"method: unknown method 'minne'; did you mean 'mine'\?"):
        ProtectConfig.checked(method="minne")
    with pytest.raises(UsageError, match="method 'mine' has nothing to refine"):
        METHODS["mine"].check(ProtectConfig(method="mine", refine=True))


def test_keyed_is_named_for_what_it_is() -> None:
    assert METHODS["keyed"].about.startswith("held by obscurity")
    assert "held by obscurity" in ProtectConfig.model_json_schema()["properties"]["method"]["description"]
