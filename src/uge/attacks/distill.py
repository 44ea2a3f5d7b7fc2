"""Distillation from the trained authorised network (Eq. 10), as it is and with other settings."""

from __future__ import annotations

import copy
import functools

from torch import Tensor, nn

from uge.attacks.base import Context, Entry, Preparation, learn, with_recipe
from uge.attacks.preprocess import TRANSFORMS, changing
from uge.learning.objectives import distillation
from uge.learning.training import History


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
    return learn(context, distillation(teacher, temperature=recipe.temperature, alpha=recipe.alpha))


_entry = functools.partial(Entry, family="knowledge", cost=1.4, expected=20.0, needs=frozenset({"key"}))


def _after(prepare: Preparation, about: str) -> Entry:
    return _entry(lambda context: distill(prepare(context)), about=about)


DISTILLATION: dict[str, Entry] = {
    "distill": _entry(distill, about="learns from the trained authorised network's answers on the published images"),
    "distill-inside": _entry(
        distill_inside, about="holds the trained authorised network and learns from what it computes in training mode"
    ),
    "distill-t1": _after(with_recipe(temperature=1.0), "distils at temperature 1, so from nearly hard answers"),
    "distill-t20": _after(with_recipe(temperature=20.0), "distils at temperature 20, so from very soft answers"),
    "distill-hard": _after(with_recipe(alpha=1.0), "distils from the authorised network's answers alone, no labels"),
    "distill-grayscale": _after(changing(TRANSFORMS["grayscale"]), "distils on gray copies of all images"),
    "distill-jpeg75": _after(changing(TRANSFORMS["jpeg75"]), "distils on copies compressed as JPEG of quality 75"),
}
"""Distillation attacks by name; T and α not named are the recipe's."""
