"""Protection for receivers' signed requests: ``uge protect --for``."""

from collections.abc import Sequence
from pathlib import Path

from uge.config import ProtectConfig
from uge.errors import UsageError, refuse
from uge.files import JSON
from uge.methods import METHODS, ImagesInfo, method_for
from uge.methods.base import DEFAULT_METHOD
from uge.names import is_keyed
from uge.networks import load_weights, weights_hash
from uge.progress import Display
from uge.publishing import Provenance
from uge.requests.originals import KIND as ORIGINALS
from uge.requests.originals import OriginalsRequest, read_originals_request
from uge.requests.request import Request, read_request, theta0_file
from uge.requests.signed import SignedRequest, check_signer, read_raw, signer_words


def read_any_request(path: Path) -> Request | OriginalsRequest:
    """Read a request of any kind; see :func:`read_request` and :func:`read_originals_request`."""
    return read_originals_request(path) if _kind(path) == ORIGINALS else read_request(path)


def _kind(path: Path) -> str:
    return str(read_raw(path).get("kind"))


def split_requests(config: ProtectConfig) -> tuple[ProtectConfig, dict[Path, OriginalsRequest]]:
    """Read the requests for originals that a configuration names, and check the signers of all requests.

    Returns:
        The configuration with the requests for networks alone, and those for originals by their file.

    Raises:
        UsageError: A request is refused, or signed by a key that is not expected.
    """
    if config.expect_signer and not config.requests:
        raise UsageError("--expect-signer pins the signer of a request; give the request with --for")
    originals: dict[Path, OriginalsRequest] = {}
    for path in config.requests:
        if _kind(path) == ORIGINALS:
            originals[path] = read_originals_request(path)
            check_signer(path, originals[path], config.expect_signer)
    networks = tuple(path for path in config.requests if path not in originals)
    return config.model_copy(update={"requests": networks}), originals


def with_requests(config: ProtectConfig) -> tuple[ProtectConfig, tuple[Request, ...]]:
    """Read the requests for networks that a configuration names; they determine the authorised networks.

    Returns:
        The configuration with networks, weights and recipe of the requests, and the requests; unchanged without any.

    Raises:
        UsageError: A request is refused (:func:`read_request`) or signed by a key that is not expected, they differ
            in recipe or shape, do not go with the method, or networks are named besides them.
    """
    if not config.requests:
        return config, ()
    if config.method == DEFAULT_METHOD:  # It protects for no network: the first request's network says which does.
        wave_key = is_keyed(read_request(config.requests[0]).network)
        config = config.model_copy(update={"method": method_for(wave_key=wave_key)})
    method = METHODS[config.method]
    if not method.authorizes:
        raise UsageError(f"method '{config.method}' protects for no network; leave out --for, or choose another method")
    default = ProtectConfig()
    for flag in ("authorized", "authorized_weights", "recipe"):
        if getattr(config, flag) != getattr(default, flag):
            raise UsageError(f"with --for the request names network and recipe; leave out --{flag.replace('_', '-')}")
    requests = tuple(read_request(path) for path in config.requests)
    for path, request in zip(config.requests, requests, strict=True):
        check_signer(path, request, config.expect_signer)
    first = requests[0]
    for path, request in zip(config.requests, requests, strict=True):
        other_kind = (
            f"the request {path} is for '{request.network}', which does not go with method '{config.method}'; "
            f"give --method {method_for(wave_key=not method.wave_key)}, or have the request made with --method "
            f"{method_for(wave_key=method.wave_key)}"
        )
        differ = (
            f"the requests {config.requests[0]} and {path} differ in size, channels or recipe; "
            "publish one copy for each"
        )
        refuse(
            {
                other_kind: method.wave_key != is_keyed(request.network),
                differ: (request.size, request.channels, request.recipe) != (first.size, first.channels, first.recipe),
            }
        )
    files = tuple(theta0_file(path, request) for path, request in zip(config.requests, requests, strict=True))
    if method.wave_key and len({_key_hash(file) for file in files}) > 1:
        raise UsageError(
            f"method '{config.method}' writes by one wave key, but each of these requests has its own; publish one "
            f"copy for each receiver, or have requests made with --method {method_for(wave_key=False)}"
        )
    return config.model_copy(
        update={
            "authorized": ",".join(request.network for request in requests),
            "authorized_weights": files,
            "recipe": first.recipe,
        }
    ), requests


def show_requests(requests: Sequence[SignedRequest], display: Display, *, pinned: bool) -> None:
    """Show what requests ask for and the keys that signed them, before work starts.

    Args:
        requests: The requests.
        display: Shows the lines.
        pinned: False shows the keys even where a display is to be quiet, since only people can compare them.
    """
    for request in requests:
        display.note(request.words)
        show = display.note if pinned else display.alert
        show(signer_words(request.id, request.record.key_sha256))


def _key_hash(file: Path) -> str:
    return weights_hash({name: tensor for name, tensor in load_weights(file)[0].items() if name.startswith("key.")})


def check_fits(config: ProtectConfig, requests: Sequence[Request], info: ImagesInfo) -> None:
    """Refuse requests for other data than these images.

    Raises:
        UsageError: Number of classes, size or channels differ.
    """
    size = config.size or info.native_size
    for path, request in zip(config.requests, requests, strict=True):
        other_classes = (
            f"the request {path} is for {request.classes} classes, but {info.name} has {len(info.classes)}; "
            "ask for one with the right number"
        )
        other_shape = (
            f"the request {path} is for size {request.size} and {request.channels} channels, but {info.name} has "
            f"{f'size {size}' if size else 'mixed sizes'} and {info.channels}; ask for a request that fits, or give "
            f"--size {request.size} if only the size differs"
        )
        refuse(
            {
                other_classes: request.classes != len(info.classes),
                other_shape: (request.size, request.channels) != (size, info.channels),
            }
        )


def mark_requests(provenance: Provenance, requests: Sequence[Request]) -> Provenance:
    """Provenance with every request's id and key fingerprint at the network that it asks for."""
    if not requests:
        return provenance
    return provenance.model_copy(
        update={
            "authorized": tuple(
                network.model_copy(update={"request": request.record})
                for network, request in zip(provenance.authorized, requests, strict=True)
            )
        }
    )


def describe_requests(requests: Sequence[Request]) -> list[JSON]:
    """Id, date, network, recipe and key fingerprint of each request, for people to compare."""
    return [
        {
            "id": request.id,
            "created": request.created,
            "network": request.network,
            "size": request.size,
            "recipe": request.recipe.json_dict(),
            "key_sha256": request.record.key_sha256,
        }
        for request in requests
    ]
