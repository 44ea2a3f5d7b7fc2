"""The training runs of Table 9: who trains on which parts, measured on each server's classes; one case each."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from torch import nn

from uge.cases.case import Case, Data, read_case, write_case
from uge.cases.job import Job
from uge.cases.run import load_trained, measured, untrained
from uge.data.images import ImageSet
from uge.data.store import PixelStore, load_pixels
from uge.errors import DataError, UsageError
from uge.federated.union import union
from uge.files import JSON, fingerprint, read_json, write_json
from uge.learning.objectives import Objective, distillation, supervised
from uge.learning.recipes import Recipe
from uge.learning.resume import save_checkpoint
from uge.learning.training import DivergedError, evaluate, fit
from uge.networks import ImageClassifier, weights_hash
from uge.progress import Display, Silent
from uge.runtime import Runtime, stream_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run(Job):
    """One training run.

    Attributes:
        column: Its column of Table 9.
        server: Whose part it trains on; None where it trains on the union.
    """

    column: str = ""
    server: int | None = None

    def place(self, folder: Path) -> Path:
        """Where it belongs below the audit folder: runs on the union make the audit, each server has a folder."""
        return folder if self.server is None else folder / f"server-{self.server}"


def columns(network: str, hackers: Sequence[str], servers: int, seeds: int) -> list[Run]:
    """Every run of Table 9, the teacher before its students.

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
        joint = Run("clean", network, "theta0", "direct", "clean", seed, column="joint")
        published = Run("authorized", network, "theta0", "direct", "protected", seed, column="global")
        runs.append(joint)
        for server in range(servers):
            runs.append(replace(joint, column=f"separate-{server}", server=server))
            runs.append(replace(published, column=f"server-{server}", server=server))
        runs.append(published)
        for name in dict.fromkeys(hackers):
            runs.append(Run("clean", name, "random", "direct", "clean", seed, column=f"{name}-n"))
            runs.append(Run("hacker", name, "random", "direct", "protected", seed, column=f"{name}-h"))
            runs.append(Run("hacker", name, "random", "distill", "protected", seed, column=f"{name}-d"))
    return runs


