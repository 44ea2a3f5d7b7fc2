"""The yardstick: copies of one data set by every protection, each with its worst case, in one table and one plot.

::

    python benchmarks/worst_case.py run data/cifar10 work/yardstick --public data/cifar100 --copies robust,tap
    python benchmarks/worst_case.py run data/cifar10 work/yardstick --public data/cifar100 --first  # every attack once
    python benchmarks/worst_case.py run data/cifar10 work/whole --into whole/cifar10 --limit 50000 --epochs 15 \\
        --networks cnn --attacks direct,jpeg10,gaussian-blur,adversarial-fast --copies robust,tap,keyed --first
    python benchmarks/worst_case.py pages  # table, plot, README

Each copy is made by ``uge protect`` and audited by ``uge audit --worst-case``, one at a time; a run that was cut off
goes on. Attacks on clean images and trainings without the copy depend on no copy: what one audit has finished, the
next ones take over. Cases, manifest, summary and the time of protecting go to ``results/worst-case/COPY``, or where
``--into`` says.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape

from uge.auditing.summary import Summary, counted
from uge.auditing.worst_case import Form, Mean, WorstCase
from uge.auditing.worst_results import worst_case
from uge.cases.case import YARDSTICK, read_cases
from uge.files import read_json, write_atomic, write_json
from uge.names import is_keyed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "worst-case"
PAGE = ROOT / "docs" / "benchmark.md"
README = ROOT / "README.md"
PLOT = ROOT / "docs" / "images" / "worst-case.svg"
ORIGINALS = "originals"
COPIES = {
    "random": ("random noise, one pattern an image", "--method random --rho 0.04"),
    "em": (
        "EM, error-minimising noise",
        "--method em --rho 0.04 --baseline.surrogate cnn --baseline.theta-steps 400 --baseline.steps 5 "
        "--baseline.step 3",
    ),
    "tap": (
        "TAP, targeted adversarial noise",
        "--method tap --rho 0.04 --baseline.surrogate cnn --baseline.epochs 10 --baseline.steps 25 "
        "--baseline.step 1.5 --baseline.restarts 1",
    ),
    "cuda": ("CUDA, one blur a class (no bound)", "--method cuda"),
    "keyed": ("`keyed`, held by obscurity", "--method keyed --authorized keyed:cnn"),
    "uge": ("`uge`, the paper's method", "--method uge --authorized cnn"),
    "robust-low": ("`robust --effort low`", "--method robust --effort low"),
    "robust": ("`robust`", "--method robust"),
    "robust-high": ("`robust --effort high`", "--method robust --effort high"),
    "robust-generator": (
        "`robust --robust.by generator`, 2,000 steps",
        "--method robust --robust.by generator --robust.generator 2000",
    ),
    "pixel8": ("preview: pixelated to 8 px", "--method preview --baseline.kind pixel8"),
    "pixel16": ("preview: pixelated to 16 px", "--method preview --baseline.kind pixel16"),
    "blur2": ("preview: blurred by 2 px", "--method preview --baseline.kind blur2"),
    "noise0.1": ("preview: noise of 0.1", "--method preview --baseline.kind noise0.1"),
}
"""What every copy is, and how it is made."""
PROTECTIONS = (ORIGINALS, "tap", "keyed", "robust")
"""Rows of the README."""


def uge(*arguments: str) -> None:
    print("uge", *arguments, flush=True)
    subprocess.run([str(Path(sys.executable).with_name("uge")), *arguments], check=True)


def share(audits: Path, audit: Path) -> None:
    """Take over cases that depend on no copy; an audit runs again those that do not fit it."""
    for path in sorted(audits.glob("*.audit/cases/*.json")):
        place = audit / "cases" / path.name
        case = read_json(path)
        if not place.exists() and (case["data"] == "clean" or case["family"] == YARDSTICK):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def run(options: argparse.Namespace) -> None:
    """Copies and their audits, one after the other."""
    for name in options.copies.split(","):
        out = options.work / name
        made = options.work / f"{name}.json"
        if not made.is_file():
            began = time.perf_counter()
            arguments = [*COPIES[name][1].split(), "--limit", str(options.limit), "--seed", "0", "--no-seal"]
            arguments += ["--authorized-seed", "0"] if "--authorized" in arguments else []
            begun = out.with_name(f"{name}.private") / "run" / "run.json"
            again = ["--resume"] if begun.is_file() and not (out / "manifest.json").is_file() else ["--overwrite"]
            arguments += ["--size", str(options.size)] if options.size else []
            uge("protect", options.source, str(out), *arguments, "--threads", str(options.threads), *again)
            seconds = round(time.perf_counter() - began, 1)
            write_json(made, {"arguments": arguments, "seconds": seconds, "threads": options.threads})
        audit = options.work / f"{name}.audit"
        share(options.work, audit)
        arguments = ["--test", options.source, *(["--public", options.public] if options.public else [])]
        arguments += ["--strongest", "0"] if options.first else []
        for flag in ("attacks", "networks", "epochs", "size"):
            value = getattr(options, flag)
            arguments += [f"--{flag}", str(value)] if value else []
        uge("audit", str(out), "--worst-case", *arguments, "--threads", str(options.threads), "--folder", str(audit))
        keep(audit, made, ROOT / "results" / options.into / name)


def keep(audit: Path, made: Path, place: Path) -> None:
    """Copy an audit's figures to the results."""
    shutil.rmtree(place / "cases", ignore_errors=True)
    (place / "cases").mkdir(parents=True)
    for path in sorted((audit / "cases").glob("*.json")):
        shutil.copyfile(path, place / "cases" / path.name)
    for name in ("manifest.json", "summary.json"):
        shutil.copyfile(audit / name, place / name)
    shutil.copyfile(made, place / "protect.json")


