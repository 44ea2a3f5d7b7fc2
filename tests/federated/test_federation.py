"""A federation from images to Table 9: labels stay global, nothing clean is published, a killed run goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fed_toy import CLASSES, CONFIG, RUNTIME, TWO, federate, in_this_process, make_folder

from uge.attacks import base
from uge.cases.case import read_cases
from uge.config import ProtectConfig
from uge.data import load_images
from uge.data.pixels import public_id
from uge.errors import DataError, OutputExistsError, UsageError
from uge.federated.parts import Server
from uge.files import file_sha256, read_json
from uge.networks import from_weights, weights_hash
from uge.pipeline import federated
from uge.pipeline.federated import run_federated
from uge.progress import Silent
from uge.publishing import private_folder, read_manifest
from uge.publishing.private import OWNER_KEY
from uge.publishing.verify import run_verify
from uge.report import write_report
from uge.requests.configure import describe_requests
from uge.requests.request import read_request, write_request
from uge.sealing import make_identity, open_folder, read_identity
from uge.session import Session

COLUMNS = [
    "joint",
    "separate-0",
    "server-0",
    "separate-1",
    "server-1",
    "global",
    "lenet-n",
    "lenet-h",
    "lenet-d",
]


def servers(out: Path) -> list[Server]:
    return [Server.at(out, number) for number in (0, 1)]


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("environment", "settings")}


def published_bytes(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): file_sha256(path) for path in sorted(out.glob("server-*/published/data/*.parquet"))
    }


def test_labels_keep_the_global_class_list(toy: Path, finished: Path) -> None:
    source = load_images(toy)
    label = dict(zip(map(public_id, source.ids), source.labels, strict=True))
    seen = list[str]()
    for server, own in zip(servers(finished), ({0, 1}, {2, 3}), strict=True):
        images = server.images()
        assert images.classes == CLASSES
        assert set(images.labels) == own
        assert all(label[id] == number for id, number in zip(images.ids, images.labels, strict=True))
        seen += images.ids
    assert sorted(seen) == sorted(label)


def test_every_published_image_differs_from_its_original_and_is_what_the_manifest_says(finished: Path) -> None:
    for server in servers(finished):
        clean, protected = server.originals(), server.images()
        assert list(map(public_id, clean.ids)) == list(protected.ids)
        for number in range(len(clean)):
            change = np.abs(clean.read(number).astype(int) - protected.read(number).astype(int))
            assert 0 < change.max() <= 10
        assert run_verify(server.published, [str(server.part)], Silent())["problems"] == []


def test_all_servers_protect_for_the_same_network_and_know_nothing_of_each_other(finished: Path) -> None:
    request = sorted(path.name for path in (finished / "request").iterdir())
    assert {"authorized-0.key.safetensors", "settings.yaml"} <= set(request)
    wanted = weights_hash(from_weights(finished / "request" / "authorized-0.key.safetensors"))
    for server, other in zip(servers(finished), servers(finished)[::-1], strict=True):
        assert weights_hash(from_weights(server.key)) == wanted
        texts = b"".join(path.read_bytes() for path in server.folder.rglob("*") if path.is_file())
        assert f"server-{other.number}".encode() not in texts
        mine = set(server.images().ids)
        assert not any(id.encode() in texts for id in other.images().ids if id not in mine)
    settings = (finished / "request" / "settings.yaml").read_text()
    assert str(finished) not in settings


def test_columns_are_those_of_table_9(finished: Path) -> None:
    found = read_json(finished / "federated.json")
    assert list(found["columns"]) == COLUMNS
    weights = np.array([sum(4 + k for k in block) / sum(4 + k for k in range(4)) for block in ((0, 1), (2, 3))])
    for name, row in found["columns"].items():
        kind, _, number = name.rpartition("-")
        alone = kind in ("separate", "server")
        assert [value is None for value in row["parts"]] == [alone and str(k) != number for k in (0, 1)]
        whole = [value for value in row["parts"] if value is not None]
        expected = whole[0] if alone else float(np.dot(weights, whole))
        assert row["average"] == pytest.approx(expected, abs=0.01)
        assert row["best"] >= row["average"]
    assert [server["images"] for server in found["servers"]] == [17, 21]
    assert found["servers"][1]["class_counts"] == [0, 0, 10, 11]
    assert json.loads(json.dumps(found)) == found


def test_what_a_server_trains_alone_is_kept_apart_and_has_all_classes(finished: Path) -> None:
    cases = read_cases(finished / "audit" / "server-0")
    assert {case.role for case in cases} == {"clean", "authorized"}
    assert all(case.recipe["classes"] == 4 for case in cases)


def test_the_report_reads_the_audit(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished / "audit", tmp_path / "page.html").read_text()
    assert "lenet" in page
    assert len(read_cases(finished / "audit")) == 5


def test_a_finished_federation_is_not_done_again(toy: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_json(copy / "federated.json")

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was done again")

    monkeypatch.setattr(base, "fit", never)
    monkeypatch.setattr(federated.subprocess, "run", never)
    assert without_times(federate(toy, copy, resume=True)) == without_times(before)


def test_hackers_may_train_by_a_recipe_of_their_own(toy: Path, copy: Path) -> None:
    before = {case.id: case.fingerprint for case in read_cases(copy / "audit")}
    own = CONFIG.recipe.model_copy(update={"lr": 0.01})
    run_federated(
        *(str(toy), copy),
        test=str(toy),
        config=CONFIG,
        federation=TWO,
        recipes={"lenet": own},
        session=Session(RUNTIME, resume=True),
    )
    after = read_cases(copy / "audit")
    assert {case.recipe["lr"] for case in after if case.network == "lenet"} == {0.01}
    others = [case for case in after if case.network != "lenet"]
    assert len(others) == 2
    assert all(before[case.id] == case.fingerprint for case in others), "those were not done again"


def test_every_server_seals_its_part_to_the_global_server(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    make_identity(tmp_path / "global.agekey")
    identity = read_identity(tmp_path / "global.agekey")
    (tmp_path / "global.pub").write_text(identity.recipient.text)  # type: ignore[union-attr]
    federate(toy, tmp_path / "fed", to=(str(tmp_path / "global.pub"),))
    opened = [open_folder(server.published, identity) for server in servers(tmp_path / "fed")]
    assert [list(sealed.record.recipients) for sealed in opened] == [["owner", "global"]] * 2
    ids = [id for sealed in opened for id in sealed.ids()]
    assert sorted(ids) == sorted(map(public_id, load_images(toy).ids))
    assert opened[0].key.secret != opened[1].key.secret
    own = read_identity(private_folder(servers(tmp_path / "fed")[0].published) / OWNER_KEY)
    with pytest.raises(UsageError, match="opens none of the recipients' files"):
        open_folder(servers(tmp_path / "fed")[1].published, own)


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    """A receiver's request for the toy set."""
    write_request(
        *(tmp_path / "bob.json", "lenet", 4),
        size=16,
        channels=3,
        method="keyed",
        recipe=CONFIG.recipe,
        seed=None,
        weights=None,
        identity=tmp_path / "me.pem",
        session=Session(RUNTIME),
    )
    return tmp_path / "bob.json"


