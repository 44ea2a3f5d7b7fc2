"""A receiver's signed request for a copy made for one network, and the owner's check of it (scenario III).

A request is a small JSON file beside θ0.
"""

import logging
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from uge.errors import UsageError, WeightsError
from uge.files import check_output, file_sha256, locked, storage_errors, write_json, writes
from uge.learning.recipes import Recipe
from uge.methods import METHODS
from uge.names import KEYED, behind_key
from uge.networks import (
    ImageClassifier,
    KeyedClassifier,
    build,
    check_name,
    from_weights,
    load_weights,
    restore,
    save_weights,
    weights_hash,
)
from uge.networks.plugins import is_plugin
from uge.networks.wave_key import MOST_LEVELS, STEPS, highest_frequency
from uge.publishing.manifest import Digest
from uge.requests.signed import SignedRequest, check_file_name, parse_request, read_raw, signed_body
from uge.runtime import stream_seed
from uge.sealing.age import parse_recipients
from uge.sealing.signing_key import default_identity, key_fingerprint, open_identity, public_bytes
from uge.session import Session

log = logging.getLogger(__name__)
KIND = "uge-request"
_SECRET_BITS = 60
_MOST_EPOCHS = 10_000
_MOST_BATCH = 65_536


class Theta0(BaseModel, frozen=True, extra="forbid"):
    """File of initial parameters that belongs to a request and lies beside it.

    Attributes:
        file: Its name, without folders.
        bytes: Its size.
        sha256: Of its bytes.
        weights_sha256: Of its tensors (:func:`uge.networks.weights_hash`); the manifest will name it.
    """

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.safetensors$")]
    bytes: Annotated[int, Field(ge=1)]
    sha256: Digest
    weights_sha256: Digest


class Request(SignedRequest, frozen=True, extra="forbid"):
    """Request for a copy made for one network, or for that network trained on the originals.

    Attributes:
        network: Architecture, ``keyed:NAME`` or ``NAME``.
        classes: Number of classes.
        channels: Colour channels.
        size: Side length for training, in pixels.
        recipe: How the receiver will train.
        theta0: Initial parameters.
    """

    kind: Literal["uge-request"] = "uge-request"
    network: str
    classes: Annotated[int, Field(ge=2, le=100_000)]
    channels: Literal[1, 3]
    size: Annotated[int, Field(ge=16, le=4096)]
    recipe: Recipe
    theta0: Theta0

    @property
    def words(self) -> str:
        """Sentence on the network, sizes and recipe that are asked for, to be shown before work starts."""
        recipe = self.recipe
        return (
            f"request {self.id} asks for {_words(self.network, self.classes, self.channels, self.size)}, "
            f"{recipe.epochs} epochs in batches of {recipe.batch_size} with {recipe.optimizer} at rate {recipe.lr:g}, "
            f"θ0 of {self.theta0.bytes:,} bytes"
        )


@writes("out")
def write_request(
    out: Path,
    network: str,
    classes: int,
    *,
    size: int,
    channels: int,
    method: str,
    recipe: Recipe,
    seed: int | None,
    weights: Path | None,
    to: str | None = None,
    identity: Path | None,
    session: Session,
) -> dict[str, Any]:
    """Write a signed request and θ0 beside it.

    Args:
        out: The request, ``NAME.json``; θ0 goes to ``NAME.theta0.safetensors``, readable by its owner alone.
        network: A name in the table of networks; ``keyed:`` is put in front of it where the method needs it.
        classes: Number of classes of the owner's data.
        size: Side length for training, in pixels.
        channels: Colour channels.
        method: How the owner will protect: a method that does so for networks, ``uge`` for any of the paper's.
        recipe: How the receiver will train.
        seed: Makes θ0; a secret random one by default, since the key can be made from it.
        weights: Safetensors file with θ0 instead of a seed; for a keyed network also one of the architecture behind
            the key, which then gets a fresh key in front.
        to: Public key, or a file with it, to which :mod:`uge.pipeline.fulfil` seals trained weights; None where the
            owner is asked for a copy only.
        identity: The receiver's private key (PEM); made where it does not exist.
        session: Overwriting, and whether to write at all.

    Returns:
        The request with its ``fingerprint``, and the files.

    Raises:
        UsageError: A name, number or file is wrong, or the network is a plug-in.
        WeightsError: The wave key is one that :func:`read_request` refuses.
        OutputExistsError: One of the files exists.
    """
    check_file_name(out)
    theta0_path = out.with_name(f"{out.stem}.theta0.safetensors")
    for path in (out, theta0_path):
        check_output(path, overwrite=session.overwrite)
    name = METHODS[method].network_name(network)
    _check_network(name, "ask")
    theta0 = _theta0(name, classes, size, channels, seed, weights)
    _check_key(theta0, weights or "θ0")
    recipient = None if to is None else parse_recipients(to)[0]
    identity = identity or default_identity()
    places: dict[str, Any] = {"request": str(out), "weights": str(theta0_path), "identity": str(identity)}
    shape = {"network": name, "classes": classes, "channels": channels, "size": size, "recipe": recipe.json_dict()}
    if session.dry_run:
        return {**places, **shape}
    key = open_identity(identity)
    # Others can never read θ0: it is made in a folder of mode 0700. Both files take their places together.
    with storage_errors(out), locked(out) as hold, hold.staged(theta0_path, mode=0o700) as folder:
        secret = folder / theta0_path.name
        save_weights(secret, theta0, {"recipe": recipe.model_dump_json()})
        secret.chmod(0o600)
        start = {
            "file": theta0_path.name,
            "bytes": secret.stat().st_size,
            "sha256": file_sha256(secret),
            "weights_sha256": weights_hash(theta0),
        }
        body = signed_body(KIND, key, {**shape, "theta0": start}, recipient)
        write_json(folder / out.name, body)
        hold.exchange([(secret, theta0_path), (folder / out.name, out)])
    return {**places, **body, "fingerprint": key_fingerprint(public_bytes(key))}