@dataclass(frozen=True)
class Row:
    """One copy."""

    name: str
    worst: WorstCase
    psnr_db: float | None
    ssim: float
    seconds: str
    partial: bool = False

    @property
    def about(self) -> str:
        return "the originals as they are" if self.name == ORIGINALS else COPIES[self.name][0]


def originals(results: Path) -> list[Row]:
    """Row of the originals: every attack on clean images, as the audits of copies have run it beside; may be empty."""
    cases = {}
    for place in sorted(results.iterdir()):
        for case in read_cases(place):
            if not is_keyed(case.network) and (case.data == "clean" or case.family == YARDSTICK):
                changes = {"data": "protected"} if case.data == "clean" and case.scheme != "direct" else {}
                if (case.role, case.scheme) == ("clean", "direct"):
                    plain = case.model_copy(update={"id": case.id + "-plain", "role": "hacker", "data": "protected"})
                    cases.setdefault(plain.id, plain)
                cases.setdefault(case.id, case.model_copy(update=changes))
    worst = worst_case(cases.values())
    return [] if worst is None else [Row(ORIGINALS, worst, None, 1.0, "–")]


def rows(results: Path = RESULTS) -> list[Row]:
    """Originals and copies that were measured, in the order of the table."""
    found = originals(results)
    for name in COPIES:
        place = results / name
        if not (place / "summary.json").is_file():
            continue
        summary = Summary.model_validate(read_json(place / "summary.json"))
        worst = worst_case(read_cases(place))
        assert worst is not None, place
        images = read_json(place / "manifest.json")["count"]
        made = read_json(place / "protect.json")
        seconds = f"{1000 * made['seconds'] / images:.1f} ({counted(made['threads'], 'core')})"
        facts = summary.facts
        found.append(Row(name, worst, facts.get("psnr_db"), facts["ssim"], seconds, summary.ran < summary.planned))
    return found


def figure(mean: Mean | None) -> str:
    if mean is None:
        return "not measured"
    return f"{mean.value:.1f}" + ("" if mean.std is None else f" ± {mean.std:.1f}")


def reached(form: Form | None, *, partial: bool) -> str:
    if form is None:
        return "not measured"
    if partial:  # What was left out may do better, and an upper bound says nothing.
        return f"at least **{figure(form.worst.reached)}** ({form.worst.name}), not every attack was run"
    seeds = counted(form.worst.seeds, "seed")
    return f"**{figure(form.worst.reached)}** ({form.worst.name}; {seeds}), at most {form.oracle:.1f}"


