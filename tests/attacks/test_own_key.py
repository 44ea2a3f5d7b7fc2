"""The owner's method, run again with other secrets, and the inverse that is learned from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from uge.attacks import Context, own_key
from uge.attacks.base import Claims, stored
from uge.attacks.own_key import own_pairs, protected_again, public_images, purified, settings_of
from uge.data.store import PixelStore, Records
from uge.errors import UnknownNameError, UsageError
from uge.learning.recipes import Recipe
from uge.methods import METHODS, MethodSettings, method
from uge.networks import build
from uge.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), "fp32")
MakeStore = Callable[..., PixelStore]
# Public settings under which a method takes a fraction of a second.
ONE = {"epochs": 1, "batch_size": 12}
SMALL: dict[str, dict[str, Any]] = {
    "em": {"settings": {"surrogate": "lenet", "theta_steps": 2, "steps": 2}},
    "em-class": {"settings": {"surrogate": "lenet", "theta_steps": 2, "steps": 2}},
    "tap": {"settings": {"surrogate": "lenet", "epochs": 1, "steps": 2}},
    "tap-untargeted": {"settings": {"surrogate": "lenet", "epochs": 1, "steps": 2}},
    "ntga": {"settings": {"block": 12, "held_out": 12, "steps": 2}},
    "rem": {
        "settings": {"surrogate": "lenet", "theta_steps": 1, "steps": 1, "adversary_steps": 1, "samples": 1},
    },
    "ar": {"settings": {"pool": 2}},
    "pil": {"settings": {"epochs": 2, "steps": 2}},
    "robust": {"robust": {"surrogates": "lenet,lenet@4", "epochs": 1, "steps": 2}},
    **{
        name: {"generator": {"width": 4, "blocks": 1, "max_steps": 3, "lr": 0.1}, "recipe": ONE, "encoder_recipe": ONE}
        for name in ("uge", "uge-no-ud", "unlearn", "undistill")
    },
}


NO_SECRET = {"ops", "preview"}  # Everything follows from the images.


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short fits, and a table of methods that the next test finds as it was."""
    monkeypatch.setattr(own_key, "STEPS", 80)
    monkeypatch.setattr(own_key, "WIDTH", 8)
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))


def smooth(count: int, seed: int = 0, size: int = 16, classes: int = 2) -> PixelStore:
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 130 + 60
    pixels = torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic")
    records = Records(count, (3, size, size), torch.uint8)
    records.write(torch.arange(count), stored(pixels))
    return PixelStore(records, torch.arange(count) % classes, tuple(map(str, range(classes))))


def everything(store: PixelStore) -> Tensor:
    return store.pixels.read(torch.arange(len(store))).float()


def make_context(store: PixelStore, claims: Claims, **changes: Any) -> Context:
    network = build("lenet", len(store.classes), seed=0, size=store.size, channels=store.channels)
    fields = {"seed": 0, "recipe": Recipe(epochs=1, batch_size=16), "claims": lambda: claims}
    return Context(
        network=network, store=store, test=store, runtime=RUNTIME, teacher=lambda: network, **{**fields, **changes}
    )


def claims_of(name: str) -> Claims:
    row = METHODS[name]
    networks = (row.network_name("lenet"),) if row.authorizes else ()
    return Claims(name, row.budget(MethodSettings(method=name)).rho, networks, SMALL.get(name, {}))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_by_its_public_name_with_secrets_of_its_own(name: str, make_store: MakeStore) -> None:
    images = make_store(count=30, separable=True)
    first, again, other = (protected_again(images, claims_of(name), seed=seed, runtime=RUNTIME) for seed in (1, 1, 2))
    assert torch.equal(everything(first), everything(again))
    assert torch.equal(everything(first), everything(other)) == (name in NO_SECRET)
    change = (everything(first) - everything(images)).abs()
    budget = METHODS[name].budget(settings_of(claims_of(name), METHODS[name], 1))
    assert change.max() <= budget.levels


def test_a_manifest_sets_no_secret_and_no_path(tmp_path: Any) -> None:
    secrets = {"authorized_seed": 5, "authorized_weights": [str(tmp_path)], "seed": 3, "encoder": "clip:somebody/else"}
    settings = settings_of(Claims("keyed", 0.02, ("keyed:cnn",), secrets), METHODS["keyed"], 9)
    assert (settings.authorized_seed, settings.seed, settings.authorized_weights) == (9, 9, ())
    assert (settings.encoder, settings.authorized, settings.rho) == ("local", "keyed:cnn", "0.02")


