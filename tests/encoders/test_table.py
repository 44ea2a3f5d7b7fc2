"""Encoders by name, those of other packages included."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import uge
from uge.data.store import PixelStore
from uge.encoders import ENCODERS, LocalSpace, Material, find_encoder, open_encoder
from uge.errors import UnknownNameError, UsageError
from uge.learning.recipes import Recipe
from uge.runtime import Runtime


@pytest.fixture(autouse=True)
def table_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENCODERS, "_rows", dict(ENCODERS._rows))


@pytest.fixture
def material(make_store: Callable[..., PixelStore], runtime: Runtime) -> Material:
    return Material(make_store(), runtime, recipe=Recipe(epochs=1))


def space() -> Any:
    """An object with everything that a feature space has."""
    return SimpleNamespace(name="mine", image_features=0, text_features=0, to=0, identity=0)


def test_local_is_trained_on_the_images(material: Material) -> None:
    assert isinstance(open_encoder("local", material), LocalSpace)


def test_a_registered_encoder_gets_its_material_and_argument(material: Material) -> None:
    asked = []

    @uge.encoder("mine:ID", about="mine")
    def mine(material: Material) -> Any:
        asked.append(material)
        return space()

    assert open_encoder("mine:some/where:else", material).name == "mine"
    assert (asked[0].argument, asked[0].store) == ("some/where:else", material.store)
    assert find_encoder("mine:x").about == "mine"
    uge.encoder("plain")(lambda material: space())
    assert open_encoder("plain", material).name == "mine"


@pytest.mark.parametrize("name", ["clip", "clip:", "local:x", "locl", "plain"])
def test_names_that_are_no_encoder(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown encoder '{name}'.*clip:ID, imagenet, local"):
        find_encoder(name)


def test_what_is_no_encoder(material: Material) -> None:
    uge.encoder("mine")(lambda material: 7)
    with pytest.raises(UsageError, match="must return a FeatureSpace, got int"):
        open_encoder("mine", material)
    for name, maker in (("a:b", space), ("mine", 7)):
        with pytest.raises(UsageError, match="must be a function of its material"):
            uge.encoder(name)(maker)


def test_what_a_foreign_encoder_raises_is_one_sentence(material: Material) -> None:
    def broken(*args: object) -> Any:
        raise KeyError("weights\nare gone")

    uge.encoder("ends")(lambda material: sys.exit(0))
    with pytest.raises(UsageError, match=r"the encoder 'ends' of another package failed \(SystemExit: 0\); mend or"):
        open_encoder("ends", material)
    uge.encoder("later")(lambda material: SimpleNamespace(**dict.fromkeys(vars(space()), broken) | {"name": "later"}))
    features = open_encoder("later", material)
    calls = {
        "image": lambda: features.image_features(torch.zeros(1, 3, 8, 8)),
        "text": lambda: features.text_features(["cat"]),
        "identity": features.identity,
        "to": lambda: features.to("cpu"),
    }
    for call in calls.values():
        with pytest.raises(UsageError, match=r"the encoder 'later' of another package failed \(KeyError: .*gone"):
            call()