class Table:
    """Does the runs of Table 9 and keeps every result as a file.

    Args:
        folder: The audit folder: ``cases/``, ``weights/``, and ``server-K/cases/``.
        published: Each server's published images.
        originals: The same servers' clean images, row by row the same.
        test: Clean test images of all classes.
        theta0: The global network with its initial parameters.
        recipe: How everybody trains.
        recipes: How hackers train, by network, where other than everybody.
        seed: Root seed of these runs.
        runtime: Device and precision.
        progress: Shows runs.
    """

    def __init__(
        self,
        folder: Path,
        published: Sequence[ImageSet],
        originals: Sequence[ImageSet],
        test: ImageSet,
        *,
        theta0: ImageClassifier,
        recipe: Recipe,
        recipes: Mapping[str, Recipe] | None = None,
        seed: int,
        runtime: Runtime,
        progress: Display | None = None,
    ) -> None:
        self.folder, self.theta0, self.recipe, self.seed, self.runtime = folder, theta0, recipe, seed, runtime
        self.recipes, self.progress = recipes or {}, progress or Silent()
        self._images: dict[Data, Sequence[ImageSet]] = {"protected": published, "clean": originals}
        self._union: dict[Data, PixelStore] = {
            data: self._load(union(parts)) for data, parts in self._images.items() if len(parts)
        }
        self.test = self._load(test)
        own = [np.flatnonzero(np.isin(test.labels, np.unique(part.labels))) for part in published]
        self.tests = [self._load(test.subset(rows)) for rows in own]
        stores = {"protected": self._union["protected"], "clean": self._union["clean"], "test": self.test}
        self._digests = {name: store.digest() for name, store in stores.items()}
        self._sizes = [len(part) for part in published]

    def run(self, runs: Sequence[Run]) -> list[tuple[Run, Case, list[float | None]]]:
        """Do the runs whose case is missing or belongs to something else.

        Returns:
            Every run with its case, and with its accuracy on each server's classes in percent; None for the
            classes of other servers where it trained on one part only.
        """
        found = []
        for number, run in enumerate(runs):
            done = self._finished(run)
            if done is None:
                with self.progress.stage(f"table {number + 1}/{len(runs)} {run.column}") as on_progress:
                    done = self._run(run, on_progress)
            found.append((run, *done))
        return found

    def _load(self, images: ImageSet) -> PixelStore:
        size, channels, device = self.theta0.size, self.theta0.channels, self.runtime.device
        return load_pixels(images, size=size, channels=channels, device=device)

    def _fingerprint(self, run: Run) -> str:
        parts = {"data": self._digests, "sizes": self._sizes, "run": vars(run), "theta0": weights_hash(self.theta0)}
        return fingerprint(
            parts | {"seed": self.seed, "recipe": self._recipe(run).json_dict(), "precision": self.runtime.precision}
        )

    def _finished(self, run: Run) -> tuple[Case, list[float | None]] | None:
        place, wanted = run.place(self.folder), self._fingerprint(run)
        try:
            case, parts = read_case(_file(place, "cases", run)), read_json(_file(place, "parts", run))
        except (DataError, FileNotFoundError):
            return None
        if case.fingerprint != wanted or parts.get("fingerprint") != wanted:
            return None
        return None if run.column == "global" and self._teacher(run) is None else (case, parts["accuracy"])

    def _run(self, run: Run, on_progress: Any) -> tuple[Case, list[float | None]]:
        place, wanted = run.place(self.folder), self._fingerprint(run)
        store = self._union[run.data] if run.server is None else self._load(self._images[run.data][run.server])
        network, checkpoint = self._network(run), place / "run" / f"{run.id}.{wanted[:12]}.safetensors"
        try:
            history = fit(
                network,
                store,
                self._recipe(run),
                seed=stream_seed(self.seed, "audit", run.role, run.scheme, run.seed),
                runtime=self.runtime,
                objective=self._objective(run),
                test=self.test if run.server is None else self.tests[run.server],
                checkpoint=checkpoint,
                progress=on_progress,
            )
        except DivergedError as error:
            log.warning("%s: %s", run.column, error)  # A result like any other: nothing was learned.
            history = error.history
        parts = [
            evaluate(network, test, self.runtime) if run.server in (None, number) else None
            for number, test in enumerate(self.tests)
        ]
        if run.column == "global":
            save_checkpoint(self._weights(run), {"network": network}, None, {"fingerprint": wanted})
        case = Case(
            id=run.id,
            role=run.role,
            network=run.network,
            start=run.start,
            scheme=run.scheme,
            family=run.family,
            data=run.data,
            seed=run.seed,
            **measured(history, self._recipe(run), self.runtime, classes=len(store.classes), size=store.size),
            fingerprint=wanted,
        )
        write_json(_file(place, "parts", run), {"fingerprint": wanted, "accuracy": parts})
        write_case(place / "cases", case)
        checkpoint.unlink(missing_ok=True)
        return case, parts

    def _recipe(self, run: Run) -> Recipe:
        """Everybody's for whoever starts from θ0."""
        return self.recipe if run.start == "theta0" else self.recipes.get(run.network, self.recipe)

    def _network(self, run: Run) -> ImageClassifier:
        return untrained(run, self.test, self.seed, self.theta0)

    def _objective(self, run: Run) -> Objective:
        if run.scheme == "direct":
            return supervised
        teacher = Run("authorized", self.theta0.name, "theta0", "direct", "protected", run.seed, column="global")
        network = self._teacher(teacher)
        if network is None:
            raise UsageError(f"{run.column} needs the trained network of 'global' with seed {run.seed}; run that first")
        recipe = self._recipe(run)
        return distillation(self.runtime.place(network), temperature=recipe.temperature, alpha=recipe.alpha)

    def _weights(self, run: Run) -> Path:
        return self.folder / "weights" / f"{run.id}.safetensors"

    def _teacher(self, run: Run) -> nn.Module | None:
        return load_trained(self._weights(run), self._network(run), self._fingerprint(run))


def _file(place: Path, kind: str, run: Run) -> Path:
    return place / kind / f"{run.id}.json"


def tabulate(results: Sequence[tuple[Run, Case, list[float | None]]]) -> dict[str, JSON]:
    """Means over seeds by column, in percent of clean test images.

    Returns:
        Per column: ``parts`` (last epoch, on each server's classes; None where it does not apply), ``average`` (last
        epoch, on all classes that it was tested on), ``best`` (best epoch), ``std`` (of ``average``; None with one
        seed), ``seeds`` and ``case`` (id of the first).
    """
    table = {}
    for column, group in itertools.groupby(sorted(results, key=lambda one: one[0].column), lambda one: one[0].column):
        rows = sorted(group, key=lambda one: one[0].seed)
        lasts = [case.last for _, case, _ in rows]
        parts = list(zip(*(parts for _, _, parts in rows), strict=True))
        table[column] = {
            "parts": [None if None in values else round(fmean(values), 3) for values in parts],
            "average": round(fmean(lasts), 3),
            "best": round(fmean(case.best for _, case, _ in rows), 3),
            "std": round(stdev(lasts), 3) if len(lasts) > 1 else None,
            "seeds": len(lasts),
            "case": rows[0][1].id,
        }
    order = list(dict.fromkeys(run.column for run, _, _ in results))
    return {column: table[column] for column in order}
