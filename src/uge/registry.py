"""Tables of what can be chosen by name: own rows, and rows that other packages register."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from uge.errors import UnknownNameError, UsageError

Row = TypeVar("Row")
log = logging.getLogger(__name__)


class Registry(Mapping[str, Row], Generic[Row]):
    """One table, for instance of all attacks.

    A third party adds a row in Python by :meth:`register`, or by an entry point, whose name is the row's name. An entry
    point is loaded when its row is looked up, not when names are listed.

    Args:
        kind: Kind of row in messages, for instance ``"attack"``.
        rows: Rows of this package.
        group: Group of entry points, for instance ``"uge.attacks"``.
        adapt: Turns a registered object into a row; raises UsageError if that is impossible.
        hint: A sentence that is added to the message about an unknown name.

    Example:
        >>> colours = Registry("colour", {"red": 1}, "uge.colours", adapt=lambda name, entry: int(entry))
        >>> colours.register("blue", "2")
        >>> sorted(colours), colours["blue"]
        (['blue', 'red'], 2)
    """

    def __init__(
        self, kind: str, rows: Mapping[str, Row], group: str, *, adapt: Callable[[str, Any], Row], hint: str = ""
    ) -> None:
        self.kind = kind
        self.group = group
        self.hint = hint
        self._adapt = adapt
        self._rows = dict(rows)
        self._own = frozenset(rows)
        self._plugins: dict[str, EntryPoint] | None = None

    def register(self, name: str, entry: Any) -> None:
        """Add a row.

        Args:
            name: Name of the row.
            entry: The row, or what ``adapt`` makes one of.

        Raises:
            UsageError: This package has a row of that name, or no row can be made of ``entry``.
        """
        if name in self._own:
            raise UsageError(f"expected a new name for the {self.kind}, got '{name}', which UGE has itself; rename it")
        self._rows[name] = self._adapt(name, entry)

    def origin(self, name: str) -> str:
        """Package that registered a row by an entry point; empty for own rows and rows registered in Python."""
        point = self._points().get(name)
        return point.dist.name if point is not None and point.dist is not None else ""

    def __getitem__(self, name: str) -> Row:
        """Row of a name.

        Raises:
            UnknownNameError: No row has this name.
            UsageError: The package that registered it cannot be imported.
        """
        if name not in self._rows:
            point = self._points().get(name)
            if point is None:
                raise UnknownNameError(self.kind, name, self, self.hint)
            self._rows[name] = self._load(point)
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._points()

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from (name for name in self._points() if name not in self._rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _points(self) -> dict[str, EntryPoint]:
        if self._plugins is None:
            self._plugins = {}
            for point in entry_points(group=self.group):
                if point.name in self._own:
                    log.warning("the %s '%s' of %s is left out: UGE has that name itself", self.kind, point.name, point)
                else:
                    self._plugins[point.name] = point
        return self._plugins

    def _load(self, point: EntryPoint) -> Row:
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the {self.kind} '{point.name}' cannot be loaded from '{point.value}': "
                f"{type(error).__name__}: {error}; mend or remove the package that registers it"
            ) from error
        return self._adapt(point.name, loaded)
