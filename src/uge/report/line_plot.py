"""Small line plots as SVG elements that live inside an HTML page and follow its colours, font and width.

Colours are CSS classes (``clean``, ``authorized``, ``hacker``, ``plain``), so one drawing serves the light and the
dark page. Text stays text: it can be selected, searched and read aloud.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 232
HEIGHT = 138
LEFT = 28
RIGHT = 6
TOP = 8
BOTTOM = 24
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        points: (x, y) in the units of the axes, in order of x.
        kind: CSS class of its colour.
        dash: SVG dash pattern; empty for a solid line.
        band: (low, high) at each point, drawn pale; may be empty.
        thin: Drawn as a reference, thinner and paler.
        dots: Marks the points, for values between which nothing was measured.
    """

    points: Sequence[Point]
    kind: str = "plain"
    dash: str = ""
    band: Sequence[Point] = ()
    thin: bool = False
    dots: bool = False


def plot(lines: Sequence[Line], *, low: float, high: float, x_label: str, description: str) -> Markup:
    """Draw lines as an ``<svg>`` element.

    Args:
        lines: Lines of the plot, the last one on top; at least one point in all.
        low: Lower end of the vertical axis.
        high: Upper end; more than ``low``.
        x_label: Name of the horizontal axis.
        description: The plot in words, for screen readers.
    """
    xs = [x for line in lines for x, _ in line.points]
    left = min(xs)
    right = max(xs) if max(xs) > left else left + 1

    def place(x: float, y: float) -> str:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - min(max(y, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f} {down:.1f}"

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, description)
    ]
    for tick in ticks(low, high, 4):
        across, down = place(left, tick).split()
        drawn = Markup('<path class="grid" d="M{} {}H{}"/><text x="{}" y="{}" class="y">{}</text>')
        parts.append(drawn.format(across, down, WIDTH - RIGHT, LEFT - 5, float(down) + 3.5, f"{tick:g}"))
    whole = all(x == int(x) for x in xs)  # There is no epoch 1.5.
    parts += [
        Markup('<text x="{}" y="{}" class="x">{}</text>').format(place(x, low).split()[0], HEIGHT - 10, f"{x:g}")
        for x in ticks(left, right, 4)
        if x == int(x) or not whole
    ]
    parts.append(Markup('<text x="{}" y="{}" class="x name">{}</text>').format(WIDTH - RIGHT, HEIGHT - 1, x_label))
    for line in lines:
        if line.band:
            upper = [place(x, b) for (x, _), (_, b) in zip(line.points, line.band, strict=True)]
            lower = [place(x, a) for (x, _), (a, _) in zip(line.points, line.band, strict=True)]
            outline = "L".join([*upper, *reversed(lower)])
            parts.append(Markup('<path class="band {}" d="M{}Z"/>').format(line.kind, outline))
        path = "L".join(place(x, y) for x, y in line.points)
        kind = line.kind + (" thin" if line.thin else "")
        parts.append(_path(kind, f"M{path}", line.dash))
        if line.dots:
            parts.append(_path(f"dots {line.kind}", "".join(f"M{place(x, y)}h0" for x, y in line.points)))
    return Markup("").join([*parts, Markup("</svg>")])


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most about ``most`` of them."""
    rough = (high - low) / max(most, 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
    return [
        round(number * step, 10) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def swatch(kind: str, dash: str = "") -> Markup:
    """Short piece of a line for a legend."""
    path = _path(kind, "M1 5H33", dash)
    return Markup('<svg viewBox="0 0 34 10" class="swatch" aria-hidden="true">{}</svg>').format(path)


def _path(kind: str, steps: str, dash: str = "") -> Markup:
    style = Markup(' stroke-dasharray="{}"').format(dash) if dash else ""
    return Markup('<path class="line {}" d="{}"{}/>').format(kind, steps, style)
