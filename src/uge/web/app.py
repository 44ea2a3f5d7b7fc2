"""The application behind ``uge web``: a page on this machine alone that protects a folder and audits the copy.

Requests without its token, under another host name, or sent by another page are refused. No file of a private folder is
ever returned.
"""

import contextlib
import io
import re
import secrets
import shutil
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from uge.config import AuditConfig, ProtectConfig, PublishConfig
from uge.data import load_images
from uge.errors import UGEError, UsageError
from uge.pipeline.audit import AuditRun
from uge.pipeline.inspect import inspect
from uge.pipeline.protect import ProtectRun
from uge.publishing import is_published, private_folder
from uge.report.page import page_environment
from uge.runtime import Runtime
from uge.session import Session
from uge.web.jobs import Desk, Watch
from uge.web.look import look

COOKIE = "uge"
MOST_BYTES = 2 * 2**30
"""Bytes of a folder that is sent through the browser; larger ones are named by their path."""
MOST_FILES = 100_000
TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[\w .-]+")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard(BaseHTTPMiddleware):
    """Refusal of everything that did not come from the page itself."""

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Answer, or refuse with one sentence."""
        state = request.app.state
        own = f"{request.url.scheme}://{request.headers.get('host')}"
        if request.headers.get("host") not in state.hosts:
            return PlainTextResponse("this page answers to its own address alone", 403)
        origin = request.headers.get("origin")
        if (origin is not None and origin != own) or request.headers.get("sec-fetch-site", "none") not in (
            "same-origin",
            "none",
        ):
            return PlainTextResponse("a request of another page is refused", 403)
        if request.method != "GET" and origin is None:
            return PlainTextResponse("a request without its origin is refused", 403)
        given = request.query_params.get("token") or request.cookies.get(COOKIE) or ""
        if not secrets.compare_digest(given, state.token):
            return PlainTextResponse("open the address that uge web printed: it holds the token", 403)
        state.nonce = secrets.token_urlsafe(12)
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value.format(nonce=state.nonce) if name.startswith("Content") else value
        return response


def make_app(folder: Path, token: str, port: int) -> Starlette:
    """The application.

    Args:
        folder: Folder of uploads, copies and audits, which belongs to its user alone.
        token: Secret in the address.
        port: Port on which it is served.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/look", _look, methods=["POST"]),
            Route("/folder", _folder, methods=["POST"]),
            Route("/inspect", _inspect, methods=["POST"]),
            Route("/protect", _protect, methods=["POST"]),
            Route("/audit", _audit, methods=["POST"]),
            Route("/cancel", _cancel, methods=["POST"]),
            Route("/job", _job),
            Route("/download", _download),
            Route("/report", _report),
        ]
    )
    app.add_middleware(Guard)
    app.state.folder = folder
    app.state.token = token
    app.state.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    app.state.desk = Desk()
    return app


async def _page(request: Request) -> Response:
    if "token" in request.query_params:  # The token leaves the address, and so the history.
        answer: Response = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, request.app.state.token, httponly=True, samesite="strict")
        return answer
    environment = page_environment(TEMPLATES)
    page = environment.get_template("web.html.j2").render(nonce=request.app.state.nonce)
    return HTMLResponse(page)


