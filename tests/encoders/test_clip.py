import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from uge.encoders import ClipSpace, FeatureSpace
from uge.encoders.clip_space import CLIP_MEAN, CLIP_STD
from uge.errors import MissingExtraError, UsageError

transformers = pytest.importorskip("transformers")
SIDE = 24
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def write_checkpoint(folder: Path, *, safe: bool = True) -> Path:
    """A randomly initialised CLIP of 60,000 parameters with a tokenizer of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=[])
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    config = transformers.CLIPConfig(
        text_config={**layers, **ends, "vocab_size": len(vocab), "max_position_embeddings": 40},
        vision_config={**layers, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if safe:
        model.save_pretrained(folder)
    else:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    preprocessor = {"image_mean": MEAN, "image_std": STD, "resample": 3, "size": {"shortest_edge": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="module")
def space(folder: Path) -> ClipSpace:
    return ClipSpace.load(folder)


def images(batch: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, SIDE), (3, 64)])
def test_image_features_have_unit_length_and_reach_the_pixels(space: ClipSpace, channels: int, size: int) -> None:
    x = images(2, channels, size).requires_grad_()
    features = space.image_features(x)
    assert features.shape == (2, 16)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    features[:, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).float().mean() > 0.99


def test_text_features_have_unit_length(space: ClipSpace) -> None:
    features = space.text_features(["dog", "fire_truck", "x" * 200])
    assert features.shape == (3, 16)
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_the_prompt_is_a_photo_of_a_class(space: ClipSpace, folder: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    for name, sentence in [("dog", "A photo of a dog"), ("fire_truck", "A photo of a fire truck")]:
        tokens = tokenizer(sentence, return_tensors="pt")
        hidden = model.text_model(**tokens).last_hidden_state[0, -1]  # of the end-of-text token
        expected = model.text_projection.weight @ hidden
        torch.testing.assert_close(space.text_features([name])[0], expected / expected.norm(), atol=1e-5, rtol=1e-4)


def test_many_classes_are_encoded_in_parts(space: ClipSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["cat", "dog", "a longer name", "ox", "bee"]
    whole = space.text_features(names)
    monkeypatch.setattr("uge.encoders.clip_space.TEXT_BATCH", 2)
    torch.testing.assert_close(space.text_features(names), whole)


def smooth_picture(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    y, x = np.mgrid[0:size, 0:size] / size
    planes = [0.5 + 0.3 * np.sin(6 * x + phase) * np.cos(5 * y) for phase in (0.0, 1.0, 2.0)]
    return (np.stack(planes, -1) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [SIDE, 32, 50])
def test_agrees_with_the_preprocessing_of_transformers(space: ClipSpace, folder: Path, size: int) -> None:
    from PIL import Image

    picture = smooth_picture(size)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD
    )
    expected = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    mine = space.preprocess(x)
    assert mine.shape == expected.shape == (1, 3, SIDE, SIDE)
    level = 1 / 255 / min(STD)
    assert (mine - expected).abs().max() < 1.1 * level  # Pillow rounds to whole levels after each axis

    model = transformers.CLIPModel.from_pretrained(folder)
    features = model.visual_projection(model.vision_model(expected).pooler_output)
    reference = torch.nn.functional.normalize(features, dim=-1)
    assert (space.image_features(x) - reference).abs().max() < 0.02


@pytest.mark.parametrize("shape", [(17, 40), (64, 20)])
def test_resizing_is_torchs_bicubic_with_antialiasing(space: ClipSpace, shape: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    resized = torch.nn.functional.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
    expected = (resized - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(space.preprocess(x), expected, atol=1e-5, rtol=1e-5)


def test_gray_is_seen_as_equal_colours(space: ClipSpace) -> None:
    gray = images(2, 1)
    torch.testing.assert_close(space.image_features(gray), space.image_features(gray.expand(-1, 3, -1, -1)))


def test_autocast_does_not_swallow_single_levels(space: ClipSpace) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert space.image_features(images()).dtype == torch.float32
        difference = space.preprocess(images() + 1 / 255) - space.preprocess(images())
    torch.testing.assert_close(difference.mean((0, 2, 3)), 1 / 255 / torch.tensor(STD), rtol=1e-3, atol=1e-6)


def test_works_after_a_first_call_in_inference_mode(folder: Path) -> None:
    space = ClipSpace.load(folder)
    with torch.inference_mode():
        space.image_features(images(1, 3, 37))
    x = images(1, 3, 37).requires_grad_()
    space.image_features(x)[0, 0].backward()
    assert x.grad is not None


def test_is_a_frozen_feature_space(space: ClipSpace) -> None:
    assert isinstance(space, FeatureSpace)
    assert space.name == "clip:tiny-clip"
    assert not any(parameter.requires_grad for parameter in space._model.parameters())
    assert not space._model.training
    assert space.to("cpu") is space


def test_identity_is_json_without_paths(space: ClipSpace, folder: Path) -> None:
    identity = space.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert (identity["kind"], identity["checkpoint"]) == ("clip", "tiny-clip")
    assert len(identity["hash"]) == 64
    assert str(folder.parent) not in json.dumps(identity)
    assert ClipSpace.load(folder).identity() == identity


@pytest.mark.parametrize("shape", [(2, 4, 32, 32), (3, 32, 32)])
def test_refuses_other_shapes(space: ClipSpace, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="1 or 3"):
        space.image_features(torch.zeros(shape))


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_normalisation_comes_from_the_checkpoint_or_is_clips(folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other")
    (other / "preprocessor_config.json").unlink()
    x = torch.full((1, 3, SIDE, SIDE), 0.5)
    expected = (0.5 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(ClipSpace.load(other).preprocess(x)[0, :, 3, 3], expected)
    nested = {"image_processor": {"image_mean": MEAN, "image_std": STD}}
    (other / "processor_config.json").write_text(json.dumps(nested))
    expected = (0.5 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(ClipSpace.load(other).preprocess(x)[0, :, 3, 3], expected)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pickles"):
        ClipSpace.load(write_checkpoint(tmp_path / "pickled", safe=False))


def test_other_models_and_broken_checkpoints(folder: Path, tmp_path: Path) -> None:
    import safetensors.torch

    broken = copy(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    del state["visual_projection.weight"]
    safetensors.torch.save_file(state, weights, {"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks the tensor 'visual_projection\.weight'"):
        ClipSpace.load(broken)
    weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(UsageError, match="cannot be read"):
        ClipSpace.load(broken)
    (broken / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UsageError, match="model type is 'siglip'"):
        ClipSpace.load(broken)
    (broken / "config.json").write_text("[")
    with pytest.raises(UsageError, match=r"readable .*config\.json"):
        ClipSpace.load(broken)


class Hub:
    """Stands in for ``huggingface_hub``: a dictionary of revisions, with a cache folder."""

    def __init__(self, cache: Path, remote: dict[str, Path], pulls: list[int] | None = None) -> None:
        self.cache, self.remote, self.pulls = cache, remote, pulls
        self.downloads = 0

    def snapshot_download(self, name: str, revision: str, local_files_only: bool = False, **_: Any) -> str:
        ref = self.cache / f"models--{name.replace('/', '--')}" / "refs" / revision
        if not ref.is_file():
            if local_files_only:
                raise FileNotFoundError(revision)
            self.downloads += 1
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(str(self.remote[revision]))
        return ref.read_text()

    def HfApi(self) -> Any:  # noqa: N802
        return SimpleNamespace(model_info=self.model_info, get_repo_discussions=self.get_repo_discussions)

    def model_info(self, name: str, *, revision: str, timeout: float) -> Any:
        assert timeout <= 10
        if self.pulls is None:
            raise ConnectionError("Name or service not known\nmore")
        names = [file.name for file in self.remote[revision].iterdir()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def get_repo_discussions(self, name: str, *, author: str) -> list[Any]:
        assert author == "SFconvertbot"
        return [SimpleNamespace(num=number, is_pull_request=True) for number in self.pulls or []]


def install(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Hub:
    import huggingface_hub
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.HfApi)
    return hub


def test_downloads_once_and_then_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = install(monkeypatch, Hub(tmp_path, {"main": folder, "v1": folder}, pulls=[]))
    space = ClipSpace.load("owner/name")
    assert space.name == "clip:owner/name"
    assert space.identity()["checkpoint"] == "owner/name"
    hub.pulls = None
    assert ClipSpace.load("owner/name").identity() == space.identity()
    assert hub.downloads == 1
    with pytest.raises(UsageError, match="not in the cache"):
        ClipSpace.load("owner/name@v1")


def test_an_older_checkpoint_comes_from_its_converted_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = write_checkpoint(tmp_path / "pickled", safe=False)
    hub = install(monkeypatch, Hub(tmp_path / "cache", {"main": pickled, "refs/pr/7": folder}, pulls=[7]))
    assert ClipSpace.load("owner/name").name == "clip:owner/name"
    hub.pulls = None  # and again without a network
    assert ClipSpace.load("owner/name").name == "clip:owner/name"
    assert hub.downloads == 1


def test_a_hub_checkpoint_of_pickles_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = write_checkpoint(tmp_path / "pickled", safe=False)
    install(monkeypatch, Hub(tmp_path / "cache", {"main": pickled}, pulls=[]))
    with pytest.raises(UsageError, match="pickled weights only") as caught:
        ClipSpace.load("owner/name")
    assert "--encoder local" in str(caught.value)


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Hub(tmp_path, {}))
    with pytest.raises(UsageError) as caught:
        ClipSpace.load("openai/clip-vit-base-patch32")
    text = str(caught.value)
    assert "could not be fetched from the hub (Name or service not known)" in text
    assert "--encoder local" in text
    assert "\n" not in text


def test_offline_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    install(monkeypatch, Hub(tmp_path, {}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        ClipSpace.load("openai/clip-vit-base-patch32")


@pytest.mark.parametrize("name", ["/no/such/folder", "a b", "x/y/z", ""])
def test_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(UsageError, match="neither a folder nor"):
        ClipSpace.load(name)


def test_transformers_is_an_extra(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"uge\[clip\]"):
        ClipSpace.load(folder)


def test_a_broken_torchvision_is_explained(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise (RuntimeError if name.startswith("CLIP") else AttributeError)("operator torchvision::nms is absent")

    monkeypatch.setitem(sys.modules, "transformers", Broken())
    with pytest.raises(UsageError, match="built for another torch"):
        ClipSpace.load(folder)


def test_names_are_lazy() -> None:
    code = (
        "import sys, uge.encoders as e; assert 'torch' not in sys.modules; "
        "e.ClipSpace, e.FeatureSpace; sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    import uge.encoders

    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        _ = uge.encoders.Absent


def test_loading_leaves_logging_alone(folder: Path) -> None:
    before = (logging.getLogger().level, list(logging.getLogger().handlers))
    ClipSpace.load(folder)
    assert (logging.getLogger().level, list(logging.getLogger().handlers)) == before
