"""Checks, timings and cells of Table 1 on a GPU, within a given time. ``run`` beside this file starts it.

The result is written anew after every item, so that a run that was cut off leaves what it has.
"""

import argparse
import itertools
import os
import site
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if os.environ.get("UGE_GPU_SITE"):
    site.addsitedir(os.environ["UGE_GPU_SITE"])  # Behind the installed packages.

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import uge
from training import Textbook
from uge.attacks import ATTACKS, Context
from uge.cases.case import read_cases
from uge.data import ImageSet, load_images
from uge.data.store import PixelStore, load_pixels
from uge.files import write_json
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.methods.robust.settings import RobustSettings
from uge.methods.uge.feature_distance import class_derangement, feature_distance
from uge.methods.uge.matching import gradient_matching
from uge.methods.uge.settings import GeneratorSettings, RefineSettings
from uge.methods.uge.undistill import undistill
from uge.networks import build
from uge.runtime import Runtime

BUNDLE = Path(__file__).parent / "bundle" / "data"
Item = tuple[str, Callable[[], dict[str, Any]]]


@dataclass
class Bench:
    """Images, devices and time of one run."""

    train: ImageSet
    test: ImageSet
    runtime: Runtime
    network: str
    small: str
    epochs: int
    generator_steps: int
    seeds: int
    trial: bool
    ends: float
    folder: Path
    data: str
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def on(self, device: str) -> Runtime:
        """Full precision, for comparisons."""
        return Runtime.create(device, "fp32")

    def wait(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, action: Callable[[], Any]) -> tuple[Any, float]:
        self.wait()
        began = time.perf_counter()
        value = action()
        self.wait()
        return value, round(time.perf_counter() - began, 3)


def compared(name: str, cpu: Tensor, device: Tensor, tolerance: float) -> dict[str, Any]:
    """Largest difference over the largest value of the CPU's result."""
    cpu, device = cpu.detach().double().cpu(), device.detach().double().cpu()
    difference = float((cpu - device).abs().max() / cpu.abs().max().clamp_min(1e-12))
    return {"name": name, "difference": difference, "tolerance": tolerance, "ok": difference <= tolerance}


def losses(bench: Bench) -> dict[str, Any]:
    """Values and gradients of the paper's losses on both devices, in fp32 without TF32."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 32, 32, generator=draw)
    x_u = (x + 0.04 * (2 * torch.rand(x.shape, generator=draw) - 1)).clamp(0, 1)
    y = torch.arange(8) % 10
    text = torch.nn.functional.normalize(torch.randn(10, 128, generator=draw), dim=1)

    def gradients(device: str) -> dict[str, tuple[Tensor, Tensor]]:
        network, other = (build("cnn", 10, seed=seed).to(device) for seed in (0, 1))
        a, b, labels, names = x.to(device), x_u.to(device).requires_grad_(True), y.to(device), text.to(device)

        def features(images: Tensor) -> Tensor:
            return torch.nn.functional.normalize(network.eval().features(images), dim=1)

        values = {
            **{
                f"L_gm {reduction} {layout}": gradient_matching(
                    [network], a, b, labels, reduction=reduction, layout=layout
                )
                for reduction, layout in itertools.product(("batch", "sample"), ("layer", "flat", "row"))
            },
            "L_fd": feature_distance(features(a), features(b), names, labels, class_derangement(names)[labels]),
            "L_ud": undistill([network.eval()], other.eval(), b, labels),
        }
        return {name: (value, torch.autograd.grad(value, b)[0]) for name, value in values.items()}

    with full_precision():
        cpu, device = gradients("cpu"), gradients(str(bench.runtime.device))
    return {
        "parts": [
            part
            for name in cpu
            for part in (
                compared(name, cpu[name][0], device[name][0], 1e-3),
                compared(f"{name}, gradient", cpu[name][1], device[name][1], 1e-2),
            )
        ]
    }


class full_precision:  # noqa: N801  (reads as a verb)
    """TF32 off inside."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before


