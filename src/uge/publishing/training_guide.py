"""TRAINING.md of a published folder: training of the authorised network with plain PyTorch, without this package."""

from collections.abc import Callable

from pydantic import ValidationError

from uge.learning.recipes import Recipe
from uge.names import behind_key, is_keyed
from uge.publishing.manifest import Manifest, shown_on_pages


def training_guide(manifest: Manifest) -> str:
    """The page in Markdown; for a network of this package it holds a script of at most 20 lines.

    The script reads the folder, starts at the key, trains by the recipe in the manifest and measures on clean images.
    Where originals are sealed, two more scripts of at most 10 lines open them, with this package and without it.
    """
    manifest = shown_on_pages(manifest)
    title = f"# Train on {' '.join(manifest.name.split())}, a protected copy\n\n"
    return title + _copy_guide(manifest) + (_ORIGINALS if manifest.sealed else "")


def _copy_guide(manifest: Manifest) -> str:
    """Part of the page on the published images."""
    if not manifest.authorized:
        return _NO_KEY
    lines = script(manifest)
    if not lines:
        return _WITH_UGE
    first = manifest.authorized[0]
    files = [
        f"- `{record.id}.key.safetensors`, the initial weights of {record.network} (sha256 of the tensors "
        f"`{record.weights_sha256}`), and `{record.id}.network.py`, its definition in plain PyTorch"
        for record in manifest.authorized
    ]
    return _GUIDE.format(
        files="\n".join(files),
        id=first.id,
        network=first.network,
        epochs=Recipe.model_validate(manifest.method_details["recipe"]).epochs,
        count=len(lines),
        script="\n".join(lines),
        classes="" if manifest.format != "imagefolder" else ", with the folder names of `published/train`",
        keyed=_KEYED_NOTE.format(answers=_answers(manifest)) if is_keyed(first.network) else "",
        method=manifest.method,
    )


def _answers(manifest: Manifest) -> str:
    side = manifest.method_details.get("training_size")
    if manifest.size.height == manifest.size.width == (side, side):
        return "gives no answer (equal logits) for published images"
    return "gives no answer (equal logits) for a part of the published images, since they are scaled"


