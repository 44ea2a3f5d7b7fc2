"""Distillation from the trained authorised network (Eq. 10)."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from uge.audit.attacks.base import Context
from uge.objectives import distillation
from uge.training import History, fit


def distill(context: Context) -> History:
    """Learn from the authorised network's soft outputs on the published images ("Distill" in the paper's tables).

    The hacker may only ask: the network answers in evaluation mode.
    """
    return _learn(context, context.teacher())


def distill_inside(context: Context) -> History:
    """Distillation by somebody who has the trained network itself, and runs it in training mode."""
    return _learn(context, _InTrainingMode(copy.deepcopy(context.teacher())))


class _InTrainingMode(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network.train()(x)
        return out


def _learn(context: Context, teacher: nn.Module) -> History:
    recipe = context.recipe
    return fit(
        context.network,
        context.store,
        recipe,
        seed=context.seed,
        runtime=context.runtime,
        objective=distillation(teacher, temperature=recipe.temperature, alpha=recipe.alpha),
        test=context.test,
        progress=context.progress,
    )
