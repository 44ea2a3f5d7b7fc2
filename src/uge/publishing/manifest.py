"""``manifest.json``: claims of a published folder about itself. Needs no torch and no image library."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from uge.data.images import Codec as Codec
from uge.errors import DataError, IntegrityError, UsageError, printable
from uge.files import (
    LARGEST,
    UnreadableError,
    code_version,
    file_sha256,
    parse,
    read_json,
    read_text,
    recover,
    write_atomic,
)
from uge.sealing.record import RECIPIENTS, SealedRecord

MANIFEST = "manifest.json"
CARD = "README.md"
GUIDE = "TRAINING.md"
INDEX = "index.csv"
SCHEMA_VERSION = 1

Format = Literal["parquet", "imagefolder", "webdataset"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Strict):
    """Published file; ``count`` is its number of images where that is not obvious."""

    path: str
    sha256: Digest
    bytes: int = Field(ge=0)
    count: int | None = Field(default=None, ge=0)


class BudgetRecord(_Strict):
    """Promised bound: ``rho`` in [0, 1] pixel values, ``levels`` in whole 8-bit levels."""

    rho: float = Field(ge=1 / 255 - 1e-9, le=1)
    unit: str = "[0, 1] pixel value"
    levels: int = Field(ge=1, le=255)


class Measured(_Strict):
    """Distances between the stored images, decoded again, and their originals.

    Attributes:
        linf_levels: Largest change of any colour value, in 8-bit levels.
        linf: The same in [0, 1] pixel values.
        psnr_db: Mean PSNR over the images that changed, in dB; ``None`` if none did.
        psnr_min_db: The smallest PSNR, in dB.
        ssim: Mean structural similarity over an evenly spread sample; ``None`` if all images are too small.
        ssim_sample: Number of images in that sample.
        changed_pixels: Share of all pixel positions where any colour channel changed, 0 to 1.
        unchanged_images: Images that are equal to their originals.
        constant_images: Published images that have one single colour.
    """

    linf_levels: int = Field(ge=0, le=255)
    linf: float = Field(ge=0, le=1)
    psnr_db: float | None
    psnr_min_db: float | None
    ssim: float | None
    ssim_sample: int = Field(ge=0)
    changed_pixels: float = Field(ge=0, le=1)
    unchanged_images: int = Field(ge=0)
    constant_images: int = Field(ge=0)

    @property
    def sight(self) -> str:
        """Visibility of the change in a few words: ``PSNR 29.3 dB, SSIM 0.925, 98 % of the pixels changed``."""
        parts = [
            "" if self.psnr_db is None else f"PSNR {self.psnr_db:.1f} dB",
            "" if self.ssim is None else f"SSIM {self.ssim:.3f}",
            f"{100 * self.changed_pixels:.0f} % of the pixels changed",
        ]
        return ", ".join(filter(None, parts))


class SizeRecord(_Strict):
    """Image sizes: least and largest height and width in pixels, and the channel counts that occur."""

    height: tuple[int, int]
    width: tuple[int, int]
    channels: tuple[int, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[int, ...]]) -> SizeRecord:
        """Sizes of one or more images from their shapes, height × width × channels."""
        heights, widths, channels = zip(*shapes, strict=True)
        return cls(
            height=(min(heights), max(heights)),
            width=(min(widths), max(widths)),
            channels=tuple(sorted(set(channels))),
        )


class RequestRecord(_Strict):
    """Signed request of a named receiver: its id, and sha256 of the public key that signed it."""

    id: str
    key_sha256: Digest


class License(_Strict):
    """Licence: its SPDX identifier, or ``other`` with name and link."""

    id: str = Field(min_length=1)
    name: str | None = None
    link: str | None = None


class Authorized(_Strict):
    """Network that the copy was made for; its weights stay private, their digest does not.

    ``request`` is None unless a receiver asked for the copy (``uge protect --for``).
    """

    id: Annotated[str, Field(pattern=r"^[\w-]+$")]  # A part of file names, also in the script of TRAINING.md.
    network: str
    weights_sha256: Digest
    request: RequestRecord | None = None


class Provenance(_Strict):
    """Method, seeds and networks behind protected images; copied into the manifest as they stand.

    Attributes:
        method: Name of the protection method, for instance ``"uge"``.
        seeds: Named root seeds.
        authorized: The networks that may learn from the copy.
        encoder: Identity of the feature encoder (name, digest), if one was used.
        config_sha256: Fingerprint of the configuration.
        method_details: Steps, loss weights and the like: JSON values only, no private paths.
        created: UTC date in ISO form. ``None``: taken from ``SOURCE_DATE_EPOCH``, and left out where that is
            not set, so that equal inputs give equal bytes.
    """

    method: str
    seeds: dict[str, int] = Field(default_factory=dict)
    authorized: tuple[Authorized, ...] = ()
    encoder: dict[str, JsonValue] | None = None
    config_sha256: Digest | None = None
    method_details: dict[str, JsonValue] = Field(default_factory=dict)
    created: str | None = None


class Manifest(Provenance):
    """Claims by which a receiver checks a published folder (docs/formats.md, "Published folder").

    Attributes:
        schema_version: Version of this file's layout.
        tool: Program that wrote the folder.
        tool_version: Version of that program.
        name: Name of the data set.
        split: Split of the source that was protected.
        classes: Class names; a label is an index into them. Empty for images without labels.
        class_counts: Images per class, in the order of ``classes``.
        count: Number of images.
        size: Image sizes.
        format: ``"parquet"``, ``"imagefolder"`` or ``"webdataset"``.
        codec: Format of the images; ``"mixed"`` where WebP cannot hold some of them unchanged (gray) and PNG does.
        class_folders: Class name to folder name, for ``"imagefolder"``.
        budget: The promised bound.
        measured: Distances from the originals.
        additions: Number of images of each addition (``uge protect --append``), in order; they stand last.
        files: Every file but this one and those in ``sealed``.
        sealed: The sealed originals and their recipients; None where nothing is sealed.
        license: Licence of the copy; None where the owner named none.
        reservation: Wording by which the owner reserves rights; None where nothing is reserved.
    """

    schema_version: Literal[1] = 1
    tool: str = "uge"
    tool_version: str = Field(default_factory=code_version)
    name: str
    split: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    count: int = Field(ge=1)
    size: SizeRecord
    format: Format
    codec: Literal["png", "webp", "mixed"]
    class_folders: dict[str, str] | None = None
    budget: BudgetRecord
    measured: Measured
    additions: tuple[Annotated[int, Field(ge=1)], ...] = ()
    files: tuple[FileRecord, ...]
    sealed: SealedRecord | None = None
    license: License | None = None
    reservation: str | None = None

    @property
    def listed(self) -> tuple[FileRecord, ...]:
        """Every file but the manifest itself, sealed ones too."""
        sealed = self.sealed.files() if self.sealed else []
        return (*self.files, *(FileRecord(path=path, sha256=sha256, bytes=size) for path, sha256, size in sealed))

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``; equal manifests give equal bytes."""
        write_atomic(folder / MANIFEST, self.model_dump_json(indent=1) + "\n")