def _answers(handler: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    """Handler that answers errors in one sentence."""

    async def answered(request: Request) -> Response:
        try:
            return JSONResponse(await handler(request))
        except UGEError as error:
            return JSONResponse({"error": str(error)}, 400)

    return answered


@_answers
async def _look(request: Request) -> dict[str, Any]:
    form = await request.form(max_files=1, max_part_size=64 * 2**20)
    upload = form.get("picture")
    strength = _number(str(form.get("strength", "0.04")), 0, 0.1)
    if not isinstance(upload, UploadFile):
        raise UsageError("no picture came; choose one")
    return await run_in_threadpool(look, await upload.read(), strength)


@_answers
async def _folder(request: Request) -> dict[str, Any]:
    form = await request.form(max_files=MOST_FILES, max_fields=MOST_FILES, max_part_size=2**20)
    place = request.app.state.folder / f"images-{secrets.token_hex(4)}"
    place.mkdir(mode=0o700)
    size = 0
    try:
        for upload, path in zip(form.getlist("files"), form.getlist("paths"), strict=True):
            if not isinstance(upload, UploadFile):
                raise UsageError("the folder did not come whole; choose it again")
            target = place / _inside(str(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as handle:
                while chunk := await upload.read(1 << 20):
                    size += len(chunk)
                    if size > MOST_BYTES:
                        raise UsageError("the folder is larger than 2 GiB; type its path instead")
                    handle.write(chunk)
        return await run_in_threadpool(_described, str(place))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _inside(path: str) -> PurePosixPath:
    """Path below the chosen folder, without the name of that."""
    parts = PurePosixPath(path.replace("\\", "/")).parts[1:]
    if not parts or any(part in ("..", "/", "") or part.startswith(".") for part in parts):
        raise UsageError(f"the file '{path}' lies in no folder that can be taken")
    return PurePosixPath(*parts)


@_answers
async def _inspect(request: Request) -> dict[str, Any]:
    wish = await request.json()
    return await run_in_threadpool(_described, str(wish.get("path", "")).strip())


def _described(source: str) -> dict[str, Any]:
    if not source:
        raise UsageError("no folder was named; choose one, or type its path")
    found = inspect(source)
    if found["kind"] != "image source":
        raise UsageError(f"{source} is a {found['kind']}; choose a folder of images")
    split = next(iter(found["splits"].values()))
    square = list(split["sizes"])
    width, _, height = square[0].partition("x")
    mixed = len(square) > 1 or width != height
    return {
        "source": source,
        "images": split["images"],
        "classes": len(split["classes"]),
        "sizes": square,
        "size": 64 if mixed else int(width),
        "tested": "test" in found["splits"],
    }


@_answers
async def _protect(request: Request) -> dict[str, Any]:
    wish = await request.json()
    state = request.app.state
    source = str(wish.get("source", ""))
    name = str(wish.get("name") or "copy").strip()
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise UsageError(f"a name has letters, digits, spaces, dots and dashes, got '{name}'")
    out = state.folder / name
    keys = [line.strip() for line in str(wish.get("recipients", "")).splitlines() if line.strip()]
    config = ProtectConfig.checked(
        method="robust",
        rho=str(_number(str(wish.get("strength", 0.04)), 1 / 255, 0.1)),
        size=int(wish["size"]) if wish.get("size") else None,
        robust={"effort": str(wish.get("effort", "standard"))},
    )
    publishing = PublishConfig.checked(to=keys)
    resume = bool(wish.get("resume"))

    def work(watch: Watch) -> dict[str, Any]:
        session = Session(Runtime.create(), watch, resume=resume, overwrite=not resume and is_published(out))
        made = ProtectRun(source, out, config, publishing, session).run()
        return {
            "out": str(made.out),
            "private": str(made.private),
            "images": made.manifest.count,
            "sight": made.manifest.measured.sight,
            "recipients": [] if made.manifest.sealed is None else list(made.manifest.sealed.recipients),
        }

    job = state.desk.start("protect", {**wish, "resume": True}, work)
    state.copy, state.source = out, source
    return dict(job.status())


@_answers
async def _audit(request: Request) -> dict[str, Any]:
    state = request.app.state
    wish = await request.json()
    out = getattr(state, "copy", None)
    if out is None or not is_published(out):
        raise UsageError("there is no copy yet; protect a folder first")
    test = str(wish.get("test") or state.source)
    load_images(test, split="test")  # Says now what is wrong with it.
    minutes = int(_number(str(wish.get("minutes", 5)), 1, 600))

    def work(watch: Watch) -> dict[str, Any]:
        config = AuditConfig.checked(worst_case=True, strongest=0, budget=f"{minutes}m", networks=("cnn",), seeds=1)
        session = Session(Runtime.create(), watch)
        key = private_folder(out) / "owner.agekey"
        summary = AuditRun(out, config, session, test=test, keys=[key] if key.is_file() else []).run()
        state.report = Path(str(summary.report))
        return {"headline": summary.headline, "verdict": summary.verdict, "warnings": summary.warnings}

    return dict(state.desk.start("audit", wish, work).status())


@_answers
async def _cancel(request: Request) -> dict[str, Any]:
    job = request.app.state.desk.job
    if job is not None:
        job.cancel()
    return {}


@_answers
async def _job(request: Request) -> dict[str, Any]:
    job = request.app.state.desk.job
    return {"state": "idle"} if job is None else dict(job.status())


async def _download(request: Request) -> Response:
    out = getattr(request.app.state, "copy", None)
    if out is None or not is_published(out):
        return PlainTextResponse("there is no copy yet", 404)
    name = out.name.encode("ascii", "replace").decode()
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(_zipped(out), media_type="application/zip", headers=headers)


def _zipped(folder: Path) -> Iterator[bytes]:
    """Bytes of a ZIP file of a published folder, file by file; nothing beside the folder is in it."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
                yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """File of which every byte is taken once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Keep bytes."""
        self._parts.append(bytes(data))
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self._written

    def taken(self) -> bytes:
        """Bytes since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


async def _report(request: Request) -> Response:
    report = getattr(request.app.state, "report", None)
    if report is None or not report.is_file():
        return PlainTextResponse("there is no report yet", 404)
    answer = HTMLResponse(report.read_text("utf-8"))
    return answer


def _number(text: str, least: float, most: float) -> float:
    with contextlib.suppress(ValueError):
        value = float(text)
        if least - 1e-9 <= value <= most + 1e-9:
            return value
    raise UsageError(f"expected a number from {least:g} to {most:g}, got '{text}'")


def serve(folder: Path, port: int, opened: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted.

    Args:
        folder: Folder of uploads, copies and audits.
        port: Port on 127.0.0.1; 0 for any that is free.
        opened: Called with the address, token included, once it answers.

    Raises:
        UsageError: The port is taken.
    """
    import socket

    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(f"port {port} on this machine is taken ({error}); give another --port, or 0") from error
        number = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        app = make_app(folder, token, number)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        threading.Thread(target=opened, args=(f"http://127.0.0.1:{number}/?token={token}",), daemon=True).start()
        server.run(sockets=[listener])
