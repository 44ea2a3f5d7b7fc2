"""The verb ``uge reproduce``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from uge.cli.console import Outcome, open_session, set_logging
from uge.cli.flags import FLAT, Writing

Texts = tuple[str, ...]


def reproduce(
    what: str,
    *,
    scale: str = "smoke",
    data: Texts = (),
    out: Path | None = None,
    only: Texts = (),
    seeds: int | None = None,
    limit: int | None = None,
    epochs: int | None = None,
    encoder: str | None = None,
    workers: int = 1,
    report_only: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Writing, FLAT] = Writing(),
) -> Outcome:
    """Measure a table or figure of the paper again, with our numbers beside the paper's.

    What is finished is kept and shared between tables; only missing cells run, and a killed run goes on. Exit code 1
    says that a cell failed; one that was not run is no failure.

    Examples:

    - `uge reproduce table1`
    - `uge reproduce table3 --scale cpu --data cifar10=data/cifar10 --only CIFAR-10 --workers 2`
    - `uge reproduce all --scale cpu --report-only`

    Parameters
    ----------
    what
        table1, table2, table3, table7, table8, table9, fig3, fig4, fig6, fig7 or all.
    scale
        smoke (minutes, the embedded photographs), cpu (a night on two cores) or paper (Tables 5 and 6, a GPU).
    data
        NAME=SOURCE for cifar10, cifar100, tinyimagenet or tinyimagenet20.
    out
        Folder of results; reproduce-out/SCALE by default.
    only
        Only cells whose DATA/ROW/COLUMN holds this text or matches this pattern.
    seeds
        Repetitions, if other than the scale's.
    limit
        Training images, if other than the scale's.
    epochs
        Epochs of every network, if other than the scale's.
    encoder
        Feature space, if other than the scale's: local, or clip:ID.
    workers
        Cases that run side by side.
    report_only
        Run nothing; write the pages from what is there.
    """
    from uge.paper.request import Request

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    request = Request.checked(
        what, scale, data, out, only, seeds=seeds, limit=limit, epochs=epochs, encoder=encoder, workers=workers
    )
    if common.dry_run:
        set_logging(common)
        found = request.describe()
        return Outcome(found, f"would run {found['pending']} of {found['parts']} parts; nothing was written")
    if report_only:
        set_logging(common)
    else:
        session = open_session(common)
        from uge.paper.run import carry_out

        carry_out(request.plan, request.folder, request.sources, session, workers=workers, overwrite=common.overwrite)
    found = request.write()
    failed = any(states["failed"] for states in found["states"].values())
    return Outcome(found, "\n".join([*found["summary"], f"pages: {request.folder}"]), code=int(failed))
