"""Conditional learnability: who learns from a published folder and who does not, by the same cases for every method.

::

    OMP_NUM_THREADS=1 python benchmarks/conditional.py DATA RESULTS --method uge --authorized cnn --seed 0 --workers 2
    python benchmarks/conditional.py --table RESULTS

The first ``--limit`` images of DATA are protected into RESULTS/published/LABEL as ``uge protect`` would; the folder is
read back from disk, networks are trained on it, and all are tested on the clean test split. The authorised network
starts from its key and trains by the key's recipe, hackers start at random and train by the standard recipe (and by
the key's, where that differs). Cases lie in RESULTS/LABEL/cases, clean controls in RESULTS/clean/cases; what is
there already is not run again. All cases of a seed see the images in one order, which is not the protector's, and
hackers of one architecture start from the same weights. The seed also makes θ0. Accuracies are in percent.

Cases are run again when images, recipe, key, precision or the code of the authorised network change. The published
folder is kept as it is: after a change to the protector, give another ``--label``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conditional.bench import YARDSTICK, Bench, Job, Setup, protect, run_jobs
from conditional.summary import case_table, seeds_table, summarize_folder
from uge.cli.console import make_progress
from uge.errors import UGEError, UsageError
from uge.files import JSON, write_json
from uge.names import behind_key
from uge.runtime import Runtime
from uge.session import Session

HACKERS, SMOKE_HACKERS = ("cnn", "resnetc20", "resnet18-w16"), ("cnn", "resnet8")
SMOKE: JSON = {
    "encoder_recipe": {"epochs": 1},
    "generator": {"max_steps": 5},
    "refinement": {"passes": 1},
    "hacker": "resnet8",
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("data", nargs="?", help="a source with a train and a test split")
    found.add_argument("results", nargs="?", type=Path)
    found.add_argument("--method", default="uge")
    found.add_argument("--authorized", default="cnn")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--label", default="", help="end of the label, for runs that differ in --protect-flag")
    found.add_argument("--protect-flag", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    found.add_argument("--only", default="", metavar="PATTERN", help="run only cases whose id holds this; * is a joker")
    found.add_argument("--limit", type=int, help="training images; 10000, or 400 with --smoke")
    found.add_argument("--epochs", type=int, help="of the standard recipe; 15, or 2 with --smoke")
    found.add_argument("--smoke", action="store_true", help="small networks, 300 test images: does it run at all?")
    found.add_argument("--workers", type=int, default=1, help="cases at a time, each in a process with one thread")
    found.add_argument("--device", default="auto")
    found.add_argument("--summary-only", action="store_true", help="write summary.json again, run nothing")
    found.add_argument("--table", type=Path, metavar="RESULTS", help="print a row per method, over seeds; run nothing")
    return found


def config_fields(flags: Sequence[str], **fixed: Any) -> JSON:
    """Fields of ``ProtectConfig``: ``fixed``, changed by flags like ``refinement.passes=4``.

    Raises:
        UsageError: A flag has no value, or says what the yardstick says itself.
    """
    fields: JSON = json.loads(json.dumps(fixed))
    for flag in flags:
        name, equals, text = flag.partition("=")
        *path, last = name.replace("-", "_").split(".")
        if not equals or not last or (not path and last in ("method", "authorized", "seed", "limit")):
            raise UsageError(f"--protect-flag needs KEY=VALUE with a setting that has no flag of its own, got '{flag}'")
        place = fields
        for part in path:
            place = place.setdefault(part, {})
        place[last] = json.loads(text) if text.startswith(("[", "{")) else text
    return fields


def chosen(bench: Bench, pattern: str) -> list[Job]:
    """Jobs that fit the pattern and are not done, after the teacher that they need."""
    jobs = [job for job in bench.jobs if fnmatch.fnmatchcase(bench.id(job), f"*{pattern}*") and not bench.finished(job)]
    teacher = bench.jobs[0]
    if any(job.kind == "distill" for job in jobs) and teacher not in jobs and not bench.finished(teacher):
        jobs.insert(0, teacher)
    return jobs


def run(arguments: argparse.Namespace) -> JSON:
    """Protect, run what is missing, and return the summary."""
    smoke = arguments.smoke
    limit, epochs = arguments.limit or (400 if smoke else 10_000), arguments.epochs or (2 if smoke else 15)
    group = f"{arguments.method}-{re.sub(r'[^A-Za-z0-9._-]+', '_', arguments.authorized)}"
    end = f"-{arguments.label}" if arguments.label else ""
    setup = Setup(
        data=arguments.data,
        results=arguments.results,
        label=f"{group}-s{arguments.seed}{end}",
        seed=arguments.seed,
        limit=limit,
        limit_test=300 if smoke else None,
        epochs=epochs,
        hackers=SMOKE_HACKERS if smoke else HACKERS,
        device=arguments.device,
    )
    if arguments.summary_only:
        return summarize_folder(setup.folder)
    names = {"method": arguments.method, "authorized": arguments.authorized}
    fields = config_fields(
        arguments.protect_flag,
        **names,
        rho="0.04",
        limit=limit,
        seed=setup.seed,
        authorized_seed=setup.seed,
        recipe={"epochs": epochs},
        **(SMOKE if smoke else {}),
    )
    if "," in arguments.authorized or arguments.workers < 1:
        raise UsageError("the yardstick takes one authorised network and at least one worker")
    progress = make_progress(quiet=False)
    session = Session(Runtime.create(arguments.device), progress, resume=True)
    record = protect(setup, fields, session)
    bench = Bench(setup)
    plan = {
        "yardstick": YARDSTICK,
        "label": setup.label,
        "group": group + end,
        "base": behind_key(bench.theta0.name),
        "settings": {
            **names,
            "label": arguments.label,
            "seed": setup.seed,
            "data": Path(setup.data).name,
            "limit": limit,
            "limit_test": setup.limit_test,
            "epochs": epochs,
            "protect_flags": sorted(arguments.protect_flag),
        },
        "protect": {name: record[name] for name in ("seconds", "resumed", "environment")},
        "environment": session.runtime.environment() | {"workers": arguments.workers},
        "cases": [
            {
                "id": bench.id(job),
                "kind": job.kind,
                "network": job.network,
                "folder": bench.cases(job).parent.name,
                "fingerprint": bench.fingerprint(job),
            }
            for job in bench.jobs
        ],
    }
    write_json(setup.folder / "plan.json", plan)
    summary = summarize_folder(setup.folder)
    for _ in run_jobs(bench, chosen(bench, arguments.only), arguments.workers, progress):
        summary = summarize_folder(setup.folder)  # An interrupted run leaves what it has.
    return summary


def main(tokens: Sequence[str] | None = None) -> None:
    command = parser()
    arguments = command.parse_args(tokens)
    if arguments.table is None and (arguments.data is None or arguments.results is None):
        command.error("DATA and RESULTS are needed, or --table RESULTS")
    try:
        print(seeds_table(arguments.table) if arguments.table else case_table(run(arguments)))
    except UGEError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
