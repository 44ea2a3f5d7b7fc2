"""``croissant.json`` of a published folder: Croissant 1.1 with the vocabulary for responsible AI (MLCommons)."""

import json
from typing import Any

from uge.publishing.card import what_was_changed
from uge.publishing.layout import LAYOUTS
from uge.publishing.manifest import INDEX, FileRecord, Manifest
from uge.publishing.rights import link_of, usage_info

CROISSANT = "croissant.json"
CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
    "odrl": "http://www.w3.org/ns/odrl/2/",
    "tdm": "http://www.w3.org/ns/tdmrep#",
}
_LIMITS = [
    "The images were changed so that networks learn as little as possible from them; a network that was trained on "
    "them says little about the originals.",
    "The protection lowers what a network learns; it does not prevent it. uge audit measures how far it holds.",
    "Sizes, labels and alpha channels are those of the originals; colours are not.",
]
_USES = [
    "Inspection: which images there are, and how they are labelled.",
    "Training by recipients of a key, on the originals that are sealed in the folder.",
    "Research on protections of data and on attacks against them.",
]


def croissant(manifest: Manifest) -> str:
    """The document; files are named by relative paths, with their sha256. It is ASCII, so that no character hides."""
    name = " ".join(manifest.name.split())
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": f"{name}, a protected copy",
        "description": (
            f"{manifest.count} images, changed by the method {manifest.method} so that networks learn as little as "
            "possible from them. " + ("The originals are sealed in it." if manifest.sealed else "")
        ).strip(),
        "version": "1.0.0",
        "usageInfo": usage_info(manifest),
        "rai:dataManipulationProtocol": what_was_changed(manifest),
        "rai:dataLimitations": _LIMITS,
        "rai:dataUseCases": _USES,
        "rai:personalSensitiveInformation": [
            "Not assessed: images may show persons if the originals do. The changes do not make them anonymous."
        ],
        "distribution": [_file(record) for record in _listed(manifest)] + _sets(manifest),
        "recordSet": [_classes(manifest)] * bool(manifest.classes) + [_images(manifest)],
    }
    if manifest.created is not None:
        document["datePublished"] = manifest.created
    if manifest.license is not None:
        document["license"] = link_of(manifest.license)
    return json.dumps(document, indent=1) + "\n"


def _listed(manifest: Manifest) -> list[FileRecord]:
    """Shards and the index, each with its hash; single images stand in a set.

    Sealed files are in the manifest alone: their bytes differ in every publication, and only a key opens them.
    """
    records = [record for record in manifest.files if record.path.endswith((".parquet", ".csv", ".tar"))]
    return sorted(records, key=lambda record: record.path)


def _file(record: FileRecord) -> dict[str, Any]:
    kinds = {"parquet": "application/x-parquet", "csv": "text/csv", "tar": "application/x-tar"}
    return {
        "@type": "cr:FileObject",
        "@id": record.path,
        "name": record.path,
        "contentUrl": record.path,
        "contentSize": f"{record.bytes} B",
        "encodingFormat": kinds[record.path.rpartition(".")[2]],
        "sha256": record.sha256,
    }


def _sets(manifest: Manifest) -> list[dict[str, Any]]:
    image = {"png": "image/png", "webp": "image/webp", "mixed": "image/*"}[manifest.codec]
    if manifest.format == "webdataset":
        return [
            {
                "@type": "cr:FileSet",
                "@id": "published",
                "name": "published",
                "description": "The protected images.",
                "containedIn": [{"@id": record.path} for record in _listed(manifest)],
                "encodingFormat": image,
                "includes": "*.webp" if manifest.codec == "webp" else "*.png" if manifest.codec == "png" else "*.*g",
            }
        ]
    return [
        {
            "@type": "cr:FileSet",
            "@id": "published",
            "name": "published",
            "description": "The protected images.",
            "encodingFormat": "application/x-parquet" if manifest.format == "parquet" else image,
            "includes": LAYOUTS[manifest.format].pattern,
        }
    ]


def _classes(manifest: Manifest) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "dataType": "sc:Enumeration",
        "key": [{"@id": "classes/number"}],
        "field": [_field("classes/number", "sc:Integer"), _field("classes/name", "sc:Text")],
        "data": [{"classes/number": number, "classes/name": name} for number, name in enumerate(manifest.classes)],
    }


def _images(manifest: Manifest) -> dict[str, Any]:
    if manifest.format == "webdataset":  # Its vocabulary has no way from an image to the member that holds its label.
        content = {"fileSet": {"@id": "published"}, "extract": {"fileProperty": "content"}}
        named = {"fileSet": {"@id": "published"}, "extract": {"fileProperty": "filename"}}
        both = [_field("images/image", "sc:ImageObject", content), _field("images/name", "sc:Text", named)]
        return {"@type": "cr:RecordSet", "@id": "images", "name": "images", "field": both}
    if manifest.format == "parquet":
        columns = {"image": ("sc:ImageObject", "image"), "label": ("sc:Integer", "label"), "id": ("sc:Text", "id")}
        source: dict[str, Any] = {"fileSet": {"@id": "published"}}
        key = "images/id"
    else:
        columns = {"path": ("sc:Text", "path"), "label": ("sc:Integer", "label"), "id": ("sc:Text", "id")}
        source = {"fileObject": {"@id": INDEX}}
        key = "images/path"
    if not manifest.classes:
        del columns["label"]
    fields = []
    for name, (kind, column) in columns.items():
        transform = {"transform": {"jsonPath": "bytes"}} if kind == "sc:ImageObject" else {}
        field = _field(f"images/{name}", kind, {**source, "extract": {"column": column}, **transform})
        if name == "label":
            field["references"] = {"field": {"@id": "classes/number"}}
        fields.append(field)
    return {"@type": "cr:RecordSet", "@id": "images", "name": "images", "key": {"@id": key}, "field": fields}


def _field(identifier: str, kind: str, source: dict[str, Any] | None = None) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": identifier, "name": identifier, "dataType": kind}
    return field if source is None else {**field, "source": source}
