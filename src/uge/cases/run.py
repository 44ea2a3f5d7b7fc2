"""Training run of one case."""

import logging
import time
from collections.abc import Sequence

from uge.attacks import Context
from uge.attacks.variants import VARIANTS
from uge.cases.case import Case, Epoch, Job
from uge.cases.ledger import Ledger
from uge.data.store import PixelStore
from uge.learning.training import DivergedError, evaluate

log = logging.getLogger(__name__)


def run_case(
    job: Job,
    context: Context,
    fingerprint: str,
    *,
    weights: Ledger | None = None,
    part_tests: Sequence[PixelStore | None] = (),
) -> Case:
    """Train and test one network.

    The case is left to the caller to write (:meth:`uge.cases.ledger.Ledger.keep`). A training that diverges is a
    result.

    Args:
        job: Network, attack, data and repetition.
        context: Network, images, recipe, seed and knowledge.
        fingerprint: sha256 of everything that determines the case.
        weights: Ledger that takes the trained network; None where no later job needs it.
        part_tests: Parts of the test images that are measured at the end; empty for none.

    Returns:
        The case, with accuracies in percent on the clean test images.

    Raises:
        UsageError: The job needs a trained authorised network that is not there.
    """
    runtime = context.runtime
    variant = VARIANTS[job.scheme] if job.varied else None
    began = time.perf_counter()
    start = evaluate(context.network, context.test, runtime) if job.teaches else None
    try:
        history = variant.run(context, job.seed) if variant else job.entry.run(context)
    except DivergedError as error:  # This network, so trained, learns nothing from these images.
        log.warning("%s: %s", job.id, error)
        history = error.history
    seconds = time.perf_counter() - began
    if weights:
        weights.save(job.id, context.network, fingerprint)
    best = history.best
    assert best is not None, "every epoch was tested"
    recipe = (history.recipe or context.recipe).json_dict()
    return Case(
        id=job.id,
        role=job.role,
        network=job.network,
        start=job.start,
        scheme=job.scheme,
        data=job.data,
        seed=job.seed,
        key=job.key or 0,
        recipe={**recipe, "classes": len(context.store.classes), "size": context.store.size},
        history=[
            Epoch(epoch=e.epoch, loss=e.loss, train_accuracy=e.train_accuracy, test_accuracy=e.test_accuracy or 0.0)
            for e in history.epochs
        ],
        last=history.last,
        best=best.test_accuracy or 0.0,
        best_epoch=best.epoch,
        # Preparations before training count as well, and epochs of an earlier, interrupted run.
        seconds=round(max(history.seconds, seconds), 2),
        environment=(variant.runtime(runtime) if variant else runtime).environment(),
        fingerprint=fingerprint,
        family=job.family,
        needs=sorted(job.entry.needs),
        about=job.about,
        start_accuracy=start,
        parts=[None if part is None else evaluate(context.network, part, runtime) for part in part_tests],
    )
