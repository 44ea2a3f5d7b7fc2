"""Bad input of every kind: damaged files, wrong JSON, wrong flags, strange sources.

A row is a ``Kind``; add your own.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inputs import CHANGES, TINY, changed_json, encoded, field_paths, pixels
from PIL import Image


@dataclass(frozen=True)
class Kind:
    """One kind of bad input.

    Attributes:
        name: For the table of findings.
        make: Changes the sound inputs in a folder.
        command: Arguments of ``uge``.
        refused: True if exit code 0 is a finding.
    """

    name: str
    make: Callable[[Path], Any]
    command: tuple[str, ...]
    refused: bool = False


PROTECT = ("out", *TINY, "-q")
READERS: dict[str, tuple[str, ...]] = {
    "folder/train/cat/000.png": ("protect", "folder", *PROTECT),
    "set.npz": ("protect", "set.npz", *PROTECT),
    "parquet/train-00000-of-00001.parquet": ("protect", "parquet", *PROTECT),
    "cifar/train": ("protect", "cifar", *PROTECT),
    "cifar/meta": ("protect", "cifar", *PROTECT),
    "tar/train-000000.tar": ("protect", "tar", *PROTECT),
    "copy/manifest.json": ("verify", "copy"),
    "copy/README.md": ("verify", "copy"),
    "copy/TRAINING.md": ("verify", "copy"),
    "copy/data/train-00000-of-00001.parquet": ("verify", "copy", "--against", "folder"),
    "copy.private/authorized-0.key.safetensors": (
        "train",
        "copy",
        "--key",
        "copy.private/authorized-0.key.safetensors",
    ),
    "copy.private/generator.safetensors": ("apply", "copy.private/generator.safetensors", "folder", "more", "-q"),
    "copy.private/run/run.json": ("protect", "folder", "copy", *TINY, "--resume", "-q"),
    "copy.audit/summary.json": ("report", "copy.audit", "page.html"),
    "noise.npy": ("apply", "noise.npy", "set.npz", "more", "-q"),
    "run.toml": ("protect", "folder", "out", "--config", "run.toml", "-q"),
    "run.yaml": ("protect", "folder", "out", "--config", "run.yaml", "-q"),
    "wanted.json": ("protect", "folder", "out", "--for", "wanted.json", "-q"),
    "wanted.theta0.safetensors": ("protect", "folder", "out", "--for", "wanted.json", "-q"),
    "me.pem": ("request", "other.json", "--network", "lenet", "--classes", "3", "--size", "16", "--identity", "me.pem"),
}


def _rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))  # type: ignore[return-value]


def _instead(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _sparse(path: Path) -> None:
    os.truncate(path, 1 << 33)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "is empty": _rewrite(lambda data: b""),
    "is cut to a quarter": _rewrite(lambda data: data[: len(data) // 4]),
    "is cut to a half": _rewrite(lambda data: data[: len(data) // 2]),
    "lacks its last byte": _rewrite(lambda data: data[:-1]),
    "has bytes after its end": _rewrite(lambda data: data + b"\x00garbage"),
    "is zeros": _rewrite(lambda data: bytes(len(data))),
    "is noise": _rewrite(lambda data: np.random.default_rng(1).bytes(len(data))),
    "has another first byte": _rewrite(lambda data: bytes([data[0] ^ 0x55]) + data[1:]),
    "has another byte in the middle": _rewrite(
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "begins with a mark of byte order": _rewrite(lambda data: b"\xef\xbb\xbf" + data),
    "is in UTF-16": _rewrite(lambda data: data.decode("latin-1").encode("utf-16")),
    "is a word": _rewrite(lambda data: b"hello"),
    "is nested a hundred thousand deep": _rewrite(lambda data: b"[" * 100_000),
    "is a map nested a hundred thousand deep": _rewrite(lambda data: b'{"a":' * 100_000),
    "is a folder": _instead(lambda path: path.mkdir()),
    "is a pipe": _instead(os.mkfifo),
    "is a link to nothing": _instead(lambda path: path.symlink_to("nowhere")),
    "is a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "is a device without end": _instead(lambda path: path.symlink_to("/dev/zero")),
    "is missing": lambda path: path.unlink(),
    "is of eight gibibytes": _sparse,
}


def damaged_files() -> Iterator[Kind]:
    """Every file that a command reads, damaged in every way."""
    for file, command in READERS.items():
        for damage, change in DAMAGES.items():
            yield Kind(f"{file} {damage}", lambda root, file=file, change=change: change(root / file), command)


def changed_documents(sound: Path) -> Iterator[Kind]:
    """Every field of every JSON document, changed in every way."""
    documents = {
        "copy/manifest.json": ("verify", "copy"),
        "wanted.json": ("protect", "folder", "out", "--for", "wanted.json", "-q"),
        "copy.private/run/run.json": ("protect", "folder", "copy", *TINY, "--resume", "-q"),
        "copy.audit/summary.json": ("report", "copy.audit", "page.html"),
    }
    cases = sorted((sound / "copy.audit" / "cases").glob("*.json"))
    documents |= {f"copy.audit/cases/{path.name}": ("report", "copy.audit", "page.html") for path in cases[:1]}
    for file, command in documents.items():
        if not (sound / file).is_file():
            continue
        text = (sound / file).read_text("utf-8")
        for number, path in enumerate(field_paths(json.loads(text))):
            for change in (CHANGES[number % len(CHANGES)], CHANGES[(number * 4 + 1) % len(CHANGES)], "gone"):
                if json.loads(changed_json(text, path, change)) == json.loads(text):
                    continue  # It is so already.
                place = ".".join(map(str, path))

                def make(root: Path, file: str = file, path: Any = path, change: str = change) -> None:
                    (root / file).write_text(changed_json((root / file).read_text("utf-8"), path, change), "utf-8")

                yield Kind(f"{file}: {place} is {change}", make, command, refused=file == "copy/manifest.json")


NUMBERS = ("-1", "0", "nan", "inf", "1e309", "9" * 40, "a", "", "0x10", "１２", "1,5", "-0")
DRY = {
    "protect": ("protect", "folder", "out", *TINY, "--dry-run"),
    "audit": ("audit", "copy", "--test", "folder", "--networks", "lenet", "--dry-run"),
    "federated": ("federated", "folder", "out", "--test", "folder", "--dry-run"),
    "request": ("request", "new.json", "--network", "lenet", "--classes", "3", "--size", "16", "--dry-run"),
    "reproduce": ("reproduce", "table1", "--dry-run"),
    "apply": ("apply", "noise.npy", "set.npz", "out", "--dry-run"),
}


def wrong_flags() -> Iterator[Kind]:
    """Every flag of the commands that can only look, with values that no number has."""
    from uge.cli.main import app

    for command, arguments in DRY.items():
        flags = {
            name
            for argument in app[command].assemble_argument_collection()
            for name in argument.names
            if name.startswith("--") and not name.startswith(("--no-", "--help", "--json", "--dry-run", "--device"))
        }
        for number, flag in enumerate(sorted(flags)):
            for value in (NUMBERS[number % len(NUMBERS)], NUMBERS[(number + 5) % len(NUMBERS)]):
                yield Kind(f"{command} {flag}={value}", lambda root: None, (*arguments, f"{flag}={value}"))


def _png(width: int, height: int) -> bytes:
    """A PNG of a stated size without its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _save(place: Path, **arrays: Any) -> None:
    np.savez(place / "set.npz", **arrays)


