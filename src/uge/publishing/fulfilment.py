"""Answer to a request: a folder with trained weights alone, sealed to the requester. Needs no torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uge.errors import DataError, IntegrityError, UsageError, printable
from uge.files import JSON, file_sha256, read_bytes, read_json, recover, write_atomic, write_json
from uge.files.limits import WEIGHTS
from uge.publishing.manifest import CARD, Digest, RequestRecord
from uge.sealing.age import Identity, decrypt
from uge.sealing.signature import check

DOCUMENT = "fulfilment.json"
SEALED_WEIGHTS = "weights.safetensors.age"


class Fulfilment(BaseModel):
    """Claims about trained weights (docs/formats.md, "Fulfilment").

    Attributes:
        request: Request that was answered.
        network: Architecture.
        classes: Class names; output ``i`` of the network is for class ``i``.
        channels: Colour channels.
        size: Side length in pixels of the images that the network takes.
        recipe: How it was trained.
        theta0_sha256: Digest of the initial parameters' tensors, as in the request.
        weights_sha256: Digest of the trained parameters' tensors.
        data_set: sha256 of the training images, as they were trained on, with their labels.
        images: Number of training images.
        test_accuracy: Accuracy in percent on images that were not trained on; None where none were given.
        test_images: Number of these.
        recipient: Public key that the weights are sealed to.
        sealed_sha256: sha256 of the sealed file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["uge-fulfilment"] = "uge-fulfilment"
    schema_version: Literal[1] = 1
    tool_version: str
    request: RequestRecord
    network: str
    classes: tuple[str, ...]
    channels: int
    size: int
    recipe: dict[str, Any]
    theta0_sha256: Digest
    weights_sha256: Digest
    data_set: Digest
    images: int = Field(ge=1)
    test_accuracy: float | None = Field(default=None, ge=0, le=100)
    test_images: int = Field(default=0, ge=0)
    recipient: str
    sealed_sha256: Digest

    def card(self) -> str:
        """README.md: what the weights are, how to open them, and what they may give away."""
        classes = ", ".join(printable(name) for name in self.classes)
        recipe = ", ".join(f"{name} {value}" for name, value in self.recipe.items())
        accuracy = (
            "not measured"
            if self.test_accuracy is None
            else f"{self.test_accuracy:.2f} % of {self.test_images} images that were not trained on"
        )
        return f"""# Weights of {self.network}, trained for request {self.request.id}

| | |
|---|---|
| request | `{self.request.id}`, signed by key sha256 `{self.request.key_sha256}` |
| network | {self.network}, {len(self.classes)} classes, {self.channels} channels, size {self.size} |
| start (θ0) | tensors sha256 `{self.theta0_sha256}` |
| recipe | {recipe} |
| data set | sha256 `{self.data_set}`, {self.images} images |
| accuracy | {accuracy} |
| weights | tensors sha256 `{self.weights_sha256}` |
| sealed to | `{self.recipient}` |

Classes, in the order of the network's outputs: {classes}.

## Open the weights

    age -d -i KEYFILE -o weights.safetensors {SEALED_WEIGHTS}

or, with `uge` installed:

    uge export THIS_FOLDER weights.safetensors --key KEYFILE

## What weights give away

Weights can remember images that they were trained on; a start or a recipe that is made for it can store some nearly
whole. They can also show if a certain image was among those. Keep them as you would keep the images.
"""


def write_fulfilment(folder: Path, fulfilment: Fulfilment, sealed: bytes) -> dict[str, str]:
    """Write sealed weights with their claims and card; gives the digests of these files.

    Raises:
        StorageError: The disk is full or read-only.
    """
    write_atomic(folder / SEALED_WEIGHTS, sealed)
    write_json(folder / DOCUMENT, fulfilment.model_dump(mode="json"))
    write_atomic(folder / CARD, fulfilment.card())
    return {name: file_sha256(folder / name) for name in (DOCUMENT, CARD, SEALED_WEIGHTS)}


def is_fulfilment(folder: Path) -> bool:
    """True for a folder that :func:`write_fulfilment` filled."""
    return (folder / DOCUMENT).is_file()


def read_fulfilment(folder: Path, owner: str | None = None) -> Fulfilment:
    """Claims of a folder, with its signature checked.

    Args:
        folder: The folder.
        owner: Fingerprint or file of the key that must have signed it.

    Raises:
        UsageError: There is none.
        IntegrityError: A file is missing or was changed, or the signature is not the owner's.
    """
    recover(folder)
    try:
        raw: JSON = read_json(folder / DOCUMENT)
    except DataError as error:
        raise UsageError(f"{folder} holds no fulfilled request: {error}") from None
    check(folder, owner, DOCUMENT)
    try:
        return Fulfilment.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise IntegrityError([f"{DOCUMENT} is invalid at {place}: {first['msg']}; fetch the folder again"]) from None


def open_weights(folder: Path, identity: Identity, owner: str | None = None) -> bytes:
    """Bytes of the safetensors file with trained weights, opened by the requester's private key.

    Raises:
        UsageError: The folder holds no fulfilled request, or the key is another one.
        IntegrityError: A file is missing or was changed, or the signature is not the owner's.
    """
    claims = read_fulfilment(folder, owner)
    sealed = folder / SEALED_WEIGHTS
    if file_sha256(sealed) != claims.sealed_sha256:
        raise IntegrityError([f"{SEALED_WEIGHTS} was changed: its sha256 is not that in {DOCUMENT}; fetch it again"])
    try:
        return decrypt(read_bytes(sealed, WEIGHTS), identity)
    except DataError as error:
        raise IntegrityError([f"{SEALED_WEIGHTS}: {error}"]) from None
