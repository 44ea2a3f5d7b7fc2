from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uge.data.store import PixelStore
from uge.encoders import FeatureSpace, LocalSpace
from uge.errors import UsageError, WeightsError
from uge.learning.recipes import Recipe
from uge.runtime import Runtime

MakeStore = Callable[..., PixelStore]
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)


def train(store: PixelStore, runtime: Runtime, **options: object) -> LocalSpace:
    return LocalSpace.train(store, **{"seed": 0, "runtime": runtime, "recipe": RECIPE, **options})


@pytest.fixture
def pixels(make_store: MakeStore) -> torch.Tensor:
    return make_store(count=5, seed=3).pixels.read(torch.arange(5)) / 255


def test_features_have_unit_length_and_a_gradient_reaches_the_pixels(
    make_store: MakeStore, runtime: Runtime, pixels: torch.Tensor
) -> None:
    space = train(make_store(), runtime)
    assert isinstance(space, FeatureSpace)
    images, text = space.image_features(pixels.requires_grad_(True)), space.text_features(space.classes)
    for features in (images, text):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    assert not text.requires_grad
    (gradient,) = torch.autograd.grad((images @ text.T)[:, 0].sum(), pixels)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in space.modules.parameters())
    assert not any(module.training for module in space.modules.modules())


def test_squared_distances_are_the_mean_of_the_members(
    make_store: MakeStore, runtime: Runtime, pixels: torch.Tensor
) -> None:
    space = train(make_store(), runtime)
    joint = (space.image_features(pixels)[:1] - space.text_features(space.classes)).square().sum(1)
    apart = [(member.image_features(pixels)[:1] - member.text_features()).square().sum(1) for member in space.modules]
    assert len(apart) == 2
    torch.testing.assert_close(joint, sum(apart) / 2)


def test_knows_its_classes_after_training(make_store: MakeStore, runtime: Runtime) -> None:
    store, calls = make_store(count=48, separable=True), []
    recipe = RECIPE.model_copy(update={"epochs": 6})
    space = train(store, runtime, recipe=recipe, members=["cnn"], progress=lambda *seen: calls.append(seen[:2]))
    similarity = space.image_features(store.pixels.read(torch.arange(48)) / 255) @ space.text_features(store.classes).T
    assert (similarity.argmax(1) == store.labels).float().mean() > 0.9
    assert calls == [(epoch, 6) for epoch in range(1, 7)]


def test_a_saved_space_is_loaded_not_trained(
    make_store: MakeStore, runtime: Runtime, pixels: torch.Tensor, tmp_path: Path
) -> None:
    path, calls = tmp_path / "encoder.safetensors", []
    first = train(make_store(), runtime, path=path)
    second = train(make_store(), runtime, path=path, progress=lambda *seen: calls.append(seen))
    assert calls == []
    assert second.identity() == first.identity()
    assert torch.equal(second.image_features(pixels), first.image_features(pixels))
    other = train(make_store(), runtime, seed=1)
    assert other.identity()["weights_sha256"] != first.identity()["weights_sha256"]
    with pytest.raises(WeightsError, match="cannot be used"):
        train(make_store(), runtime, path=path, members=["lenet", "cnn"])


def test_other_classes_are_refused(make_store: MakeStore, runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="knows the classes"):
        train(make_store(), runtime, members=["lenet"]).text_features(["class 0", "class 1"])
