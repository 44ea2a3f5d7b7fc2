"""Quality folder of an audit as pictures and one plot; see :mod:`uge.auditing.quality`."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from uge.errors import DataError
from uge.files import read_json
from uge.report.line_plot import Line, plot

MOST_CLASSES = 20


@dataclass(frozen=True)
class QualityView:
    """Parts of ``quality/`` that the page shows.

    Attributes:
        figures: Contents of ``quality.json``.
        spectrum: The centred log-power picture as a data URI; empty without noise.
        radial: Power by frequency.
        classes: (class, data URI, largest change in levels), the strongest first.
        more: Classes that are not shown.
        white_levels: Levels of change that white stands for in the pictures of classes.
    """

    figures: dict[str, Any]
    spectrum: str
    radial: Markup
    classes: list[tuple[str, str, float]]
    more: int
    white_levels: float


def load_quality(folder: Path) -> QualityView | None:
    """Read ``folder/quality.json`` and its pictures; ``None`` where there is none.

    Raises:
        DataError: A file is damaged or missing.
    """
    if not (folder / "quality.json").is_file():
        return None
    figures = read_json(folder / "quality.json")
    try:
        spectrum = figures["spectrum"]
        classes = sorted(figures["class_means"], key=lambda entry: -float(entry["largest_levels"]))
        shown = [(str(e["class"]), _uri(folder, e["file"]), float(e["largest_levels"])) for e in classes[:MOST_CLASSES]]
        return QualityView(
            figures=figures,
            spectrum=_uri(folder, spectrum["file"]) if spectrum else "",
            radial=_radial(spectrum) if spectrum else Markup(""),
            classes=shown,
            more=len(classes) - len(shown),
            white_levels=max((float(entry["white_levels"]) for entry in classes), default=0.0),
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DataError(
            f"expected quality figures in {folder / 'quality.json'}, got something else ({error}); "
            "run the audit again to write them anew"
        ) from error


def _radial(spectrum: dict[str, Any]) -> Markup:
    def line(name: str, kind: str, dash: str = "") -> Line:
        pairs = zip(spectrum["frequency"], spectrum[name], strict=True)
        # The constant was taken out of every image, so the first ring says nothing.
        return Line([(float(f), math.log10(max(float(p), 1e-6))) for f, p in pairs][1:], kind, dash)

    noise, image = line("noise", "hacker"), line("image", "clean", "6 2.5")
    values = [y for _, y in [*noise.points, *image.points]]
    if not values:
        return Markup("")
    said = "Power of the noise (solid) and of the originals (dashed) by frequency, in powers of ten of squared levels."
    low, high = math.floor(min(values)), math.ceil(max(values) + 1e-9)
    return plot([image, noise], low=low, high=max(high, low + 1), x_label="cycles per pixel", description=said)


def _uri(folder: Path, name: str) -> str:
    # Only a name: a path in a folder that came from elsewhere must not reach other files.
    data = (folder / Path(name).name).read_bytes()
    if not data.startswith(b"\x89PNG"):
        raise ValueError(f"{name} is no PNG picture")
    return "data:image/png;base64," + base64.b64encode(data).decode()
