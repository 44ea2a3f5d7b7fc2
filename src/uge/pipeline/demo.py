"""The whole way on the embedded photographs: protect, verify, train, audit, report."""

import time
from pathlib import Path
from typing import Any

from uge.auditing.summary import Summary
from uge.config import AuditConfig, ProtectConfig, PublishConfig
from uge.errors import IntegrityError
from uge.files import writes
from uge.pipeline.audit import AuditRun, AuditSources
from uge.pipeline.protect import ProtectRun
from uge.pipeline.verify import run_verify
from uge.session import Session

SOURCE = "photos"


@writes("out")
def run_demo(
    out: Path, config: ProtectConfig, audit: AuditConfig, session: Session
) -> tuple[dict[str, Any], Summary | None]:
    """Protect the embedded data set, verify the copy from disk, and audit it.

    Args:
        out: The folder to publish.
        config: How to protect.
        audit: How to attack.
        session: Device, progress, and whether to resume or overwrite.

    Returns:
        The audit's summary as JSON values with ``verified`` and ``seconds`` added, and the summary itself; in a dry
        run, the plan and ``None``.

    Raises:
        IntegrityError: The published copy does not verify.
    """
    began = time.monotonic()
    run = ProtectRun(SOURCE, out, config, PublishConfig(), session)
    if session.dry_run:
        return {**run.describe(), "audit": audit.model_dump(mode="json")}, None
    run.run()
    problems = run_verify(out, SOURCE, session.progress)["problems"]
    if problems:
        raise IntegrityError(problems)
    session.progress.note(f"{out}: verified from disk, no deviation")
    summary = AuditRun(out, AuditSources(SOURCE), audit, session).run()
    seconds = round(time.monotonic() - began, 1)
    return {**summary.model_dump(mode="json"), "verified": True, "seconds": seconds}, summary
