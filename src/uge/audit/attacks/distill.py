"""Distillation from the trained authorised network (Eq. 10)."""

from __future__ import annotations

from uge.audit.attacks.base import Context
from uge.objectives import distillation
from uge.training import History, fit


def distill(context: Context) -> History:
    """Learn from the authorised network's soft outputs on the published images ("Distill" in the paper's tables)."""
    recipe = context.recipe
    objective = distillation(context.teacher(), temperature=recipe.temperature, alpha=recipe.alpha)
    return fit(
        context.network,
        context.store,
        recipe,
        seed=context.seed,
        runtime=context.runtime,
        objective=objective,
        test=context.test,
        progress=context.progress,
    )
