"""Readings of the paper's method, each with three authorised networks, hackers and students.

::

    python benchmarks/fidelity.py run data/cifar10 work/fidelity --networks cnn,resnetc20
    python benchmarks/fidelity.py pages

Every reading perturbs 10,000 images directly, without a generator, for one network; then three of that architecture
train on the copy: from θ0, which is authorised; from θ_T, the end of its path on clean images; from other θ0, a hacker.
The hacker of another architecture is a plain CNN, or a ResNet-8 beside it. Students learn from the authorised network.
θ_T as it is stands beside them. A run that was cut off goes on.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import uge
from uge.cases.case import Case, read_cases
from uge.data import ImageSet, load_images
from uge.data.store import load_pixels
from uge.files import read_json, write_atomic, write_json
from uge.learning.recipes import Recipe
from uge.learning.training import evaluate
from uge.learning.trajectory import network_at
from uge.methods.uge.settings import GeneratorSettings, LossWeights, RefineSettings
from uge.networks import save_weights
from uge.runtime import Runtime
from worst_case import ROOT, filled

RESULTS = ROOT / "results" / "fidelity"
PAGE = ROOT / "docs" / "reproduce.md"
READINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ours": ("class targets, sums, a cosine per layer", "local", {}),
    "mean": ("squared distances as means", "local", {"distance": "mean"}),
    "augmented": ("identically augmented pairs, one cosine over all", "local", {"augment": True, "layout": "flat"}),
    "rows": ("L_gm summed over rows", "local", {"layout": "row"}),
    "paper": ("ImageNet features, a target per image", "imagenet", {"targets": "image"}),
    "path": ("θ_t in L_ud, a new random hacker each batch", "local", {"teacher": "path", "fresh_hacker": True}),
}
"""Reading → about, encoder, settings of the losses that differ from the defaults."""
PASSES = 8


def arms(name: str) -> list[str]:
    """Architectures of hackers: the authorised one, and another."""
    return [name, "resnet8" if name == "cnn" else "cnn"]


def run(options: argparse.Namespace) -> None:
    """All readings, for each network in turn."""
    runtime = Runtime.create()
    images = load_images(options.source, limit=options.limit)
    for network in options.networks.split(","):
        path = uge.record_trajectory(network, images, seed=0, recipe=Recipe(epochs=options.epochs), runtime=runtime)
        for reading in options.readings.split(","):
            result = RESULTS / f"{network}-{reading}"
            if not (result / "result.json").is_file():
                measure(images, path, reading, options, runtime, result)


def measure(
    images: ImageSet,
    path: uge.AuthorizedPath,
    reading: str,
    options: argparse.Namespace,
    runtime: Runtime,
    result: Path,
) -> None:
    """One copy and everybody who trains on it."""
    _, encoder, changes = READINGS[reading]
    network = path.theta0.name
    out = options.work / f"{network}-{reading}"
    if not (out / "manifest.json").is_file():
        print(f"protect {network} {reading}", flush=True)
        protected = uge.protect(
            images,
            path,
            method="uge",
            budget=0.04,
            encoder=encoder,
            loss=LossWeights(**changes),
            generator=GeneratorSettings(max_steps=0),
            refine=True,
            refinement=RefineSettings(passes=options.passes, step=3),
            encoder_recipe=Recipe(epochs=options.encoder_epochs, lr=0.1),
            runtime=runtime,
        )
        uge.publish(protected, out, seal=False, overwrite=True)
    private = out.with_name(f"{out.name}.private")
    assert path.trajectory is not None, "recorded before"
    trained = network_at(copy.deepcopy(path.theta0), path.trajectory, -1, runtime)
    save_weights(private / "trained.key.safetensors", trained, {"recipe": path.recipe.model_dump_json()})
    test = load_images(options.source, split="test", limit=2000)
    folder = options.work / f"{network}-{reading}.audit"
    print(f"audit {network} {reading}", flush=True)
    uge.audit(
        out,
        test=options.source,
        networks=arms(network),
        attacks=["direct", "distill"],
        variants=[],
        keys=[private / "authorized-0.key.safetensors", private / "trained.key.safetensors"],
        limit_test=2000,
        folder=folder,
        runtime=runtime,
    )
    for case in read_cases(folder):
        write_json(result / "cases" / f"{case.id}.json", case.as_json())
    manifest = read_json(out / "manifest.json")
    write_json(
        result / "result.json",
        {
            "network": network,
            "reading": reading,
            "about": READINGS[reading][0],
            "images": len(images),
            "recipe": path.recipe.json_dict(),
            "passes": options.passes,
            "method_details": manifest["method_details"],
            "measured": manifest["measured"],
            "trained": round(evaluate(trained, load_pixels(test, device=runtime.device), runtime), 2),
            "environment": runtime.environment(),
        },
    )


def row(place: Path) -> str:
    """One line of the table; a cell is the last epoch, the best one in brackets where it is higher."""
    result = read_json(place / "result.json")
    cases = read_cases(place)
    network = result["network"]
    other = arms(network)[1]

    def cell(role: str, name: str, scheme: str = "direct", key: int = 0, start: str | None = None) -> str:
        chosen = [
            case
            for case in cases
            if (case.role, case.network, case.scheme, case.key) == (role, name, scheme, key)
            and (start is None or case.start == start)
        ]
        return figure(chosen[0]) if chosen else "not measured"

    columns = [
        f"`{network}`: {result['about']}",
        cell("clean", network, start="theta0"),
        f"{result['trained']:.1f}",
        cell("authorized", network, key=0),
        cell("authorized", network, key=1),
        cell("hacker", network),
        cell("hacker", other),
        f"{cell('hacker', network, 'distill')}, {cell('hacker', other, 'distill')}",
        f"{result['measured']['ssim']:.3f}",
    ]
    return "| " + " | ".join(columns) + " |"


def figure(case: Case) -> str:
    return f"{case.last:.1f}" + (f" ({case.best:.1f})" if case.best > case.last + 0.05 else "")


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Content of the page that shows the table."""
    lines = [
        "| authorised network: reading | clean, from θ0 | θ_T, clean | from θ0, authorised | from θ_T "
        "| from other θ0 | another architecture | students | SSIM |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    places = sorted(results.glob("*/result.json"), key=lambda path: (path.parent.name.split("-")[0], path))
    lines += [row(path.parent) for path in places]
    content = "\n".join(lines) if places else "Not measured yet."
    return {PAGE: filled(PAGE.read_text("utf-8"), "fidelity", content)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="make the copies and train on them")
    runs.add_argument("source", help="folder of CIFAR-10, or of anything else with a test split")
    runs.add_argument("work", type=Path)
    runs.add_argument("--networks", default="cnn,resnetc20")
    runs.add_argument("--readings", default=",".join(READINGS))
    runs.add_argument("--limit", type=int, default=10_000)
    runs.add_argument("--epochs", type=int, default=15)
    runs.add_argument("--encoder-epochs", type=int, default=12)
    runs.add_argument("--passes", type=int, default=PASSES)
    verbs.add_parser("pages", help="write the table into docs/reproduce.md")
    options = parser.parse_args()
    if options.verb == "run":
        run(options)
        return
    for path, content in pages().items():
        write_atomic(path, content)


if __name__ == "__main__":
    main()
