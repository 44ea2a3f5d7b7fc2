"""Tables of things chosen by name: rows of this package, and rows that other packages register."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from uge.errors import UGEError, UnknownNameError, UsageError

Row = TypeVar("Row")
Registered = TypeVar("Registered")
log = logging.getLogger(__name__)


class UnknownRowError(UnknownNameError, KeyError):
    """A name that a table does not have; a KeyError as well, so that ``get`` works as for every mapping."""

    __str__ = Exception.__str__  # A KeyError would put quotation marks around its sentence.


class Registry(Mapping[str, Row], Generic[Row]):
    """One table, for instance of all attacks.

    A third party adds a row in Python by :meth:`register`, or by an entry point, whose name is the row's name. An entry
    point is loaded when its row is looked up, not when names are listed. It works in every process that imports this
    package; a row registered in Python exists only in processes that run the line which registers it.

    Args:
        kind: Kind of row in messages, for instance ``"attack"``.
        rows: Rows of this package.
        group: Group of entry points, for instance ``"uge.attacks"``.
        adapt: Turns a name, a registered object and options into a row; raises UsageError if that is impossible.
        hint: A sentence that is added to the message about an unknown name.

    Example:
        >>> colours = Registry("colour", {"red": 1}, "uge.colours", adapt=lambda name, entry: int(entry))
        >>> colours.register("blue", "2")
        '2'
        >>> sorted(colours), colours["blue"]
        (['blue', 'red'], 2)
    """

    def __init__(
        self, kind: str, rows: Mapping[str, Row], group: str, *, adapt: Callable[..., Row], hint: str = ""
    ) -> None:
        self.kind = kind
        self.group = group
        self.hint = hint
        self._adapt = adapt
        self._rows = dict(rows)
        self._own = frozenset(rows)

    def register(self, name: str, entry: Registered, **options: Any) -> Registered:
        """Add a row.

        Args:
            name: Name of the row.
            entry: The row, or an object that ``adapt`` turns into one.
            options: Further arguments of ``adapt``.

        Returns:
            ``entry``, as a decorator should.

        Raises:
            UsageError: This package has a row of that name, or no row can be made of ``entry``.
        """
        if name in self._own:
            raise UsageError(f"expected a new name for the {self.kind}, got '{name}', which UGE has itself; rename it")
        self._rows[name] = self._adapt(name, entry, **options)
        return entry

    def origin(self, name: str) -> str:
        """Package that registered a row by an entry point; empty for own rows and rows registered in Python."""
        point = self._points.get(name)
        return point.dist.name if point is not None and point.dist is not None else ""

    def is_own(self, name: str) -> bool:
        """True for a row of this package."""
        return name in self._own

    @contextlib.contextmanager
    def answering(self, name: str) -> Iterator[None]:
        """Turn what the code of a row raises in the block into one sentence, unless the row is of this package.

        Raises:
            UsageError: Code of another package raised an exception or ended the program.
        """
        try:
            yield
        except (UGEError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if self.is_own(name):
                raise
            raise UsageError(
                f"the {self.kind} '{name}' of another package failed ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); mend or remove that package"
            ) from error

    def loadable(self) -> dict[str, Row]:
        """All rows but those of packages that cannot be imported, each of which is logged as a warning."""
        rows = {}
        for name in self:
            try:
                rows[name] = self[name]
            except UsageError as error:
                log.warning("%s", error)
        return rows

    def __getitem__(self, name: str) -> Row:
        """Row of a name.

        Raises:
            UnknownNameError: No row has this name.
            UsageError: The package that registered it cannot be imported.
        """
        if name not in self._rows:
            if name not in self._points:
                raise UnknownRowError(self.kind, name, self, self.hint)
            loaded = self._load(self._points[name])
            if name not in self._rows:  # A decorator in the loaded module may have registered it, with its options.
                self._rows[name] = self._adapt(name, loaded)
        return self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._rows, *self._points]))

    def __len__(self) -> int:
        return len(self._rows.keys() | self._points.keys())

    @functools.cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self._own or point.name in points:
                log.warning("the %s '%s' of %s is left out: its name is taken", self.kind, point.name, point.value)
            else:
                points[point.name] = point
        return points

    def _load(self, point: EntryPoint) -> Any:
        try:
            return point.load()
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the {self.kind} '{point.name}' cannot be loaded from '{point.value}': "
                f"{type(error).__name__}: {error}; mend or remove the package that registers it"
            ) from error


@dataclass(frozen=True)
class Made:
    """A row that is a function, with one line about it."""

    make: Callable[..., Any]
    about: str


def summary_of(entry: Any, about: str = "") -> str:
    """One line about a registered object: ``about``, or the first line of its docstring, or its name."""
    documented = (getattr(entry, "__doc__", None) or "").strip().partition("\n")[0].rstrip(".")
    return about or documented or str(getattr(entry, "__qualname__", entry))
