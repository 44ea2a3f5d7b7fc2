"""Seconds and gradient evaluations per 1,000 images of every method of ``uge protect``, side by side on one machine.

::

    python benchmarks/baselines.py DATA --limit 1000
    python benchmarks/baselines.py DATA --limit 500 --methods em tap keyed uge

Every method runs in a process of its own, one after another, on the same images, from clean pixels in memory to whole
8-bit levels. Methods with a surrogate run at the settings for a CPU (those of
``uge reproduce --scale cpu``), the paper's method with as many steps as its flags below say; all are in the output.
With ``--published`` baselines run at their published settings, which on a CPU take days.

One gradient evaluation is one forward and backward pass of one image. Baselines count their own; for methods with
authorised networks, images that go through a network while gradients are recorded are counted from outside.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

from uge.budget import Budget
from uge.config import ProtectConfig
from uge.data import load_images
from uge.data.images import ImageSet
from uge.data.store import load_pixels
from uge.methods import METHODS as TABLE
from uge.methods import ImagesInfo
from uge.methods.baselines import BASELINES
from uge.methods.baselines.base import Material
from uge.methods.uge.generator import Generator
from uge.networks.base import ImageClassifier
from uge.paper.scale import SCALES
from uge.pipeline.protect import protect_task
from uge.runtime import Runtime
from uge.session import Session

CPU_SETTINGS = SCALES["cpu"].baselines
OURS: dict[str, dict[str, Any]] = {
    "keyed": {"authorized": "keyed:cnn"},
    "uge": {
        "authorized": "cnn",
        "recipe": {"epochs": 5},
        "encoder_recipe": {"epochs": 5},
        "generator": {"max_steps": 100},
    },
}
"""Settings of the methods with authorised networks: our default, and the paper's method, scaled down."""
METHODS = [*OURS, *(row.name for row in BASELINES)]


def count_gradients(counts: list[int]) -> Any:
    """Add to ``counts`` the images of every call of a network while gradients are recorded, until removed."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, ImageClassifier | Generator) and torch.is_grad_enabled():
            counts.append(len(inputs[0]))

    return nn.modules.module.register_module_forward_pre_hook(hook)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> dict[str, float]:
    """Seconds by the wall and of all cores; the latter depend less on other processes of the machine."""
    wall, cores = clocks()
    return {"seconds": wall - began[0], "processor_seconds": cores - began[1]}


def ours(name: str, images: ImageSet, runtime: Runtime) -> dict[str, Any]:
    config = ProtectConfig.checked(method=name, **OURS[name])
    method, info = TABLE[name], ImagesInfo.of(images)
    counted: list[int] = []
    handle = count_gradients(counted)
    began = clocks()
    task = protect_task(images, info, config, method.networks(info, config), Session(runtime))
    perturber = method.perturb(task).perturber
    runtime.place(perturber).eval()
    for start in range(0, len(images), 250):
        rows = range(start, min(start + 250, len(images)))
        pixels = [images.read(row) for row in rows]
        labels = [int(images.labels[row]) for row in rows]
        ids = [images.ids[row] for row in rows]
        with runtime.autocast():
            list(perturber.levels(pixels, labels, ids))
    seconds = since(began)
    handle.remove()
    return {**seconds, "gradients": sum(counted), "settings": OURS[name], "rho": perturber.budget.rho}


def baseline(name: str, images: ImageSet, runtime: Runtime, published: bool) -> dict[str, Any]:
    row = TABLE[name].baseline
    figures_so_far = {"gradients": 0.0}
    options = {} if published else CPU_SETTINGS.get(name, {})
    material = Material(
        load_pixels(images),
        Budget(row.rho),
        0,
        runtime,
        options,
        progress=lambda done, total, figures: figures_so_far.update(figures),
    )
    began = clocks()
    row.make(material)
    seconds = since(began)
    settings = row.read_settings(options).model_dump(mode="json")
    return {**seconds, "gradients": figures_so_far["gradients"], "settings": settings, "rho": row.rho}


def measure(name: str, source: str, limit: int, published: bool) -> dict[str, Any]:
    """Seconds, gradients and settings of one method, in this process."""
    runtime = Runtime.create()
    images = load_images(source, limit=limit)
    cost = ours(name, images, runtime) if name in OURS else baseline(name, images, runtime, published)
    thousands = len(images) / 1000
    return {
        "seconds_per_1000": round(cost["seconds"] / thousands, 3),
        "processor_seconds_per_1000": round(cost["processor_seconds"] / thousands, 3),
        "gradients_per_1000": round(cost["gradients"] / thousands),
        "scaled_down": name == "uge" or (name in CPU_SETTINGS and not published),
        "rho": round(cost["rho"], 5),
        "settings": cost["settings"],
        "images": len(images),
        "environment": runtime.environment(),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--published", action="store_true", help="baselines at their published settings")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.method:
        print(json.dumps(measure(options.method, options.source, options.limit, options.published)))
        return
    rows: dict[str, dict[str, Any]] = {}
    for name in options.methods:
        command = [sys.executable, __file__, options.source, "--limit", str(options.limit), "--method", name]
        command += ["--published"] * options.published
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows[name] = json.loads(output.splitlines()[-1])
    common = [{key: row.pop(key) for key in ("environment", "images")} for row in rows.values()][-1]
    slowest = max(row["seconds_per_1000"] for row in rows.values())
    for row in rows.values():
        row["part_of_the_slowest"] = round(row["seconds_per_1000"] / slowest, 5)
    print(json.dumps({"benchmark": "baselines", "images": common["images"], "methods": rows, **common}, indent=1))


if __name__ == "__main__":
    main()