def attacked_pixels(bench: Bench) -> dict[str, Any]:
    """Images of every preprocessing attack that trains nothing, JPEG among them: one level apart at most, in 1 %."""
    images = bench.train.take(64)
    names = [name for name, entry in ATTACKS.loadable().items() if entry.family == "preprocess" and not entry.needs]

    def made(device: str) -> dict[str, Tensor]:
        runtime = bench.on(device)
        store = load_pixels(images, device=runtime.device)
        network = build("cnn", len(store.classes), channels=store.channels, size=store.size, seed=0)
        context = Context(network, store, store, Recipe(epochs=1), 0, runtime, teacher=lambda: network)
        prepares = {name: ATTACKS[name].prepare for name in names}
        return {name: all_pixels(prepare(context).store) for name, prepare in prepares.items() if prepare}

    cpu, device = made("cpu"), made(str(bench.runtime.device))
    parts = []
    for name, pixels in cpu.items():
        apart = (pixels.int() - device[name].int()).abs()
        share = float((apart > 0).double().mean())
        part = {"name": name, "levels": int(apart.max()), "share": round(share, 6), "tolerance": "1 level in 1 %"}
        parts.append({**part, "ok": int(apart.max()) <= 1 and share <= 0.01})
    return {"parts": parts}


def all_pixels(store: PixelStore) -> Tensor:
    return store.pixels.read(torch.arange(len(store))).cpu()


def em(bench: Bench) -> dict[str, Any]:
    """EM noise of both devices: sign steps part at ties, so that mean change and budget are compared."""
    images = bench.train.take(64)
    baseline = {"surrogate": "cnn", "theta_steps": 5, "steps": 3, "step": 3}

    def made(device: str) -> Tensor:
        protected = uge.protect(images, method="em", budget=0.04, baseline=baseline, runtime=bench.on(device))
        pairs = protected.pairs()
        return torch.stack([torch.from_numpy(new.astype("int16") - old) for old, new in pairs]).abs().float()

    cpu, device = made("cpu"), made(str(bench.runtime.device))
    return {"parts": [compared("EM, mean change", cpu.mean(), device.mean(), 0.1), within("EM", device)]}


def within(name: str, levels: Tensor) -> dict[str, Any]:
    largest = int(levels.max())
    return {"name": f"{name}, largest change in levels", "value": largest, "tolerance": 10, "ok": 0 < largest <= 10}


def small_audit(bench: Bench) -> dict[str, Any]:
    """The audit of 200 images on both devices, fp32: accuracies differ by what the number of test images moves."""
    protected = uge.protect(bench.train.take(200), method="random", budget=0.04, runtime=bench.on("cpu"))
    out = bench.folder / "small"
    uge.publish(protected, out, seal=False, overwrite=True)
    test = min(len(bench.test), 500)

    def accuracies(device: str) -> dict[str, float]:
        folder = bench.folder / f"small-{device.replace(':', '-')}"
        uge.audit(
            out,
            test=bench.data,
            networks=[bench.small],
            attacks=["direct", "jpeg10"],
            variants=[],
            epochs=min(bench.epochs, 5),
            limit_test=test,
            folder=folder,
            runtime=bench.on(device),
        )
        return {case.id: case.last for case in read_cases(folder)}

    cpu, device = accuracies("cpu"), accuracies(str(bench.runtime.device))
    tolerance = 300 * (0.25 * 2 / test) ** 0.5  # Three standard errors of a difference, in points.
    parts = [
        {"name": name, "cpu": value, "device": device[name], "tolerance": round(tolerance, 1)}
        | {"ok": abs(value - device[name]) <= tolerance}
        for name, value in cpu.items()
    ]
    return {"parts": parts}


def protecting(bench: Bench) -> dict[str, Any]:
    """Seconds of ``robust`` and of publishing, on all images; the copy stays for the cells."""
    settings = RobustSettings(effort="low") if bench.trial else RobustSettings()
    make = lambda: uge.protect(bench.train, method="robust", robust=settings, runtime=bench.runtime)  # noqa: E731
    protected, seconds = bench.timed(make)
    publish = lambda: uge.publish(protected, bench.folder / "robust", seal=False, overwrite=True)  # noqa: E731
    manifest, published = bench.timed(publish)
    return {
        "images": len(bench.train),
        "seconds": seconds,
        "images_per_second": round(len(bench.train) / seconds, 1),
        "publishing_seconds": published,
        "psnr_db": manifest.measured.psnr_db,
        "ssim": manifest.measured.ssim,
    }


