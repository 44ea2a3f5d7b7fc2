"""Sealed folders of a few rows, made without publishing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_sealed import KeyPair, row

from uge.sealing import Recipient, Sealing, SealWriter, make_identity, read_identity


@pytest.fixture
def key_pair(tmp_path: Path) -> Callable[[str], KeyPair]:
    """Makes recipients by name."""

    def make(name: str) -> KeyPair:
        path = tmp_path / "keys" / f"{name}.agekey"
        public = make_identity(path)
        return KeyPair(public, read_identity(path), path)

    return make


@pytest.fixture
def seal(tmp_path: Path) -> Callable[..., Path]:
    """Writes sealed folders: ``seal("name", recipients, count=…)``."""

    def write(name: str, recipients: dict[str, Recipient], count: int = 10, rows_per_file: int = 6) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        claims = {"split": "train", "classes": ["ape", "bee", "cat"], "class_counts": [4, 3, 3], "count": count}
        with SealWriter(folder, split="train", count=count, rows_per_file=rows_per_file) as writer:
            for number in range(count):
                writer.write(row(number))
            record = writer.finish(claims, Sealing(recipients))
        manifest = {**claims, "tool": "uge", "sealed": record.model_dump(mode="json")}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return write
