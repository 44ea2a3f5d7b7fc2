"""TRAINING.md: its lines open sealed originals, with this package and without it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_sets import BUDGET, image_set, protect, random_pixels

from uge.publishing import Provenance, publish, verify
from uge.sealing import Sealing, make_identity, open_folder, read_identity

WITHOUT = "import sys; sys.modules['uge'] = None; exec(open('lines.py', encoding='utf8').read())"
COUNT = 12


@pytest.fixture(scope="module", params=["parquet", "imagefolder", "webdataset"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sealed copy and the private key of a recipient, as the page expects them."""
    place = tmp_path_factory.mktemp("guide")
    images = image_set(random_pixels(COUNT))
    publish(
        protect(images),
        place / "published",
        images=images,
        budget=BUDGET,
        provenance=Provenance(method="noise"),
        format=request.param,
        rows_per_file=5,
        sealing=Sealing({"me": make_identity(place / "me.agekey")}),
    )
    return place


def scripts(place: Path) -> list[str]:
    page = (place / "published" / "TRAINING.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_page_has_two_scripts_of_at_most_ten_lines(place: Path) -> None:
    assert verify(place / "published").ok
    with_uge, without = scripts(place)
    assert "uge.open" in with_uge
    for lines in (with_uge.splitlines(), without.splitlines()):
        assert len(lines) <= 10
        assert all(line.strip() and ";" not in line and len(line) <= 120 for line in lines)


def test_the_lines_with_uge_give_batches(place: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", scripts(place)[0]], cwd=place, capture_output=True, text=True)
    assert ran.stdout == f"torch.Size([{COUNT}, 3, 8, 8]) torch.float32 torch.Size([{COUNT}])\n", ran.stderr


@pytest.mark.skipif(shutil.which("age") is None, reason="needs the program age")
def test_the_lines_without_uge_read_every_original(place: Path) -> None:
    (place / "lines.py").write_text(scripts(place)[1], encoding="utf-8")
    ran = subprocess.run([sys.executable, "-c", WITHOUT], cwd=place, capture_output=True, text=True)
    sealed = open_folder(place / "published", read_identity(place / "me.agekey"))
    expected = [f"train {row.id} {row.label} {len(row.image)}" for row in sealed.rows()]
    assert len(expected) == COUNT
    assert ran.stdout.splitlines() == expected, ran.stderr


def test_a_copy_in_which_nothing_is_sealed_has_no_such_lines(tmp_path: Path) -> None:
    images = image_set(random_pixels(4))
    options = {"images": images, "budget": BUDGET, "provenance": Provenance(method="noise")}
    publish(protect(images), tmp_path / "published", **options)
    assert scripts(tmp_path) == []