def test_public_settings_are_followed() -> None:
    published = {"settings": {"steps": 7}, "training_size": 32}
    tap = METHODS["tap"]
    assert settings_of(Claims("tap", 0.04, (), published), tap, 0).baseline == {"steps": 7}
    refined = {"refinement": {"passes": 3}, "generator": {"width": 8}}
    settings = settings_of(Claims("uge", 0.04, ("cnn",), refined), METHODS["uge"], 0)
    assert (settings.refine, settings.refinement.passes, settings.generator.width) == (True, 3, 8)
    assert not settings_of(Claims("uge", 0.04, ("cnn",), {"refinement": None}), METHODS["uge"], 0).refine


@pytest.mark.parametrize("details", [{"recipe": {"epochs": -1}}, {"loss": {"nothing": 1}}])
def test_settings_that_cannot_be_read_are_refused(details: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="settings of method 'uge' cannot be read at '"):
        settings_of(Claims("uge", 0.04, ("cnn",), details), METHODS["uge"], 0)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="moonlight"):
        purified(make_context(smooth(8), Claims("moonlight", 0.04), public=lambda: smooth(12)))


def test_a_secret_that_is_no_secret_is_taken_out() -> None:
    board = np.indices((16, 16)).sum(0) % 2 * 2 - 1

    @method("board", about="the same board on every image")
    def on_board(images: NDArray[Any], labels: NDArray[Any], levels: int, seed: int) -> NDArray[Any]:
        return np.broadcast_to(levels * board[None, :, :, None], images.shape)

    clean = smooth(40)
    claims = Claims("board", 0.04)
    published = protected_again(clean, claims, seed=7, runtime=RUNTIME)
    context = make_context(published, claims, public=lambda: smooth(60, seed=1))
    after = purified(context)
    errors = [(everything(store) - everything(clean)).square().mean() for store in (published, after.store)]
    assert errors[1] < errors[0] / 4
    assert after.test is context.test
    figures = context.figures
    assert figures["psnr_after"] > figures["psnr_before"] + 6
    assert figures["psnr_before"] == pytest.approx(28.13, abs=0.1)  # Ten levels on every pixel.
    assert figures["pairs"] == 54


def test_large_images_are_learned_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_key, "STEPS", 2)
    monkeypatch.setattr(own_key, "WINDOW", 12)
    sizes = set()
    forward = own_key.UNet.forward

    def spy(network: own_key.UNet, x: Tensor) -> Tensor:
        if network.training:
            sizes.add(tuple(x.shape[2:]))
        return forward(network, x)

    monkeypatch.setattr(own_key.UNet, "forward", spy)
    context = make_context(smooth(8), Claims("random", 0.04), public=lambda: smooth(20))
    assert purified(context).store.size == 16
    assert sizes == {(12, 12)}


def test_a_method_without_training_runs_with_several_secrets() -> None:
    clean = smooth(40)
    claims = Claims("random", 0.04)
    context = make_context(protected_again(clean, claims, seed=7, runtime=RUNTIME), claims, public=lambda: smooth(60))
    pairs = own_pairs(context)
    assert len(pairs.protected) == own_key.ROUNDS
    assert not torch.equal(everything(pairs.protected[0]), everything(pairs.protected[1]))
    assert not set(pairs.held_out.tolist()) & set(pairs.learned.tolist())


def test_labels_are_drawn_among_the_classes_of_the_copy() -> None:
    context = make_context(smooth(30, classes=7), Claims("keyed", 0.04, ("keyed:lenet",)), public=lambda: smooth(50))
    assert own_pairs(context).protected[0].classes == context.store.classes


def test_embedded_photographs_stand_in_for_public_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_key, "PAIRS", 20)
    photographs = public_images(make_context(smooth(8, size=18), Claims("random", 0.04)))
    assert photographs.pixels.shape == (3, 18, 18)
    assert len(photographs) == 20
    assert len(photographs.labels.unique()) == 10


def test_public_images_of_another_shape_are_refused() -> None:
    context = make_context(smooth(8), Claims("random", 0.04), public=lambda: smooth(8, size=20))
    with pytest.raises(UsageError, match="published images' shape"):
        purified(context)
