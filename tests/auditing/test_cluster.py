"""An audit on a Ray cluster of two nodes on loopback, one of which is killed on the way."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uge.cases import pool


def test_a_running_cluster_is_asked_for_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert pool.cluster(4)["num_cpus"] == 4
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not {"num_cpus", "num_gpus", "include_dashboard"} & pool.cluster(4).keys()


@pytest.mark.parametrize(
    ("gpus", "actors", "share"), [(4, 4, 1.0), (4, 8, 0.5), (8, 4, 1.0), (1, 4, 0.25), (0, 4, 0.0)]
)
def test_gpus_are_divided_among_the_actors(
    gpus: int, actors: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(cluster_resources=lambda: {"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr(pool, "require_ray", lambda: fake)
    assert pool.gpu_share(actors) == share


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Address of a cluster of two nodes, and the process of the second."""
    pytest.importorskip("ray")
    ray = str(Path(sys.executable).with_name("ray"))
    port = free_port()
    place = Path("/tmp") / f"uge-ray-{os.getpid()}"  # Paths of its sockets must be short.
    common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    head = ["start", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={place}", *common]
    environment = {**os.environ, "RAY_DISABLE_IMPORT_WARNING": "1"}
    started = [subprocess.Popen([ray, *head], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    for _ in range(120):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.5)
    time.sleep(5)
    second = [ray, "start", f"--address=127.0.0.1:{port}", *common]
    process = subprocess.Popen(
        second, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    started.append(process)
    time.sleep(8)
    yield f"127.0.0.1:{port}", process.pid
    for each in started:
        each.terminate()
    subprocess.run([ray, "stop", "--force"], check=False, capture_output=True)
    shutil.rmtree(place, ignore_errors=True)


def audit(copy: Path, toy: Path, folder: Path, address: str | None) -> dict[str, Any]:
    flags = ["--networks", "lenet", "--attacks", "direct,distill,grayscale,jpeg10,jpeg75", "--epochs", "20"]
    where = ["--executor", "ray", "--workers", "2"] if address else []
    command = [sys.executable, "-m", "uge", "audit", str(copy), "--test", str(toy), *flags, *where]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"RAY_ADDRESS": address} if address else {})}
    done = subprocess.run(
        [*command, "--folder", str(folder), "--threads", "2" if address else "1", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def cases(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted((folder / "cases").glob("*.json")):
        case = json.loads(path.read_text())
        found[path.name] = {key: value for key, value in case.items() if key not in ("seconds", "environment")}
    return found


@pytest.mark.heavy
def test_two_nodes_of_which_one_is_killed_give_the_same_cases(nodes: tuple[str, int], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 20)):
        for name in ("cat", "dog"):
            folder = tmp_path / "toy" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    copy = tmp_path / "copy"
    protect = [sys.executable, "-m", "uge", "protect", str(tmp_path / "toy"), str(copy), "--method", "keyed", "-q"]
    subprocess.run([*protect, "--authorized", "keyed:lenet", "--recipe.epochs", "20"], check=True)
    here = audit(copy, tmp_path / "toy", tmp_path / "here", None)
    address, second = nodes

    def kill() -> None:
        folder = tmp_path / "away" / "cases"
        while not (folder.is_dir() and list(folder.iterdir())):
            time.sleep(0.1)
        os.killpg(second, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    away = audit(copy, tmp_path / "toy", tmp_path / "away", address)
    killer.join(30)
    assert not killer.is_alive()
    assert away["failed"] == here["failed"] == []
    assert cases(tmp_path / "away") == cases(tmp_path / "here")
