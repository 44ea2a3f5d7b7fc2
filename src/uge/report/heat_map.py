"""The heat map: attacks down, networks across, the hackers' accuracy in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uge.auditing.summary import HackerResult, Result, Summary
from uge.names import behind_key
from uge.report.tables import HELD, by_family

_STOPS = ("ffffe5", "fff7bc", "fee391", "fec44f", "fe9929", "ec7014", "cc4c02", "993404", "662506")
"""ColorBrewer's YlOrBr: lightness falls evenly, and it reads the same to colour-blind people."""
OPEN = 24
"""Number of attacks up to which all rows are shown."""
SHOWN = 3
"""Rows of a family that are shown where there are more attacks."""


@dataclass(frozen=True)
class Cell:
    """Means of one group of cases; ``paper`` and ``ink`` are the colours of background and text, if it has any."""

    last: float
    best: float
    paper: str
    ink: str
    seeds: int
    note: str = ""
    strongest: bool = False


@dataclass(frozen=True)
class AttackRow:
    """One row: the attack, its description, the hacker's assets, and a cell (or None) for each network."""

    name: str
    about: str
    held: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class FamilyRows:
    """The rows of one family, the strongest first: those shown, and those folded away."""

    name: str
    shown: list[AttackRow]
    folded: list[AttackRow]
    worst: float


@dataclass(frozen=True)
class HeatMap:
    """The whole map: a column for each network, or for each protection of a comparison."""

    columns: list[str]
    clean: AttackRow | None
    authorized: list[AttackRow]
    families: list[FamilyRows]
    scale: Scale


@dataclass(frozen=True)
class Scale:
    """Colours of accuracies from ``low`` (chance) to ``high`` (the best clean control)."""

    low: float
    high: float

    def cell(self, result: Result, *, note: str = "", strongest: bool = False) -> Cell:
        """A result in the colours of its last epoch."""
        return Cell(result.last, result.best, *self.colours(result.last), result.seeds, note, strongest)

    def control(self, value: float) -> Cell:
        """A clean control, of which the last epoch alone is known."""
        return Cell(value, value, *self.colours(value), 0)

    def colours(self, value: float) -> tuple[str, str]:
        """Colours of background and text."""
        return shade((value - self.low) / (self.high - self.low))

    @property
    def steps(self) -> list[str]:
        """Nine backgrounds from ``low`` to ``high``."""
        return [shade(i / 8)[0] for i in range(9)]


def scale_of(summaries: Sequence[Summary]) -> Scale:
    """From chance to the largest accuracy of all."""
    accuracies = [value for summary in summaries for value in summary.clean.values()]
    for summary in summaries:
        results = (*summary.hackers, *summary.yardsticks, *summary.authorized_all)
        accuracies += [result.last for result in results]
    low = min((summary.chance or 0.0 for summary in summaries), default=0.0)
    return Scale(low, max([*accuracies, low + 1]))


def heat_map(summary: Summary) -> HeatMap | None:
    """Arrange the results; ``None`` without any."""
    networks = sorted({hacker.network for hacker in summary.hackers}) or sorted(summary.clean)
    if not networks and not summary.authorized_all:
        return None
    networks = networks or [summary.authorized_all[0].network]
    scale = scale_of([summary])
    top = summary.strongest

    def row(scheme: str, results: Sequence[HackerResult]) -> AttackRow:
        # Of two keys the stronger hacker: a cell must not hide it.
        mine = {result.network: result for result in sorted(results, key=lambda result: result.last)}
        marked = top.network if top and top.scheme == scheme and results[0] in summary.hackers else None
        cells = [scale.cell(mine[name], strongest=name == marked) if name in mine else None for name in networks]
        return AttackRow(scheme, results[0].about, HELD[results[0].holds], cells)

    shown = SHOWN if len({hacker.scheme for hacker in summary.hackers}) > OPEN else None
    families = []
    for name, attacks in by_family(summary).items():
        lines = [row(scheme, results) for scheme, results in attacks.items()]
        worst = max(result.last for results in attacks.values() for result in results)
        families.append(FamilyRows(name, lines[:shown], lines[shown:] if shown else [], worst))
    clean = [summary.clean.get(network) for network in networks]
    controls = [None if value is None else scale.control(value) for value in clean]
    return HeatMap(
        columns=networks,
        clean=AttackRow("clean control", "trained on the originals", "", controls) if any(controls) else None,
        authorized=[_authorized(result, networks) for result in summary.authorized_all],
        families=families,
        scale=scale,
    )


def _authorized(result: Result, networks: Sequence[str]) -> AttackRow:
    """A row with its cell in the column of the network, or of the same one without its wave key; else in the first."""
    plain = behind_key(result.network)
    column = next((networks.index(name) for name in (result.network, plain) if name in networks), 0)
    note = "" if networks[column] == result.network else result.network
    cells: list[Cell | None] = [None] * len(networks)
    cells[column] = Cell(result.last, result.best, "", "", result.seeds, note)
    return AttackRow("authorised" + (f", key {result.key}" if result.key else ""), "from its key", "", cells)


def shade(share: float) -> tuple[str, str]:
    """Colours of background and text for a share from 0 (pale) to 1 (dark); outside it is clipped."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    a, b = (tuple(int(_STOPS[low + i][j : j + 2], 16) for j in (0, 2, 4)) for i in (0, 1))
    mixed = [round(x + (y - x) * (place - low)) for x, y in zip(a, b, strict=True)]
    light = _luminance(mixed)
    # Whichever of near-black and white has the larger contrast by WCAG.
    ink = "#1b1d21" if (light + 0.05) / (0.012 + 0.05) >= 1.05 / (light + 0.05) else "#ffffff"
    return "#" + "".join(f"{value:02x}" for value in mixed), ink


def _luminance(colour: Sequence[int]) -> float:
    parts = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
