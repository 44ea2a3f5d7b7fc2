"""Federated averaging (McMahan et al., AISTATS 2017) on published parts, under Flower's simulation engine.

Clients and server exchange the network's tensors and a few numbers; a check refuses replies that hold anything else.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uge import extras
from uge.cases.case import Data
from uge.cases.material import key_recipe
from uge.cases.pool import cluster
from uge.data.store import PixelStore, load_pixels
from uge.errors import DataError, UGEError, WeightsError
from uge.federated.parts import Server
from uge.files import JSON, EventLog, fingerprint
from uge.learning.recipes import Recipe
from uge.learning.resume import load_checkpoint, save_checkpoint
from uge.learning.training import evaluate, fit
from uge.networks import ImageClassifier, KeyedClassifier, from_weights, restore, weights_hash
from uge.progress import Display
from uge.runtime import Runtime, stream_seed

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"
SENT_METRICS = frozenset({"num-examples", "server", "loss", "train-accuracy"})
"""All numbers that a client sends beside its weights."""
EXCHANGED = "exchanged.jsonl"


def check_flower() -> None:
    """Load Flower, with its and Ray's reports of usage switched off.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; it warns otherwise.
    for module in ("flwr", "flwr.simulation", "ray"):  # Ray is the engine by which the simulation runs clients.
        extras.load(module, "fl", "federated averaging", library="flwr[simulation]")


def _gpus(servers: int) -> float:
    """GPUs of each client: all that the cluster has, divided, and at most one."""
    import ray

    count = torch.cuda.device_count()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**cluster(0), ignore_reinit_error=True)
        count = int(ray.cluster_resources().get("GPU", 0))
    return min(1.0, count / servers)


def exchanged(network: ImageClassifier) -> dict[str, Tensor]:
    """Part of a network's state that clients and server exchange, on the CPU.

    Floating-point parameters and buffers, without the wave key: that never changes, every client has it from the
    request, and averaging would only round it.
    """
    keyed = isinstance(network, KeyedClassifier)
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not (keyed and name.startswith("key."))
    }


def contents(record: RecordDict) -> JSON:
    """Contents of a message: shape of every array, all numbers and settings, and the bytes of the arrays."""
    return {
        "arrays": {name: list(array.shape) for part in record.array_records.values() for name, array in part.items()},
        "bytes": sum(len(array.data) for part in record.array_records.values() for array in part.values()),
        "metrics": {name: value for part in record.metric_records.values() for name, value in part.items()},
        "config": {name: value for part in record.config_records.values() for name, value in part.items()},
    }


def check_reply(received: RecordDict, reply: RecordDict) -> None:
    """Refuse a reply that holds anything but the network's tensors and the numbers that are meant to be sent.

    Raises:
        DataError: It holds something else or not all of that; the message names it.
    """
    asked = contents(received)
    got = contents(reply)
    wanted = asked["arrays"]
    # Records of other names could hold the same tensors again, with other bytes.
    strange = [
        *sorted(set(reply.array_records) - {ARRAYS}),
        *sorted(set(reply.metric_records) - {METRICS}),
        *(name for name, shape in got["arrays"].items() if wanted.get(name) != shape),
        *sorted(set(got["metrics"]) - SENT_METRICS),
        *sorted(got["config"]),
        *(name for name, value in got["metrics"].items() if not isinstance(value, int | float)),
    ]
    if strange:
        raise DataError(f"a client may send the network's tensors and {sorted(SENT_METRICS)} only, not '{strange[0]}'")
    if missing := sorted(wanted.keys() - got["arrays"].keys()):
        raise DataError(f"a client must send all of the network's tensors, but '{missing[0]}' is missing")
    if got["bytes"] > asked["bytes"] + 64:  # The same tensors may have another header.
        raise DataError(f"a client may send {asked['bytes']} bytes of tensors, as many as it got, not {got['bytes']}")


def put(network: ImageClassifier, arrays: Mapping[str, Any]) -> None:
    """Replace the exchanged part of a network's state.

    Raises:
        WeightsError: The arrays are not those of this network.
    """
    if strange := set(arrays) ^ set(exchanged(network)):
        raise WeightsError(
            f"'{min(strange)}' is in the message or in {network.name}, but not in both; share one key file"
        )
    tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    restore(network, {**network.state_dict(), **tensors})


