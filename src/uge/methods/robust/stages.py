"""Stages of the method ``robust``: clusters, surrogates, perturbations. A killed run resumes after its last batch."""

import logging
from typing import Any

import torch
from torch import Tensor

from uge.data.store import PixelStore, Records
from uge.files import read_json, write_json
from uge.methods.apply import GENERATOR, load_generator
from uge.methods.base import Earlier, Perturbation, Task, public_name
from uge.methods.robust.amortised import trained_generator
from uge.methods.robust.clusters import clustered
from uge.methods.robust.perturb import Steps, batch_rows, class_targets, perturb
from uge.methods.robust.settings import CLUSTERS
from uge.methods.robust.surrogates import train_surrogates
from uge.methods.uge.generator import delta_records

logger = logging.getLogger(__name__)
_DONE = "perturbed.json"


def run(task: Task) -> Perturbation:
    """Perturbations of the task's images, at the training size.

    Raises:
        UGEError: A stage failed; surrogates and finished batches stay in the task's folder.
    """
    settings = task.settings.robust
    store = _classed(task)
    with task.progress.stage("surrogates") as on_progress:
        surrogates = train_surrogates(
            store,
            settings,
            seed=task.settings.seed,
            runtime=task.runtime,
            place=lambda name: task.file("run", name),
            progress=on_progress,
        )
    goals = class_targets(settings.targets, store, surrogates, task.runtime)
    steps = Steps(surrogates, settings.filters, task.budget, settings.work.steps, task.settings.seed, task.runtime)
    delta = _delta(task, store, steps, goals) if settings.by == "steps" else None
    generator = trained_generator(task, store, steps, goals) if settings.generator else None
    return Perturbation(task.budget, generator, delta, _details(task, store, goals))


def add(task: Task, earlier: Earlier) -> Perturbation:
    """Perturbations of further images, as :func:`run` would have found them beside the others.

    Surrogates and targets are those of the earlier run, and an image's perturbation depends on no other image.
    """
    settings = task.settings.robust
    if settings.by == "generator":
        generator = load_generator(earlier.file(GENERATOR))
        return Perturbation(task.budget, generator, details=dict(earlier.details))
    surrogates = train_surrogates(
        task.store,
        settings,
        seed=task.settings.seed,
        runtime=task.runtime,
        place=lambda name: earlier.file("run", name),
    )
    goals = torch.tensor(earlier.details["targets"])
    steps = Steps(surrogates, settings.filters, task.budget, settings.work.steps, task.settings.seed, task.runtime)
    return Perturbation(task.budget, delta=_delta(task, task.store, steps, goals), details=dict(earlier.details))


def _classed(task: Task) -> PixelStore:
    """Images with their labels, or with clusters where these are asked for or fewer than two classes are in use."""
    settings = task.settings.robust
    if not settings.takes_clusters(task.images.class_counts):
        return task.store
    logger.warning(
        "clusters take the place of classes: from a network that is trained with labels such a copy holds back little "
        "(docs/unlabelled.md); choose --method preview where its images must not be learned from"
    )
    with task.progress.stage("clusters"):
        return clustered(task.store, settings.clusters, task.settings.seed, task.file("run", CLUSTERS))


def _delta(task: Task, store: PixelStore, steps: Steps, goals: Tensor) -> Records:
    """Perturbations of all images; with a folder, those of finished batches are kept in it."""
    records = delta_records(store, task.budget, task.file("run", "delta"))
    rows = batch_rows(store)
    state = task.file("run", _DONE)
    first = int(read_json(state)["batches"]) if state is not None and state.is_file() else 0
    with task.progress.stage("perturbations") as on_progress:

        def done(number: int) -> None:
            if state is not None:
                records.flush()
                write_json(state, {"batches": first + number})
            on_progress(int(rows[first + number - 1][-1]) + 1, len(store), {})

        perturb(store, task.images.ids, goals, steps, records, rows[first:], done)
    return records


def _details(task: Task, store: PixelStore, goals: Tensor) -> dict[str, Any]:
    settings = task.settings.robust
    if store is not task.store:  # Nothing of the clusters but their number is published.
        settings = settings.model_copy(update={"clusters": len(store.classes)})
    surrogates = [public_name(name) + (f"@{radius}" if radius else "") for name, radius in settings.surrogate_names]
    work = settings.work._replace(surrogates=",".join(surrogates))._asdict()
    return {
        "robust": settings.model_dump(mode="json") | work,
        "targets": goals.tolist(),
        **({"generator": task.settings.generator.model_dump(mode="json")} if settings.generator else {}),
        "training_size": store.size,
        "channels": store.channels,
    }
