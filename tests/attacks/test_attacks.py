"""What attacks do to images and teachers, beyond plain training."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from uge.attacks import ATTACKS
from uge.attacks.base import Context, changing, transformed
from uge.attacks.compression import jpeg
from uge.attacks.knowledge import distill_inside
from uge.attacks.preprocess import grayscale
from uge.auditing.plan import plan
from uge.data.store import PixelStore, Records
from uge.errors import UsageError
from uge.learning.recipes import Recipe
from uge.networks import build
from uge.networks.wave_key import WaveKey
from uge.runtime import Runtime

RUNTIME = Runtime.create("cpu", "fp32")


def smooth_photos(count: int, seed: int = 0) -> Tensor:
    """Pictures with smooth colours, away from black and white: uint8, count × 3 × 32 × 32."""
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 120 + 60
    return torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic").clamp(20, 235).to(torch.uint8)


def store(pixels: Tensor) -> PixelStore:
    records = Records(len(pixels), tuple(pixels.shape[1:]), torch.uint8)
    records.write(torch.arange(len(pixels)), pixels)
    return PixelStore(records, torch.arange(len(pixels)) % 2, ("a", "b"))


def context(pixels: Tensor, **changes: object) -> Context:
    def no_teacher() -> torch.nn.Module:
        raise AssertionError("this attack asks no teacher")

    fields: dict[str, object] = {
        "network": build("lenet", 2, seed=0),
        "store": store(pixels),
        "test": store(pixels),
        "recipe": Recipe(epochs=1, batch_size=8),
        "seed": 0,
        "runtime": RUNTIME,
        "teacher": no_teacher,
    }
    return Context(**{**fields, **changes})  # type: ignore[arg-type]


def test_grayscale_is_the_brightness_of_pillow() -> None:
    pixels = smooth_photos(3)
    found = grayscale(pixels)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    for image, gray in zip(pixels.permute(0, 2, 3, 1).numpy(), found[:, 0].numpy(), strict=True):
        expected = np.asarray(Image.fromarray(image).convert("L")).astype(int)
        assert np.abs(expected - gray).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_a_viewer_of_the_file_sees(channels: int) -> None:
    pixels = smooth_photos(2)[:, :channels]
    found = jpeg(pixels, 30)
    assert found.shape == pixels.shape
    file = io.BytesIO()
    image = pixels[1].permute(1, 2, 0).numpy()
    Image.fromarray(image[..., 0] if channels == 1 else image).save(file, "JPEG", quality=30)
    assert np.array_equal(np.asarray(Image.open(file)).reshape(image.shape), found[1].permute(1, 2, 0).numpy())
    assert not torch.equal(found, jpeg(pixels, 90))


def test_training_and_test_images_are_changed_alike() -> None:
    pixels = smooth_photos(8)
    original = context(pixels)
    changed = changing(lambda _: lambda batch: 255 - batch)(original)
    for images in (changed.store, changed.test):
        assert torch.equal(images.pixels.read(torch.arange(8)), 255 - pixels)
    assert torch.equal(original.store.pixels.read(torch.arange(8)), pixels)


def test_a_store_is_changed_in_batches_and_keeps_its_labels() -> None:
    pixels = smooth_photos(4).repeat(130, 1, 1, 1)
    found = transformed(store(pixels), grayscale)
    assert torch.equal(found.pixels.read(torch.arange(520)), grayscale(pixels))
    assert torch.equal(found.labels, torch.arange(520) % 2)


def test_the_trained_network_in_hand_teaches_what_its_answers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keyed network refuses marked images in evaluation mode only."""
    teacher = build("keyed:lenet", 2, seed=0)
    monkeypatch.setattr(WaveKey, "marked", lambda self, found: torch.ones_like(found.gray))
    answers = []
    teacher.register_forward_hook(lambda module, given, out: answers.append(out.detach()))
    for name in ("distill", "distill-inside"):
        answers.clear()
        ATTACKS[name].run(context(smooth_photos(16), teacher=lambda: teacher))
        refused = all(bool((out == 0).all()) for out in answers)
        assert len(answers) == 2
        assert refused == (name == "distill")


def test_distill_inside_does_not_train_the_teacher() -> None:
    teacher = build("lenet", 2, seed=0)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    distill_inside(context(smooth_photos(16), teacher=lambda: teacher))
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())


@pytest.mark.parametrize("name", [name for name in ATTACKS if name.startswith("distill")])
def test_every_distillation_needs_a_key(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        plan(["cnn"], [name], 1, [], controls=False)
    (student,) = (job for job in plan(["cnn"], [name], 1, ["cnn"], controls=False).jobs if job.role == "hacker")
    assert student.key == 0


@pytest.mark.parametrize("name", ["grayscale", "jpeg75", "jpeg10", "wave-removal", "other-key"])
def test_every_attack_on_images_trains(name: str) -> None:
    history = ATTACKS[name].run(context(smooth_photos(16)))
    assert [epoch.test_accuracy is None for epoch in history.epochs] == [False]