def array_record(network: ImageClassifier) -> ArrayRecord:
    """Message part with the exchanged state of a network."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(tensor.float().numpy()) for name, tensor in exchanged(network).items()})


def client_app(out: Path, *, data: Data, local_epochs: int, seed: int, device: str, precision: str) -> ClientApp:
    """A Flower client: partition K is server K of the federation in ``out`` and reads nothing outside its folder.

    The client gets weights and a learning rate, trains from θ0's file and its own images by
    :func:`uge.learning.training.fit`, and sends back weights and the numbers of
    :data:`SENT_METRICS`. All messages are noted in ``server-K/exchanged.jsonl``, and a reply
    that holds anything else is not sent.

    Args:
        out: Folder of the federation.
        data: ``protected`` trains on the published part, ``clean`` on the originals (control).
        local_epochs: Epochs in one round.
        seed: Root of data order and augmentation.
        device: Name of a device, or ``auto``.
        precision: As for :meth:`uge.runtime.Runtime.create`.
    """
    from flwr.app import Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    def guard(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        server = Server.at(out, int(context.node_config["partition-id"]))
        events = EventLog(server.folder / EXCHANGED)
        events.write("received", **contents(message.content))
        reply = call_next(message, context)
        check_reply(message.content, reply.content)
        events.write("sent", **contents(reply.content))
        return reply

    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        server = Server.at(out, int(context.node_config["partition-id"]))
        config: Mapping[str, Any] = message.content.config_records[CONFIG]
        runtime = Runtime.create(device, precision)
        network = from_weights(server.key, plugins=True)  # The key was written here, for a network named by the user.
        put(network, message.content.array_records[ARRAYS])
        images = server.images() if data == "protected" else server.originals()
        store = load_pixels(images, size=network.size, channels=network.channels, device=runtime.device)
        # The server's schedule runs over rounds: within one, the rate is constant.
        changes = {"epochs": local_epochs, "schedule": "constant", "lr": float(config["lr"])}
        last = fit(
            network,
            store,
            key_recipe(server.key).model_copy(update=changes),
            seed=stream_seed(seed, "fedavg", server.number, int(config["server-round"])),
            runtime=runtime,
        ).epochs[-1]
        numbers: dict[str, Any] = {"num-examples": len(store), "server": server.number}
        numbers |= {"loss": last.loss, "train-accuracy": last.train_accuracy}
        return Message(RecordDict({ARRAYS: array_record(network), METRICS: MetricRecord(numbers)}), reply_to=message)

    app.train(mods=[guard])(train)
    return app


def federated_averaging(
    out: Path,
    theta0: ImageClassifier,
    tests: Sequence[PixelStore],
    *,
    data: Data = "protected",
    recipe: Recipe,
    rounds: int,
    servers: int,
    local_epochs: int = 1,
    seed: int,
    runtime: Runtime,
    progress: Display,
) -> JSON:
    """Average the clients' weights for some rounds; measure the global network after each.

    Replies are averaged in the order of the servers, weighted by their images, so that equal settings give equal
    bytes. Every round is kept in ``out/fedavg``, from where an interrupted run goes on.

    Args:
        out: Folder of the federation.
        theta0: The global network with its initial parameters.
        tests: Clean test images: all of them, then those of each server's classes.
        data: Training images of the clients; ``clean`` is the control.
        recipe: Its schedule runs over the rounds.
        rounds: Rounds of averaging.
        servers: Clients, all of which take part in every round.
        local_epochs: Epochs of a client in one round.
        seed: Root seed.
        runtime: Device and precision of the clients.
        progress: Shows rounds.

    Returns:
        ``engine``, and ``rounds``: per round ``round`` (from 1), ``test_accuracy`` (all classes), ``parts`` (each
        server's classes), ``lr``, ``loss`` and ``train_accuracy`` (means over images on the clients' sides).

    Raises:
        MissingExtraError: Flower is not installed.
        UGEError: A client failed; the message is its own.
    """
    check_flower()
    import flwr
    import ray
    from flwr.app import ConfigRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    checkpoint = out / "fedavg" / f"{data}.safetensors"
    wanted = fingerprint(
        {
            "theta0": weights_hash(theta0),
            "recipe": recipe.json_dict(),
            "rounds": rounds,
            "servers": servers,
            "local_epochs": local_epochs,
            "seed": seed,
            "precision": runtime.precision,
            "tests": [test.digest() for test in tests],
        }
    )
    network, done = _go_on(checkpoint, theta0, wanted)
    engine = {"flwr": flwr.__version__, "ray": ray.__version__, "backend": "ray"}
    if len(done) == rounds:
        return {"engine": engine, "rounds": done}
    app = ServerApp()
    stopped = threading.Event()

    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0, min_train_nodes=servers, min_available_nodes=servers, min_evaluate_nodes=0
        )
        arrays = array_record(network)
        with progress.stage(f"federated averaging, {data} parts") as on_progress:
            for number in range(len(done) + 1, rounds + 1):
                lr = recipe.rate((number - 0.5) / rounds)
                messages = strategy.configure_train(number, arrays, ConfigRecord({"lr": lr}), grid)
                replies = _ask(grid, messages, stopped)
                averaged, metrics = strategy.aggregate_train(number, replies)
                assert averaged is not None, "every client replied with weights"
                assert metrics is not None
                arrays = averaged
                put(network, arrays)
                accuracies = [evaluate(network, test, runtime) for test in tests]
                done.append(
                    {
                        "round": number,
                        "test_accuracy": accuracies[0],
                        "parts": accuracies[1:],
                        "lr": lr,
                        "loss": metrics["loss"],
                        "train_accuracy": metrics["train-accuracy"],
                    }
                )
                save_checkpoint(checkpoint, {"network": network}, None, {"fingerprint": wanted, "rounds": done})
                on_progress(number, rounds, {"test": accuracies[0]})

    app.main()(main)
    backend = {
        "init_args": cluster(max(1, os.cpu_count() or 1)),
        "client_resources": {"num_cpus": 1, "num_gpus": _gpus(servers) if runtime.device.type == "cuda" else 0.0},
    }
    client = client_app(
        out.resolve(),
        data=data,
        local_epochs=local_epochs,
        seed=seed,
        device=str(runtime.device),
        precision=runtime.precision,
    )
    for name in ("flwr", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Errors are raised, in one sentence.
    try:
        run_simulation(app, client, servers, backend_config=backend)
    except RuntimeError as error:
        raise UGEError(f"Flower's simulation failed: {error.__cause__ or error}; go on with --resume") from error
    finally:
        stopped.set()  # The server's thread would wait for replies after an interruption.
    if len(done) < rounds:
        raise UGEError(f"Flower's simulation ended after {len(done)} of {rounds} rounds; go on with --resume")
    return {"engine": engine, "rounds": done}


def _go_on(checkpoint: Path, theta0: ImageClassifier, wanted: str) -> tuple[ImageClassifier, list[JSON]]:
    """Network and rounds of an interrupted run of the same settings; θ0 and no rounds where there is none."""
    network = copy.deepcopy(theta0)
    with contextlib.suppress(WeightsError):
        meta = load_checkpoint(checkpoint, {"network": network})
        if meta.get("fingerprint") == wanted:
            return network, list(meta["rounds"])
    return copy.deepcopy(theta0), []


def _ask(grid: Grid, messages: Iterable[Message], stopped: threading.Event) -> list[Message]:
    """Send messages and wait for all replies; they come in the order of the servers.

    Flower would average the replies that came; here a client that fails ends the run.

    Raises:
        UGEError: A client failed, or the simulation was stopped.
    """
    waiting = set(grid.push_messages(messages))
    replies = list[Any]()
    while waiting:
        if stopped.is_set():
            raise UGEError("the simulation was stopped; go on with --resume")
        arrived = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        replies += arrived
        if waiting:
            stopped.wait(0.05)
    for reply in replies:
        if reply.has_error():
            said = (reply.error.reason.strip().splitlines() or ["no reason given"])[-1].strip()
            said = said.removeprefix("Exception ClientAppException occurred. Message: ")
            raise UGEError(f"a client of federated averaging failed: {said}")
    return sorted(replies, key=lambda reply: int(reply.content.metric_records[METRICS]["server"]))
