"""Training on the few labelled images alone: the accuracy that the published copy must be measured against."""

from dataclasses import replace

import torch

from uge.attacks.augment import randaugment
from uge.attacks.base import Context, Entry, learn
from uge.attacks.transfer import pretrained
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.objectives import augmented
from uge.learning.training import History
from uge.runtime import stream


def few_labelled(context: Context) -> PixelStore:
    """The labelled images that the hacker was granted.

    Raises:
        UsageError: There are none.
    """
    if context.labelled is None:
        raise UsageError("this attack needs a few labelled clean images; audit with --worst-case, or leave it out")
    return context.labelled


def _alone(context: Context) -> History:
    """Train on the labelled images alone with RandAugment, for as many steps as on the copy.

    The last epoch counts: images that were trained on choose none.
    """
    few = few_labelled(context)
    store = few.subset(torch.arange(len(context.store)) % len(few))
    objective = augmented(randaugment, stream(context.seed, "few-labelled"))
    return learn(replace(context, store=store, labelled=None), objective)


FEW: dict[str, Entry] = {
    "few-labelled": Entry(
        _alone,
        "yardstick",
        "trains on the few labelled images alone, strongly augmented: what they give without the copy",
        cost=1.1,
        needs=frozenset({"labelled"}),
    ),
    "few-labelled-public": Entry(
        lambda context: _alone(pretrained(context)),
        "yardstick",
        "trains on public images first and then on the few labelled images alone, without the copy",
        cost=2.1,
        needs=frozenset({"labelled", "public"}),
    ),
}
