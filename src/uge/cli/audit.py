"""The verbs ``audit`` and ``compare``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from uge.auditing.summary import LEVELS, Holds, Margin, Summary, listed
from uge.cli.console import Outcome, open_session, set_logging
from uge.cli.flags import FLAT, OutPath, Page, Resumable
from uge.config import AuditConfig
from uge.files import read_json
from uge.progress import duration

_LISTED = 12
_WORKERS = "uge.cases.pool"


def audit(
    out: OutPath,
    *,
    test: str,
    key: Annotated[tuple[Path, ...], Parameter(name="--key")] = (),
    clean: str | None = None,
    public: str | None = None,
    config: Annotated[AuditConfig, FLAT] = AuditConfig(),
    folder: OutPath | None = None,
    trust_plugins: Annotated[bool, Parameter(negative="")] = False,
    owner: str | None = None,
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
        Key file(s); by default those in OUT.private. The private key of a recipient opens the sealed originals, which
        are `--clean` then.
    clean
        The originals, if they are not the train split of `--test`: the clean control, and what some attacks hold.
    public
        Labelled images of another data set, for attacks that use some.
    folder
        Audit folder; OUT.audit by default.
    trust_plugins
        Allow a key whose network is a plug-in (`package.module:function`, `timm:name`): its code is run.
    owner
        Key of the folder's owner, who must have signed it: the fingerprint, or a file with it or with the public key.
    fail_under
        Exit with 3 when the gap (the smaller of last and best epoch) is below this many points, when there is none,
        or when a case failed.
    fail_holding
        What a hacker may hold to count for `--fail-under`: nothing but the folder, public images as well, clean
        originals as well, or the key as well.
    """
    several = config.workers != "1" and config.executor == "local" and not common.dry_run
    session = open_session(common, preload=_WORKERS if several else "")
    from uge.pipeline.audit import AuditRun

    run = AuditRun(
        out,
        config,
        session,
        test=test,
        clean=clean,
        public=public,
        keys=key,
        trust_plugins=trust_plugins,
        folder=folder,
        owner=owner,
    )
    if common.dry_run:
        would = run.describe()
        return Outcome(would, _forecast_text(would))
    summary = run.run()
    gap = smallest_gap(summary.margins, fail_holding)
    failed = fail_under is not None and (gap is None or gap < fail_under or bool(summary.failed))
    return Outcome(
        summary.model_dump(mode="json"),
        audit_text(summary),
        complaints=failures(run.folder, summary),
        code=1 if nothing_attacked(summary) else 3 if failed else 0,
    )


def _forecast_text(would: dict[str, Any]) -> str:
    """Cases that would run, each with its estimated time, and those for which the time would not last."""
    without = set(would["no_time_for"])
    lines = [f"{duration(value):>8}  {name}" for name, value in would["seconds"].items() if name not in without]
    ran = len(would["cases"]) - len(without)
    lines.append(
        f"would run {ran} of {would['planned']} cases, in about {duration(would['total_seconds'])}; nothing was written"
    )
    if without:
        lines.append(f"no time for {len(without)}: {listed(would['no_time_for'], _LISTED)}")
    if would["left_out"]:
        names = [item["attack"] for item in would["left_out"]]
        lines.append(f"cannot run: {listed(names, _LISTED)} (--json has the reasons)")
    return "\n".join(lines)


def nothing_attacked(summary: Summary) -> bool:
    """True for an audit of which every case failed, or every hacker."""
    return bool(summary.failed) and not (summary.hackers or summary.yardsticks)


def failures(folder: Path, summary: Summary) -> list[str]:
    """A sentence for each cause of failed cases, the last one on an audit in which all failed."""
    causes: dict[str, list[str]] = {}
    for case in summary.failed:
        causes.setdefault(read_json(folder / "failed" / f"{case}.json")["error"], []).append(case)
    sentences = [f"failed: {listed(cases, _LISTED)}: {cause}" for cause, cases in causes.items()]
    if nothing_attacked(summary):
        sentences.append(
            f"uge: no attack of the audit gave a result ({len(summary.failed)} failed); the causes are above and in "
            f"{folder / 'failed'}; mend them and run the same command again"
        )
    return sentences


def smallest_gap(margins: Sequence[Margin], holding: Holds) -> float | None:
    """The smaller of last and best epochs behind hackers with no more than these assets; None without any.

    Args:
        margins: Margins of a summary, from least to most assets.
        holding: Largest asset of a hacker that counts.
    """
    known = LEVELS[: LEVELS.index(holding) + 1]
    gaps = [min(margin.last, margin.best) for margin in margins if margin.kind == "gap" and margin.holds in known]
    return gaps[-1] if gaps else None


def audit_text(summary: Summary) -> str:
    """A summary for the terminal; what was left out or failed is named, so that no partial audit looks complete."""
    from uge.report import text_table

    lines = [text_table(summary), summary.verdict]
    if summary.partial:
        names = listed([*(left_out["attack"] for left_out in summary.left_out), *summary.failed], _LISTED)
        lines.append(
            f"partial audit: {summary.ran} of {summary.planned} cases; without {names} "
            "(the reasons are in summary.json)"
        )
    return "\n".join([*lines, f"report: {summary.report}"])


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
    from uge.report.compare import as_json, text_comparison, write_comparison

    comparison, files = write_comparison(run, out, overwrite=common.overwrite)
    shown = f"{text_comparison(comparison)}\nreport: {out}"
    return Outcome({**as_json(comparison), "files": [str(path) for path in files]}, shown)