def _check_network(name: str, verb: str) -> None:
    if is_plugin(behind_key(name)):
        raise UsageError(
            f"a request cannot {verb} for the plug-in network '{name}', whose code the data's owner would have to run; "
            "choose a network of the table"
        )
    check_name(name)


def _theta0(
    name: str, classes: int, size: int, channels: int, seed: int | None, weights: Path | None
) -> ImageClassifier:
    if seed is not None and weights is not None:
        raise UsageError("θ0 comes from --seed or from --weights, got both; leave one out")
    if seed is not None and seed.bit_length() < _SECRET_BITS:
        log.warning("the seed %d can be guessed, and manifests name the digest of θ0; leave out --seed", seed)
    seed = stream_seed(secrets.randbits(256) if seed is None else seed, "theta0", "request")
    network = build(name, classes, channels=channels, size=size, seed=seed)
    if weights is not None:
        state, metadata = load_weights(weights)
        behind = isinstance(network, KeyedClassifier) and not metadata.get("network", KEYED).startswith(KEYED)
        restore(network.base if behind and isinstance(network, KeyedClassifier) else network, state, metadata)
    return network


def read_request(path: Path) -> Request:
    """Read a request and check its signature, its form and the θ0 beside it.

    Raises:
        UnknownNameError: It asks for a network that this version does not know.
        UsageError: It is no request, was changed after it was signed, has a wrong id, or asks for a plug-in network.
        WeightsError: θ0 is missing, not the file that was signed, holds NaN, does not fit the architecture, or has a
            wave key that no class can be written by.
    """
    request = parse_request(path, read_raw(path), Request)
    if request.recipe.epochs > _MOST_EPOCHS or request.recipe.batch_size > _MOST_BATCH:
        raise UsageError(
            f"{path} asks for {request.recipe.epochs} epochs of batches of {request.recipe.batch_size}, expected at "
            f"most {_MOST_EPOCHS} and {_MOST_BATCH}; have the request made with another recipe"
        )
    _check_network(request.network, "be taken")
    wanted = request.theta0
    file = theta0_file(path, request)
    if not file.is_file():
        raise WeightsError(f"the request {path} comes with the file {wanted.file}, which is not beside it; get it too")
    if file.stat().st_size != wanted.bytes or file_sha256(file) != wanted.sha256:
        raise WeightsError(f"{file} is not the file that the request {path.name} was signed for; get both again")
    network = from_weights(file)
    held = (network.name, network.classes, network.channels, network.size)
    asked = (request.network, request.classes, request.channels, request.size)
    if held != asked or weights_hash(network) != wanted.weights_sha256:
        raise WeightsError(f"the request {path} asks for {_words(*asked)}, but {file.name} is for {_words(*held)}")
    _check_key(network, file)
    return request


def _check_key(network: ImageClassifier, where: Path | str) -> None:
    if fault := _key_fault(network):
        raise WeightsError(f"the wave key in {where} must {fault}; θ0 has to be made anew, from another seed")


def _key_fault(network: ImageClassifier) -> str:
    """Property that a wave key lacks; without it no waves, or equal ones for several classes, would be written."""
    if not isinstance(network, KeyedClassifier):
        return ""
    key = network.key
    low = highest_frequency(network.size) / 2
    cells = ((key.waves - low) * (STEPS - 1) / low).round()  # which of the frequencies that a key draws each is next to
    properties = {
        f"have waves of about {low:g} to {2 * low:g} cycles": (
            bool((key.waves.isfinite() & (key.waves > low / 2) & (key.waves < 3 * low)).all())
        ),
        "have finite phases": bool(key.phases.isfinite().all()),
        f"have patterns of 1 to {MOST_LEVELS} levels": 1 <= int(key.levels) <= MOST_LEVELS,
        "give every class waves of its own": all(_all_differ(field) for field in cells.unbind(1)),
    }
    return next((wanted for wanted, there in properties.items() if not there), "")


def _all_differ(field: Tensor) -> bool:
    """True where no two classes have the same waves, and no class has equal ones, which could cancel each other."""
    waves = [frozenset(map(tuple, own)) for own in field.tolist()]
    return len(set(waves)) == len(waves) and all(len(own) == field.shape[1] for own in waves)


def _words(name: str, classes: int, channels: int, size: int) -> str:
    return f"'{name}' ({classes} classes, {channels} channels, size {size})"


def theta0_file(path: Path, request: Request) -> Path:
    """File of a request's θ0."""
    return path.with_name(request.theta0.file)
