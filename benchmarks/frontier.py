"""Frontier: accuracy that the authorised network and the strongest hacker keep, for every setting that was measured.

::

    python benchmarks/frontier.py results --out docs/images/frontier.svg --table

Both axes are parts of the accuracy above chance (10 classes) of the clean control of the same network: the authorised
network at its last epoch, the hacker at the better of last and best. A data owner wants points above the diagonal, far
to the left. Settings come from case files; those of the study before this repository, which left no files, are listed
here with its figures (docs/method.md).
"""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape

from uge.auditing.summarize import summarize
from uge.auditing.summary import HackerResult, clean_shares
from uge.cases.case import read_cases
from uge.files import write_atomic
from uge.names import behind_key

CHANCE = 10.0
USUAL = ("direct", "own-recipe", "distill")
CHANGED = re.compile(r"-protected-.+-s\d+$")
SIDE = 440
MARGIN = 52


@dataclass(frozen=True)
class Setting:
    """A point; accuracies in percent."""

    name: str
    authorized: float
    control: float
    hacker: float
    hacker_control: float
    who: str
    scale: str
    preliminary: bool = False

    @property
    def place(self) -> tuple[float, float]:
        """Hacker and authorised network, as parts of their controls' accuracy above chance."""
        return retained(self.hacker, self.hacker_control), retained(self.authorized, self.control)


def retained(accuracy: float, control: float) -> float:
    return (accuracy - CHANCE) / (control - CHANCE)


def ordinary(hacker: HackerResult) -> bool:
    return hacker.scheme in USUAL and not hacker.network.startswith("keyed:")


def on_labels(hacker: HackerResult) -> bool:
    return ordinary(hacker) and hacker.scheme != "distill"


def anybody(hacker: HackerResult) -> bool:
    """True for attacks without the trained network itself and without originals."""
    return hacker.holds == "nothing" or hacker.scheme in USUAL


def measured(name: str, scale: str, folders: Sequence[Path], counted: Callable[[HackerResult], bool]) -> Setting:
    # Changed trainings (…-direct-protected-CHANGE-sSEED) are left out.
    cases = {case.id: case for folder in folders for case in read_cases(folder) if not CHANGED.search(case.id)}
    summary = summarize(cases.values(), classes=10)
    authorized = summary.authorized
    assert authorized is not None, f"no authorised network in {folders}"
    judged = clean_shares(filter(counted, summary.hackers), CHANCE)
    top, _ = max(judged, key=lambda pair: pair[1])
    # The front-end belongs to the authorised network's task: its control is that of the plain network.
    own = (authorized.network, behind_key(authorized.network))
    control = max(value for network, value in summary.clean.items() if network in own)
    best = max(top.last, top.best)
    return Setting(name, authorized.last, control, best, top.clean or 0.0, f"{top.network}, {top.scheme}", scale)


def settings(results: Path) -> list[Setting]:
    yardstick, deeper = (
        [results / "conditional/clean", *(results / f"conditional/keyed-{name}-s{seed}" for seed in range(3))]
        for name in ("cnn", "resnetc20")
    )
    before = results / "colour-key"
    audits = results / "audit-cifar10"
    colours = [before / "conditional/clean", before / "conditional/keyed-cnn-s0"]
    whole = "10,000 images, 15 epochs"
    short = "10,000 images, 5 epochs"
    few = "3,000 images, 15 epochs"
    rows = [
        measured("keyed, hackers on labels", whole, yardstick, on_labels),
        measured("keyed, and distilling", whole, yardstick, ordinary),
        measured("keyed, with keys of their own", whole, yardstick, anybody),
        measured("keyed ResNetC-20, the same hackers", whole, deeper, anybody),
        measured("keyed, plain training", short, [audits / "keyed"], on_labels),
        measured("colour key, hackers on labels", whole, colours, on_labels),
        measured("colour key, and distilling", whole, colours, ordinary),
        measured("colour key, attacks on it", whole, [*colours, before / "attacks"], anybody),
        measured("colour key, plain training", short, [audits / "colour-key"], on_labels),
        measured("colour key, attacks on it", short, [audits / "colour-key"], anybody),
        measured("feature distance alone", whole, [results / "cifar10-10k/unlearn"], anybody),
        measured("hackers in the loop", "5,000 images, 8 epochs", [results / "hackers-in-the-loop"], anybody),
    ]
    rows += [
        measured("feature distance, generator with labels", few, [results / "generator/skips-labels"], anybody),
        *(measured(name, few, [results / "path-matching" / folder], anybody) for folder, name in PATHS.items()),
    ]
    return rows + [Setting(*row, "5,000 images, 15 epochs", True) for row in PRELIMINARY]