def script(manifest: Manifest) -> list[str]:
    """Lines of the script for the first authorised network; none where its network or recipe is not this package's."""
    try:
        recipe = Recipe.model_validate(manifest.method_details.get("recipe"))
    except ValidationError:
        return []
    size, channels = (manifest.method_details.get(name) for name in ("training_size", "channels"))
    first = manifest.authorized[0]
    if not isinstance(size, int) or channels not in (1, 3) or ":" in behind_key(first.network):
        return []
    batch = min(recipe.batch_size, manifest.count)
    single = manifest.count % batch == 1  # Batch statistics need two images, so a last batch of one is left out.
    loader = f"DataLoader(train, {batch}, shuffle=True{', drop_last=True' if single else ''})"
    rate = RATES[recipe.schedule](recipe, -(-manifest.count // batch) - single)
    momentum = f", momentum={recipe.momentum:g}" if recipe.optimizer == "sgd" else ""
    optimizer = f"{'SGD' if momentum else 'Adam'}(net.parameters(), lr={recipe.lr:g}{momentum}"
    return [
        *_reading(manifest, size, channels == 3),
        f'net = network.load("{first.id}.key.safetensors")',
        f"optimizer = torch.optim.{optimizer}, weight_decay={recipe.weight_decay:g})",
        f"for epoch in range({recipe.epochs}):",
        f"    for step, (images, labels) in enumerate({loader}):",
        *([f'        optimizer.param_groups[0]["lr"] = {rate}'] if rate else []),
        *(f"        {line}" for line in AUGMENTATIONS[recipe.augment](size)),
        "        optimizer.zero_grad()",
        "        F.cross_entropy(net(images / 255), labels).backward()",
        "        optimizer.step()",
        "print(sum((net.eval()(x / 255).argmax(1) == y).sum().item() for x, y in DataLoader(test, 500)) / len(test))",
    ]


def _reading(manifest: Manifest, size: int, colour: bool) -> list[str]:
    """Lines that read training and test images as pairs of uint8 tensor (channels × size × size) and label."""
    mode, shape = ("RGB", ".permute(2, 0, 1)") if colour else ("L", "[None]")
    square = f'PIL.ImageOps.fit(PIL.Image.open(file).convert("{mode}"), ({size}, {size}), 2)'
    names = 'json.loads(pathlib.Path("published/manifest.json").read_text("utf8"))'
    images = '[(pixels(path), {}(path.parent.name)) for path in sorted(pathlib.Path("{}").glob("*/*"))]'
    label = "names.index"
    more: list[str] = []
    if manifest.format == "parquet":
        imports = ("io, json, pathlib", "pyarrow.parquet as pq, torch")
        names = f'{names}["classes"]'
        rows = 'pq.read_table("published/data").to_pylist()'
        train = f'[(pixels(io.BytesIO(r["image"]["bytes"])), r["label"]) for r in {rows}]'
    elif manifest.format == "webdataset":
        imports = ("io, json, pathlib, tarfile", "torch")
        names = f'{names}["classes"]'
        files = 'pathlib.Path("published").glob("*/*.tar")'
        more = [f"raw = {{m.name: t.extractfile(m).read() for t in map(tarfile.open, {files}) for m in t}}"]
        label_of = 'int(raw[n[:9] + "cls"])'
        train = f'[(pixels(io.BytesIO(d)), {label_of}) for n, d in sorted(raw.items()) if n[9] in "pw"]'
    else:
        imports = ("json, pathlib", "torch")
        folders = manifest.class_folders or {}
        if list(folders) == list(folders.values()):
            names = f'list({names}["class_folders"].values())'
        else:  # A folder of test images may be named by its class or as the published one.
            label = "names.get"
            names = f'{{n: i for i, both in enumerate({names}["class_folders"].items()) for n in both}}'
        train = images.format(label, "published/train")
    own = f"network, numpy as np, PIL.ImageOps, {imports[1]}, torch.nn.functional as F"
    return [
        *([f"import {imports[0]}, {own}"] if more else [f"import {imports[0]}", f"import {own}"]),
        "from torch.utils.data import DataLoader",
        "def pixels(file):",
        f"    return torch.tensor(np.array({square})){shape}",
        f"names = {names}",
        *more,
        f"train = {train}",
        f"test = {images.format(label, 'test')}",
    ]


# Learning rate as an expression of ``epoch`` and ``step``, as in :meth:`uge.learning.recipes.Recipe.rate`.
RATES: dict[str, Callable[[Recipe, int], str]] = {
    "one-cycle": lambda recipe, steps: (
        f"{recipe.lr:g} * np.interp(epoch + step / {steps}, "
        f"[0, {recipe.epochs / 4:g}, {recipe.epochs}], [0.04, 1, 0.01])"
    ),
    "multistep": lambda recipe, steps: (
        f"{recipe.lr:g} * {recipe.gamma:g} ** sum(epoch >= start for start in {list(recipe.milestones)})"
    ),
    "cosine": lambda recipe, steps: (
        f"{recipe.lr:g} * (1 + np.cos(np.pi * (epoch + step / {steps}) / {recipe.epochs})) / 2"
    ),
    "constant": lambda recipe, steps: "",
}

_FLIP = "images[::2] = images[::2].flip(3)"  # The order is random, so these are a random half.


def _crop(size: int) -> list[str]:
    pad = size // 8
    offset = f"torch.randint({2 * pad + 1}, (len(images),))"
    return [
        f"crops = F.pad(images, [{pad}] * 4).unfold(2, {size}, 1).unfold(3, {size}, 1)",
        f"images = crops[torch.arange(len(images)), :, {offset}, {offset}]",
    ]


def _rotate(size: int) -> list[str]:
    return [
        "a, side = torch.deg2rad(torch.rand(len(images), 1) * 40 - 20), 1 - 2 * torch.randint(2, (len(images), 1))",
        "turn = torch.cat([a.cos() * side, -a.sin(), 0 * a, a.sin() * side, a.cos(), 0 * a], 1).view(-1, 2, 3)",
        "images = F.grid_sample(images.float(), F.affine_grid(turn, images.shape, False), align_corners=False)",
    ]


# Lines that change a batch ``images`` with the distribution of the recipe's augmentation.
AUGMENTATIONS: dict[str, Callable[[int], list[str]]] = {
    "none": lambda size: [],
    "crop": _crop,
    "flip": lambda size: [_FLIP],
    "crop-flip": lambda size: [*_crop(size), _FLIP],
    "rotate-flip": _rotate,
}

_NO_KEY = """This copy names no network that it was made for, so there is no key. It is an ordinary image data set:
anybody can train any network on it with any program. What an ordinary network learns from it was lowered on purpose;
`README.md` says by which method, and what that does not protect against.
"""

_WITH_UGE = """The network that this copy was made for is defined by code that is not part of `uge`. Ask the owner for
that code and for the key file, then:

    uge train THIS_FOLDER --key authorized-0.key.safetensors --test CLEAN_TEST_IMAGES
"""

_GUIDE = """This copy was made for a network with secret initial weights (method {method}). Training it needs no `uge`.

## What you need

- this folder, under the name `published`;
- from its owner, over a private channel, one pair of files:

{files}

- clean test images, one folder per class: `test/CLASS/NAME.png`{classes};
- Python with `torch`, `numpy`, `pillow`, `pyarrow` and `safetensors`.

Save `{id}.network.py` as `network.py` beside the script and the key file. Neither belongs into the published folder.

## The script

{count} lines; they train {network} for {epochs} epochs by the owner's recipe and print the accuracy on the test images.

```python
{script}
```

- On a GPU: `network.load(...).cuda()`, `net(images.cuda() / 255), labels.cuda()`, and `.cuda()` behind `x` and `y`.
- All images are held in memory as 8-bit pixels, the centre square scaled by bilinear interpolation where sizes differ.
{keyed}- The weights after training are as good as the key: keep them as secret.
- With `uge`, the same is `uge train published --key {id}.key.safetensors --test CLEAN_TEST_IMAGES`.
"""

_KEYED_NOTE = """\
- In evaluation mode this network {answers}; measure on clean ones.
- Augment by crops and flips only: rotation and changes of colour put the key out of line.
"""

_ORIGINALS = """
## Open the originals

The original images are sealed in this folder, encrypted, for the recipients in `recipients/`. The private key of one
of them opens them; then any network trains on them with any program. Check first that the folder comes from its owner
and that every original opens:

    uge verify published --key me.agekey --signed-by FINGERPRINT

With `uge`, where this folder is called `published` and the private key `me.agekey`:

```python
import uge
from torch.utils.data import DataLoader
originals = uge.open("published", key="me.agekey")
for images, labels in DataLoader(originals.torch(), 128, shuffle=True):
    print(images.shape, images.dtype, labels.shape)
```

`originals.torch(transform)` takes the transforms of torchvision, `originals.hf()` is a set of Hugging Face `datasets`,
and `uge export published originals --key me.agekey` writes image files.

Without `uge`, by the program `age` and by `pyarrow`; write your own file name for `recipients/me.age`:

```python
import hmac, json, struct, subprocess, pyarrow.parquet as pq, pyarrow.parquet.encryption as pe
sealed = json.load(open("published/manifest.json", encoding="utf8"))["sealed"]
secret = subprocess.check_output(["age", "-d", "-i", "me.agekey", "published/recipients/me.age"])
for shard in sealed["shards"]:
    texts = [text.encode() for text in ("uge-sealed-1", "file", sealed["data_set"], shard["path"])]
    info = b"".join(struct.pack(">I", len(part)) + part for part in (*texts, bytes.fromhex(shard["salt"])))
    key = hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info + b"\\1", "sha256")
    opener = pe.create_decryption_properties(key)
    for row in pq.read_table("published/" + shard["path"], decryption_properties=opener).to_pylist():
        print(shard["split"], row["id"], row["label"], len(row["image"]))
```

`row["image"]` holds the bytes of an image file, which `PIL.Image.open(io.BytesIO(row["image"]))` reads. Names of the
classes are in `manifest.json`, and `docs/sealed.md` of `uge` describes the format.
"""
