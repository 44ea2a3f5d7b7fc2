"""Training runs of Table 9, one case each, with accuracies on the classes of every server."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from uge.auditing.summary import mean_std
from uge.cases.case import Case, Job
from uge.cases.material import CopyMaterial
from uge.data.images import ImageSet
from uge.data.store import load_pixels
from uge.federated.parts import union
from uge.files import JSON
from uge.networks import from_weights
from uge.progress import Display


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        column: Its column of Table 9.
        job: Network, training and data.
        server: Number of the server whose part it is trained on; None for the union.
    """

    column: str
    job: Job
    server: int | None = None


def columns(network: str, hackers: Sequence[str], servers: int, seeds: int) -> list[Run]:
    """List every run of Table 9, the teacher before its students.

    The columns are ``joint`` (clean union), ``separate-K`` (clean part of server K), ``server-K`` (its published
    part), ``global`` (published union, Eq. 15), and per hacker ``NAME-n`` (clean union), ``NAME-h`` (published
    union) and ``NAME-d`` (distilled from ``global``). The first four kinds start from θ0.

    Args:
        network: Name of the global network.
        hackers: Architectures of the hackers.
        servers: Number of servers.
        seeds: Repetitions.
    """
    runs = []
    for seed in range(seeds):
        clean = Job("clean", network, "theta0", "direct", "clean", seed, 0)
        published = Job("authorized", network, "theta0", "direct", "protected", seed, 0)
        runs.append(Run("joint", clean))
        for server in range(servers):
            runs += [Run(f"separate-{server}", clean, server), Run(f"server-{server}", published, server)]
        runs.append(Run("global", published))
        for name in dict.fromkeys(hackers):
            hacker = Job("hacker", name, "random", "direct", "protected", seed)
            runs += [
                Run(f"{name}-n", replace(hacker, role="clean", data="clean")),
                Run(f"{name}-h", hacker),
                Run(f"{name}-d", replace(hacker, scheme="distill", key=0)),
            ]
    return runs


def union_material(
    folder: Path, published: Sequence[ImageSet], originals: Sequence[ImageSet], test: ImageSet, **options: Any
) -> CopyMaterial:
    """Material of runs on the union; its ``part_tests`` are the test images of each server's classes.

    Args:
        folder: Audit folder: the ledger of runs on the union, with one ledger ``server-K`` for each server.
        published: Published images of each server.
        originals: Clean images of the same servers, row by row the same.
        test: Clean test images of all classes.
        options: Further attributes of :class:`uge.cases.material.CopyMaterial`; its first key is the global network's.
    """
    theta0 = from_weights(options["keys"][0], plugins=True)  # Written here, for a network named by the user.
    protected, tests, clean = (
        load_pixels(images, size=theta0.size, channels=theta0.channels, device=options["runtime"].device)
        for images in (union(published), test, union(originals))
    )
    own = [torch.isin(tests.labels.cpu(), torch.tensor(sorted(set(part.labels.tolist())))) for part in published]
    part_tests = [tests.subset(torch.nonzero(mine).flatten()) for mine in own]
    return CopyMaterial(
        folder, protected, tests, clean=clean, plugins=True, part_tests=part_tests, checkpoints=True, **options
    )


def run_columns(
    runs: Sequence[Run], material: CopyMaterial, sizes: Sequence[int], progress: Display
) -> list[tuple[Run, Case]]:
    """Do all runs that have no finished case for these images and settings.

    Args:
        runs: The runs.
        material: Material of runs on the union.
        sizes: Number of images of each server.
        progress: Shows runs.

    Returns:
        Every run with its case. ``parts`` of a case are accuracies on each server's classes; None for the classes
        of other servers where the network was trained on one part only.
    """
    results = []
    for number, run in enumerate(runs):
        of = material if run.server is None else _of_server(material, run.server, sizes)
        case = of.finished(run.job)
        if case is None:
            with progress.stage(f"table {number + 1}/{len(runs)} {run.column}") as on_progress:
                case = of.run(run.job, on_progress)
            of.ledger.keep(case)
        results.append((run, case))
    return results


def _of_server(union: CopyMaterial, server: int, sizes: Sequence[int]) -> CopyMaterial:
    test = union.part_tests[server]
    assert test is not None
    assert union.clean is not None
    rows = torch.arange(sizes[server]) + sum(sizes[:server])
    return replace(
        union,
        folder=union.folder / f"server-{server}",
        protected=union.protected.subset(rows),
        clean=union.clean.subset(rows),
        test=test,
        part_tests=[part if number == server else None for number, part in enumerate(union.part_tests)],
        digests={},
    )


def tabulate(results: Sequence[tuple[Run, Case]]) -> dict[str, JSON]:
    """Means over seeds by column, in percent of clean test images.

    Returns:
        Per column: ``parts`` (last epoch, on each server's classes; None where it does not apply), ``average`` (last
        epoch, on all classes that it was tested on), ``best`` (best epoch), ``std`` (of ``average``; None with one
        seed), ``seeds`` and ``case`` (id of the first).
    """
    table = {}
    for column in dict.fromkeys(run.column for run, _ in results):
        cases = [case for run, case in results if run.column == column]
        average, std = mean_std([case.last for case in cases])
        table[column] = {
            "parts": [_mean(values) for values in zip(*(case.parts for case in cases), strict=True)],
            "average": round(average, 3),
            "best": round(fmean(case.best for case in cases), 3),
            "std": None if std is None else round(std, 3),
            "seeds": len(cases),
            "case": cases[0].id,
        }
    return table


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return round(fmean(measured), 3) if measured else None
