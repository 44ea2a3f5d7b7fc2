"""Folders of a federation's servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uge.data import load_images
from uge.data.formats.part import SUFFIX
from uge.data.images import ImageSet
from uge.files import recover, write_json
from uge.publishing import private_folder


@dataclass(frozen=True)
class Server:
    """Folder of one server: ``originals.part.json``, ``published`` and ``published.private``.

    Attributes:
        number: Number of the server, from 0.
        folder: Place of everything that it reads or writes, except the source of its originals.
    """

    number: int
    folder: Path

    @classmethod
    def at(cls, out: Path, number: int) -> Server:
        """Server ``number`` of the federation in ``out``."""
        return cls(number, out / f"server-{number}")

    @property
    def part(self) -> Path:
        """File that names the server's own images; a source for ``uge protect``."""
        return self.folder / f"originals{SUFFIX}"

    @property
    def published(self) -> Path:
        """Published folder."""
        return self.folder / "published"

    @property
    def key(self) -> Path:
        """Key file of the global network with θ0."""
        return private_folder(self.published) / "authorized-0.key.safetensors"

    @property
    def finished(self) -> bool:
        """True where the server has published."""
        recover(self.published)
        done = private_folder(self.published) / "run" / "done.json"
        return done.is_file() and (self.published / "manifest.json").is_file()

    def originals(self) -> ImageSet:
        """Clean images of the server."""
        return load_images(self.part)

    def images(self) -> ImageSet:
        """Published images of the server."""
        return load_images(self.published)


def write_part(server: Server, source: str, images: ImageSet, rows: list[int], *, limit: int | None) -> None:
    """Write the file that names the server's own images of a source.

    Args:
        server: The server.
        source: Source for ``load_images``; a path becomes absolute.
        images: The source's training images, with the shared class names.
        rows: Positions of the server's images among them.
        limit: Number of training images that were read of the source.
    """
    path = Path(source).expanduser()
    write_json(
        server.part,
        {
            "source": str(path.resolve()) if path.exists() else source,
            "limit": limit,
            "images": len(images),
            "classes": list(images.classes),
            "rows": rows,
        },
    )
