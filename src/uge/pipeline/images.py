"""Reading image sets into memory and publishing them, with a progress bar."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uge.budget import Budget
from uge.config import PublishConfig
from uge.data.images import ImageSet, Pixels, Strips
from uge.data.store import PixelStore, load_pixels
from uge.errors import UsageError
from uge.files import Move
from uge.publishing import Manifest, Provenance, is_published, publish
from uge.publishing.rights import RESERVED, license_of
from uge.sealing import Sealing
from uge.session import Session

logger = logging.getLogger(__name__)


def check_original(source: str, *, again: bool = False) -> None:
    """Refuse a source that is a protected copy already: its changes would add up, and its key would stay behind.

    Args:
        source: Path, hub id or name of the source.
        again: True warns instead.

    Raises:
        UsageError: It is a copy.
    """
    if not is_published(Path(source)):
        return
    text = f"{source} is a protected copy already, and its changes would add up with these"
    if not again:
        raise UsageError(f"{text}; protect the originals (uge export opens sealed ones), or give --again")
    logger.warning(text)


def read_store(images: ImageSet, size: int | None, channels: int | None, session: Session) -> PixelStore:
    """Decode a set at one size."""
    done = 0
    with session.progress.stage(f"read {len(images)} {images.split} images") as on_progress:

        def count(new: int) -> None:
            nonlocal done
            done += new
            on_progress(done, len(images), {})

        return load_pixels(images, size=size, channels=channels, device=session.runtime.device, progress=count)


def publish_stream(
    images: ImageSet,
    pairs: Iterator[tuple[Pixels | Strips, Pixels | Strips]],
    out: Path,
    budget: Budget,
    provenance: Provenance,
    publishing: PublishConfig,
    session: Session,
    *,
    overwrite: bool,
    sealing: Sealing | None = None,
    sealed_only: ImageSet | None = None,
    together: Callable[[Manifest], Sequence[Move]] | None = None,
) -> Manifest:
    """Publish a stream of (clean, protected) pixels in the order of ``images``; see :func:`uge.publishing.publish`."""
    with session.progress.stage("publish") as on_progress:
        return publish(
            ((number, clean, protected) for number, (clean, protected) in enumerate(pairs)),
            out,
            images=images,
            budget=budget,
            provenance=provenance,
            format=publishing.format,
            codec=publishing.codec,
            overwrite=overwrite,
            sealing=sealing,
            sealed_only=sealed_only,
            license=license_of(publishing.license, publishing.license_name, publishing.license_link),
            reservation=(publishing.reservation or RESERVED) if publishing.reserve else None,
            together=together,
            progress=lambda done: on_progress(done, len(images), {}),
        )
