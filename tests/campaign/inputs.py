"""Sound inputs of every kind that commands read, made once and copied for every trial."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from trial import run

CLASSES = ("cat", "dog", "owl")
TINY = ["--method", "keyed", "--authorized", "lenet", "--size", "16", "--recipe.epochs", "1", "--threads", "1"]
SEEDED = ("--authorized-seed", "1")
"""Makes the same keys again, so that bytes can be compared."""
PAPER = (
    *("--method", "uge", "--hacker", "lenet", "--encoder-recipe.epochs", "1", "--max-steps", "6"),
    *("--generator.width", "8", "--generator.blocks", "1", "--generator.lr", "0.02"),
)
KEY = "copy.private/authorized-0.key.safetensors"
AUDIT = ["--test", "folder", "--networks", "lenet", "--attacks", "direct", "--threads", "1"]
REQUEST = ["--network", "lenet", "--classes", "3", "--size", "16", "--identity", "me.pem"]


def pixels(number: int, size: int = 16) -> np.ndarray:
    random = np.random.default_rng(number)
    return (60 * (number % 3) + 50 + random.normal(0, 15, (size, size, 3))).clip(0, 255).astype(np.uint8)


def encoded(number: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels(number)).save(data, kind)
    return data.getvalue()


def make_sources(root: Path) -> None:
    """One small source in every format, with a test split where the format has splits."""
    for split, count in (("train", 18), ("test", 6)):
        for number in range(count):
            place = root / "folder" / split / CLASSES[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:03d}.png").write_bytes(encoded(number))
    for number in range(18, 24):
        place = root / "further" / CLASSES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(encoded(number))
    array = np.stack([pixels(number) for number in range(18)])
    labels = np.arange(18) % 3
    np.savez(root / "set.npz", x_train=array, y_train=labels, x_test=array[:6], y_test=labels[:6])
    (root / "parquet").mkdir()
    rows = {"image": [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(18)], "label": labels.tolist()}
    pq.write_table(pa.table(rows), root / "parquet" / "train-00000-of-00001.parquet")
    (root / "cifar").mkdir()
    planes = array.repeat(2, 1).repeat(2, 2).transpose(0, 3, 1, 2).reshape(18, -1)
    batch = {b"data": planes, b"fine_labels": labels.tolist(), b"coarse_labels": labels.tolist()}
    for name in ("train", "test"):
        (root / "cifar" / name).write_bytes(pickle.dumps(batch, 2))
    names = {b"fine_label_names": [name.encode() for name in CLASSES], b"coarse_label_names": [b"a", b"b", b"c"]}
    (root / "cifar" / "meta").write_bytes(pickle.dumps(names, 2))
    (root / "tar").mkdir()
    with tarfile.open(root / "tar" / "train-000000.tar", "w") as archive:
        for number in range(18):
            for suffix, content in (("png", encoded(number)), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    np.save(root / "noise.npy", np.random.default_rng(0).integers(-8, 9, (18, 16, 16, 3)).astype(np.int8))
    (root / "run.toml").write_text('method = "keyed"\nauthorized = "lenet"\nsize = 16\n\n[recipe]\nepochs = 1\n')
    (root / "run.yaml").write_text("method: keyed\nauthorized: lenet\nsize: 16\nrecipe:\n  epochs: 1\n")


def make_results(root: Path) -> None:
    """A published folder with its keys, an audit, and a signed request."""
    made = run(["keygen", "me.agekey", "--json"], root)
    (root / "me.pub").write_text(json.loads(made.out)["public_key"])
    commands = [
        ["protect", "folder", "copy", *TINY],
        ["audit", "copy", *AUDIT],
        ["request", "wanted.json", *REQUEST],
        ["request", "trained.json", *REQUEST, "--method", "uge", "--recipe.epochs", "1", "--to", "me.pub"],
    ]
    for arguments in commands:
        trial = run([*arguments, "-q"], root)
        if trial.code:
            raise RuntimeError(f"uge {' '.join(arguments)} failed: {trial.err}")


def make_all(root: Path) -> Path:
    """Everything, in a new folder ``root``."""
    root.mkdir(parents=True)
    make_sources(root)
    make_results(root)
    return root


def fresh(sound: Path, root: Path) -> Path:
    """A copy of the sound inputs for one trial."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sound, root, symlinks=True)
    return root


def belong_together(out: Path) -> bool:
    """True if the private folder of a copy holds the keys that its manifest names."""
    from uge.networks import from_weights, weights_hash

    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    private = out.with_name(f"{out.name}.private")
    keys = [private / f"{record['id']}.key.safetensors" for record in manifest["authorized"]]
    named = [record["weights_sha256"] for record in manifest["authorized"]]
    return all(path.is_file() for path in keys) and [weights_hash(from_weights(path)) for path in keys] == named


def verifies(out: Path) -> bool:
    """True if a copy and its originals are as its private folder and its owner's signature say."""
    key = out.with_name(f"{out.name}.private") / "owner.agekey"
    return run(["verify", out, "--key", key, "-q"], out.parent).code == 0


def field_paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Places of all values inside JSON, containers included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    places = [path] if path else []
    for name, part in inner:
        places += field_paths(part, (*path, name))
    return places


def changed_json(text: str, path: tuple[str | int, ...], change: str) -> str:
    """JSON with one value changed in a way that is named; ``gone`` removes it."""
    values = {
        "null": None,
        "text": "x",
        "negative": -1,
        "huge": 10**30,
        "fraction": 0.5,
        "list": [1, [2]],
        "object": {"a": {"b": 1}},
        "escapes": "\u001b[2J\u202e",
    }
    document = json.loads(text)
    place = document
    for part in path[:-1]:
        place = place[part]
    if change == "gone":
        del place[path[-1]]
    else:
        place[path[-1]] = values[change]
    return json.dumps(document)


CHANGES = ("gone", "null", "text", "negative", "huge", "fraction", "list", "object", "escapes")
