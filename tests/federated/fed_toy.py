"""A tiny data set of four classes on disk, a federation of two servers on it, and Flower without Ray."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from uge.cli.main import main
from uge.config import ProtectConfig, PublishConfig
from uge.federated.settings import Federation
from uge.learning.recipes import Recipe
from uge.pipeline import federated
from uge.pipeline.federated import run_federated
from uge.runtime import Runtime
from uge.session import Session

CLASSES = ("ant", "bee", "cow", "dog")
CONFIG = ProtectConfig(authorized="lenet", recipe=Recipe(epochs=1, batch_size=8))
TWO = Federation(networks="lenet")
RUNTIME = Runtime(torch.device("cpu"), "fp32")


def make_folder(root: Path, classes: tuple[str, ...] = CLASSES, train: int = 8, test: int = 4, size: int = 16) -> Path:
    """An image folder; a class has a brightness of its own, and class number K has K images more."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for image in range(count + number):
                pixels = 50 + 45 * number + random.normal(0, 12, (size, size, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{image:03d}.png")
    return root


def federate(
    toy: Path,
    out: Path,
    federation: Federation = TWO,
    config: ProtectConfig = CONFIG,
    to: tuple[str, ...] = (),
    **session: Any,
) -> Any:
    """``run_federated`` on the toy set."""
    return run_federated(
        str(toy),
        out,
        test=str(toy),
        config=config,
        federation=federation,
        publishing=PublishConfig(to=to),
        session=Session(RUNTIME, **session),
    )


class Wire:
    """What went over the wire: one pair of (client, bytes) per message, in both directions."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.received: list[tuple[int, Any]] = []


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let servers protect without a process of their own, to save the time of starting it."""

    def run(command: list[str], *, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        said = io.StringIO()
        with contextlib.ExitStack() as inside:
            inside.enter_context(contextlib.chdir(cwd))
            inside.enter_context(contextlib.redirect_stdout(io.StringIO()))
            inside.enter_context(contextlib.redirect_stderr(said))
            left = inside.enter_context(pytest.raises(SystemExit))
            main(command[3:])
        return subprocess.CompletedProcess(command, int(left.value.code or 0), "", said.getvalue())

    monkeypatch.setattr(federated.subprocess, "run", run)


@contextlib.contextmanager
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Flower's simulation with clients in this process instead of Ray's, and a record of every message."""
    from flwr.clientapp.client_app import ClientAppException
    from flwr.server.superlink.fleet.vce.backend import Backend, raybackend

    wire = Wire()

    class InProcess(Backend):
        num_workers = 1

        def build(self, app_fn: Any) -> None:
            self.app = app_fn()

        def is_worker_idle(self) -> bool:
            return True

        def terminate(self) -> None:
            pass

        def process_message(self, message: Any, context: Any) -> Any:
            client = int(context.node_config["partition-id"])
            wire.received.append((client, message.content))
            try:
                reply = self.app(message, context)
            except Exception as error:
                raise ClientAppException(str(error)) from error
            wire.sent.append((client, reply.content))
            return reply, context

    monkeypatch.setattr(raybackend, "RayBackend", InProcess)
    yield wire
