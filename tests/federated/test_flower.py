"""Federated averaging: what is exchanged, what is averaged, and that a killed run goes on to the same weights."""

import copy as copying
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fed_toy import CONFIG, RUNTIME, TWO, Wire, federate, in_process

from uge.data.store import PixelStore, load_pixels
from uge.errors import DataError, MissingExtraError, UGEError, WeightsError
from uge.federated import flower
from uge.federated.flower import (
    EXCHANGED,
    SENT_METRICS,
    array_record,
    check_flower,
    check_reply,
    contents,
    exchanged,
    federated_averaging,
    put,
)
from uge.federated.parts import Server
from uge.files import read_events, read_json
from uge.learning.training import History
from uge.networks import ImageClassifier, build, from_weights, load_weights, weights_hash
from uge.progress import Silent

THREE = TWO.model_copy(update={"rounds": 3})


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Flower without Ray, and everything that goes over the wire."""
    pytest.importorskip("flwr", reason="needs the extra fl")
    check_flower()
    with in_process(monkeypatch) as record:
        yield record


def average(out: Path, rounds: int = 2, **changes: Any) -> dict[str, Any]:
    theta0 = from_weights(out / "request" / "authorized-0.key.safetensors")
    test = load_pixels(Server.at(out, 0).originals())
    wanted = {"recipe": CONFIG.recipe, "rounds": rounds, "servers": 2, "seed": 5, "runtime": RUNTIME, **changes}
    return federated_averaging(out, theta0, [test], progress=Silent(), **wanted)


def as_bytes(content: Any) -> bytes:
    """Everything in a message: names, numbers, texts and the bytes of the arrays."""
    parts = [json.dumps(contents(content)).encode()]
    parts += [array.data for record in content.array_records.values() for array in record.values()]
    return b"\0".join(parts)


def pixels(store: PixelStore) -> torch.Tensor:
    return store.pixels.read(torch.arange(len(store)))


def test_only_tensors_of_the_network_leave_a_client(wire: Wire, copy: Path) -> None:
    average(copy)
    theta0 = from_weights(copy / "request" / "authorized-0.key.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in exchanged(theta0).items()}
    assert shapes
    assert not any(name.startswith("key.") for name in shapes)
    assert [client for client, _ in wire.sent] in ([0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0])
    for client, content in wire.sent:
        told = contents(content)
        assert told["arrays"] == shapes
        assert told["bytes"] < 4 * sum(np.prod(shape) for shape in shapes.values()) + 200 * len(shapes)
        assert set(told["metrics"]) == SENT_METRICS
        assert told["config"] == {}
        assert told["metrics"]["server"] == client
        assert told["metrics"]["num-examples"] == len(Server.at(copy, client).images())
    for _, content in wire.received:
        assert contents(content)["arrays"] == shapes
        assert set(contents(content)["config"]) == {"lr", "server-round"}


def test_no_pixel_no_key_and_no_path_is_in_a_message(wire: Wire, copy: Path) -> None:
    average(copy)
    messages = [as_bytes(content) for _, content in (*wire.sent, *wire.received)]
    secrets = [str(copy).encode(), b".private", b".safetensors", b"originals", b".parquet"]
    key = load_weights(copy / "request" / "authorized-0.key.safetensors")[0]
    secrets += [key[name].numpy().tobytes() for name in ("key.waves", "key.phases")]
    for number in (0, 1):
        server = Server.at(copy, number)
        secrets += [id.encode() for id in server.images().ids]
        for images in (server.originals(), server.images()):
            for image in pixels(load_pixels(images)):
                # As stored and as a network sees it; in both layouts; a row is enough to know an image by.
                for form in (image, image.float() / 255):
                    secrets += [form[0, 3].numpy().tobytes(), form.permute(1, 2, 0)[3].contiguous().numpy().tobytes()]
    for secret in secrets:
        assert len(secret) >= 4
        assert not any(secret in message for message in messages)


def test_the_search_would_find_a_pixel(wire: Wire, copy: Path) -> None:
    from flwr.app import Array, ArrayRecord, RecordDict

    image = pixels(load_pixels(Server.at(copy, 0).originals()))[0]
    leak = RecordDict({"arrays": ArrayRecord({"w": Array(image.numpy())})})
    assert image[0, 3].numpy().tobytes() in as_bytes(leak)


def test_the_exchange_is_on_record_beside_each_client(wire: Wire, copy: Path) -> None:
    average(copy)
    for number in (0, 1):
        events = read_events(copy / f"server-{number}" / EXCHANGED)
        assert [event["event"] for event in events] == ["received", "sent"] * 2
        sent = [contents(content) for client, content in wire.sent if client == number]
        assert [{name: event[name] for name in sent[0]} for event in events[1::2]] == json.loads(json.dumps(sent))


def test_a_client_reads_nothing_outside_its_folder(wire: Wire, toy: Path, copy: Path) -> None:
    from flwr.app import ConfigRecord, Context, Message, RecordDict

    network = from_weights(copy / "request" / "authorized-0.key.safetensors")
    for other in ("server-1", "request", "audit"):
        shutil.rmtree(copy / other)
    (copy / "server-0" / "originals.part.json").unlink()
    arrays = array_record(network)
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"lr": 0.05, "server-round": 1})})
    app = flower.client_app(copy, data="protected", local_epochs=1, seed=1, device="cpu", precision="fp32")
    context = Context(run_id=1, node_id=7, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    reply = app(Message(content, dst_node_id=7, message_type="train"), context)
    assert contents(reply.content)["metrics"]["num-examples"] == 17


@pytest.mark.parametrize(
    ("arrays", "metrics", "config", "named"),
    [
        ({"images": np.zeros((2, 3, 16, 16), np.uint8)}, {}, {}, "images"),
        ({"w": np.zeros((3, 3), np.float32)}, {}, {}, "w"),
        ({}, {"pixel-mean": 0.5}, {}, "pixel-mean"),
        ({}, {"loss": [0.1, 0.2]}, {}, "loss"),
        ({}, {}, {"folder": "out/server-0.private"}, "folder"),
    ],
)
def test_a_reply_with_anything_else_is_not_sent(
    arrays: dict[str, Any], metrics: dict[str, Any], config: dict[str, Any], named: str
) -> None:
    pytest.importorskip("flwr", reason="needs the extra fl")
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    def record(arrays: dict[str, Any], metrics: dict[str, Any], config: dict[str, Any]) -> Any:
        return RecordDict(
            {
                "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
                "metrics": MetricRecord(metrics),
                "config": ConfigRecord(config),
            }
        )

    asked = record({"w": np.zeros((2, 3), np.float32)}, {}, {"lr": 0.1})
    check_reply(asked, record({"w": np.ones((2, 3), np.float32)}, {"loss": 1.0, "num-examples": 4}, {}))
    with pytest.raises(DataError, match=f"not '{named}'"):
        check_reply(asked, record(arrays, metrics, config))


def test_a_reply_holds_each_tensor_once_and_no_more_bytes_than_came() -> None:
    pytest.importorskip("flwr", reason="needs the extra fl")
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    def weights(dtype: Any = np.float32, **sizes: int) -> ArrayRecord:
        return ArrayRecord({name: Array(np.zeros(size, dtype)) for name, size in sizes.items()})

    asked = RecordDict({"arrays": weights(v=9, w=900)})
    refused = [
        ({"arrays": weights(v=9, w=900), "more": weights(w=900)}, "not 'more'"),
        ({"arrays": weights(v=9, w=900), "more": MetricRecord({"loss": 1.0})}, "not 'more'"),
        ({"arrays": weights(w=900)}, "'v' is missing"),
        ({"arrays": weights(np.float64, v=9, w=900)}, "as many as it got, not"),
    ]
    for records, words in refused:
        with pytest.raises(DataError, match=words):
            check_reply(asked, RecordDict(records))
    check_reply(asked, RecordDict({"arrays": weights(v=9, w=900), "metrics": MetricRecord({"loss": 1.0})}))


def test_weights_are_averaged_by_images(wire: Wire, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(network: ImageClassifier, store: PixelStore, *args: Any, **options: Any) -> History:
        for tensor in exchanged(network).values():
            tensor += len(store)
        return History.from_json({"epochs": [EPOCH], "seconds": 0.0})

    monkeypatch.setattr(flower, "fit", shifted)
    average(copy, rounds=1)
    before = exchanged(from_weights(copy / "request" / "authorized-0.key.safetensors"))
    after = averaged(copy)
    for name, tensor in exchanged(after).items():
        torch.testing.assert_close(tensor, before[name] + (17 * 17 + 21 * 21) / (17 + 21))


EPOCH = {"epoch": 1, "loss": 1.0, "train_accuracy": 50.0, "test_accuracy": None}


def averaged(out: Path) -> ImageClassifier:
    from uge.learning.resume import load_checkpoint

    network = copying.deepcopy(from_weights(out / "request" / "authorized-0.key.safetensors"))
    load_checkpoint(out / "fedavg" / "protected.safetensors", {"network": network})
    return network


def test_the_key_stays_as_it_was(wire: Wire, copy: Path) -> None:
    average(copy)
    before, after = (net.state_dict() for net in (from_weights(Server.at(copy, 0).key), averaged(copy)))
    kept = [name for name in before if name.startswith("key.")]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert not torch.equal(before["base.head.weight"], after["base.head.weight"])


def test_a_killed_run_goes_on_to_the_same_weights(
    wire: Wire, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    whole = average(copy, rounds=3)
    real, calls = flower.evaluate, list[int]()

    def killed(*args: Any, **options: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise UGEError("killed")
        return real(*args, **options)

    monkeypatch.setattr(flower, "evaluate", killed)
    with pytest.raises(UGEError, match="killed"):
        average(other, rounds=3)
    assert average(other, rounds=3) == whole
    assert len(calls) == 1 + 1 + 2
    assert weights_hash(averaged(other)) == weights_hash(averaged(copy))
    assert average(other, rounds=3) == whole
    assert len(calls) == 4
    assert [one["round"] for one in whole["rounds"]] == [1, 2, 3]


def test_a_client_that_fails_ends_the_run_with_its_sentence(wire: Wire, copy: Path) -> None:
    shutil.rmtree(copy / "server-1" / "published.private")
    with pytest.raises(UGEError, match=r"a client of federated averaging failed: .*expected a safetensors file"):
        average(copy)
    assert not (copy / "fedavg").exists()


def test_arrays_of_another_network_are_refused() -> None:
    pytest.importorskip("flwr", reason="needs the extra fl")
    lenet, other = build("lenet", 4, seed=0, size=16), build("resnet8", 4, seed=0, size=16)
    arrays = array_record(other)
    with pytest.raises(WeightsError, match="share one key file"):
        put(lenet, arrays)


def test_the_verb_averages_after_the_table(wire: Wire, toy: Path, copy: Path) -> None:
    found = federate(toy, copy, THREE.model_copy(update={"control": True}), resume=True)
    assert set(found["fedavg"]) == {"protected", "clean"}
    for run in found["fedavg"].values():
        assert [one["round"] for one in run["rounds"]] == [1, 2, 3]
        assert all(len(one["parts"]) == 2 for one in run["rounds"])
        assert [one["lr"] for one in run["rounds"]] == [CONFIG.recipe.rate((k + 0.5) / 3) for k in range(3)]
    assert read_json(copy / "federated.json") == json.loads(json.dumps(found))


def test_without_the_extra_one_sentence_says_what_to_install(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'uge\[fl\]'"):
        federate(toy, tmp_path / "fed", THREE)
    assert not (tmp_path / "fed").exists()


@pytest.mark.heavy
def test_clients_in_processes_of_their_own_give_the_same(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra fl")
    other = tmp_path / "other"
    shutil.copytree(copy, other)
    with pytest.MonkeyPatch.context() as patch, in_process(patch):
        here = average(copy)
    assert average(other) == here
