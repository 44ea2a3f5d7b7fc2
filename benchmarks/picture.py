"""Picture of the README: photographs, the change that ``robust`` makes, and the published copy.

::

    python benchmarks/picture.py docs/images/photos.png

The photographs are those that scikit-image brings along. Each is a class, with crops of itself as further images; the
whole photographs, 96 pixels a side, are shown. Every pixel is shown two by two, with no
smoothing. The change is shown ten times as strong, around gray.
"""

import argparse
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont, ImageOps

import uge
from uge.files import write_atomic
from uge.methods.robust.settings import RobustSettings

FILES = {
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "camera": "camera.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "motorcycle": "motorcycle_left.png",
    "brick": "brick.png",
    "grass": "grass.png",
}
SHOWN = ("cat", "coffee", "camera", "coins", "motorcycle")
SIDE, CROPS = 96, 24
ZOOM, GAP, LEFT, TOP = 2, 10, 96, 30
STRONGER = 10


def write_source(folder: Path) -> None:
    """Every photograph, first as a whole and then cropped."""
    draw = np.random.default_rng(0)
    for name, file in FILES.items():
        (folder / name).mkdir(parents=True)
        photo = Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")
        ImageOps.fit(photo, (SIDE, SIDE)).save(folder / name / "00.png")
        for number in range(1, CROPS):
            side = int(min(photo.size) * draw.uniform(0.4, 0.9))
            left, top = (int(draw.integers(0, length - side + 1)) for length in photo.size)
            crop = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
            crop.save(folder / name / f"{number:02d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        write_source(Path(place, "photographs"))
        originals = uge.load_images(Path(place, "photographs"))
        protected = uge.protect(originals, method="robust", robust=RobustSettings())
        manifest = uge.publish(protected, Path(place, "out"), seal=False)
        copies = uge.load_images(Path(place, "out"))
        rows = [originals.ids.index(f"{name}/00.png") for name in SHOWN]
        pairs = [(originals.read(row), copies.read(row)) for row in rows]
    kinds = {
        "original": [before for before, _ in pairs],
        f"change x {STRONGER}": [
            (128 + STRONGER * (after.astype(int) - before)).clip(0, 255).astype(np.uint8) for before, after in pairs
        ],
        "published": [after for _, after in pairs],
    }
    large = ZOOM * SIDE
    picture = Image.new("RGB", (LEFT + len(SHOWN) * (large + GAP), TOP + len(kinds) * (large + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    text = f"robust, at most {manifest.budget.levels} of 255 levels: {manifest.measured.sight}. {SIDE} px, {ZOOM} : 1."
    draw.text((GAP, 7), text, fill="#222", font=font)
    for line, (title, images) in enumerate(kinds.items()):
        y = TOP + line * (large + GAP)
        draw.text((GAP, y + large // 2 - 8), title, fill="#222", font=font)
        for column, pixels in enumerate(images):
            shown = Image.fromarray(pixels).resize((large, large), Image.Resampling.NEAREST)
            picture.paste(shown, (LEFT + column * (large + GAP), y))
    buffer = BytesIO()
    picture.save(buffer, "png", optimize=True)
    write_atomic(options.out, buffer.getvalue())


if __name__ == "__main__":
    main()