def test_every_server_protects_for_the_request_and_says_so(
    toy: Path, request_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    config, out = ProtectConfig(requests=(request_file,)), tmp_path / "fed"
    found, asked = federate(toy, out, config=config), read_request(request_file)
    assert found["requests"] == describe_requests([asked])
    assert found["weights_sha256"] == asked.theta0.weights_sha256
    for server in servers(out):
        (network,) = read_manifest(server.published).authorized
        assert network.request == asked.record
        assert network.weights_sha256 == asked.theta0.weights_sha256
    for path in (out / "request").rglob("*.safetensors"):
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0


def test_a_request_for_other_classes_is_refused(request_file: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", classes=(*CLASSES, "eel"))
    with pytest.raises(UsageError, match="is for 4 classes, but"):
        federate(other, tmp_path / "fed", config=ProtectConfig(requests=(request_file,)), dry_run=True)


def test_a_killed_run_resumes_to_the_same_results(
    toy: Path, finished: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_this_process(monkeypatch)
    for lost in ("server-1/published", "server-1/published.private", "audit"):
        shutil.rmtree(copy / lost)
    (copy / "federated.json").unlink()
    real = base.fit
    calls = list[int]()

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            real(*args, **kwargs)  # Its checkpoint is written, its case is not.
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(base, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        federate(toy, copy, resume=True)
    assert len(read_cases(copy / "audit")) == 2
    found = federate(toy, copy, resume=True)
    assert len(calls) == 7 + 3
    assert without_times(found) == without_times(read_json(finished / "federated.json"))
    assert published_bytes(copy) == published_bytes(finished)
    assert not list(copy.glob("audit/**/run/*.safetensors"))


def test_an_existing_federation_is_replaced_only_when_asked(
    toy: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputExistsError, match="--resume to go on or --overwrite"):
        federate(toy, copy)
    other = CONFIG.model_copy(update={"rho": "0.02"})
    with pytest.raises(UsageError, match="other images or settings"):
        federate(toy, copy, config=other, resume=True)
    before = read_json(copy / "federated.json")

    def broken(*args: object) -> None:
        raise DataError("server 0: no")

    monkeypatch.setattr(federated, "_protect", broken)
    with pytest.raises(DataError, match="server 0: no"):
        federate(toy, copy, config=other, overwrite=True)
    assert read_json(copy / "federated.json") == before
    (copy.parent / "else").mkdir()
    (copy.parent / "else" / "letter.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match="holds no federation"):
        federate(toy, copy.parent / "else", overwrite=True)


def test_a_server_that_fails_says_why(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_this_process(monkeypatch)
    shutil.rmtree(copy / "server-1" / "published.private")
    (copy / "request" / "settings.yaml").write_text('{"rho": "nonsense"}')
    with pytest.raises(UsageError, match=r"server 1: .*rho"):
        federated._protect(copy, Server.at(copy, 1), Session(RUNTIME))


def test_wrong_settings_are_refused_before_anything_is_written(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "fed"
    with pytest.raises(UsageError, match="one global network"):
        federate(toy, out, config=CONFIG.model_copy(update={"authorized": "lenet,cnn"}))
    with pytest.raises(UsageError, match="--method em; name one network and a method"):
        federate(toy, out, config=CONFIG.model_copy(update={"method": "em"}))
    with pytest.raises(DataError, match="take fewer servers"):
        federate(toy, out, TWO.model_copy(update={"servers": 3}))
    with pytest.raises(UsageError, match="unknown network"):
        federate(toy, out, TWO.model_copy(update={"networks": "lenett"}))
    assert federate(toy, out, dry_run=True)["servers"][0]["class_counts"] == [8, 9, 0, 0]
    assert not out.exists()