def table(copies: Sequence[Row]) -> str:
    """The table of the page."""
    lines = [
        "| copy | PSNR | SSIM | clean control | without the copy | worst, 5 epochs | worst, 15 epochs | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in copies:
        short = row.worst.short
        psnr = "–" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        clean = ", ".join(f"{figure(mean)} {network}" for network, mean in short.clean.items())
        alone = "not measured" if short.no_copy is None else figure(short.no_copy.reached)
        both = " | ".join(reached(form, partial=row.partial) for form in (short, row.worst.long))
        lines.append(f"| {row.about} | {psnr} | {row.ssim:.3f} | {clean} | {alone} | {both} | {row.seconds} |")
    return "\n".join(lines)


def short_table(copies: Sequence[Row]) -> str:
    """The table of the README: four kinds of people, and what each can learn."""
    found = {row.name: row for row in copies}
    lines = ["| who | on the originals | plain training on the copy | best attack |", "|---|--:|--:|--:|"]
    for name, who in (("robust", "anybody else, `robust`"), ("keyed", "anybody else, `keyed`")):
        if name not in found:
            continue
        form = found[name].worst.short
        clean = figure(form.clean.get(form.worst.network))
        plain = [row for row in form.attacks if (row.scheme, row.network) == ("direct", form.worst.network)]
        if len(lines) == 2:
            lines.append(f"| a recipient with a key | {clean} | {clean}: opens the originals | |")
        direct = figure(plain[0].reached) if plain else "not measured"
        lines.append(f"| {who} | {clean} | {direct} | **{figure(form.worst.reached)}** |")
    alone = next((row.worst.short.no_copy for row in found.values() if row.worst.short.no_copy), None)
    if alone is not None:
        lines.append(f"| anybody, without any copy | | | {figure(alone.reached)} |")
    return "\n".join(lines)


def attacks(copies: Sequence[Row], most: int = 8) -> str:
    """Strongest attacks of every copy."""
    lines = ["| copy | strongest attacks, 5 epochs |", "|---|---|"]
    for row in copies:
        strongest = [f"{attack.name} {figure(attack.reached)}" for attack in row.worst.short.attacks[:most]]
        lines.append(f"| {row.about} | {'; '.join(strongest)} |")
    return "\n".join(lines)


WIDTH, HEIGHT, LEFT, TOP = 620, 400, 56, 20


def drawing(copies: Sequence[Row]) -> str:
    """Worst case against SSIM as SVG."""
    lowest = min(0.5, *(row.ssim for row in copies))
    highest = 10 * (int(max(row.worst.short.worst.reached.value for row in copies)) // 10 + 1)

    def at(ssim: float, accuracy: float) -> tuple[float, float]:
        across = LEFT + (ssim - lowest) / (1 - lowest) * (WIDTH - LEFT - 130)
        return across, TOP + (1 - accuracy / highest) * (HEIGHT - TOP - 50)

    label = "Worst case of every copy against its structural similarity with the originals"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{label}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for accuracy in range(0, highest + 1, 10):
        (x, y), (end, _) = at(lowest, accuracy), at(1, accuracy)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{end:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{accuracy}</text>')
    for step in range(5, 11):
        if step / 10 >= lowest:
            x, y = at(step / 10, 0)
            parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{step / 10:g}</text>')
    without = max((row.worst.short.no_copy.reached.value for row in copies if row.worst.short.no_copy), default=None)
    if without is not None:
        (x, y), (end, _) = at(lowest, without), at(1, without)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{end:.1f}" stroke="#777" stroke-dasharray="5 4"/>')
        parts.append(f'<text x="{x + 6:.1f}" y="{y - 5:.1f}" fill="#555">without the copy</text>')
    taken: list[float] = []
    for row in sorted(copies, key=lambda row: -row.worst.short.worst.reached.value):
        worst = row.worst.short.worst.reached
        x, y = at(row.ssim, worst.value)
        height = max([y, *(other + 14 for other in taken if abs(other - y) < 200)]) if row.ssim > 0.85 else y
        if row.ssim > 0.85:
            taken.append(height)
        colour = "#1f5fa8" if row.name.startswith("robust") else "#8a8a8a"
        parts.append(f"<g><title>{escape(row.about)}: {figure(worst)} %</title>")
        if abs(height - y) > 1:
            parts.append(f'<path d="M{x:.1f} {y:.1f}L{x + 12:.1f} {height:.1f}" stroke="#bbb"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.1f}" y="{height + 4:.1f}">{escape(row.name)} {worst.value:.0f}</text></g>')
    x = LEFT + (WIDTH - LEFT - 130) / 2
    parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="middle">SSIM with the originals</text>')
    x, y = 14, TOP + (HEIGHT - TOP - 50) / 2
    parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">worst case, %</text>')
    return "\n".join([*parts, "</svg>", ""])


def filled(page: str, name: str, content: str) -> str:
    """Page whose block of this name holds the content."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"the page has no block {begin} … {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Content of every page that shows these results."""
    copies = rows(results)
    page = filled(PAGE.read_text("utf-8"), "worst-case", table(copies))
    return {
        PAGE: filled(page, "strongest", attacks(copies)),
        README: filled(README.read_text("utf-8"), "worst-case", short_table(copies)),
        PLOT: drawing(copies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="make copies and audit them")
    runs.add_argument("source", help="folder of CIFAR-10, or of anything else with a test split")
    runs.add_argument("work", type=Path, help="folder of copies and audits")
    runs.add_argument("--public", help="labelled images of another data set")
    runs.add_argument("--copies", default=",".join(COPIES), help="names separated by commas: " + ", ".join(COPIES))
    runs.add_argument("--limit", type=int, default=10000, help="training images")
    runs.add_argument("--threads", type=int, default=1)
    runs.add_argument("--into", default="worst-case", help="folder below results")
    runs.add_argument("--size", type=int, help="side length for training, where images are of other sizes")
    runs.add_argument("--attacks", help="attacks in place of all")
    runs.add_argument("--networks", help="networks in place of the yardstick's")
    runs.add_argument("--epochs", type=int, help="epochs in place of 5")
    runs.add_argument("--first", action="store_true", help="every attack once, with no stage after that")
    verbs.add_parser("pages", help="write the results into the pages that show them")
    options = parser.parse_args()
    if options.verb == "run":
        run(options)
        return
    for path, content in pages().items():
        write_atomic(path, content)


if __name__ == "__main__":
    main()
