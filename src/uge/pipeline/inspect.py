"""Description of a path in words and numbers: ``uge inspect``; torch is loaded for weights and requests alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from uge.data import has_split, load_images
from uge.errors import UsageError
from uge.files import read_json, recover
from uge.publishing import read_manifest
from uge.publishing.fulfilment import is_fulfilment, read_fulfilment
from uge.publishing.private import DONE, STATE


def inspect(target: str) -> dict[str, Any]:
    """Describe a published folder, an audit, a federation, a request, a weights file, or any image source.

    Raises:
        UsageError: Nothing is there, or it is a request that was changed after it was signed.
        WeightsError: It is a request whose θ0 is missing or another.
        DataError: It is of no known kind, or damaged.
    """
    path = Path(target)
    for place in (path, path.parent):
        recover(place)
    if (path / "manifest.json").is_file() and not (path / "cases").is_dir():
        manifest = read_manifest(path)
        about = manifest.model_dump(mode="json", exclude={"files", "sealed"})
        return {"kind": "published folder", **about, "sealed": manifest.sealed and manifest.sealed.summary()}
    for kind, file in (("audit", path / "summary.json"), ("federation", path / "federated.json")):
        if file.is_file():
            return {"kind": kind, **read_json(file)}
    if is_fulfilment(path):
        return {**read_fulfilment(path).model_dump(mode="json"), "kind": "fulfilled request"}
    if path.is_file() and path.suffix == ".json":
        from uge.requests.configure import read_any_request

        request = read_any_request(path)
        return {
            "kind": "request",
            **request.model_dump(mode="json"),
            "fingerprint": request.record.key_sha256,
        }
    if path.is_file() and path.suffix == ".safetensors":
        from uge.networks import load_weights, weights_hash

        state, metadata = load_weights(path)
        return {
            "kind": metadata.get("kind") or ("network weights" if "network" in metadata else "weights"),
            "metadata": metadata,
            "values": sum(tensor.numel() for tensor in state.values()),
            "sha256": weights_hash(state),
        }
    if (path / STATE).is_file():
        return {"kind": "private folder", "finished": (path / DONE).is_file(), **read_json(path / STATE)}
    if (path / "generator.safetensors").is_file():
        keys = sorted(key.name for key in path.glob("authorized-*.key.safetensors"))
        return {"kind": "private folder", "finished": True, "keys": keys}
    splits: dict[str, Any] = {}
    for split in (name for name in ("train", "test") if has_split(target, name)):
        images = load_images(target, split=split, labels=False)
        shapes = [image.shape for image in images.probe()]
        splits[split] = {
            "images": len(images),
            "classes": dict(zip(images.classes, images.class_counts, strict=True)),
            "channels": images.channels(),
            "sizes": dict(Counter(f"{width}x{height}" for height, width, _ in shapes).most_common(5)),
            "modes": dict(sorted(Counter(channels for _, _, channels in shapes).items())),
        }
    if not splits:
        raise UsageError(f"{target} has neither a train nor a test split that this tool can read")
    return {"kind": "image source", "source": target, "splits": splits}
