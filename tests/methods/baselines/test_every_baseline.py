"""What holds for every baseline in the table."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from quick import QUICK, with_room

from uge.budget import Budget
from uge.data.store import Records
from uge.errors import UnknownNameError, UsageError
from uge.methods import baselines
from uge.methods.baselines.base import Baseline, Material, l2_lengths, make_once
from uge.methods.uge.generator import delta_records

BASELINES: dict[str, Baseline] = {row.name: row.baseline for row in baselines.BASELINES}
MakeMaterial = Callable[..., Material]
ALL = torch.arange(24)
CLASS_PATTERNS = sorted({"random-class", "em-class"} & set(BASELINES))
NAMES = sorted(BASELINES)


@pytest.mark.parametrize("name", NAMES)
def test_one_perturbation_per_image_within_the_budget(name: str, make_material: MakeMaterial) -> None:
    material = make_material(name)
    records = BASELINES[name].make(material)
    levels = material.budget.levels
    assert (records.count, records.shape) == (24, (3, 16, 16))
    assert records.dtype == (torch.int8 if levels <= 127 else torch.int16)
    delta = records.read(ALL).int()
    assert 0 < delta.abs().max() <= levels
    assert delta.flatten(1).any(1).sum() >= 20, "nearly every image changes"


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_determines_it(name: str, make_material: MakeMaterial) -> None:
    first, again, other = (BASELINES[name].make(make_material(name, seed=seed)).read(ALL) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert name == "ops" or not torch.equal(first, other)  # OPS searches, and draws nothing.


@pytest.mark.parametrize("name", NAMES)
def test_an_explicit_budget_clips(name: str, make_material: MakeMaterial) -> None:
    records = BASELINES[name].make(make_material(name, rho=2 / 255))
    assert records.dtype == torch.int8
    assert 0 < records.read(ALL).abs().max() <= 2


@pytest.mark.parametrize("name", CLASS_PATTERNS)
def test_class_wise_methods_give_one_pattern_per_class(name: str, make_material: MakeMaterial) -> None:
    material = with_room(make_material(name))
    delta, labels = BASELINES[name].make(material).read(ALL), material.store.labels
    patterns = [delta[labels == label] for label in range(3)]
    for own in patterns:
        assert (own == own[0]).all()
    assert not torch.equal(patterns[0][0], patterns[1][0])


@pytest.mark.parametrize("name", NAMES)
def test_gray_images(name: str, make_material: MakeMaterial) -> None:
    assert BASELINES[name].make(make_material(name, channels=1)).shape == (1, 16, 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_perturbation_is_not_made_again(name: str, make_material: MakeMaterial, tmp_path: Path) -> None:
    calls = []

    def make(material: Material) -> Records:
        calls.append(material)
        return BASELINES[name].make(material)

    material = make_material(name, folder=tmp_path)
    first, again = make_once(material, make), make_once(material, make)
    assert len(calls) == 1
    alone = BASELINES[name].make(make_material(name)).read(ALL)
    assert torch.equal(first.read(ALL), alone)
    assert torch.equal(again.read(ALL), alone)


def test_a_perturbation_that_was_cut_off_is_made_again(make_material: MakeMaterial, tmp_path: Path) -> None:
    material = make_material("random", folder=tmp_path)

    def fails(material: Material) -> Records:
        make_once(material, BASELINES["random"].make)
        (tmp_path / "delta.int8").rename(tmp_path / "part-delta.int8")  # As a kill while writing leaves it.
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_once(material, fails)
    found = make_once(material, BASELINES["random"].make).read(ALL)
    assert torch.equal(found, BASELINES["random"].make(make_material("random")).read(ALL))


@pytest.mark.parametrize("name", NAMES)
def test_rows_say_what_they_are(name: str) -> None:
    row = BASELINES[name]
    assert row.norm in ("Linf", "L2", "none")
    assert row.scope in ("sample", "class")
    assert row.rho == (8 / 255 if row.norm == "Linf" else 1.0)
    assert issubclass(row.settings, BaseModel)
    assert row.settings.__doc__
    row.settings()  # Published defaults.
    row.read_settings(QUICK.get(name, {}))


def test_settings_come_as_text() -> None:
    found = BASELINES["pil"].read_settings({"batch-size": "64", "weight": "0.5"})
    assert (found.batch_size, found.weight) == (64, 0.5)
    with pytest.raises(UnknownNameError, match=r"setting of the baseline 'epoch'; did you mean 'epochs'\?"):
        BASELINES["pil"].read_settings({"epoch": 3})
    with pytest.raises(UsageError, match="baseline setting epochs: input should be greater than or equal to 1, got 0"):
        BASELINES["pil"].read_settings({"epochs": 0})


def test_lengths_are_those_of_stored_pixels(make_material: MakeMaterial) -> None:
    store = make_material("random").store
    records = delta_records(store, Budget(1.0))
    records.write(ALL, torch.full((24, 3, 16, 16), 255))
    clean = store.pixels.read(ALL).double()
    lengths = (255 - clean).flatten(1).norm(dim=1) / 255
    torch.testing.assert_close(l2_lengths(store, records, Budget(1.0)).double(), lengths, atol=1e-5, rtol=0)
