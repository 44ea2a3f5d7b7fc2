"""Pictures of a report as data URIs: originals, noise and protected images, these after attacks, and quality.

``pictures/pictures.json`` and ``attacked/attacked.json`` are objects with a list ``pictures`` (docs/formats.md).
"""

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from uge.data.images import Pixels
from uge.errors import DataError
from uge.files import read_json
from uge.report.line_plot import Line, plot

MOST_PICTURES = 9
MOST_PIXELS = 256
MOST_ATTACKED = 4
ATTACKED_PIXELS = 96
GRAY = 128
MOST_CLASSES = 20


@dataclass(frozen=True)
class Picture:
    """One image three times, as ``data:`` URIs of lossless PNG.

    Attributes:
        name: The class, or the id where the class is unknown; may be empty.
        original: The clean image.
        noise: Protected minus original, ``factor`` times enlarged, around mid-gray.
        protected: The published image.
        size: Width × height in words, with a note on a cut-out.
        levels: Largest change in this image, in 8-bit levels.
        small: True for an image to be enlarged without smoothing.
    """

    name: str
    original: str
    noise: str
    protected: str
    size: str
    levels: int
    small: bool


@dataclass(frozen=True)
class Pictures:
    """All pictures of a report; the noise of every one is multiplied by the same ``factor``."""

    items: list[Picture]
    factor: float
    levels: int


def load_pictures(folder: Path, levels: int | None = None) -> Pictures | None:
    """Read up to nine pairs of pictures.

    The noise is shown signed: ``128 + factor · (protected - original)``, with factor = 127 / levels, so that
    the range ±``levels`` spans black to white. (The paper shows the noise times 255.)

    Args:
        folder: ``pictures/`` of an audit folder; may be missing.
        levels: The budget in 8-bit levels; the largest change shown is used where that is larger or unknown.

    Returns:
        The pictures, or ``None`` when there are none.

    Raises:
        DataError: The index is damaged, a picture is missing or unreadable, or the two of a pair differ in size.
    """
    entries = _entries(folder / "pictures.json", "original", "protected")[:MOST_PICTURES]
    pairs = [(name, _pixels(folder, first), _pixels(folder, second)) for name, first, second in entries]
    if not pairs:
        return None
    for name, clean, protected in pairs:
        if clean.shape != protected.shape:
            raise DataError(
                f"expected the two pictures of '{name}' in {folder} to have one size, "
                f"got {clean.shape} and {protected.shape}; run the audit again to write them anew"
            )
    differences = [protected.astype(np.int16) - clean.astype(np.int16) for _, clean, protected in pairs]
    span = max(levels or 0, 1, *(int(np.abs(difference).max()) for difference in differences))
    factor = 127 / span
    items = []
    for (name, clean, protected), difference in zip(pairs, differences, strict=True):
        height, width = clean.shape[:2]
        noise = np.clip(np.rint(GRAY + factor * difference), 0, 255).astype(np.uint8)
        cut = max(height, width) > MOST_PIXELS
        items.append(
            Picture(
                name=name,
                original=_uri(clean),
                noise=_uri(noise),
                protected=_uri(protected),
                size=f"{width} × {height}" + (f", middle {MOST_PIXELS} × {MOST_PIXELS} shown" if cut else ""),
                levels=int(np.abs(difference).max()),
                small=max(height, width) <= 128,
            )
        )
    return Pictures(items, factor, span)


def _entries(index: Path, *fields: str) -> list[tuple[str, ...]]:
    """Class (or id) and these fields of every picture in an index; none where there is no index.

    Raises:
        DataError: The index is damaged.
    """
    if not index.is_file():
        return []
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["pictures"]
        return [(str(e.get("class", e.get("id", ""))), *(str(e[field]) for field in fields)) for e in listed]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        wanted = " and ".join(f"'{field}'" for field in fields)
        raise DataError(
            f"expected a list of objects with {wanted} under 'pictures' in {index}, got something else "
            f"({error}); run the audit again to write it anew"
        ) from error


def _pixels(folder: Path, file: str) -> Pixels:
    # Colour channels (1 or 3); transparency is left out, since the protection leaves it alone.
    path = folder / Path(file).name  # Only the name: an index that came from elsewhere must not reach other folders.
    try:
        with Image.open(path) as image:
            image.load()
            gray = image.mode in {"1", "L", "LA", "I", "I;16", "F"}
            bands = np.asarray(image.convert("LA" if gray else "RGBA"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the picture {path} ({error}); run the audit again to write it anew") from error
    return bands[..., :1] if gray else bands[..., :3]


def load_attacked(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Read ``attacked.json`` and up to four pictures of each attack, in the order of the file.

    Args:
        folder: ``attacked/`` of an audit folder; may be missing.

    Returns:
        By attack, (class or id, data URI) of each picture; empty without the file.

    Raises:
        DataError: The index is damaged, or a picture is missing or unreadable.
    """
    images: dict[str, list[tuple[str, str]]] = {}
    for name, attack, file in _entries(folder / "attacked.json", "attack", "file"):
        shown = images.setdefault(attack, [])
        if len(shown) < MOST_ATTACKED:
            shown.append((name, _uri(_pixels(folder, file), ATTACKED_PIXELS)))
    return images


@dataclass(frozen=True)
class QualityView:
    """Parts of ``quality/`` that the page shows.

    Attributes:
        figures: Contents of ``quality.json``.
        spectrum: The centred log-power picture as a data URI; empty without noise.
        radial: Power by frequency.
        classes: (class, data URI, largest change in levels), the strongest first.
        white_levels: Levels of change that white stands for in the pictures of classes.
    """

    figures: dict[str, Any]
    spectrum: str
    radial: Markup
    classes: list[tuple[str, str, float]]
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
        means = sorted(figures["class_means"], key=lambda mean: -float(mean["largest_levels"]))
        return QualityView(
            figures=figures,
            spectrum=_uri(_pixels(folder, spectrum["file"])) if spectrum else "",
            radial=_radial(spectrum) if spectrum else Markup(""),
            classes=[
                (str(mean["class"]), _uri(_pixels(folder, mean["file"])), float(mean["largest_levels"]))
                for mean in means[:MOST_CLASSES]
            ],
            white_levels=max((float(mean["white_levels"]) for mean in means), default=0.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"expected quality figures in {folder / 'quality.json'}, got something else ({error}); "
            "run the audit again to write them anew"
        ) from error


def _radial(spectrum: dict[str, Any]) -> Markup:
    lines = []
    for name, kind, dash in (("image", "clean", "6 2.5"), ("noise", "hacker", "")):
        pairs = zip(spectrum["frequency"], spectrum[name], strict=True)
        # The constant was taken out of every image, so the first ring says nothing.
        points = [(float(frequency), math.log10(max(float(power), 1e-6))) for frequency, power in pairs][1:]
        lines.append(Line(points, kind, dash))
    values = [y for line in lines for _, y in line.points]
    if not values:
        return Markup("")
    low = math.floor(min(values))
    high = math.ceil(max(values) + 1e-9)
    said = "Power of the noise (solid) and of the originals (dashed) by frequency, in powers of ten of squared levels."
    return plot(lines, low=low, high=max(high, low + 1), x_label="cycles per pixel", description=said)


def _uri(pixels: Pixels, most: int = MOST_PIXELS) -> str:
    height, width = pixels.shape[:2]
    top = max(0, (height - most) // 2)
    left = max(0, (width - most) // 2)
    part = np.ascontiguousarray(pixels[top : top + most, left : left + most])
    buffer = io.BytesIO()
    Image.fromarray(part[..., 0] if part.shape[2] == 1 else part).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
