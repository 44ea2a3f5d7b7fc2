"""The verbs ``audit`` and ``compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import Parameter

from uge.auditing.summary import Holds
from uge.cli.console import Outcome, open_session, set_logging
from uge.cli.flags import FLAT, OutPath, Page, Resumable
from uge.config import AuditConfig

Key = Annotated[tuple[Path, ...], Parameter(name="--key")]
_LISTED = 12
_WORKERS = "uge.cases.pool"


def audit(
    out: OutPath,
    *,
    test: str,
    key: Key = (),
    clean: str | None = None,
    public: str | None = None,
    config: Annotated[AuditConfig, FLAT] = AuditConfig(),
    folder: OutPath | None = None,
    trust_plugins: Annotated[bool, Parameter(negative="")] = False,
    fail_under: float | None = None,
    fail_holding: Holds = "key",
    common: Annotated[Resumable, FLAT] = Resumable(),
) -> Outcome:
    """Attack a published folder: train the authorised network and hackers, judge all on clean test images.

    OUT may be any folder of labelled images, however it was made. Finished cases are kept and not run again
    (`--overwrite` throws them away).

    Examples:

    - `uge audit out/mine --test my-images/ --networks cnn,resnetc20 --seeds 3`
    - `uge audit out/mine --test my-images/ --attacks all --variants all --workers auto`
    - `uge audit somebodys/ --test clean-test/ --clean originals/ --attacks preprocess,jpeg10+ueraser --budget 10m`

    Parameters
    ----------
    out
        Published folder, or any labelled image folder.
    test
        Clean test images; with a train split as well, that is the clean control.
    key
        Key file(s); by default those in OUT.private.
    clean
        The originals, if they are not the train split of `--test`: the clean control, and what some attacks hold.
    public
        Labelled images of another data set, for attacks that use some.
    folder
        Audit folder; OUT.audit by default.
    trust_plugins
        Allow a key whose network is a plug-in (`package.module:function`, `timm:name`): its code is run.
    fail_under
        Exit with 3 when the gap (the smaller of last and best epoch) is below this many points, when there is none,
        or when a case failed.
    fail_holding
        What a hacker may hold to count for `--fail-under`: nothing but the folder, public images as well, clean
        originals as well, or the key as well.
    """
    several = config.workers != "1" and config.executor == "local" and not common.dry_run
    session = open_session(common, preload=_WORKERS if several else "")
    from uge.pipeline.audit import run_audit

    found = run_audit(
        out,
        test,
        config,
        keys=key,
        clean_source=clean,
        public_source=public,
        folder=folder,
        trust_plugins=trust_plugins,
        session=session,
    )
    if common.dry_run:
        return Outcome(found, f"would run {len(found['cases'])} of {found['planned']} cases; nothing was written")
    gap = smallest_gap(found["margins"], fail_holding)
    failed = fail_under is not None and (gap is None or gap < fail_under or bool(found["failed"]))
    return Outcome(found, audit_text(found), code=3 if failed else 0)


def smallest_gap(margins: Sequence[Mapping[str, Any]], holding: Holds) -> float | None:
    """The smaller of last and best epochs behind hackers who hold no more than that; None without any.

    Args:
        margins: Of a summary, from least to most.
        holding: The most that a hacker may hold.
    """
    levels = get_args(Holds)
    known = levels[: levels.index(holding) + 1]
    gaps = [min(one["last"], one["best"]) for one in margins if one["kind"] == "gap" and one["holds"] in known]
    return gaps[-1] if gaps else None


def audit_text(found: dict[str, Any]) -> str:
    """A summary for people; what was left out or failed is named, so that no partial audit looks complete."""
    from uge.auditing.summarize import Summary
    from uge.report import text_table

    summary = Summary.model_validate(found)
    lines = [text_table(summary), found["verdict"]]
    if summary.partial:
        names = [one["attack"] for one in summary.left_out] + summary.failed
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        lines.append(
            f"partial audit: {summary.ran} of {summary.planned} cases; without {', '.join(names[:_LISTED])}{more} "
            "(the reasons are in summary.json)"
        )
    return "\n".join([*lines, f"report: {found['report']}"])


def compare(*run: str, out: OutPath, common: Annotated[Page, FLAT] = Page()) -> Outcome:
    """Put several audits side by side: a heat map of attacks and protections, and where each stands.

    Beside the page come the same tables as Markdown, CSV and JSON. Differences that forbid comparing (recipe,
    networks, test images, seeds) are named.

    Examples:

    - `uge compare out/em.audit out/tap.audit out/mine.audit --out comparison.html`
    - `uge compare "error-minimising=out/em.audit" "ours=out/mine.audit" --out comparison.html`

    Parameters
    ----------
    run
        Audit folders, at least two; NAME=FOLDER gives one another name.
    out
        The page, .html.
    """
    set_logging(common)
    from uge.files import read_json
    from uge.report.compare_files import text_comparison, write_comparison

    files = write_comparison(run, out, overwrite=common.overwrite)
    found = {key: value for key, value in read_json(files[-1]).items() if key != "summaries"}
    text = text_comparison(found)
    return Outcome({**found, "files": [str(path) for path in files]}, f"{text}\nreport: {out}")
