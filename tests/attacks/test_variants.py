from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from uge.attacks.variants import VARIANTS, choose_variants, without_class
from uge.auditing.plan import plan
from uge.cases.case import Job
from uge.cases.material import CopyMaterial
from uge.data.store import PixelStore
from uge.errors import UnknownNameError
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.networks import build, save_weights
from uge.runtime import Runtime

RECIPE = Recipe(epochs=1, batch_size=8, lr=0.02)
MakeStore = Callable[..., PixelStore]


@pytest.fixture
def make_material(make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> Callable[[str], CopyMaterial]:
    def make(network: str) -> CopyMaterial:
        key = tmp_path / "key.safetensors"
        save_weights(key, build(network, 3, seed=5, size=16), {"recipe": RECIPE.model_dump_json()})
        return CopyMaterial(tmp_path / "audit", make_store(count=24), make_store(seed=2), runtime, RECIPE, keys=[key])

    return make


def authorized(network: str, scheme: str, seed: int = 0) -> Job:
    return Job("authorized", network, "theta0", scheme, "protected", seed, 0)


@pytest.mark.parametrize("network", ["lenet", "keyed:lenet"])
def test_every_variant_changes_what_it_says_and_nothing_else(
    network: str, make_material: Callable[[str], CopyMaterial]
) -> None:
    material = make_material(network)
    (usual, *others) = plan(
        ["lenet"], ["direct"], 1, [network], controls=False, variants=list(VARIANTS)
    ).jobs  # the hacker is the second
    varied = [job for job in others if job.role == "authorized"]
    assert [job.scheme for job in varied] == list(VARIANTS)
    standard = material.run(usual)
    for job in varied:
        case, variant = material.run(job), VARIANTS[job.scheme]
        changed = {name for name, value in case.recipe.items() if standard.recipe[name] != value}
        assert changed <= {"batch_size", "lr", "optimizer", "augment"}
        assert (case.family, case.about, case.role, case.start) == ("variant", variant.about, "authorized", "theta0")
        same = case.history == standard.history
        assert same != variant.differs(RECIPE, "fp32"), job.scheme
        assert case.environment["precision"] == (variant.precision or "fp32")
    assert not (material.folder / "weights" / f"{varied[0].id}.safetensors").exists()


def test_a_variant_has_the_usual_order_unless_it_is_about_that(
    make_material: Callable[[str], CopyMaterial], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[str, int] = {}

    def spy(*arguments: Any, seed: int, **options: Any) -> Any:
        seeds[scheme] = seed
        return fit(*arguments, seed=seed, **options)

    monkeypatch.setattr("uge.attacks.variants.fit", spy)
    monkeypatch.setattr("uge.attacks.base.fit", spy)
    material = make_material("lenet")
    for scheme in ("direct", "order", "lr-half", "jpeg95"):
        job = authorized("lenet", scheme)
        material.run(job)
    assert seeds["direct"] == seeds["lr-half"] == seeds["jpeg95"] != seeds["order"]


def test_recipes() -> None:
    found = {name: variant.recipe(Recipe()) for name, variant in VARIANTS.items()}
    assert (found["batch-half"].batch_size, found["batch-double"].batch_size) == (64, 256)
    assert (found["lr-half"].lr, found["lr-double"].lr) == (0.05, 0.2)
    assert (found["adam"].optimizer, found["adam"].lr, found["no-augment"].augment) == ("adam", 1e-3, "none")
    for name, recipe in found.items():
        assert Recipe.model_validate(recipe.model_dump()) == recipe, name


def test_a_class_is_missing_in_training_and_test(make_store: MakeStore) -> None:
    store, test = make_store(count=12), make_store(count=9, seed=1)
    images = VARIANTS["drop-class"].images
    assert images is not None
    for repetition in range(4):
        fewer, tested = images(store, test, repetition)
        gone = repetition % 3
        assert sorted(set(fewer.labels.tolist())) == sorted({0, 1, 2} - {gone}) == sorted(set(tested.labels.tolist()))
        assert (len(fewer), len(tested), fewer.classes) == (8, 6, store.classes)


def test_a_recompressed_copy_leaves_the_test_images_alone(make_store: MakeStore) -> None:
    store, test = make_store(separable=True), make_store(seed=1)
    images = VARIANTS["jpeg95"].images
    assert images is not None
    changed, same = images(store, test, 0)
    assert same is test
    assert changed.digest() != store.digest()
    rows = torch.arange(len(store))
    assert (changed.pixels.read(rows).int() - store.pixels.read(rows).int()).abs().float().mean() < 12


@pytest.mark.parametrize("resident", [0, 2**30])
def test_subsets(resident: int, make_store: MakeStore) -> None:
    store = make_store(count=9, resident_bytes=resident)
    rows = torch.tensor([7, 0, 3])
    found = store.subset(rows)
    assert torch.equal(found.pixels.read(torch.arange(3)), store.pixels.read(rows))
    assert torch.equal(found.labels, store.labels[rows])
    assert found.pixels.resident == store.pixels.resident
    assert without_class(store, 1).labels.tolist() == [0, 2] * 3


def test_choosing() -> None:
    assert choose_variants(["none"]) == []
    assert choose_variants(["adam", "all", "adam"]) == ["adam", *(name for name in VARIANTS if name != "adam")]
    with pytest.raises(UnknownNameError, match="unknown variant 'ordr'; did you mean 'order'"):
        choose_variants(["ordr"])
