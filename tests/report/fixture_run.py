"""A made-up audit folder: synthetic test data with the shape of a real run, never measured."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uge.cases.case import Case, Epoch, case_id, write_case

GRID = [
    # role, network, scheme, level it reaches, level of its peak
    ("clean", "cnn", "direct", 64.0, 64.0),
    ("clean", "resnetc20", "direct", 68.5, 68.5),
    ("clean", "resnet18", "direct", 74.0, 74.0),
    ("authorized", "cnn", "direct", 60.5, 60.5),
    ("hacker", "cnn", "direct", 31.0, 36.0),
    ("hacker", "cnn", "distill", 44.0, 44.0),
    ("hacker", "resnetc20", "direct", 17.5, 27.0),
    ("hacker", "resnetc20", "distill", 38.0, 39.0),
    ("hacker", "resnet18", "direct", 14.0, 22.0),
    ("hacker", "resnet18", "distill", 36.0, 36.0),
]
MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "tool_version": "0.1.0",
    "name": "cifar10",
    "split": "train",
    "classes": ["airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "count": 5000,
    "method": "uge",
    "codec": "webp",
    "seeds": {"seed": 0},
    "authorized": [{"id": "authorized-0", "network": "cnn", "weights_sha256": "5f" * 32}],
    "encoder": {"kind": "local", "networks": ["cnn", "resnetc20"], "weights_sha256": "ab" * 32},
    "budget": {"rho": 0.04, "unit": "[0, 1] pixel value", "levels": 10},
    "measured": {
        "linf_levels": 10,
        "linf": 10 / 255,
        "psnr_db": 31.8,
        "psnr_min_db": 30.2,
        "ssim": 0.947,
        "ssim_sample": 250,
        "changed_pixels": 0.97,
        "unchanged_images": 0,
    },
    "config_sha256": "c0" * 32,
    "method_details": {
        "generator": {"max_steps": 2000},
        "loss": {"lambda_fd": 1.0, "lambda_ud": 0.1, "alpha": 0.1, "targets": "class"},
        "refinement": {"passes": 10, "rounds": 8, "step": 2},
    },
}
RECIPE = {
    "optimizer": "sgd",
    "lr": 0.1,
    "epochs": 15,
    "batch_size": 128,
    "schedule": "one-cycle",
    "augment": "crop-flip",
}


def make_run(folder: Path, *, seeds: int = 3, parts: str = "manifest pictures protect", classes: Any = None) -> Path:
    """Write an audit folder and return it."""
    for number, (role, network, scheme, level, peak) in enumerate(GRID):
        for seed in range(seeds):
            noise = np.random.default_rng([number, seed])
            write_case(folder / "cases", _case(role, network, scheme, level, peak, seed, noise))
    if "manifest" in parts:
        (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "classes": classes or MANIFEST["classes"]}))
    if "pictures" in parts:
        make_pictures(folder / "pictures", classes or MANIFEST["classes"])
    if "protect" in parts:
        make_events(folder / "protect.jsonl")
    return folder


def _case(role: Any, network: str, scheme: str, level: float, peak: float, seed: int, noise: Any) -> Case:
    data = "clean" if role == "clean" else "protected"
    epochs = []
    for number in range(1, 16):
        rise = 10 + (peak - 10) * (1 - math.exp(-number / 2.6)) / (1 - math.exp(-15 / 2.6))
        fall = (peak - level) * max(0, number - 6) / 9
        accuracy = float(np.clip(rise - fall + noise.normal(0, 0.8), 0, 100))
        epochs.append(
            Epoch(epoch=number, loss=2.3 / number, train_accuracy=min(99.0, accuracy + 12), test_accuracy=accuracy)
        )
    best = max(epochs, key=lambda epoch: epoch.test_accuracy)
    return Case(
        key=0,
        id=case_id(role, network, scheme, data, seed),
        role=role,
        network=network,
        start="theta0" if role == "authorized" else "random",
        scheme=scheme,
        data=data,
        seed=seed,
        recipe={**RECIPE, "classes": 10},
        history=epochs,
        last=epochs[-1].test_accuracy,
        best=best.test_accuracy,
        best_epoch=best.epoch,
        seconds=41.0,
        environment={"torch": "2.13.0", "device": "cpu", "threads": 1, "precision": "bf16"},
    )


def make_pictures(folder: Path, classes: list[str], side: int = 32, count: int = 6) -> None:
    """Soft coloured shapes and a bounded change."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:side, 0:side] / side
    listed = []
    for number in range(count):
        noise = np.random.default_rng(number)
        a, b, c = noise.uniform(0.3, 0.7, 3)
        blob = np.exp(-(((x - a) ** 2 + (y - b) ** 2) / 0.04))
        colours = noise.uniform(40, 215, (2, 3))
        clean = colours[0] * (1 - y[..., None] * c) * (1 - blob[..., None]) + colours[1] * blob[..., None]
        wave = np.sin(2 * np.pi * (x[..., None] * noise.uniform(2, 6, 3) + y[..., None] * noise.uniform(2, 6, 3)))
        clean = clean.clip(0, 255).astype(np.uint8)
        protected = (clean.astype(int) + np.rint(10 * wave).astype(int)).clip(0, 255).astype(np.uint8)
        names = {"original": f"{number:02d}-original.png", "protected": f"{number:02d}-protected.png"}
        Image.fromarray(clean).save(folder / names["original"])
        Image.fromarray(protected).save(folder / names["protected"])
        listed.append({**names, "class": classes[number % len(classes)]})
    (folder / "pictures.json").write_text(json.dumps({"pictures": listed}))


def make_events(path: Path) -> None:
    noise = np.random.default_rng(0)
    lines = []
    for step in range(10, 2001, 10):
        decay, jitter = math.exp(-step / 500), noise.normal(0, 0.02, 3)
        fd, gm, ud = 2.0 * decay + 0.3 + jitter[0], 0.3 * decay + 0.1 + jitter[1] / 4, 1.9 + 0.4 * decay + jitter[2]
        lines.append(
            {"event": "step", "step": step, "loss": gm + fd + 0.1 * ud, "gradient_matching": gm}
            | {"feature_distance": fd, "undistill": ud, "mean_abs_delta": 0.03 * (1 - decay)}
        )
    for number in range(20):
        lines.append(
            {"event": "refine", "name": f"0/{number}", "loss": 0.6 - number / 30, "feature_distance": 0.3 - number / 30}
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
