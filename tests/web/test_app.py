"""uge web: who is answered, and what is never given away."""

import io
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("httpx")
from starlette.testclient import TestClient

from uge.sealing import make_identity
from uge.web.app import make_app

HOST = "127.0.0.1:8000"
OWN = {"origin": f"http://{HOST}"}


def picture(size: tuple[int, int] = (40, 30), seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
        buffer, "png"
    )
    return buffer.getvalue()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = make_app(tmp_path / "work", "secret", 8000)
    with TestClient(app, base_url=f"http://{HOST}") as found:
        found.cookies.set("uge", "secret")
        yield found


def sent(client: TestClient, count: int = 12) -> dict[str, Any]:
    files, paths = [], []
    for number in range(count):
        files.append(("files", (f"{number}.png", picture((16, 16), number), "image/png")))
        paths.append(f"mine/{'cat' if number % 2 else 'dog'}/{number}.png")
    return dict(client.post("/folder", files=files, data={"paths": paths}, headers=OWN).json())


def ended(client: TestClient) -> dict[str, Any]:
    for _ in range(600):
        job = client.get("/job").json()
        if job["state"] != "running":
            return dict(job)
        time.sleep(0.05)
    raise AssertionError("the job did not end")


@pytest.mark.parametrize("path", ["/", "/job", "/download", "/report"])
def test_requests_without_the_token_are_refused(path: str, client: TestClient) -> None:
    client.cookies.clear()
    assert client.get(path).status_code == 403
    client.cookies.set("uge", "wrong")
    assert client.get(path).status_code == 403
    assert client.get("/?token=wrong").status_code == 403


def test_the_token_leaves_the_address(client: TestClient) -> None:
    client.cookies.clear()
    answer = client.get("/?token=secret", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:9", "uge.local:8000"])
def test_another_host_name_is_refused(host: str, client: TestClient) -> None:
    """DNS rebinding: a page of another name that leads to this machine."""
    assert client.get("/", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "http://evil.example"}, {"origin": "null"}, {**OWN, "sec-fetch-site": "cross-site"}],
)
def test_posts_of_other_pages_are_refused(headers: dict[str, str], client: TestClient) -> None:
    assert client.post("/cancel", json={}, headers=headers).status_code == 403
    assert client.post("/cancel", json={}, headers=OWN).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert f'<script nonce="{nonce}">' in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert client.get("/").headers["content-security-policy"] != policy


def test_a_picture_before_and_after(client: TestClient) -> None:
    found = {}
    for strength in ("0.01", "0.04", "0.1"):
        files = {"picture": ("a.png", picture(), "image/png")}
        found[strength] = client.post("/look", files=files, data={"strength": strength}, headers=OWN).json()
    assert [found[strength]["levels"] for strength in found] == sorted(found[strength]["levels"] for strength in found)
    assert found["0.04"]["levels"] <= 10
    assert found["0.01"]["psnr"] > found["0.04"]["psnr"] > found["0.1"]["psnr"]
    assert (found["0.04"]["width"], found["0.04"]["height"]) == (40, 30)
    bad = client.post("/look", files={"picture": ("a.txt", b"no picture", "text/plain")}, headers=OWN)
    assert (bad.status_code, "no picture that can be read" in bad.json()["error"]) == (400, True)
    files = {"picture": ("a.png", picture(), "image/png")}
    assert client.post("/look", files=files, data={"strength": "7"}, headers=OWN).status_code == 400


def test_the_way_from_a_folder_to_a_download_without_keys(client: TestClient, tmp_path: Path) -> None:
    found = sent(client)
    assert (found["images"], found["classes"], found["size"], found["tested"]) == (12, 2, 16, False)
    lab = make_identity(tmp_path / "lab.agekey").text
    wish = {"source": found["source"], "name": "copy", "strength": 0.04, "effort": "low", "recipients": lab}
    assert client.post("/protect", json=wish, headers=OWN).json()["state"] == "running"
    job = ended(client)
    assert job["state"] == "done", job
    assert job["result"]["images"] == 12
    assert job["result"]["recipients"][0] == "owner"
    assert len(job["result"]["recipients"]) == 2
    private = tmp_path / "work" / "copy.private"
    secret = (private / "owner.agekey").read_text()
    assert (tmp_path / "work").stat().st_mode & 0o777 == 0o700
    archive = zipfile.ZipFile(io.BytesIO(client.get("/download").content))
    names = archive.namelist()
    assert archive.testzip() is None
    assert "copy/manifest.json" in names
    assert not [name for name in names if "private" in name or "agekey" in name]
    lines = [line for line in secret.splitlines() if line.startswith("AGE-SECRET")]
    everything = b"".join(archive.read(name) for name in names) + client.get("/job").content + client.get("/").content
    assert lines
    assert not any(line.encode() in everything for line in lines)
    for path in ("/copy.private/owner.agekey", "/../copy.private/owner.agekey", "/static/owner.agekey"):
        assert client.get(path).status_code == 404


def test_a_cancelled_run_goes_on(client: TestClient) -> None:
    found = sent(client, 40)
    wish = {"source": found["source"], "name": "again", "strength": 0.04, "effort": "high", "recipients": ""}
    client.post("/protect", json=wish, headers=OWN)
    assert client.post("/protect", json=wish, headers=OWN).status_code == 400  # One job at a time.
    client.post("/cancel", json={}, headers=OWN)
    assert ended(client)["state"] == "cancelled"
    assert client.get("/download").status_code == 404
    client.post("/protect", json={**wish, "resume": True}, headers=OWN)
    job = ended(client)
    assert job["state"] == "done", job


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipients": "AGE-SECRET-KEY-1QQ"}, "private"),
        ({"recipients": "nonsense"}, "nonsense"),
        ({"name": "../escape"}, "a name has letters"),
        ({"strength": "much"}, "expected a number"),
        ({"source": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_wishes_are_one_sentence(change: dict[str, str], words: str, client: TestClient, tmp_path: Path) -> None:
    wish = {"source": sent(client)["source"], "name": "copy", "strength": 0.04, "effort": "low", "recipients": ""}
    answer = client.post("/protect", json={**wish, **change}, headers=OWN).json()
    error = answer["error"] if answer.get("error") else ended(client)["error"]
    assert words in error
    assert "\n" not in error
    assert not (tmp_path / "work" / "copy").exists()


@pytest.mark.parametrize("path", ["../../etc/passwd", "mine/../../x.png", "x.png", "mine/.ssh/id"])
def test_files_never_leave_the_upload_s_folder(path: str, client: TestClient, tmp_path: Path) -> None:
    files = [("files", ("a.png", picture(), "image/png"))]
    answer = client.post("/folder", files=files, data={"paths": [path]}, headers=OWN)
    assert answer.status_code == 400
    assert os.listdir(tmp_path / "work") == []
