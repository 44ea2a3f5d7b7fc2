"""Cases an hour of ``uge audit`` against one process per case with a textbook PyTorch loop; and seeds trained together.

::

    python benchmarks/audit.py DATA --limit 4000 --epochs 3 --networks lenet,cnn,resnet8 --out RESULT.json

DATA is any source with a train and a test split of 32-pixel images. For each network, four cases are run with several
seeds: clean control, labels, grayscale, JPEG 10. The textbook way starts a process for each of them, decodes the
images, and trains in fp32 on a ``DataLoader`` that attacks, crops and flips every image with Pillow each time it is
read. The first seed is run with 0 and with 2 loader processes, and what is quicker is used for the other seeds and
counts. A second ratio counts only one of the textbook's starts, as if one process ran all cases. ``uge audit`` is
one command for all, with one worker for each core, and its report included. Each process is timed from start to end.

Loader and training processes may use every core; the machine should have nothing else to do, and the load average is
recorded.

The second part trains several seeds of one architecture stacked by ``torch.func`` and ``vmap``, and one after the
other, in processor time of one thread: the ratio says whether batched training is worth having.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, Dataset

from uge.data import load_images
from uge.data.images import ImageSet
from uge.files import write_json
from uge.learning.recipes import Recipe
from uge.networks import build
from uge.runtime import Runtime

CASES = ("clean", "direct", "grayscale", "jpeg10")
STACKED = ("lenet", "cnn", "resnet8")
WORTH = 1.2
"""How much quicker stacked training has to be before it is worth having."""


def jpeg10(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=10)
    return Image.open(file)


ATTACKS = {
    "clean": lambda image: image,
    "direct": lambda image: image,
    "grayscale": lambda image: image.convert("L").convert("RGB"),
    "jpeg10": jpeg10,
}


class Textbook(Dataset):
    def __init__(self, images: ImageSet, case: str, *, training: bool) -> None:
        self.images = [Image.fromarray(images.read(row)) for row in range(len(images))]
        self.labels, self.attack, self.training = images.labels, ATTACKS[case], training

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.attack(self.images[index])
        if self.training:
            image = ImageOps.expand(image, 4)
            left, top = torch.randint(0, 9, (2,)).tolist()
            image = image.crop((left, top, left + 32, top + 32))
            image = ImageOps.mirror(image) if torch.rand(()) < 0.5 else image
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float().div(255), int(self.labels[index])


def textbook(options: argparse.Namespace, published: Path) -> None:
    """One case in this process: accuracy after every epoch, as an audit measures it."""
    train = load_images(options.source, limit=options.limit) if options.case == "clean" else load_images(published)
    sets = (train, load_images(options.source, split="test", limit=options.limit_test))
    torch.manual_seed(options.seed)
    network = build(options.network, len(train.classes), seed=options.seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    print(time.time() - options.began)  # Everything is loaded.
    workers, size = options.loader_processes, Recipe().batch_size
    loader, test = (
        DataLoader(Textbook(images, options.case, training=on), batch_size=size, shuffle=on, num_workers=workers)
        for images, on in zip(sets, (True, False), strict=True)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=options.epochs * len(loader))
    for _ in range(options.epochs):
        network.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            right = sum(int((network(x).argmax(1) == y).sum()) for x, y in test)
        print(100 * right / len(sets[1]))


def timed(command: list[str]) -> tuple[float, str]:
    """Seconds of a process, and what it printed."""
    # Threads that wait by spinning would make the textbook loop many times slower on a busy machine.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - began, done.stdout


def ours(options: argparse.Namespace, network: str, published: Path, folder: Path) -> float:
    attacks = ",".join(case for case in CASES if case != "clean")
    flags = {"networks": network, "attacks": attacks, "variants": "none", "recipe": "short", "workers": "auto"}
    flags |= {"epochs": options.epochs, "limit-test": options.limit_test, "folder": folder, "seeds": options.seeds}
    command = [sys.executable, "-m", "uge", "audit", str(published), "--test", options.source]
    seconds, _ = timed([*command, *(f"--{name}={value}" for name, value in flags.items())])
    assert len(list((folder / "cases").glob("*.json"))) == len(CASES) * options.seeds
    return seconds


@dataclass(frozen=True)
class Textbooks:
    """All cases of one seed: their seconds together, and the seconds until each process had loaded its libraries."""

    seconds: float
    starts: list[float]


def compared(options: argparse.Namespace, network: str, published: Path, folder: Path) -> dict[str, Any]:
    """Seconds of the same cases in both ways."""
    again = [sys.executable, *sys.argv, f"--published={published}", f"--network={network}"]

    def textbooks(processes: int, seed: int) -> Textbooks:
        flags = [f"--loader-processes={processes}", f"--seed={seed}"]
        runs = [timed([*again, *flags, f"--case={case}", f"--began={time.time()}"]) for case in CASES]
        return Textbooks(sum(seconds for seconds, _ in runs), [float(text.split()[0]) for _, text in runs])

    first = {processes: textbooks(processes, 0) for processes in (0, 2)}
    quicker = min(first, key=lambda processes: first[processes].seconds)
    every = [first[quicker], *(textbooks(quicker, seed) for seed in range(1, options.seeds))]
    theirs, starts = sum(one.seconds for one in every), [start for one in every for start in one.starts]
    seconds = {"textbook": theirs, "uge audit": ours(options, network, published, folder)}
    seconds["textbook in one process"] = theirs - sum(starts) + min(starts)
    return {
        "first_seed_by_loader_processes": {processes: round(one.seconds, 2) for processes, one in first.items()},
        "loader_processes": quicker,
        "seconds": {way: round(value, 2) for way, value in seconds.items()},
        "cases_per_hour": {way: round(3600 * len(starts) / value, 1) for way, value in seconds.items()},
        "times_faster_than": {
            way: round(value / seconds["uge audit"], 2) for way, value in seconds.items() if way.startswith("textbook")
        },
    }


def together(name: str, seeds: int, steps: int, batch: int) -> dict[str, float]:
    """Processor seconds a step of training several seeds: one after the other, and stacked; with one thread."""
    torch.set_num_threads(1)
    networks = [build(name, 10, seed=seed).train() for seed in range(seeds)]
    random = torch.Generator().manual_seed(0)
    x = torch.rand((seeds, batch, 3, 32, 32), generator=random)
    y = torch.randint(0, 10, (seeds, batch), generator=random)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    apart = [torch.optim.SGD(network.parameters(), **options) for network in networks]

    def one_by_one() -> None:
        for number, (network, optimizer) in enumerate(zip(networks, apart, strict=True)):
            optimizer.zero_grad()
            F.cross_entropy(network(x[number]), y[number]).backward()
            optimizer.step()

    parameters, buffers = stack_module_state(networks)
    joint = torch.optim.SGD(parameters.values(), **options)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(networks[0], (parameters, buffers), (x,)), y)

    def stacked() -> None:
        joint.zero_grad()
        vmap(loss, randomness="different")(parameters, buffers, x, y).sum().backward()
        joint.step()

    found = {}
    for way, step in (("one after the other", one_by_one), ("stacked", stacked)):
        times = []
        for _ in range(steps + 2):
            began = time.process_time()
            step()
            times.append(time.process_time() - began)
        found[way] = round(min(times[2:]), 4)  # The least is what other programs on the machine disturbed least.
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--limit-test", type=int, default=1000)
    parser.add_argument("--networks", default="cnn", help="separated by commas")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3, help="of each case, and trained together")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--published", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--loader-processes", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        textbook(options, options.published)
        return
    with tempfile.TemporaryDirectory() as place:
        made, published = Path(place) / "made", Path(place) / "published"
        protect = [sys.executable, "-m", "uge", "protect", options.source, str(made), f"--limit={options.limit}"]
        subprocess.run([*protect, "--method=keyed", "--authorized=cnn"], check=True, capture_output=True)
        made.rename(published)  # Away from its keys: no authorised side, as with anybody's folder.
        speeds = {name: compared(options, name, published, Path(place) / name) for name in options.networks.split(",")}
    environment, load = Runtime.create().environment(), [round(value, 1) for value in os.getloadavg()]
    steps = {name: together(name, options.seeds, options.steps, Recipe().batch_size) for name in STACKED}
    ratios = {name: round(found["one after the other"] / found["stacked"], 2) for name, found in steps.items()}
    found = {
        "benchmark": "audit",
        "images": options.limit,
        "test_images": options.limit_test,
        "epochs": options.epochs,
        "cases": list(CASES),
        "seeds": options.seeds,
        "networks": speeds,
        "seeds_trained_together": {
            "processor_seconds_a_step": {
                name: {way: round(t, 4) for way, t in one.items()} for name, one in steps.items()
            },
            "stacked_times_faster": ratios,
            "worth_having": min(ratios.values()) >= WORTH,
        },
        "load_average": load,
        "environment": environment,
    }
    print(json.dumps(found, indent=1))
    if options.out:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