def shown_on_pages(manifest: Manifest) -> Manifest:
    """Manifest for a page for people: no text in it can hide, reorder or break lines of the page."""
    return Manifest.model_validate_json(json.dumps(_escaped(manifest.model_dump(mode="json"))))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(name): _escaped(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_escaped(part) for part in value]
    return printable(value) if isinstance(value, str) else value


def created_date(given: str | None) -> str | None:
    """UTC date to record: ``given``, else that of ``SOURCE_DATE_EPOCH``, else None.

    Raises:
        UsageError: ``SOURCE_DATE_EPOCH`` is no whole number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None or not epoch:
        return given
    try:
        return datetime.fromtimestamp(int(epoch), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"SOURCE_DATE_EPOCH must be whole seconds since 1970, got '{epoch}'; correct or unset it"
        ) from None


def signed_digests(folder: Path, manifest: Manifest) -> dict[str, str]:
    """sha256 of the files that an owner signs: the manifest, and every recipient's file.

    Args:
        folder: Folder in which the manifest lies.
        manifest: The same, with the digests of the others.
    """
    recipients = {} if manifest.sealed is None else manifest.sealed.recipients
    wrapped = {f"{RECIPIENTS}/{name}.age": record.sha256 for name, record in recipients.items()}
    return {MANIFEST: file_sha256(folder / MANIFEST), **wrapped}


def is_published(folder: Path) -> bool:
    """True for a published folder of this package, not for an audit folder with its copy of the manifest."""
    with contextlib.suppress(DataError):
        return read_json(folder / MANIFEST, LARGEST).get("tool") == "uge" and not (folder / "cases").exists()
    return False


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a published folder's manifest.

    Raises:
        UsageError: The folder does not exist, or a newer version of this tool wrote it.
        IntegrityError: The manifest is missing, no JSON, or does not have the fields it must have.
    """
    recover(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give a folder that was published")
    try:
        raw = parse(json.loads, read_text(path, LARGEST))
    except (ValueError, UnreadableError) as error:
        if not os.path.lexists(path):
            raise IntegrityError([f"{MANIFEST} is missing in {folder}; give a folder that was published"]) from None
        raise IntegrityError([f"{MANIFEST} cannot be read ({error}); fetch the folder again"]) from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(f"{path} has schema version {version}, this version reads up to {SCHEMA_VERSION}; upgrade uge")
    try:
        return Manifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise IntegrityError([f"{MANIFEST} is invalid at {place}: {first['msg']}; fetch the folder again"]) from None
