"""Federation of several servers with one global network (Eq. 14, 15, Table 9): ``uge federated``."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from uge.auditing.summarize import summarize
from uge.cases.case import Data
from uge.cases.material import CopyMaterial
from uge.config import ProtectConfig, PublishConfig
from uge.data import load_images
from uge.data.formats.sealed import OPENER
from uge.data.images import ImageSet
from uge.errors import DataError, UsageError
from uge.federated.columns import columns, run_columns, tabulate, union_material
from uge.federated.flower import check_flower, federated_averaging
from uge.federated.parts import Server, split_rows, write_part
from uge.federated.settings import Federation
from uge.files import JSON, fingerprint, recover, storage_errors, write_atomic, write_json, writes
from uge.learning.recipes import Recipe
from uge.methods import METHODS, ImagesInfo
from uge.methods.authorized import Keyed, network_names, split_names
from uge.methods.base import DEFAULT_METHOD
from uge.networks import ImageClassifier, check_name, weights_hash
from uge.pipeline.audit import PAGE, judge
from uge.pipeline.images import check_original
from uge.pipeline.originals import clean_images
from uge.pipeline.private_folder import FEDERATION, FederationFolder, key_path, with_seed, write_keys
from uge.pipeline.seal import check_sealing
from uge.publishing import create_private, private_folder, read_manifest
from uge.publishing.private import DONE, close_contents
from uge.requests.configure import check_fits, describe_requests, show_requests, split_requests, with_requests
from uge.requests.request import Request, theta0_file
from uge.runtime import stream_seed
from uge.session import Session

REQUEST = "request"
RECEIVED = "received"
SETTINGS = "settings.yaml"


@writes("out")
def run_federated(
    source: str,
    out: Path,
    *,
    test: str,
    config: ProtectConfig,
    federation: Federation,
    publishing: PublishConfig | None = None,
    limit_test: int | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    session: Session,
) -> JSON:
    """Divide images among servers, let each protect its own for one global network, and measure Table 9.

    The coordinator makes θ0 from its seed and its clean test images, or takes it from
    ``config.authorized_weights`` or a receiver's request. A server gets θ0 and the settings, and reads no image but
    its own.

    Args:
        source: Training images; only the first ``config.limit``, if that is set.
        out: Folder of the federation: ``request/``, ``server-K/``, ``audit/``, ``fedavg/``, ``federated.json``.
        test: Clean test images of all classes.
        config: Protection by every server, for one authorised network; its recipe is that of all networks.
        federation: Servers, split, hackers, repetitions, rounds of federated averaging.
        publishing: Layout, codec and recipients of the published parts; the default ones where not given. Each server
            seals its own originals, for itself and for ``publishing.to``, such as the key of the global server.
        limit_test: Number of test images, the first ones.
        recipes: Recipes of hackers by network, where other than the recipe of all.
        session: Device, progress; resumes, overwrites, or only says what would be done.

    Returns:
        JSON values, also in ``federated.json``: ``requests``, ``servers``, ``columns`` (see
        :func:`uge.federated.columns.tabulate`), ``fedavg`` (None without rounds), ``gap``, ``verdict``, ``report``.

    Raises:
        UsageError: A setting is wrong, a request is refused, or a run to resume has other settings.
        DataError: The images cannot be divided so, or the test images have other classes.
        OutputExistsError: ``out`` holds something that may not be replaced.
    """
    publishing = publishing or PublishConfig()
    hackers = split_names(federation.networks)
    for name in hackers:
        check_name(name)
    if config.method == DEFAULT_METHOD and not config.requests:  # It protects for no network.
        config = config.model_copy(update={"method": Keyed.name})
    given = config
    config, originals = split_requests(config)
    if originals:
        raise UsageError("a federation makes copies for networks, got a request for originals; give --to its key")
    config, requests = with_requests(config)
    method = METHODS[config.method]
    if len(network_names(config)) != 1 or not method.authorizes:
        fitting = ", ".join(name for name, row in METHODS.items() if row.authorizes)
        raise UsageError(
            f"a federation protects for one global network, got --authorized {config.authorized} and --method "
            f"{config.method}; name one network and a method that protects for it ({fitting})"
        )
    check_sealing(publishing)
    if federation.rounds:
        check_flower()
    check_original(source, again=publishing.again)
    images = load_images(source, split="train", limit=config.limit).check_trainable()
    check_fits(config, requests, ImagesInfo.of(images))
    show_requests(requests, session.progress, pinned=bool(config.expect_signer))
    tests = clean_images(test, images, limit_test)
    seed = stream_seed(config.seed, "federated")
    parts = split_rows(images.labels, federation.servers, federation.split, alpha=federation.alpha, seed=seed)
    if session.dry_run:
        return {
            "images": len(images),
            "requests": describe_requests(requests),
            "servers": [held(images.subset(rows)) for rows in parts],
        }
    folder = FederationFolder(out, images.root, session)
    seeded = with_seed(config, folder.folder / FEDERATION, resume=session.resume)
    (theta0,) = method.networks(ImagesInfo.of(tests), seeded)
    protection = config.model_dump(mode="json", exclude={"authorized_weights", "requests"})
    # Of everything that determines the published parts; training runs have fingerprints of their own.
    digest = fingerprint(
        {
            "ids": list(images.ids),
            "labels": images.labels.tolist(),
            "classes": images.classes,
            "config": protection,
            "theta0": weights_hash(theta0),
            "publishing": publishing.model_dump(mode="json"),
            "split": federation.model_dump(mode="json", include={"servers", "split", "alpha"}),
            **({"requests": describe_requests(requests)} if requests else {}),
        }
    )
    with folder.opened(digest, seeded.authorized_seed) as place:
        _request(place, theta0, given, requests, publishing)
        servers = [Server.at(place, number) for number in range(federation.servers)]
        for server, rows in zip(servers, parts, strict=True):
            write_part(server, source, images, rows.tolist(), limit=config.limit)
            with session.progress.stage(f"server {server.number} protects {len(rows)} images"):
                _protect(place, server, session)
        material = union_material(
            place / "audit",
            [server.images() for server in servers],
            [server.originals() for server in servers],
            tests,
            keys=[key_path(place / REQUEST, 0)],
            recipe=config.recipe,
            recipes=recipes or {},
            seed=seed,
            runtime=session.runtime,
        )
        runs = columns(theta0.name, hackers, federation.servers, federation.seeds)
        results = run_columns(runs, material, [len(rows) for rows in parts], session.progress)
        whole = [case for run, case in results if run.server is None]
        summary = summarize(whole, classes=len(images.classes))
        result: JSON = {
            "network": theta0.name,
            "weights_sha256": weights_hash(theta0),
            "requests": describe_requests(requests),
            "classes": list(images.classes),
            "servers": [_server(server) for server in servers],
            "columns": tabulate(results),
            "fedavg": _averaging(place, material, federation, session) if federation.rounds else None,
            **judge(place / "audit", whole, summary, report=PAGE).model_dump(include={"gap", "gap_best", "verdict"}),
            # Relative, since the folder may be moved to its place yet.
            "report": f"audit/{PAGE}",
            "settings": {"protect": protection, "federation": federation.model_dump(mode="json")},
            "environment": session.runtime.environment(),
        }
        write_json(place / "federated.json", result)
    return result


def _request(
    place: Path, theta0: ImageClassifier, given: ProtectConfig, requests: Sequence[Request], publishing: PublishConfig
) -> None:
    """Write the folder that every server is given: θ0 and settings, or the receiver's request, to be checked there.

    Args:
        place: Folder of the federation.
        theta0: The global network.
        given: Settings before a request changed them; a request names network and recipe itself.
        requests: Requests that ``given`` names.
        publishing: Layout and codec of the published parts.
    """
    folder = create_private(place / REQUEST)
    write_keys(folder, [theta0], requests[0].recipe if requests else given.recipe)
    # Paths are relative: published bytes must not depend on where the federation lies.
    keys = () if requests else (key_path(Path(REQUEST), 0),)
    changes: JSON = {"authorized_weights": keys, "requests": (), "limit": None, "size": theta0.size}
    settings = given.model_copy(update=changes).model_dump(mode="json", exclude_defaults=True)
    for path, request in zip(given.requests, requests, strict=True):
        received = create_private(folder / RECEIVED)
        with storage_errors(received):
            for file in (path, theta0_file(path, request)):
                shutil.copy(file, received)
        settings["for"] = [f"{REQUEST}/{RECEIVED}/{path.name}"]
        settings["expect-signer"] = [request.record.key_sha256]
    recipients = check_sealing(publishing)
    for name, recipient in recipients.items():
        write_atomic(create_private(folder / RECEIVED) / f"{name}.pub", f"{recipient.text}\n")
    sealing = {"to": [f"{REQUEST}/{RECEIVED}/{name}.pub" for name in recipients]} if recipients else {}
    write_json(folder / SETTINGS, {**settings, **publishing.model_dump(exclude_defaults=True), **sealing})
    close_contents(folder)


def _protect(place: Path, server: Server, session: Session) -> None:
    """Run ``uge protect`` for one server, in a process that knows of no other server, unless it is done.

    Raises:
        DataError: Its images cannot be used.
        UsageError: It failed otherwise; the message is the server's.
    """
    recover(server.published)
    finished = (private_folder(server.published) / DONE, server.published / "manifest.json")
    if all(path.is_file() for path in finished):
        return
    part, published = (str(path.relative_to(place)) for path in (server.part, server.published))
    command = [sys.executable, "-m", "uge", "protect", part, published, "--config", f"{REQUEST}/{SETTINGS}", "--resume"]
    command += ["--device", str(session.runtime.device), "--precision", session.runtime.precision, "--quiet"]
    opener = OPENER.get()
    command += ["--source-key", str(opener.key.resolve())] if opener else []
    done = subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        kind = DataError if done.returncode == 1 else UsageError
        raise kind(f"server {server.number}: {said[-1].removeprefix('uge: ') if said else 'its process was ended'}")


def _averaging(place: Path, material: CopyMaterial, federation: Federation, session: Session) -> JSON:
    kinds: tuple[Data, ...] = ("protected", "clean") if federation.control else ("protected",)
    return {
        kind: federated_averaging(
            place,
            material.theta0[0],
            [material.test, *(part for part in material.part_tests if part is not None)],
            data=kind,
            recipe=material.recipe,
            rounds=federation.rounds,
            servers=federation.servers,
            local_epochs=federation.local_epochs,
            seed=material.seed,
            runtime=session.runtime,
            progress=session.progress,
        )
        for kind in kinds
    }


def _server(server: Server) -> JSON:
    return {
        "server": server.number,
        "published": str(server.published.relative_to(server.folder.parent)),
        **held(server.images()),
        "measured": read_manifest(server.published).measured.model_dump(mode="json"),
    }


def held(images: ImageSet) -> JSON:
    """Number of images of a server, in all and by class."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    return {"images": len(images), "class_counts": counts.tolist()}
