"""TRAINING.md: its lines train the authorised network in a process that cannot import uge."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from toy_sets import BUDGET, image_set, protect

from uge.data import load_images
from uge.learning.recipes import RECIPES, Recipe
from uge.methods.apply import protected_images
from uge.methods.keyed.wave_code import WaveCode, shared_key
from uge.networks import build, from_weights, weights_hash
from uge.pipeline.private_folder import write_keys
from uge.publishing import Authorized, Manifest, Provenance, publish, read_manifest, verify
from uge.publishing.training_guide import AUGMENTATIONS, RATES, script, training_guide
from uge.runtime import Runtime

RECIPE = Recipe(epochs=6, batch_size=16, lr=0.05)
SIZE, CLASSES = 16, ("cat", "dog", "owl")
DRIVER = """
import importlib, os, sys, torch
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "uge":
            raise ImportError("these lines must do without uge")
sys.meta_path.insert(0, Forbid())
torch.set_num_threads(1)
from safetensors.torch import save_file
real = torch.nn.functional.cross_entropy
for place in sys.argv[1:]:
    os.chdir(place)
    sys.path.insert(0, place)
    sys.modules.pop("network", None)
    losses = []
    def watched(logits, labels):
        losses.append(real(logits, labels))
        return losses[-1]
    torch.nn.functional.cross_entropy = watched
    torch.manual_seed(0)
    scope = {}
    exec(open("lines.py", encoding="utf-8").read(), scope)
    network = sys.modules["network"]
    x = torch.stack([pixels for pixels, label in scope["train"]])
    answers = network.load("authorized-0.key.safetensors").eval()(x / 255).detach()
    assert "uge" not in sys.modules
    save_file({"x": x, "y": torch.tensor([label for pixels, label in scope["train"]]), "answers": answers,
               "losses": torch.stack(losses).detach()}, "lines.safetensors")
    sys.path.remove(place)
"""


def lines_of(page: str) -> list[str]:
    """The lines of code of a TRAINING.md."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return block.splitlines()


