"""Networks that start from a checkpoint on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uge.errors import UnknownNameError, UsageError, WeightsError
from uge.networks import build, check_name, save_weights
from uge.networks.checkpoint import checkpoint_hash

STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def pixels(batch: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def write_model(folder: Path, kind: str) -> Path:
    """A tiny random image model of transformers."""
    transformers = pytest.importorskip("transformers")
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs: dict[str, Any] = {
        "vit": lambda: transformers.ViTConfig(**layers, image_size=24, patch_size=8),
        "resnet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        ),
        "clip": lambda: transformers.CLIPConfig(
            text_config={**layers, "vocab_size": 20, "max_position_embeddings": 8},
            vision_config={**layers, "image_size": 24, "patch_size": 8},
            projection_dim=16,
        ),
        "bert": lambda: transformers.BertConfig(**layers, vocab_size=20),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(configs[kind]())
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**STATISTICS, "size": {"shortest_edge": 40}}))
    return folder


def trained(path: Path, name: str = "cnn", **shape: int) -> nn.Module:
    network = build(name, **{"classes": 5, "size": 32, **shape}, seed=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_weights(path, network)
    return network


@pytest.mark.parametrize("name", ["cnn", "resnetc20", "mobilenetv2", "keyed:cnn"])
def test_a_file_gives_its_features_and_a_last_layer_of_the_seed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    source = trained(path, name)
    one, two = (build(f"checkpoint:{path}", 5, seed=seed) for seed in (0, 1))
    x = pixels()
    torch.testing.assert_close(one.eval().features(x), source.eval().features(x))
    torch.testing.assert_close(two.eval().features(x), one.features(x))
    assert not torch.equal(one(x), two(x))
    assert torch.equal(build(f"checkpoint:{path}", 5, seed=0).eval()(x), one(x))
    assert one.name == f"checkpoint:{path}"


def test_a_file_serves_other_classes_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    trained(path)
    assert build(f"checkpoint:{path}", 7, seed=0, size=48)(pixels(size=48)).shape == (2, 7)


@pytest.mark.parametrize(("kind", "side"), [("vit", 24), ("clip", 24), ("resnet", 40)])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_a_folder_of_transformers(kind: str, side: int, channels: int, size: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path / kind, kind)
    network = build(f"checkpoint:{folder}", 4, seed=0, channels=channels, size=size).eval()
    x = pixels(2, channels, size)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    resized = torch.nn.functional.interpolate(x, (side, side), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(STATISTICS[name]).reshape(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    expected = model(pixel_values=(resized - mean) / std).pooler_output.flatten(1)
    torch.testing.assert_close(network.features(x), expected, rtol=1e-4, atol=1e-4)
    logits = network(x)
    assert logits.shape == (2, 4)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.module.head.parameters())


def test_a_body_without_pooling_is_averaged_over_places(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=24, patch_size=8
    )
    config.mask_ratio = 0.0
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "mae")
    network = build(f"checkpoint:{tmp_path / 'mae'}", 4, seed=0)
    assert network.features(pixels()).shape == (2, 32)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: None, UsageError, "there is no checkpoint at"),
        (lambda path: path.mkdir(), UsageError, "there is no checkpoint at"),
        (lambda path: write_model(path, "bert"), UsageError, "is no image model, its type is 'bert'"),
        (lambda path: torch.save({}, path), WeightsError, "is a pickle"),
        (lambda path: trained(path, channels=1), UsageError, "is for images of 1 channels, these have 3"),
        (lambda path: trained(path, "keyed:cnn", classes=6), UsageError, "does not fit 5 classes at 32 px"),
    ],
    ids=["absent", "empty folder", "text model", "pickle", "gray", "a key for other classes"],
)
def test_what_does_not_serve_is_refused(make: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(error, match=words):
        build(f"checkpoint:{path}", 5, seed=0)


def test_a_folder_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "vit", "vit")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot be read"):
        build(f"checkpoint:{folder}", 5, seed=0)


def test_no_key_stands_in_front_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        check_name(f"keyed:checkpoint:{tmp_path}")


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "vit", "vit")
    before = checkpoint_hash(f"checkpoint:{folder}")
    assert checkpoint_hash(f"checkpoint:{folder}") == before
    (folder / "preprocessor_config.json").write_text("{}")
    assert checkpoint_hash(f"checkpoint:{folder}") != before
