"""croissant.json: valid by MLCommons' own validator, with records that read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from uge.data.images import ImageSet
from uge.publishing import Manifest
from uge.publishing.croissant import CONFORMS_TO, croissant
from uge.publishing.rights import RESERVED, license_of
from uge.publishing.verify import verify

Make = Callable[..., Manifest]


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
def test_the_validator_finds_no_error_and_records_are_those_of_the_folder(
    format: str, make: Make, images: ImageSet, tmp_path: Path
) -> None:
    library = pytest.importorskip("mlcroissant")
    make(images, format=format, license=license_of("cc-by-4.0"), reservation=RESERVED, rows_per_file=4)
    document = library.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))  # Raises where anything is invalid.
    assert document.metadata.ctx.issues.errors == set()
    records = list(document.records("images"))
    if format == "webdataset":
        assert len(records) == len(images)
        assert {record["images/image"].size for record in records} == {images.read(0).shape[1::-1]}
        return
    assert sorted(text(record["images/id"]) for record in records) == sorted(images.ids)
    assert sorted(record["images/label"] for record in records) == sorted(images.labels.tolist())
    if format == "parquet":
        assert {record["images/image"].size for record in records} == {images.read(0).shape[1::-1]}
    assert [text(record["classes/name"]) for record in document.records("classes")] == list(images.classes)


def test_it_says_what_a_reader_must_know(make: Make, images: ImageSet) -> None:
    manifest = make(images, license=license_of("other", "House rules", "https://example.org/rules"))
    document = json.loads(croissant(manifest))
    assert document["conformsTo"] == list(CONFORMS_TO)
    assert document["license"] == "https://example.org/rules"
    assert "largest change" in document["rai:dataManipulationProtocol"]
    for name in ("rai:dataLimitations", "rai:dataUseCases", "rai:personalSensitiveInformation"):
        assert document[name]
    assert "odrl:prohibition" not in document["usageInfo"]
    reserved = json.loads(croissant(manifest.model_copy(update={"reservation": "Not for mining."})))
    assert reserved["usageInfo"]["odrl:prohibition"][0]["sc:description"] == "Not for mining."
    hashes = {part["@id"]: part["sha256"] for part in document["distribution"] if part["@type"] == "cr:FileObject"}
    assert hashes == {record.path: record.sha256 for record in manifest.files if record.path.endswith(".parquet")}


def test_a_changed_document_is_found(make: Make, images: ImageSet, tmp_path: Path) -> None:
    make(images)
    path = tmp_path / "out" / "croissant.json"
    path.write_text(path.read_text().replace("odrl:use", "odrl:ignore"))
    assert [problem.split()[0] for problem in verify(tmp_path / "out").problems] == ["croissant.json"]
