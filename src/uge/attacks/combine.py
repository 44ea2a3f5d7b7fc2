"""Two attacks in one: what one does before training, and then the other."""

from __future__ import annotations

from uge.attacks.base import Context, Entry
from uge.errors import UsageError
from uge.learning.training import History


def combination(first: Entry, second: Entry) -> Entry:
    """One attack after another; the order does not matter where only one of them prepares.

    Args:
        first: Changes images, recipe or starting weights (its ``prepare``).
        second: Any attack.

    Raises:
        UsageError: Both replace the training itself, so that neither can go before the other.
    """
    if first.prepare is None:
        first, second = second, first
    prepare, also = first.prepare, second.prepare
    if prepare is None:
        raise UsageError(
            f"a combination needs one attack that only prepares images, recipe or weights, but one '{first.about}' "
            f"and the other '{second.about}'; replace one by a preprocessing attack"
        )

    def run(context: Context) -> History:
        return second.run(prepare(context))

    return Entry(
        run,
        "combination",
        f"{first.about}, and {second.about}",
        cost=first.cost * second.cost,
        expected=max(first.expected, second.expected),
        needs=first.needs | second.needs,
        same_architecture=first.same_architecture or second.same_architecture,
        prepare=None if also is None else lambda context: also(prepare(context)),
        revision=first.revision + second.revision,
    )
