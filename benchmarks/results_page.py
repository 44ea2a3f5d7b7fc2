"""The page of results: tables, two plots, what holds and what does not, all from result files.

::

    python benchmarks/results_page.py  # docs/results.md and docs/images/attacks.svg
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import escape

from uge.files import write_atomic
from worst_case import ORIGINALS, PLOT, PROTECTIONS, RESULTS, ROOT, Row, figure, filled, rows

PAGE = ROOT / "docs" / "results.md"
ATTACKS = PLOT.with_name("attacks.svg")
WHOLE = "whole/cifar10"
OTHERS = (
    ("sets/cifar100", "CIFAR-100, 20,000 images, 100 classes"),
    ("sets/tinyimagenet20", "TinyImageNet-20 at 64 px, 20 classes"),
    ("sets/caltech15", "Caltech-15, photographs of any size"),
    ("sets/mnist", "MNIST, gray"),
    ("sets/cifar10-2000", "CIFAR-10, 2,000 images"),
)
COLOURS = {ORIGINALS: "#8a8a8a", "tap": "#b8860b", "keyed": "#7a4fa3", "robust": "#1f5fa8"}


def worst(row: Row) -> str:
    text = f"**{figure(row.worst.short.worst.reached)}**"
    return f"at least {text}" if row.partial else text


def table(copies: Sequence[Row]) -> str:
    """Copies of one set; ``not measured`` where there are none."""
    if not copies:
        return "Not measured."
    lines = ["| public copy | PSNR | SSIM | plain training | worst case | by |", "|---|--:|--:|--:|--:|---|"]
    for row in copies:
        form = row.worst.short
        plain = [
            attack for attack in form.attacks if attack.scheme == "direct" and attack.network == form.worst.network
        ]
        psnr = "–" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        direct = figure(plain[0].reached) if plain else "not measured"
        lines.append(f"| {row.about} | {psnr} | {row.ssim:.3f} | {direct} | {worst(row)} | {form.worst.name} |")
    return "\n".join(lines)


def set_table(results: Path) -> str:
    """One line for every set besides CIFAR-10."""
    lines = ["| data set | clean | without the copy | `keyed` | TAP | `robust` |", "|---|--:|--:|--:|--:|--:|"]
    for folder, about in OTHERS:
        copies = {row.name: row for row in rows(results / folder)} if (results / folder).is_dir() else {}
        some = next(iter(copies.values()), None)
        cells = [worst(copies[name]) if name in copies else "not measured" for name in ("keyed", "tap", "robust")]
        clean = alone = "not measured"
        if some is not None:
            form = some.worst.short
            clean = figure(form.clean.get(form.worst.network))
            alone = figure(form.no_copy.reached) if form.no_copy else "not measured"
        lines.append(f"| {about} | {clean} | {alone} | {' | '.join(cells)} |")
    return "\n".join(lines)


WIDTH, LEFT, STEP, TOP = 640, 190, 22, 46


def drawing(copies: Sequence[Row], most: int = 6) -> str:
    """Every strong attack on every protection, as SVG: one line an attack, one dot a copy."""
    shown = [row for row in copies if row.name in PROTECTIONS]
    names = list(dict.fromkeys(attack.scheme for row in shown for attack in row.worst.short.attacks[:most]))
    reached = {row.name: {attack.scheme: attack.reached.value for attack in row.worst.short.attacks} for row in shown}
    robust = reached.get("robust", {})
    names.sort(key=lambda name: -robust.get(name, 0.0))
    height = TOP + STEP * len(names) + 40

    def at(accuracy: float) -> float:
        return LEFT + accuracy / 80 * (WIDTH - LEFT - 20)

    label = "Accuracy of every strong attack on every copy"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{label}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, row in enumerate(shown):
        x = LEFT + number * 110
        parts.append(
            f'<circle cx="{x}" cy="16" r="5" fill="{COLOURS[row.name]}"/><text x="{x + 10}" y="20">{row.name}</text>'
        )
    for accuracy in range(0, 81, 20):
        parts.append(f'<path d="M{at(accuracy):.1f} {TOP - 10}V{height - 30}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{at(accuracy):.1f}" y="{height - 12}" text-anchor="middle">{accuracy} %</text>')
    alone = next((row.worst.short.no_copy.reached.value for row in shown if row.worst.short.no_copy), None)
    if alone is not None:
        parts.append(f'<path d="M{at(alone):.1f} {TOP - 10}V{height - 30}" stroke="#777" stroke-dasharray="5 4"/>')
        parts.append(f'<text x="{at(alone) + 4:.1f}" y="{TOP - 12}" fill="#555">without the copy {alone:.0f}</text>')
    for line, name in enumerate(names):
        y = TOP + STEP * line + 8
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for row in shown:
            if name in reached[row.name]:
                value = reached[row.name][name]
                title = f"<title>{escape(name)} on {escape(row.name)}: {value:.1f} %</title>"
                parts.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="5" fill="{COLOURS[row.name]}">{title}</circle>')
    return "\n".join([*parts, "</svg>", ""])


NAMES = {"tap": "TAP", "em": "EM", "cuda": "CUDA", "keyed": "`keyed`", "uge": "the paper's `uge`"}


def statements(copies: Sequence[Row]) -> str:
    """What the figures say, each sentence with its numbers."""
    found = {row.name: row for row in copies}
    lines = []
    robust = found.get("robust")
    limit = 0.0 if robust is None else robust.worst.short.worst.reached.value
    if robust is not None and robust.worst.short.no_copy is not None:
        alone = robust.worst.short.no_copy.reached.value
        lines.append(
            f"- **Holds, nearly**: the strongest attack on `robust` reaches {limit:.1f} %. The same attacker gets "
            f"{alone:.1f} % without the copy, so the copy gives away {max(limit - alone, 0):.1f} points."
        )
    for row in (found[name] for name in NAMES if name in found):
        attack = row.worst.short.worst
        clean = row.worst.short.clean.get(attack.network)
        reached = f"{'at least ' * row.partial}{attack.reached.value:.1f}" + (f" of {clean.value:.1f}" if clean else "")
        lines.append(f"- **Broken**: {NAMES[row.name]}. The attack `{attack.scheme}` reaches {reached} %.")
    unbound = [row for row in copies if row.name.startswith(("pixel", "blur", "noise"))]
    if unbound and robust:
        better = [row for row in unbound if row.worst.short.worst.reached.value < limit]
        figures = [
            f"`{row.name}` {row.worst.short.worst.reached.value:.1f} % at SSIM {row.ssim:.2f}" for row in unbound
        ]
        lines.append(f"- **Pictures without a bound**: {', '.join(figures)}; {len(better)} of them are below `robust`.")
    return "\n".join(lines)


def pages(results: Path = RESULTS.parent) -> dict[Path, str]:
    """Content of the page and its plot."""
    copies = rows(results / "worst-case")
    page = PAGE.read_text("utf-8")
    blocks = {
        "copies": table(copies),
        "statements": statements(copies),
        "whole": table(rows(results / WHOLE) if (results / WHOLE).is_dir() else []),
        "sets": set_table(results),
    }
    for name, content in blocks.items():
        page = filled(page, name, content)
    return {PAGE: page, ATTACKS: drawing(copies)}


if __name__ == "__main__":
    for path, content in pages().items():
        write_atomic(path, content)
