"""The verb of federations: several servers protect for one global network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from uge.cli.console import Outcome, open_session
from uge.cli.flags import FLAT, Resumable
from uge.config import ProtectConfig, PublishConfig
from uge.federated.settings import Federation


def federated(
    source: str,
    out: Path,
    *,
    test: str,
    limit_test: int | None = None,
    config: Annotated[ProtectConfig, FLAT] = ProtectConfig(),
    federation: Annotated[Federation, FLAT] = Federation(),
    publishing: Annotated[PublishConfig, FLAT] = PublishConfig(),
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Divide images among servers, each of which protects its own for one global network, and measure who learns.

    Examples:

    - `uge federated data/cifar10 out/fed --test data/cifar10 --authorized cnn --recipe.epochs 6 --limit 4000`
    - `uge federated data/cifar10 out/fed --test data/cifar10 --servers 4 --split dirichlet --alpha 0.5 --rounds 5`

    Parameters
    ----------
    source
        Training images, as for `uge protect`.
    out
        Folder of the federation.
    test
        Clean test images of all classes.
    limit_test
        First N test images only.
    """
    session = open_session(common)
    from uge.pipeline.federated import run_federated

    found = run_federated(
        source,
        out,
        test=test,
        config=config,
        federation=federation,
        publishing=publishing,
        limit_test=limit_test,
        session=session,
    )
    if common.dry_run:
        return Outcome(
            found, f"would divide {found['images']} images among {len(found['servers'])} servers; nothing was written"
        )
    return Outcome(found, _text(found, out))


def _text(found: dict[str, Any], out: Path) -> str:
    """Table 9 as lines: column, accuracy on each server's classes, on all."""
    lines = [
        f"{'':14}" + "".join(f"{f'classes {k}':>11}" for k in range(len(found["servers"]))) + f"{'all':>8}{'best':>8}"
    ]
    for name, row in found["columns"].items():
        parts = "".join(f"{'' if value is None else f'{value:.1f}':>11}" for value in row["parts"])
        lines.append(f"{name:14}{parts}{row['average']:8.1f}{row['best']:8.1f}")
    for data, run in (found["fedavg"] or {}).items():
        figures = ", ".join(f"{one['test_accuracy']:.1f}" for one in run["rounds"])
        lines.append(f"federated averaging on {data} parts, by round: {figures}")
    return "\n".join([*lines, found["verdict"], f"report: {out / found['report']}"])
