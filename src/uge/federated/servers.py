"""What lies in a federation's folder, and what a server is given: a request, and nothing of other servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uge.data import load_images
from uge.data.formats.part import SUFFIX
from uge.data.images import ImageSet
from uge.files import write_json
from uge.publishing import private_folder


@dataclass(frozen=True)
class Server:
    """One server's folder: ``originals.part.json``, ``published`` and ``published.private``.

    Attributes:
        number: From 0.
        folder: Everything that it reads or writes lies in here, except the source of its originals.
    """

    number: int
    folder: Path

    @classmethod
    def at(cls, out: Path, number: int) -> Server:
        """Server ``number`` of the federation in ``out``."""
        return cls(number, out / f"server-{number}")

    @property
    def part(self) -> Path:
        """The file that says which images are its own; a source for ``uge protect``."""
        return self.folder / f"originals{SUFFIX}"

    @property
    def published(self) -> Path:
        """The published folder."""
        return self.folder / "published"

    @property
    def key(self) -> Path:
        """Its copy of the global network at θ0."""
        return private_folder(self.published) / "authorized-0.key.safetensors"

    @property
    def finished(self) -> bool:
        """Whether it has published."""
        done = private_folder(self.published) / "run" / "done.json"
        return done.is_file() and (self.published / "manifest.json").is_file()

    def originals(self) -> ImageSet:
        """Its clean images."""
        return load_images(self.part)

    def images(self) -> ImageSet:
        """Its published images."""
        return load_images(self.published)


def write_part(server: Server, source: str, images: ImageSet, rows: list[int], *, limit: int | None) -> None:
    """Write the file that says which images of a source are the server's own.

    Args:
        server: Whose file.
        source: What ``load_images`` takes; a path becomes absolute.
        images: The source's training images, with the shared class names.
        rows: Positions of the server's images among them.
        limit: How the source was cut.
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
