"""The whole way on the embedded photographs: protect, verify, train, audit, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from uge.config import AuditConfig, ProtectConfig, PublishConfig
from uge.errors import IntegrityError
from uge.pipeline.audit import run_audit
from uge.pipeline.protect import ProtectRun
from uge.pipeline.verify import run_verify
from uge.progress import Progress
from uge.runtime import Runtime

SOURCE = "photos"


def run_demo(
    out: Path,
    config: ProtectConfig,
    audit: AuditConfig,
    *,
    runtime: Runtime,
    progress: Progress,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Protect the embedded data set, verify the copy from disk, and audit it.

    Returns:
        The audit's summary with ``verified`` and ``seconds`` added.

    Raises:
        IntegrityError: The published copy does not verify.
    """
    began = time.monotonic()
    run = ProtectRun(
        SOURCE, out, config, PublishConfig(), runtime=runtime, progress=progress, resume=resume, overwrite=overwrite
    )
    run.run()
    problems = run_verify(out, SOURCE, progress)["problems"]
    if problems:
        raise IntegrityError(problems)
    progress.note(f"{out}: verified from disk, no deviation")
    summary = run_audit(out, SOURCE, audit, runtime=runtime, progress=progress, overwrite=overwrite)
    return {**summary, "verified": True, "seconds": round(time.monotonic() - began, 1)}
