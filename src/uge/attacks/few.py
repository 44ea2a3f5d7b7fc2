"""Training on the few labelled images alone: the accuracy that the published copy must be measured against."""

from dataclasses import replace

import torch

from uge.attacks.augment import randaugment
from uge.attacks.base import Context, Entry, learn
from uge.attacks.transfer import pretrained
from uge.learning.objectives import augmented
from uge.learning.training import History
from uge.runtime import stream


def _alone(context: Context) -> History:
    """Train on the labelled images alone with RandAugment, for as many steps as on the copy.

    The last epoch counts: images that were trained on choose none.
    """
    few = context.few()
    store = few.subset(torch.arange(len(context.store)) % len(few))
    objective = augmented(randaugment, stream(context.seed, "few-labelled"))
    return learn(replace(context, store=store, chooses=False), objective)


def _after_public_images(context: Context) -> History:
    context.few()  # First, so that nothing is trained where there are none.
    return _alone(pretrained(context))


YARDSTICKS: dict[str, Entry] = {
    "few-labelled": Entry(
        _alone,
        "yardstick",
        "trains on the few labelled images alone, strongly augmented: what they give without the copy",
        cost=1.1,
        needs=frozenset({"few"}),
    ),
    "few-labelled-public": Entry(
        _after_public_images,
        "yardstick",
        "trains on public images first and then on the few labelled images alone, without the copy",
        cost=2.1,
        needs=frozenset({"few", "public"}),
    ),
}
