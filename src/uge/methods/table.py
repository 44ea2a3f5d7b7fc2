"""The table of methods: keyed, the paper's, published protections, and plug-ins. Needs no torch.

A plug-in is one function of arrays, or a :class:`uge.methods.base.Method` of its own. It is registered in Python by
:func:`method`, or by an installed package as an entry point of the group ``uge.methods``::

    @uge.method("checkerboard")
    def checkerboard(images, labels, levels, seed):
        rows, columns = np.indices(images.shape[1:3])
        board = np.where((rows + columns) % 2, levels, -levels)
        return np.broadcast_to(board[None, :, :, None], images.shape)

    release = uge.protect(images, method="checkerboard")
"""

from collections.abc import Callable
from typing import Any, TypeVar

from uge.errors import UsageError
from uge.methods.authorized import FORMS, Keyed
from uge.methods.base import Method
from uge.methods.baselines import BASELINES, OfFunction
from uge.methods.preview import Preview
from uge.methods.robust.method import Robust
from uge.registry import Registry

Entry = TypeVar("Entry", bound=Callable[..., Any])


def as_method(name: str, entry: Any, about: str = "") -> Method:
    """Row of an object that was registered.

    Args:
        name: Name in the table.
        entry: A :class:`Method`, a subclass of it that takes no arguments, or a function as in :class:`OfFunction`.
        about: One sentence for lists of methods; by default the entry's own.

    Raises:
        UsageError: It is none of these.
    """
    made = entry() if isinstance(entry, type) and issubclass(entry, Method) else entry
    if isinstance(made, Method):
        made.name = name
        made.about = about or made.about
        return made
    if not callable(made) or isinstance(made, type):
        raise UsageError(
            f"the method '{name}' must be a function (images, labels, levels, seed) -> levels or a uge.methods.Method, "
            f"got {entry!r}; register one of these"
        )
    return OfFunction(name, made, about)


METHODS: Registry[Method] = Registry(
    "method",
    {row.name: row for row in (Keyed(), Robust(), *FORMS, *BASELINES, Preview())},
    "uge.methods",
    adapt=as_method,
)
"""Every method by name."""


def method(name: str, *, about: str = "") -> Callable[[Entry], Entry]:
    """Register a protection under a name; decorates a function or a subclass of :class:`uge.methods.Method`.

    Args:
        name: Name for ``--method`` and :func:`uge.protect`.
        about: One sentence for lists of methods; by default the first line of the docstring.

    Raises:
        UsageError: This package has a method of that name, or what is decorated is neither.
    """

    def register(entry: Entry) -> Entry:
        METHODS.register(name, as_method(name, entry, about))
        return entry

    return register


def method_for(*, wave_key: bool) -> str:
    """Name of the first method for authorised networks with, or without, a wave key."""
    return next(name for name, row in METHODS.items() if row.authorizes and row.wave_key == wave_key)
