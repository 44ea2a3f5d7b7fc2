"""uge push against a hub of its own on loopback: pushed, pulled, verified."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import refused, run_uge

pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload in one commit takes."""

    files: dict[str, bytes]
    asked: list[tuple[str, str, Any]]
    refuses = False

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, value: object, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        self.answer({"id": "owner/name", "sha": "0" * 40, "siblings": []})

    def do_PUT(self) -> None:
        self.asked.append(("PUT", self.path, json.loads(self.read() or b"{}")))
        self.answer({})

    def do_POST(self) -> None:
        body = self.read()
        if self.refuses:
            return self.answer({"error": "you may not"}, 403)
        if self.path.endswith("/commit/main"):
            for line in body.splitlines():
                operation = json.loads(line)
                if operation["key"] == "file":
                    value = operation["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            self.asked.append(("POST", self.path, None))
            return self.answer(
                {
                    "commitUrl": "https://huggingface.co/datasets/owner/name/commit/1",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )
        given = json.loads(body or b"{}")
        self.asked.append(("POST", self.path, given))
        if "/preupload/" in self.path:
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in given["files"]]
            return self.answer({"files": modes})
        return self.answer({"url": "https://huggingface.co/datasets/owner/name"})

    def do_HEAD(self) -> None:
        self.answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    own = type("Own", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield own
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    assert run_uge("protect", toy, tmp_path / "copy", "--method", "random", "-q").code == 0
    return tmp_path / "copy"


def test_what_was_pushed_and_pulled_again_is_sound(hub: type[Hub], copy: Path, tmp_path: Path) -> None:
    (copy.parent / "copy.audit").mkdir()
    ran = run_uge("push", copy, "owner/name", "--gated", "manual", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["commit"] == "1" * 40
    assert sum(path.endswith("/commit/main") for _, path, _ in hub.asked) == 1
    assert ("PUT", "/api/datasets/owner/name/settings", {"gated": "manual"}) in hub.asked
    assert hub.files.keys() == {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert not any("private" in name or "agekey" in name for name in hub.files)
    pulled = tmp_path / "pulled"
    for name, content in hub.files.items():
        (pulled / name).parent.mkdir(parents=True, exist_ok=True)
        (pulled / name).write_bytes(content)
    (pulled / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (pulled / ".cache" / "huggingface").mkdir(parents=True)
    assert run_uge("verify", pulled, "--private", f"{copy}.private").code == 0


def test_a_folder_that_deviates_stays_here(hub: type[Hub], copy: Path) -> None:
    (copy / "notes.txt").write_text("x")
    assert run_uge("push", copy, "owner/name").code == 1
    assert (hub.files, hub.asked) == ({}, [])


def test_a_trial_uploads_nothing(hub: type[Hub], copy: Path) -> None:
    ran = run_uge("push", copy, "owner/name", "--dry-run")
    assert ran.code == 0
    assert "would upload 9 files" in ran.out
    assert (hub.files, hub.asked) == ({}, [])


def test_a_hub_that_refuses_is_one_sentence(hub: type[Hub], copy: Path) -> None:
    hub.refuses = True
    refused(1, "the hub took nothing of", "push", copy, "owner/name", inside=copy)


@pytest.mark.parametrize("name", ["name", "a/b/c", "hf://a/b", "./x"])
def test_names_that_are_no_repository(name: str, copy: Path) -> None:
    refused(2, "expected a repository owner/name", "push", copy, name, inside=copy)


def test_a_private_folder_is_never_pushed(hub: type[Hub], copy: Path) -> None:
    assert run_uge("push", f"{copy}.private", "owner/name").code == 1
    shutil.copy(f"{copy}.private/owner.agekey", copy / "owner.agekey")
    assert run_uge("push", copy, "owner/name").code == 1
    assert hub.files == {}