PATHS = {
    "on-policy": "on-policy, 2 rounds",
    "parameter-matching": "the same, parameters matched",
    "value-matching": "the same, values matched",
    "class-batches": "the same, batches of one class",
    "students": "the same, students in the loop",
    "small-lr": "the same, small learning rate",
    "rewound": "the same, start trained for 3 epochs (44.0)",
    "wide": "the same, CNN of twice the width",
}
"""Folders of trials with matched gradients, and their names."""
CNN = 64.5
PRELIMINARY = (
    ("gradient matching on the clean path", 23.4, CNN, 24.2, CNN, "CNN, other start"),
    ("on-policy, 8 rounds", 53.4, CNN, 49.3, CNN, "CNN, other start"),
    ("on-policy, 14 rounds, stronger", 36.6, CNN, 32.7, CNN, "CNN, other start"),
    ("on-policy, small learning rate", 47.2, CNN, 46.0, CNN, "CNN, distilled"),
    ("on-policy, partly trained start (50.3)", 54.5, CNN, 52.7, CNN, "CNN, distilled"),
    ("colour null filter, shared axis", 62.7, CNN, 62.4, CNN, "behind another key"),
    ("colour null filter, random axis", 61.3, CNN, 61.2, CNN, "behind another key"),
    ("patch null space, on labels", 56.3, CNN, 35.0, CNN, "CNN"),
    ("patch null space, behind another key", 56.3, CNN, 49.3, CNN, "behind another key"),
    ("patch null space, distilled", 56.3, CNN, 54.7, CNN, "CNN, distilled"),
)
"""Of the study before this repository: name, authorised, its control, hacker, its control, network of the hacker."""


def table(rows: Sequence[Setting]) -> str:
    lines = [
        "| | setting | authorised of clean | strongest hacker of clean | who | scale |",
        "|---|---|---|---|---|---|",
    ]
    for number, row in enumerate(rows, 1):
        mark = " †" if row.preliminary else ""
        lines.append(
            f"| {number} | {row.name}{mark} | {row.authorized:.1f} of {row.control:.1f} "
            f"| {row.hacker:.1f} of {row.hacker_control:.1f} | {row.who} | {row.scale} |"
        )
    return "\n".join(lines)


def label_place(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The nearest place around a point where its number touches no other point or number."""
    ring = (
        (x + r * math.cos(a * math.pi / 8), y + r * math.sin(a * math.pi / 8))
        for r in range(13, 200, 4)
        for a in range(16)
    )
    return next(place for place in ring if all(math.dist(place, other) > 12 for other in taken))


def drawing(rows: Sequence[Setting]) -> str:
    """A scatter plot as SVG: the diagonal is where the key is worth nothing."""

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + min(max(x, 0.0), 1.05) / 1.05 * SIDE, 16 + SIDE - min(max(y, 0.0), 1.05) / 1.05 * SIDE

    width = MARGIN + SIDE + 16
    height = SIDE + 16 + MARGIN
    label = "Scatter plot: what the authorised network keeps against what the strongest hacker keeps"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{label}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for step in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, bottom), (_, top), (left, y), (right, _) = at(step, 0), at(step, 1.05), at(0, step), at(1.05, step)
        parts.append(f'<path d="M{x:.1f} {bottom:.1f}V{top:.1f}M{left:.1f} {y:.1f}H{right:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{step:.0%}</text>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{step:.0%}</text>')
    (x0, y0), (x1, y1) = at(0, 0), at(1.05, 1.05)
    parts.append(f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" stroke="#999" stroke-dasharray="5 4"/>')
    x, y = at(0.3, 0.335)
    parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="#777" transform="rotate(-45 {x:.1f} {y:.1f})">no gap</text>')
    x, y = at(0.03, 0.06)
    parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="#777">everybody fails</text>')
    x, y = at(0.03, 0.9)
    parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="#777">what a data owner wants</text>')
    parts.append(f'<text x="{MARGIN + SIDE / 2}" y="{height - 10}" text-anchor="middle">strongest hacker keeps</text>')
    x = 13
    y = 16 + SIDE / 2
    parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">authorised keeps</text>')
    places = [at(*row.place) for row in rows]
    labels: list[tuple[float, float]] = []
    for number, (row, (x, y)) in enumerate(zip(rows, places, strict=True), 1):
        left, top = label_place(x, y, [*places, *labels])
        labels.append((left, top))
        style = 'fill="#fff" stroke="#555"' if row.preliminary else 'fill="#1f5fa8"'
        parts.append(f"<g><title>{escape(row.name)} ({escape(row.scale)})</title>")
        parts.append(f'<path d="M{x:.1f} {y:.1f}L{left:.1f} {top:.1f}" stroke="#bbb"/>')
        parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="7" fill="#fff"/>')
        parts.append(f'<text x="{left:.1f}" y="{top + 4:.1f}" text-anchor="middle" font-size="11">{number}</text>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style}/></g>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="SVG file")
    parser.add_argument("--table", action="store_true", help="print the points")
    options = parser.parse_args()
    rows = settings(options.results)
    if options.out:
        write_atomic(options.out, drawing(rows))
    if options.table or not options.out:
        print(table(rows))


if __name__ == "__main__":
    main()
