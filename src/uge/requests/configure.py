"""What the data's owner does with receivers' requests: ``uge protect --for``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uge.config import ProtectConfig
from uge.data.images import ImageSet
from uge.errors import UsageError
from uge.methods.uge.settings import METHODS
from uge.names import is_keyed
from uge.networks import load_weights, weights_hash
from uge.publishing import Provenance
from uge.requests.request import Request, read_request, theta0_file


def with_requests(config: ProtectConfig) -> tuple[ProtectConfig, tuple[Request, ...]]:
    """Read the requests that a configuration names, and let them say what is protected for whom.

    Returns:
        The configuration with networks, weights and recipe of the requests, and the requests; unchanged without any.

    Raises:
        UsageError: A request is refused (:func:`read_request`), they differ in recipe or shape, do not go with the
            method, or networks are named besides them.
    """
    if not config.requests:
        return config, ()
    if config.method not in METHODS:
        raise UsageError(f"method '{config.method}' protects for no network; leave out --for, or choose another method")
    default = ProtectConfig()
    for flag in ("authorized", "authorized_weights", "recipe"):
        if getattr(config, flag) != getattr(default, flag):
            raise UsageError(f"with --for the request names network and recipe; leave out --{flag.replace('_', '-')}")
    requests = tuple(read_request(path) for path in config.requests)
    first = requests[0]
    for path, request in zip(config.requests, requests, strict=True):
        _check_method(path, request, config.method)
        if (request.size, request.channels, request.recipe) != (first.size, first.channels, first.recipe):
            raise UsageError(
                f"the requests {config.requests[0]} and {path} differ in size, channels or recipe; "
                "publish one copy for each"
            )
    files = tuple(theta0_file(path, request) for path, request in zip(config.requests, requests, strict=True))
    if config.method == "keyed" and len({_key_hash(file) for file in files}) > 1:
        raise UsageError(
            "method 'keyed' writes by one wave key, but each of these requests has its own; publish one copy for "
            "each receiver, or have requests made with --method uge"
        )
    names = ",".join(request.network for request in requests)
    return config.model_copy(
        update={"authorized": names, "authorized_weights": files, "recipe": first.recipe}
    ), requests


def _key_hash(file: Path) -> str:
    return weights_hash({name: tensor for name, tensor in load_weights(file)[0].items() if name.startswith("key.")})


def _check_method(path: Path, request: Request, method: str) -> None:
    if (method == "keyed") != is_keyed(request.network):
        wanted, other = ("keyed", "uge") if method == "keyed" else ("uge", "keyed")
        raise UsageError(
            f"the request {path} is for '{request.network}', which does not go with method '{method}'; "
            f"give --method {other}, or have the request made with --method {wanted}"
        )


def check_fits(config: ProtectConfig, requests: Sequence[Request], images: ImageSet) -> None:
    """Refuse requests for other data than this.

    Raises:
        UsageError: Number of classes, size or channels differ.
    """
    for path, request in zip(config.requests, requests, strict=True):
        if request.classes != len(images.classes):
            raise UsageError(
                f"the request {path} is for {request.classes} classes, but {images.name} has {len(images.classes)}; "
                "ask for one with the right number"
            )
        size = config.size or images.native_size()
        if (request.size, request.channels) != (size, images.channels()):
            have = f"size {size}" if size else "mixed sizes"
            raise UsageError(
                f"the request {path} is for size {request.size} and {request.channels} channels, but {images.name} has "
                f"{have} and {images.channels()}; ask for a request that fits, or give --size {request.size} if only "
                "the size differs"
            )


def mark_requests(provenance: Provenance, requests: Sequence[Request]) -> Provenance:
    """The provenance with every request's id and key fingerprint at the network that it asked for."""
    if not requests:
        return provenance
    marked = [
        one.model_copy(update={"request": request.record})
        for one, request in zip(provenance.authorized, requests, strict=True)
    ]
    return provenance.model_copy(update={"authorized": tuple(marked)})


def describe_requests(requests: Sequence[Request]) -> list[dict[str, str]]:
    """Id, date, network and fingerprint of each, for people to compare."""
    return [
        {"id": one.id, "created": one.created, "network": one.network, "key_sha256": one.record.key_sha256}
        for one in requests
    ]
