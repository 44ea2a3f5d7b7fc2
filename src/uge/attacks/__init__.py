"""Attacks on a published folder: a table by name (docs/attacks.md), which other packages can add to."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from uge.attacks.augment import AUGMENTATION
from uge.attacks.base import (
    Attack,
    Context,
    Entry,
    Family,
    Need,
    batched,
    combination,
    entry_from,
    learn,
    with_images,
)
from uge.attacks.contrastive import FEW
from uge.attacks.disentangle import DISENTANGLING
from uge.attacks.few import YARDSTICKS
from uge.attacks.filters import FILTERING
from uge.attacks.knowledge import KNOWLEDGE, distill
from uge.attacks.own_key import OWN_KEY
from uge.attacks.preprocess import PREPROCESSING
from uge.attacks.purify import PURIFICATION
from uge.attacks.train import TRAINING
from uge.attacks.transfer import TRANSFER
from uge.learning.training import History
from uge.names import PLUS
from uge.registry import Registry

Function = TypeVar("Function", bound=Callable[..., Any])

#: Attacks by name; any two of them are a third, named ``A+B`` (:func:`find_attack`).
ATTACKS: Registry[Entry] = Registry(
    "attack",
    {
        "direct": Entry(learn, "plain", "trains on the published images and labels as anybody would", expected=0.0),
        **PREPROCESSING,
        **AUGMENTATION,
        **FILTERING,
        **TRAINING,
        **PURIFICATION,
        **DISENTANGLING,
        **OWN_KEY,
        **TRANSFER,
        **FEW,
        **KNOWLEDGE,
        **YARDSTICKS,
    },
    "uge.attacks",
    adapt=entry_from,
    hint="two of them make a third: 'grayscale+ueraser'",
)


def find_attack(name: str) -> Entry:
    """Look an attack up; ``A+B`` is the combination of both (:func:`combination`).

    Raises:
        UnknownNameError: There is none of that name.
        UsageError: The parts cannot be combined.
    """
    return functools.reduce(combination, (ATTACKS[part] for part in name.split(PLUS)))


def attack(
    name: str,
    *,
    about: str = "",
    family: Family | None = None,
    needs: Sequence[Need] = (),
    train_only: bool = False,
    cost: float = 1.0,
    expected: float = 10.0,
    same_architecture: bool = False,
    revision: int = 0,
) -> Callable[[Function], Function]:
    """Register a function as an attack, for ``uge.audit`` and for the combinations ``A+B``.

    The function has one of these forms:

    - ``(images, labels) -> images`` changes uint8 tensors, batch × channels × size × size, on the audit's device, and
      is called with some hundred images at a time. Labels (int64) are those of published images and -1 for all others.
      Test images are changed as well, as a hacker would filter the images that the network is used for. torch's
      generator is seeded.
    - ``(context) -> Context`` changes a :class:`Context`; plain training follows. The annotation ``-> Context`` lets
      another attack follow, as in ``A+B``.
    - ``(context) -> History`` trains ``context.network`` itself, for instance by :func:`learn`.

    A decorator registers in the process that runs it, and in workers of an audit if it stands at the top level of the
    script that starts them, since workers import that script again; in a notebook, audit with one worker. A package
    registers the same function for every process, and for the command line, by an entry point of the group
    ``uge.attacks`` (``posterize = "my_package:posterize"``).

    Args:
        name: Name of the attack.
        about: One line for the report; by default the first line of the docstring.
        family: Kind of the attack; by default ``preprocess`` for images, ``purify`` for a context, or ``train``.
        needs: ``key``, ``clean``, ``public`` or ``few``: possessions beyond the published folder.
        train_only: Leaves test images, originals and public images as they are; for functions of images.
        cost: Time in units of plain training.
        expected: Points of accuracy that it may win back, which orders an audit under a time limit.
        same_architecture: True if it needs a network of the authorised network's architecture.
        revision: Raise it when the function changes, so that finished cases are run again.

    Raises:
        UsageError: UGE has an attack of that name, or the function has another form.

    Example:
        >>> @attack("posterize", about="keeps four of 256 levels")
        ... def posterize(images, labels):
        ...     return images // 64 * 85
        >>> ATTACKS["posterize"].about
        'keeps four of 256 levels'
    """
    return lambda function: ATTACKS.register(
        name,
        function,
        about=about,
        family=family,
        needs=needs,
        train_only=train_only,
        cost=cost,
        expected=expected,
        same_architecture=same_architecture,
        revision=revision,
    )


__all__ = [
    "ATTACKS",
    "Attack",
    "Context",
    "Entry",
    "History",
    "attack",
    "batched",
    "combination",
    "distill",
    "find_attack",
    "learn",
    "with_images",
]
