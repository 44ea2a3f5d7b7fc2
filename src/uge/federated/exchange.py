"""Exchange between clients and server of federated averaging, and a check that it holds nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uge.errors import DataError, WeightsError
from uge.files import JSON
from uge.networks import ImageClassifier, KeyedClassifier, restore

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"
_MARGIN = 64
"""Bytes that a reply's tensors may take more than those received, for another header of the same tensors."""
SENT_METRICS = frozenset({"num-examples", "server", "loss", "train-accuracy"})
"""All numbers that a client sends beside its weights."""


def exchanged(network: ImageClassifier) -> dict[str, Tensor]:
    """Part of a network's state that clients and server exchange, on the CPU.

    Floating-point parameters and buffers, without the wave key: that never changes, every client has it from the
    request, and averaging would only round it.
    """
    hidden = "key." if isinstance(network, KeyedClassifier) else None
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not (hidden and name.startswith(hidden))
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
    strange = sorted(set(reply.array_records) - {ARRAYS}) + sorted(set(reply.metric_records) - {METRICS})
    strange += [name for name, shape in got["arrays"].items() if wanted.get(name) != shape]
    strange += sorted(set(got["metrics"]) - SENT_METRICS) + sorted(got["config"])
    strange += [name for name, value in got["metrics"].items() if not isinstance(value, int | float)]
    if strange:
        raise DataError(f"a client may send the network's tensors and {sorted(SENT_METRICS)} only, not '{strange[0]}'")
    if missing := sorted(wanted.keys() - got["arrays"].keys()):
        raise DataError(f"a client must send all of the network's tensors, but '{missing[0]}' is missing")
    if got["bytes"] > asked["bytes"] + _MARGIN:
        raise DataError(f"a client may send {asked['bytes']} bytes of tensors, as many as it got, not {got['bytes']}")


def put(network: ImageClassifier, arrays: Mapping[str, Any]) -> None:
    """Replace the exchanged part of a network's state.

    Raises:
        WeightsError: The arrays are not those of this network.
    """
    strange = set(arrays) ^ set(exchanged(network))
    if strange:
        raise WeightsError(
            f"'{min(strange)}' is in the message or in {network.name}, but not in both; share one key file"
        )
    tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    restore(network, {**network.state_dict(), **tensors})


def array_record(network: ImageClassifier) -> ArrayRecord:
    """Message part with the exchanged state of a network."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(tensor.float().numpy()) for name, tensor in exchanged(network).items()})
