"""Page of a few images under several protections, before anything is published: ``uge preview``."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from uge.budget import Budget
from uge.config import ProtectConfig
from uge.data import load_images
from uge.data.images import ImageSet, Pixels, whole
from uge.errors import UsageError
from uge.files import check_output, write_atomic, writes
from uge.methods import METHODS, ImagesInfo
from uge.methods.preview import KINDS
from uge.pipeline.images import check_original
from uge.pipeline.protect import protect_task
from uge.publishing.manifest import Measured
from uge.publishing.quality import Tally, compare
from uge.report.page import page_environment
from uge.session import Session

BUDGETS = ("2/255", "0.02", "0.04", "0.08")
SHOWN, SAMPLE = 4, 200
_LARGEST = 320  # Pixels of a side that are shown.


@dataclass(frozen=True)
class Look:
    """One protection of the shown images.

    Attributes:
        title: Method and budget.
        about: What it means, in a few words.
        measured: Distances from the originals, over the whole sample.
        pictures: Images as data addresses.
        details: Centres of these at 3 : 1.
    """

    title: str
    about: str
    measured: Measured | None
    pictures: list[str]
    details: list[str]


@writes("out")
def run_preview(
    source: str,
    out: Path,
    session: Session,
    *,
    budgets: Sequence[str] = BUDGETS,
    methods: Sequence[str] = ("robust",),
    kinds: Sequence[str] = ("pixel16", "blur2"),
    size: int | None = None,
    images: int = SAMPLE,
    seed: int = 0,
) -> dict[str, object]:
    """Write a page of a few images of a source as they are and as protections would publish them; publishes nothing.

    ``robust`` trains on a sample of the images only, in its least effort: the page shows what is visible, and says
    nothing of what a copy holds back.

    Args:
        source: Anything that :func:`uge.data.load_images` takes.
        out: The page, ``.html``.
        session: Device, progress, whether to overwrite.
        budgets: ρ of every method, in the form of :meth:`uge.budget.Budget.parse`.
        methods: Methods that take a budget and no network, by name.
        kinds: Kinds of the method ``preview``.
        size: Side length at which images are perturbed; the native one by default.
        images: Images that are perturbed and measured.
        seed: Root seed.

    Returns:
        ``page``, and ``looks``: title and measurements of each.

    Raises:
        UsageError: A method needs networks, or a kind or a budget does not exist.
        OutputExistsError: ``out`` exists.
        DataError: The images cannot be used.
    """
    if out.suffix != ".html":
        raise UsageError(f"the page of a preview ends in .html, got {out}")
    check_output(out, overwrite=session.overwrite)
    check_original(source, again=True)
    configs = [*_configs(methods, budgets, size, seed), *_previews(kinds, size, seed)]
    sample = load_images(source, labels=False).sample(images)
    shown = _spread(sample)
    looks = [_look("original", "as it is", sample, shown, {})]
    for title, about, config in configs:
        row = METHODS[config.method]
        row.check_images(sample, config)
        with session.progress.stage(title):
            task = protect_task(sample, ImagesInfo.of(sample), config, (), session)
            pairs = row.perturb(task).pairs(sample, session.runtime)
            changed = {number: whole(after) for number, (_, after) in enumerate(pairs)}
        looks.append(_look(title, about, sample, shown, changed))
    page = page_environment().get_template("preview.html.j2")
    write_atomic(out, page.render(name=sample.name, looks=looks, count=len(sample)))
    found = [{"title": look.title, **(look.measured.model_dump() if look.measured else {})} for look in looks[1:]]
    return {"page": str(out), "looks": found}


def _configs(
    methods: Sequence[str], budgets: Sequence[str], size: int | None, seed: int
) -> list[tuple[str, str, ProtectConfig]]:
    found = []
    for name in methods:
        if METHODS[name].authorizes:
            raise UsageError(f"method '{name}' protects for a network, which a preview has not; name others")
        for text in budgets:
            budget = Budget.parse(text)
            config = ProtectConfig.checked(
                method=name, rho=str(budget.rho), size=size, seed=seed, robust={"effort": "low"}
            )
            levels = f"at most {budget.levels} of 255 levels"
            found.append((f"{name}, ρ = {budget.rho:.3g}", levels, config))
    return found


def _previews(kinds: Sequence[str], size: int | None, seed: int) -> list[tuple[str, str, ProtectConfig]]:
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"expected kinds of {', '.join(KINDS)}, got '{kind}'")
    return [
        (
            f"preview, {kind}",
            "no bound",
            ProtectConfig.checked(method="preview", size=size, seed=seed, baseline={"kind": kind}),
        )
        for kind in kinds
    ]


def _spread(sample: ImageSet) -> list[int]:
    """Rows that are shown: the first of some classes, or of the set."""
    if not sample.labelled:
        return list(range(min(SHOWN, len(sample))))
    return [int(row) for row in np.unique(sample.labels, return_index=True)[1][:SHOWN]]


def _look(title: str, about: str, sample: ImageSet, shown: Sequence[int], changed: dict[int, Pixels]) -> Look:
    tally = Tally()
    for row, after in changed.items():
        tally.add(compare(sample.read(row), after, with_ssim=True))
    images = [changed[row] if changed else sample.read(row) for row in shown]
    return Look(
        title,
        about,
        tally.measured() if changed else None,
        [_address(_limited(pixels)) for pixels in images],
        [_address(_centre(pixels)) for pixels in images],
    )


def _limited(pixels: Pixels) -> Image.Image:
    picture = _picture(pixels)
    picture.thumbnail((_LARGEST, _LARGEST))
    return picture


def _centre(pixels: Pixels) -> Image.Image:
    side = min(*pixels.shape[:2], 64)
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    crop = _picture(pixels[top : top + side, left : left + side])
    return crop.resize((3 * side, 3 * side), Image.Resampling.NEAREST)


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def _address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
