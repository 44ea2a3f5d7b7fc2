"""Matplotlib figures as SVG elements that live inside an HTML page and follow its colours and font.

Every colour is drawn as a placeholder and replaced by a CSS variable, so that one figure serves the
light and the dark page. Text stays text: it can be selected, searched and read aloud.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
AUTHORIZED, HACKER, CLEAN = "#050505", "#060606", "#070707"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    AUTHORIZED: "authorized",
    HACKER: "hacker",
    CLEAN: "clean",
}
SMALL, NORMAL = 11.5, 13.0
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": NORMAL,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of ``width`` × ``height`` CSS pixels in the house style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def to_svg(figure: Any, name: str, description: str) -> str:
    """An ``<svg>`` element for inline use; equal figures give equal text.

    Args:
        figure: From :func:`canvas`, inside its ``with`` block.
        name: Prefix of the element ids, different for every figure of a page.
        description: What the figure shows, for people who cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # A glyph that the measuring font lacks is drawn by the browser's own font.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name, description)


def _inline(text: str, name: str, description: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<title>.*?</title>", "", text, flags=re.S)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text)
    text = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font-size: \1", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None, "matplotlib writes a viewBox"
    body = text[text.index(">") + 1 :].strip()
    body = re.sub(r"\n\s*", "\n", body).replace("\n\n", "\n")
    return f'<svg {box[0]} role="img" aria-label="{escape(description)}">\n{body}'


def plain(text: str, limit: int = 34) -> str:
    """A name for a figure: one line, printable, not longer than ``limit`` characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
