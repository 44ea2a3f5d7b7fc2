"""Sources and outputs on other machines: sent whole, the manifest last, keys never."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import refused, run_uge

import uge
from uge.errors import DataError
from uge.files import remote

fsspec = pytest.importorskip("fsspec")
RANDOM = ("--method", "random")


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs.clear()
    yield system
    system.store.clear()


def names(system: Any) -> set[str]:
    return {str(name).lstrip("/") for name in system.find("/")}


def test_a_copy_goes_out_and_comes_back(memory: Any, toy: Path, tmp_path: Path) -> None:
    home, address = tmp_path / "home", "memory://bucket/copy"
    ran = run_uge("protect", toy, address, *RANDOM, "--private", home, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["sent_to"] == address
    here = {path.relative_to(home).as_posix() for path in (home / "copy").rglob("*") if path.is_file()}
    assert names(memory) == {f"bucket/{name}" for name in here}
    assert not [name for name in names(memory) if "private" in name or "agekey" in name]
    secret = (home / "copy.private" / "owner.agekey").read_text().splitlines()[-1].encode()
    assert not any(secret in memory.cat_file(name) for name in memory.find("/"))
    key = home / "copy.private" / "owner.agekey"
    checked = run_uge("verify", address, "--against", toy, "--key", key, "--json")
    assert (checked.code, checked.json["opened"], checked.json["problems"]) == (0, 36, []), checked.err
    assert run_uge("export", address, tmp_path / "originals", "--key", key).code == 0
    assert len(uge.load_images(tmp_path / "originals")) == 36
    remote.fetched.cache_clear()
    assert uge.load_images(address).ids == uge.load_images(home / "copy").ids
    noise = run_uge("protect", address, tmp_path / "again", *RANDOM)
    assert noise.code == 0, noise.err


def test_a_remote_output_needs_a_place_for_keys(memory: Any, toy: Path, tmp_path: Path) -> None:
    refused(2, "give --private FOLDER", "protect", toy, "memory://bucket/copy", *RANDOM, inside=tmp_path)
    words = "--private is for an OUT on another machine"
    refused(2, words, "protect", toy, tmp_path / "x", *RANDOM, "--private", tmp_path / "y", inside=tmp_path)
    assert names(memory) == set()


def test_files_that_are_there_stay(memory: Any, toy: Path, tmp_path: Path) -> None:
    memory.pipe_file("/bucket/copy/mine.txt", b"mine")
    flags = (*RANDOM, "--private", tmp_path / "home")
    refused(2, "give --overwrite", "protect", toy, "memory://bucket/copy", *flags, inside=tmp_path)
    assert names(memory) == {"bucket/copy/mine.txt"}
    assert run_uge("protect", toy, "memory://bucket/copy", *flags, "--overwrite").code == 0
    assert "bucket/copy/mine.txt" not in names(memory)


def test_a_transfer_that_is_cut_off_leaves_no_folder_that_looks_finished(
    memory: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, sent = type(memory).put_file, []

    def fail(self: Any, path: str, target: str, **more: Any) -> None:
        if len(sent) == 3:
            raise ConnectionError("the line went dead")
        sent.append(target)
        put(self, path, target, **more)

    monkeypatch.setattr(type(memory), "put_file", fail)
    flags = (*RANDOM, "--private", tmp_path / "home")
    ran = run_uge("protect", toy, "memory://bucket/copy", *flags)
    assert ran.code == 1
    assert "the line went dead" in ran.err
    assert "bucket/copy/manifest.json" not in names(memory)
    assert run_uge("verify", "memory://bucket/copy").code == 1
    monkeypatch.undo()
    assert run_uge("protect", toy, "memory://bucket/copy", *flags, "--resume").code == 0
    assert run_uge("verify", "memory://bucket/copy").code == 0


def test_a_source_may_be_remote_and_names_never_lead_out(
    memory: Any, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in toy.rglob("*.png"):
        memory.pipe_file(f"/bucket/toy/{path.relative_to(toy).as_posix()}", path.read_bytes())
    remote.fetched.cache_clear()
    assert len(uge.load_images("memory://bucket/toy")) == 36
    refused(2, "there is nothing at memory://bucket/none", "inspect", "memory://bucket/none", inside=tmp_path)
    refused(2, "nowhere://x", "inspect", "nowhere://x/y", inside=tmp_path)

    class Evil:
        def isfile(self, path: str) -> bool:
            return False

        def find(self, path: str) -> list[str]:
            return ["b/x/../../../escape"]

    monkeypatch.setattr(remote, "_open", lambda address: (Evil(), "b/x"))
    with pytest.raises(DataError, match="leads out of its folder"):
        remote.fetch("s3://b/x", tmp_path)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Bucket of an S3 server on loopback."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    import boto3

    client = boto3.client("s3", endpoint_url=address)
    for _ in range(100):
        try:
            client.create_bucket(Bucket="photos")
            break
        except Exception:
            time.sleep(0.2)
    yield "s3://photos"
    server.terminate()
    server.wait()


@pytest.mark.heavy
def test_a_round_trip_through_a_real_s3_server(bucket: str, toy: Path, tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "uge", *map(str, arguments)]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    home = tmp_path / "home"
    run("protect", toy, f"{bucket}/copy", *RANDOM, "--private", home)
    key = home / "copy.private" / "owner.agekey"
    found = json.loads(run("verify", f"{bucket}/copy", "--against", toy, "--key", key, "--json"))
    assert (found["opened"], found["problems"]) == (36, [])
    run("export", f"{bucket}/copy", tmp_path / "originals", "--key", key)
    run("protect", f"{bucket}/copy", tmp_path / "local", *RANDOM)
    shutil.rmtree(home / "copy")
    assert json.loads(run("verify", f"{bucket}/copy", "--key", key, "--json"))["opened"] == 36