def _picture(image: Image.Image, kind: str, **options: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        image.save(root / "folder" / "train" / "cat" / f"odd.{kind.lower()}", kind, **options)

    return make


def _class(name: str | bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        place = os.path.join(os.fsencode(root / "folder" / "train"), name if isinstance(name, bytes) else name.encode())
        os.mkdir(place)
        for number in range(3):
            with open(os.path.join(place, b"%d.png" % number), "wb") as handle:
                handle.write(encoded(number))

    return make


def _member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        with tarfile.open(root / "tar" / "train-000000.tar", "a") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, size
            archive.addfile(member, io.BytesIO(bytes(size)))

    return make


class _Opens:
    """A pickle that would leave a file behind."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


OUTPUTS = (
    *("s3://bucket/x", "file:///tmp/x", "hf://a/b", "", "folder", "folder/inside", "/dev/null", "x" * 300),
    *("a\x00b", "a\nb"),
)
SOURCES = (
    *("", "nowhere", "s3://bucket/x", "http://host/x", "/dev/zero", "/dev/null", "/proc/self/mem", "a\x00b"),
    "~nobody/x",
)


def strange_sources() -> Iterator[Kind]:
    """Sources that are sound for no reader or for few."""
    gray = np.stack([pixels(number) for number in range(18)])
    labels = np.arange(18) % 3
    arrays: dict[str, dict[str, Any]] = {
        "no width": {"images": np.zeros((8, 0, 16, 3), np.uint8), "labels": labels[:8]},
        "no images": {"images": gray[:0], "labels": labels[:0]},
        "one image": {"images": gray[:1], "labels": labels[:1]},
        "one class": {"images": gray, "labels": labels * 0},
        "too few labels": {"images": gray, "labels": labels[:5]},
        "labels of fractions": {"images": gray, "labels": labels + 0.5},
        "labels without number": {"images": gray, "labels": labels * np.nan},
        "negative labels": {"images": gray, "labels": labels - 1},
        "labels of 2 to the 60": {"images": gray, "labels": labels * 2**60},
        "labels of two columns": {"images": gray, "labels": np.stack([labels, labels], 1)},
        "five channels": {"images": np.zeros((18, 16, 16, 5), np.uint8), "labels": labels},
        "five dimensions": {"images": gray[None], "labels": labels},
        "images of fractions": {"images": gray / 255, "labels": labels},
        "images without number": {"images": gray * np.nan, "labels": labels},
        "images of text": {"images": gray.astype("U3"), "labels": labels},
        "images of objects": {"images": np.array([_Opens()] * 18), "labels": labels},
        "complex images": {"images": gray.astype(complex), "labels": labels},
        "other names": {"a": gray, "b": labels},
        "only labels": {"labels": labels},
        "12 bits": {"images": (gray.astype(np.uint16) << 4), "labels": labels},
        "negative images": {"images": gray.astype(np.int16) - 128, "labels": labels},
    }
    for name, content in arrays.items():
        yield Kind(
            f"npz: {name}", lambda root, content=content: _save(root, **content), ("protect", "set.npz", *PROTECT)
        )
    folder = ("protect", "folder", *PROTECT)
    image = Image.fromarray(pixels(0))
    pictures: dict[str, Callable[[Path], Any]] = {
        "JPEG cut": lambda root: (root / "folder/train/cat/odd.jpg").write_bytes(encoded(0, "JPEG")[:-200]),
        "CMYK": _picture(image.convert("CMYK"), "JPEG"),
        "palette": _picture(image.convert("P"), "PNG", transparency=0),
        "one bit": _picture(image.convert("1"), "PNG"),
        "16 bits": _picture(Image.fromarray(pixels(0)[..., 0].astype(np.uint16) << 8), "PNG"),
        "float TIFF": _picture(Image.fromarray(pixels(0)[..., 0].astype(np.float32) * np.nan), "TIFF"),
        "animation": _picture(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "pages": _picture(image, "TIFF", save_all=True, append_images=[image.rotate(90)]),
        "one pixel": _picture(image.resize((1, 1)), "PNG"),
        "a line": _picture(image.resize((3000, 1)), "PNG"),
        "a bomb": lambda root: (root / "folder/train/cat/odd.png").write_bytes(_png(60_000, 60_000)),
        "no size": lambda root: (root / "folder/train/cat/odd.png").write_bytes(_png(0, 0)),
        "a text": lambda root: (root / "folder/train/cat/odd.png").write_text("not a picture"),
        "a script": lambda root: (root / "folder/train/cat/odd.svg").write_text("<svg/>"),
        "hidden files": lambda root: (root / "folder/train/cat/.DS_Store").write_bytes(b"\x00"),
        "a pipe": lambda root: os.mkfifo(root / "folder/train/cat/odd.png"),
        "a link to itself": lambda root: (root / "folder/train/cat/odd.png").symlink_to("odd.png"),
        "a folder linked to itself": lambda root: (root / "folder/train/loop").symlink_to("."),
        "a device": lambda root: (root / "folder/train/cat/odd.png").symlink_to("/dev/zero"),
        "an empty class": lambda root: (root / "folder/train/emu").mkdir(),
        "a class named train": _class("train"),
        "a class with escapes": _class("\x1b[2J\x1b[31mred"),
        "a class with a line break": _class("cat\nno deviation"),
        "a class written backwards": _class("\u202egod"),
        "a class in Latin-1": _class(b"caf\xe9"),
        "a class of blanks": _class("  "),
        "a class of 200 letters": _class("x" * 200),
        "a class with a comma": _class("a,b|c"),
        "a class with markup": _class("<img src=x onerror=alert(1)>"),
        "a class named as a number": _class("10"),
    }
    for name, make in pictures.items():
        yield Kind(f"folder: {name}", make, folder)
    members: dict[str, Callable[[Path], Any]] = {
        "outside": _member("../../escaped.png", 10),
        "absolute": _member("/tmp/escaped.png", 10),
        "link": _member("0099.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        "device": _member("0099.png", kind=tarfile.CHRTYPE),
        "pipe": _member("0099.png", kind=tarfile.FIFOTYPE),
        "no label": _member("0099.png", 10),
        "twice": _member("0001.png", 10),
        "escapes": _member("\x1b[2J.png", 10),
        "of a gibibyte": lambda root: _sparse_tar(root),
    }
    for name, make in members.items():
        yield Kind(f"tar: member {name}", make, ("protect", "tar", *PROTECT))

    def pickled(value: Any) -> Callable[[Path], Any]:
        return lambda root: (root / "cifar" / "train").write_bytes(pickle.dumps(value, 2))

    pickles = {
        "runs code": _Opens(),
        "is a list": [1, 2],
        "lacks data": {b"fine_labels": [0]},
        "has wide rows": {b"data": np.zeros((18, 100), np.uint8), b"fine_labels": labels.tolist()},
        "has labels of text": {b"data": np.zeros((18, 3072), np.uint8), b"fine_labels": ["a"] * 18},
        "holds a long number": {b"data": 1 << 10_000_000, b"fine_labels": []},
    }
    for name, value in pickles.items():
        yield Kind(f"cifar: pickle {name}", pickled(value), ("protect", "cifar", *PROTECT), refused=True)
    for out in OUTPUTS:
        command = ("protect", "folder", out, *TINY, "-q")
        yield Kind(f"output {out[:20]!r}", lambda root: None, command, refused=out != "a\nb")
    for source in SOURCES:
        yield Kind(f"source {source!r}", lambda root: None, ("protect", source, *PROTECT), refused=True)


def _sparse_tar(root: Path) -> None:
    path = root / "tar" / "train-000000.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("0000.png")
        member.size = 1 << 30
        archive.addfile(member, _Zeros(member.size))


class _Zeros(io.RawIOBase):
    """A file of zeros that takes no memory."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        taken = min(size, self.left)
        self.left -= taken
        return bytes(taken)


def kinds(sound: Path) -> list[Kind]:
    """All kinds of bad input, in a fixed order."""
    return [*damaged_files(), *changed_documents(sound), *wrong_flags(), *strange_sources()]
