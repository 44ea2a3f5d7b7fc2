"""Plain training on the published images and labels."""

from __future__ import annotations

from uge.audit.attacks.base import Context
from uge.training import History, fit


def direct(context: Context) -> History:
    """Train on labels as anybody would ("Normal" in the paper's tables)."""
    return fit(
        context.network,
        context.store,
        context.recipe,
        seed=context.seed,
        runtime=context.runtime,
        test=context.test,
        progress=context.progress,
    )
