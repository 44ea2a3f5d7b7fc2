"""Attacks that change training: adversarial, slower, faster, longer, with clean images, without the labels."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.attacks.augment import drawn, randaugment
from uge.attacks.base import Context, Entry, Need, Preparation, learn, prepared, with_recipe
from uge.attacks.leak import REVISION, leaked_rows, on_leak, originals, part, replaced
from uge.budget import Budget
from uge.data.augment import augmentation
from uge.data.loader import Batch, fetch, to_unit
from uge.data.store import PixelStore
from uge.learning.objectives import Objective, adversarial, evaluating, full_precision
from uge.learning.recipes import LONGER, longer
from uge.learning.training import History
from uge.runtime import stream

SURE = 0.95  # Probability above which a network's own answer counts as a label (FixMatch).
SLOWER = 2  # Factor of the epochs of ``adversarial-rho``: robust features are learned more slowly.
LARGEST = 16 / 255  # Largest radius of ``adversarial-rho``, in [0, 1] units: a network learns nothing far beyond it.
RHO_STEPS = 3


def _rate(factor: float) -> Preparation:
    return lambda context: with_recipe(lr=context.recipe.lr * factor)(context)


def _longer(context: Context) -> Context:
    return replace(context, recipe=longer(context.recipe, LONGER))


def _shorter(context: Context) -> Context:
    milestones = tuple(max(1, epoch // LONGER) for epoch in context.recipe.milestones)
    return with_recipe(epochs=max(1, context.recipe.epochs // LONGER), milestones=milestones)(context)


def _adversarial_rho(context: Context) -> History:
    """Adversarial training at the copy's own budget, whole levels as they are stored."""
    radius = min(Budget(context.claims().rho).levels / 255, LARGEST)
    generator = stream(context.seed, "adversarial-rho")
    objective = adversarial(generator, radius=radius, step=radius / 2, steps=RHO_STEPS)
    return learn(replace(context, recipe=longer(context.recipe, SLOWER)), objective)


def _mixed(context: Context, percent: int) -> Context:
    leak = leaked_rows(context, part(context, percent))
    return replace(context, store=replaced(context.store, originals(context), leak))


def _semi_supervised(context: Context, percent: int) -> History:
    return learn(context, fixmatch(context, originals(context), leaked_rows(context, part(context, percent))))


def fixmatch(context: Context, labelled: PixelStore, rows: Tensor) -> Objective:
    """Cross-entropy on labelled images and, where the network is sure, on its own answers (after FixMatch, 2020).

    A batch's images come weakly augmented by the recipe. The network answers on them in evaluation mode, and answers
    above :data:`SURE` are the labels of a strongly augmented copy. The batch's own labels only enter the training
    accuracy that ``fit`` reports.

    Args:
        context: Recipe and seed.
        labelled: Store of the labelled images.
        rows: Rows of that store that may be used.
    """
    weak = augmentation(context.recipe.augment)
    choice, weakly, strongly = (stream(context.seed, "semi-supervised", use) for use in ("rows", "weak", "strong"))

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        picked = rows[torch.randint(len(rows), (len(batch.y),), generator=choice)]
        x = to_unit(weak(labelled.pixels.read(picked), weakly))
        with evaluating(network), torch.no_grad():
            answers = full_precision(network(batch.x)).softmax(1)
        with torch.autocast(batch.x.device.type, enabled=False):
            strong = randaugment(batch.x, strongly)
        logits = network(torch.cat([x, strong]))
        exact = full_precision(logits)
        on_labels = F.cross_entropy(exact[: len(x)], fetch(labelled, picked).y)
        on_answers = F.cross_entropy(exact[len(x) :], answers.argmax(1), reduction="none")
        return {"loss": on_labels + (on_answers * (answers.amax(1) >= SURE)).mean(), "logits": logits[len(x) :]}

    return objective


_CLEAN: frozenset[Need] = frozenset({"clean"})
# Percent of leaked originals, and expected gains of mixing, of semi-supervision and of the leak alone.
_PERCENT: dict[int, tuple[float, float, float]] = {1: (2.0, 15.0, 10.0), 10: (20.0, 40.0, 35.0), 50: (60.0, 60.0, 55.0)}


def _pgd(name: str, step: float, steps: int) -> Callable[[Context], History]:
    # The radius is that of the public benchmark, and so are 10 steps of 2/255.
    return drawn(name, functools.partial(adversarial, radius=8 / 255, step=step, steps=steps))


#: Attacks by name. Stopping early needs none: every case has its best epoch as well.
TRAINING: dict[str, Entry] = {
    "adversarial": Entry(
        _pgd("adversarial", 2 / 255, 10),
        "train",
        "trains on worst-case changes of 8/255 (adversarial training, 10 steps of 2/255)",
        cost=8.5,
        expected=55.0,
    ),
    "adversarial-fast": Entry(
        _pgd("adversarial-fast", 10 / 255, 1),
        "train",
        "trains on changes of 8/255 found in one step (fast adversarial training)",
        cost=1.8,
        expected=45.0,
    ),
    "adversarial-rho": Entry(
        _adversarial_rho,
        "train",
        f"trains twice as long on changes within the copy's own budget ({RHO_STEPS} steps of half of it)",
        cost=6.0,
        expected=25.0,
        uses=frozenset({"claims"}),
    ),
    "lr-tenth": prepared(_rate(0.1), "train", "trains with a tenth of the learning rate", expected=8.0),
    "lr-tenfold": prepared(_rate(10), "train", "trains with ten times the learning rate", expected=2.0),
    "longer": prepared(_longer, "train", "trains three times as many epochs", cost=float(LONGER), expected=3.0),
    "shorter": prepared(
        _shorter,
        "train",
        "trains a third of the epochs, with a schedule of their own",
        cost=1 / LONGER,
        expected=10.0,
    ),
    **{
        f"mix-clean-{percent}": prepared(
            functools.partial(_mixed, percent=percent),
            "train",
            f"replaces {percent} % of the images by leaked originals",
            expected=gain,
            needs=_CLEAN,
            revision=REVISION,
        )
        for percent, (gain, _, _) in _PERCENT.items()
    },
    **{
        f"semi-supervised-{percent}": Entry(
            functools.partial(_semi_supervised, percent=percent),
            "train",
            f"knows labels of {percent} % leaked originals only and labels the published images itself",
            cost=2.7,
            expected=gain,
            needs=_CLEAN,
            revision=REVISION,
        )
        for percent, (_, gain, _) in _PERCENT.items()
        if percent < 50
    },
    **{
        f"clean-only-{percent}": prepared(
            functools.partial(on_leak, percent=percent),
            "yardstick",
            f"trains on {percent} % leaked originals alone: what the leak gives without the copy",
            expected=gain,
            needs=_CLEAN,
            revision=REVISION,
        )
        for percent, (_, _, gain) in _PERCENT.items()
    },
}