def generating(bench: Bench) -> dict[str, Any]:
    """Seconds of a generator of ``robust``, and images a second that it perturbs."""
    images = bench.train.take(min(len(bench.train), 5000))
    settings = RobustSettings(effort="low", generator=bench.generator_steps, by="generator")
    make = lambda: uge.protect(images, method="robust", robust=settings, runtime=bench.runtime)  # noqa: E731
    protected, seconds = bench.timed(make)
    pixels = [images.read(row) for row in range(min(len(images), 2048))]
    labels = [int(label) for label in images.labels[: len(pixels)]]
    generator = protected.perturbation.perturber
    with bench.runtime.autocast():
        list(generator.levels(pixels[:256], labels[:256]))
        _, alone = bench.timed(lambda: list(generator.levels(pixels, labels)))
    return {
        "images": len(images),
        "steps": bench.generator_steps,
        "seconds": seconds,
        "images_per_second_generator_alone": round(len(pixels) / alone, 1),
    }


def training(bench: Bench) -> dict[str, Any]:
    """Seconds of an epoch against a textbook loop, and the accuracy after all epochs; the second epoch counts."""
    store = load_pixels(bench.train, device=bench.runtime.device)
    test = load_pixels(bench.test, device=bench.runtime.device)
    classes = len(store.classes)
    marks = [time.perf_counter()]
    network = build(bench.network, classes, channels=store.channels, size=store.size, seed=0)
    recipe = Recipe(epochs=max(bench.epochs, 2), batch_size=128 if len(store) < 5000 else 512)
    history = fit(
        network,
        store,
        recipe,
        seed=0,
        runtime=bench.runtime,
        test=test,
        progress=lambda *_: marks.append(time.perf_counter()),
    )
    epochs = [after - before for before, after in itertools.pairwise(marks)]
    textbook = build(bench.network, classes, channels=store.channels, size=store.size, seed=0).to(bench.runtime.device)
    on_cpu = load_pixels(bench.train)
    workers = min(16, len(os.sched_getaffinity(0)))
    loader = DataLoader(Textbook(on_cpu), recipe.batch_size, shuffle=True, num_workers=workers, persistent_workers=True)
    optimizer = torch.optim.SGD(textbook.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)

    def epoch() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            x, y = x.to(bench.runtime.device, non_blocking=True), y.to(bench.runtime.device, non_blocking=True)
            torch.nn.functional.cross_entropy(textbook(x), y).backward()
            optimizer.step()

    epoch()
    _, slow = bench.timed(epoch)
    return {
        "images": len(store),
        "network": bench.network,
        "batch": recipe.batch_size,
        "seconds_per_epoch_with_test": round(sorted(epochs)[len(epochs) // 2], 3),
        "textbook_fp32_seconds_per_epoch": slow,
        "loader_processes": workers,
        "epochs": recipe.epochs,
        "seconds": round(sum(epochs), 2),
        "test_accuracy": history.last,
    }


def paper_copy(bench: Bench) -> dict[str, Any]:
    """The paper's UGE for one authorised network, with its trajectory and generator."""
    began = time.perf_counter()
    recipe = Recipe(epochs=bench.epochs)
    path = uge.record_trajectory(bench.network, bench.train, seed=0, recipe=recipe, runtime=bench.runtime)
    protected = uge.protect(
        bench.train,
        path,
        method="uge",
        budget=0.04,
        generator=GeneratorSettings(max_steps=bench.generator_steps),
        refine=bench.trial,  # A generator of a few steps changes no stored pixel.
        refinement=RefineSettings(passes=1),
        runtime=bench.runtime,
    )
    uge.publish(protected, bench.folder / "uge", seal=False, overwrite=True)
    return {"images": len(bench.train), "seconds": round(time.perf_counter() - began, 1)}


def cells(bench: Bench, copy: str, attacks: list[str], networks: list[str], seeds: int) -> dict[str, Any]:
    """Cells of one copy: as many as the time that is left holds, most telling first; the rest is named."""
    folder = bench.folder / f"{copy}.audit"
    summary = uge.audit(
        bench.folder / copy,
        test=bench.data,
        networks=networks,
        attacks=attacks,
        variants=[],
        seeds=seeds,
        epochs=bench.epochs,
        budget=f"{max(int(bench.left * 0.8), 1)}s" if bench.runtime.device.type == "cuda" else "full",
        workers="auto" if bench.runtime.device.type == "cuda" else 1,
        folder=folder,
        runtime=bench.runtime,
    )
    cases = [
        {"id": case.id, "last": case.last, "best": case.best, "epochs": len(case.history), "seconds": case.seconds}
        for case in read_cases(folder)
    ]
    return {"cases": cases, "left_out": [entry.model_dump() for entry in summary.left_out]}


def items(bench: Bench) -> Iterator[Item]:
    """Everything that is measured, most telling first."""
    yield "checks/losses", lambda: losses(bench)
    yield "checks/attacks", lambda: attacked_pixels(bench)
    yield "checks/em", lambda: em(bench)
    yield "checks/audit of 200 images", lambda: small_audit(bench)
    yield "timings/robust", lambda: protecting(bench)
    yield "timings/training", lambda: training(bench)
    yield "timings/paper's UGE", lambda: paper_copy(bench)
    yield "cells/uge", lambda: cells(bench, "uge", ["direct"], [bench.network, bench.small], 1)
    filters = ["direct", "jpeg10", "adversarial-fast"]
    yield "cells/robust", lambda: cells(bench, "robust", filters, [bench.network], 1)
    yield "timings/generator", lambda: generating(bench)
    if bench.seeds > 1:
        yield "cells/uge, seeds", lambda: cells(bench, "uge", ["direct"], [bench.network, bench.small], bench.seeds)
        yield "cells/robust, seeds", lambda: cells(bench, "robust", filters, [bench.network], bench.seeds)


def run(bench: Bench, out: Path) -> int:
    """Measure item by item; returns the number of checks that failed."""
    failed = 0
    for name, measure in items(bench):
        if bench.left <= 0:
            bench.result[name] = {"not_measured": "no time was left"}
            continue
        began = time.perf_counter()
        try:
            value = measure()
        except Exception as error:
            value = {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(limit=3)}
            failed += 1
        bad = [part["name"] for part in value.get("parts", []) if not part["ok"]]
        failed += len(bad)
        bench.result[name] = {**value, "item_seconds": round(time.perf_counter() - began, 2)}
        write_json(out, bench.result)
        print(f"{name}: {bench.result[name]['item_seconds']} s" + (f", beyond tolerance: {bad}" if bad else ""))
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file of the result")
    parser.add_argument("--data", default=str(BUNDLE), help="source with a training and a test split")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of images, epochs and steps; 0.01 for a trial")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="training steps of generators")
    options = parser.parse_args()
    runtime = Runtime.create(options.device)
    trial = options.scale < 1
    train, test = (load_images(options.data, split=split) for split in ("train", "test"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            train=train.take(max(200, round(options.scale * len(train)))),
            test=test.take(max(50, round(options.scale * len(test)))),
            runtime=runtime,
            network=options.network,
            small="cnn",
            epochs=1 if trial else 15,
            generator_steps=2 if trial else options.steps,
            seeds=1 if trial else options.seeds,
            trial=trial,
            ends=time.monotonic() + 60 * options.minutes,
            folder=Path(folder),
            data=options.data,
        )
        bench.result = {
            "benchmark": "gpu",
            "data": {"training": len(bench.train), "test": len(bench.test), "classes": len(train.classes)},
            "scale": options.scale,
            "recipe": Recipe(epochs=bench.epochs).json_dict(),
            "environment": runtime.environment(),
        }
        if runtime.device.type == "cuda":
            bench.result["gpu"] = torch.cuda.get_device_name(runtime.device)
        failed = run(bench, options.out)
    print(f"{options.out}: {failed} checks beyond their tolerance, or items that failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