def bright(count: int, seed: int = 0) -> list[np.ndarray]:
    """Images whose brightness is that of their class."""
    random = np.random.default_rng(seed)
    return [
        (50 + 60 * (number % 3) + random.normal(0, 15, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
        for number in range(count)
    ]


def provenance(network: Any, recipe: Recipe = RECIPE) -> Provenance:
    record = Authorized(id="authorized-0", network=network.name, weights_sha256=weights_hash(network))
    details = {"training_size": network.size, "channels": network.channels, "recipe": recipe.json_dict()}
    return Provenance(method="noise", authorized=(record,), method_details=details)


def plain_copy(place: Path, format: str) -> None:
    """A copy for a plain network: random noise stands for a perturbation, which the lines do not look at."""
    network = build("lenet", len(CLASSES), seed=3, size=SIZE)
    images = image_set(bright(49), CLASSES)  # 49 = 3 · 16 + 1: the last batch would be one image
    options = {"images": images, "budget": BUDGET, "provenance": provenance(network), "format": format}
    publish(protect(images), place / "published", **options)
    write_keys(place, [network], RECIPE)


def keyed_copy(place: Path, format: str) -> None:
    """A copy that a wave code protects."""
    network = build("keyed:lenet", len(CLASSES), seed=3, size=SIZE)
    images, code = image_set(bright(48), CLASSES), WaveCode(shared_key([network]), BUDGET, CLASSES)
    pairs = protected_images(images, code, Runtime(torch.device("cpu"), "fp32"))
    options = {"images": images, "budget": BUDGET, "provenance": provenance(network), "format": format}
    publish(((number, *pair) for number, pair in enumerate(pairs)), place / "published", **options)
    write_keys(place, [network], RECIPE)


WAYS: dict[str, Callable[[Path, str], None]] = {"plain": plain_copy, "keyed": keyed_copy}
KINDS = [(way, format) for way in WAYS for format in ("parquet", "imagefolder")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One process runs the lines of every kind of copy; importing torch is most of its time."""
    places = {}
    for way, format in KINDS:
        places[way, format] = place = tmp_path_factory.mktemp(f"{way}-{format}")
        WAYS[way](place, format)
        (place / "authorized-0.network.py").rename(place / "network.py")
        (place / "lines.py").write_text("\n".join(lines_of((place / "published" / "TRAINING.md").read_text("utf-8"))))
        for number, pixels in enumerate(bright(12, seed=1)):
            folder = place / "test" / CLASSES[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    ran = subprocess.run([sys.executable, "-c", DRIVER, *map(str, places.values())], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for place, accuracy in zip(places.values(), ran.stdout.split(), strict=True):
        (place / "accuracy").write_text(accuracy)
    return places


@pytest.mark.parametrize(("way", "format"), KINDS)
def test_the_lines_train(way: str, format: str, trained: dict[tuple[str, str], Path]) -> None:
    place = trained[way, format]
    tensors = load_file(place / "lines.safetensors")
    losses = tensors["losses"]
    assert len(losses) == RECIPE.epochs * 3
    assert losses[-3:].mean() < 0.7 * losses[:3].mean()
    assert float((place / "accuracy").read_text()) > 0.6


@pytest.mark.parametrize(("way", "format"), KINDS)
def test_they_start_where_uge_starts(way: str, format: str, trained: dict[tuple[str, str], Path]) -> None:
    place = trained[way, format]
    tensors, store = load_file(place / "lines.safetensors"), load_images(str(place / "published"))
    pixels = torch.stack([torch.from_numpy(store.read(row)).permute(2, 0, 1) for row in range(len(store))])
    seen = zip(tensors["y"].tolist(), tensors["x"].flatten(1).tolist(), strict=True)
    assert sorted(seen) == sorted(zip(store.labels.tolist(), pixels.flatten(1).tolist(), strict=True))
    network = from_weights(place / "authorized-0.key.safetensors").eval()
    assert torch.allclose(tensors["answers"], network(tensors["x"] / 255), atol=1e-5)


@pytest.mark.parametrize(("way", "format"), KINDS)
def test_at_most_twenty_lines_and_listed(way: str, format: str, trained: dict[tuple[str, str], Path]) -> None:
    place = trained[way, format]
    page = (place / "published" / "TRAINING.md").read_text(encoding="utf-8")
    lines = lines_of(page)
    assert len(lines) <= 20
    assert all(line.strip() and ";" not in line and len(line) <= 120 for line in lines)
    assert "import uge" not in page
    assert verify(place / "published").ok
    assert "TRAINING.md" in [file.path for file in read_manifest(place / "published").files]


def test_a_changed_guide_is_found(trained: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(trained["plain", "parquet"] / "published", tmp_path / "copy")
    (copy / "TRAINING.md").write_text("pip install something-else")
    assert any(problem.startswith("TRAINING.md") for problem in verify(copy).problems)
    (copy / "TRAINING.md").unlink()
    assert any(problem.startswith("TRAINING.md is missing") for problem in verify(copy).problems)


def manifest_for(recipe: Recipe, count: int = 50, format: str = "parquet", **changes: Any) -> Manifest:
    base: dict[str, Any] = provenance(build("lenet", 2, seed=0, size=SIZE), recipe).model_dump()
    return Manifest.model_validate(
        base
        | {
            "name": "toy",
            "split": "train",
            "classes": ("cat", "dog"),
            "class_counts": (count, 0),
            "count": count,
            "size": {"height": (SIZE, SIZE), "width": (SIZE, SIZE), "channels": (3,)},
            "format": format,
            "codec": "png",
            "budget": {"rho": 0.04, "levels": 10},
            "measured": dict.fromkeys(("linf_levels", "linf", "ssim_sample", "changed_pixels"), 0)
            | dict.fromkeys(("unchanged_images", "constant_images"), 0)
            | dict.fromkeys(("psnr_db", "psnr_min_db", "ssim")),
            "files": (),
        }
        | changes
    )


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
def test_every_recipe_fits_in_twenty_lines(augment: Any, schedule: Any, format: str) -> None:
    for optimizer in ("sgd", "adam"):
        recipe = Recipe(augment=augment, schedule=schedule, optimizer=optimizer, milestones=(3, 5), epochs=10)
        lines = script(manifest_for(recipe, format=format))
        compile("\n".join(lines), "lines", "exec")
        assert 15 < len(lines) <= 20
        assert all(len(line) <= 120 for line in lines)


@given(
    st.sampled_from([*RECIPES.values(), Recipe(schedule="cosine", lr=0.3, epochs=7)]),
    st.integers(2, 40),
    st.floats(0, 0.999),
)
@settings(max_examples=60, deadline=None)
def test_the_rate_is_the_recipes(recipe: Recipe, steps: int, progress: float) -> None:
    epoch, step = divmod(int(progress * recipe.epochs * steps), steps)
    expression = RATES[recipe.schedule](recipe, steps)
    rate = eval(expression, {"np": np, "epoch": epoch, "step": step}) if expression else recipe.lr
    assert rate == pytest.approx(recipe.rate((epoch + step / steps) / recipe.epochs), rel=1e-6)


@pytest.fixture
def batch() -> Iterator[SimpleNamespace]:
    """Images in which each pixel's value says where it was: column in channel 0, row in channel 1, 1 in channel 2."""
    place = torch.arange(1, SIZE + 1, dtype=torch.uint8)
    image = torch.stack(
        [place.expand(SIZE, SIZE), place[:, None].expand(SIZE, SIZE), torch.full((SIZE, SIZE), 200, dtype=torch.uint8)]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield SimpleNamespace(images=image.repeat(400, 1, 1, 1), torch=torch, F=torch.nn.functional)


def augmented(name: str, batch: SimpleNamespace) -> torch.Tensor:
    scope = vars(batch)
    exec("\n".join(AUGMENTATIONS[name](SIZE)), scope)
    return scope["images"]


def test_crops_reach_every_place_and_half_are_mirrored(batch: SimpleNamespace) -> None:
    images = augmented("crop-flip", batch)
    assert (images.shape, images.dtype) == ((400, 3, SIZE, SIZE), torch.uint8)
    middle = images[:, :, SIZE // 2, SIZE // 2 - 1 : SIZE // 2 + 1].int()
    mirrored = middle[:, 0, 0] > middle[:, 0, 1]
    assert mirrored.sum() == 200
    rows = set((middle[:, 1, 0] - (SIZE // 2 + 1)).tolist())
    columns = set((middle[~mirrored][:, 0, 0] - SIZE // 2).tolist())
    assert rows == columns == {-2, -1, 0, 1, 2}


def test_rotations_are_up_to_twenty_degrees_and_half_are_mirrored(batch: SimpleNamespace) -> None:
    images = augmented("rotate-flip", batch)
    middle = SIZE // 2
    across = (images[:, :2, middle, middle + 3] - images[:, :2, middle, middle - 3]) / 6
    angles = torch.rad2deg(torch.atan2(across[:, 1], across[:, 0].abs()))
    assert 15 < angles.abs().max() < 21
    assert 0.4 < (across[:, 0] < 0).float().mean() < 0.6


def test_a_copy_without_authorised_networks_names_no_key() -> None:
    page = training_guide(manifest_for(RECIPE, authorized=()))
    assert "anybody can train" in page
    assert "key.safetensors" not in page


@pytest.mark.parametrize("name", ["mine.networks:make", "keyed:timm:resnet18"])
def test_a_plug_in_network_has_no_script(name: str) -> None:
    record = Authorized(id="authorized-0", network=name, weights_sha256="0" * 64)
    manifest = manifest_for(RECIPE, authorized=(record,))
    assert script(manifest) == []
    assert "uge train" in training_guide(manifest)
