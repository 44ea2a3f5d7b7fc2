"""The heat map: attacks down, networks across, the hackers' accuracy in every cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uge.auditing.summary import HackerResult, Result, Summary, with_key
from uge.names import behind_key
from uge.report.tables import ASSETS, by_family

# ColorBrewer's YlOrBr: lightness falls evenly, and it reads the same to colour-blind people.
_STOPS = ("ffffe5", "fff7bc", "fee391", "fec44f", "fe9929", "ec7014", "cc4c02", "993404", "662506")
OPEN = 24  # Number of attacks up to which all rows are shown.
SHOWN = 3  # Rows of a family that are shown where there are more attacks.


@dataclass(frozen=True)
class Scale:
    """Colours of accuracies from ``low`` (chance) to ``high`` (the best clean control)."""

    low: float
    high: float

    def colours(self, value: float) -> tuple[str, str]:
        """Colours of background and text."""
        return shade((value - self.low) / (self.high - self.low))

    @property
    def steps(self) -> list[str]:
        """Nine backgrounds from ``low`` to ``high``."""
        return [shade(i / 8)[0] for i in range(9)]


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

    columns: Sequence[str]
    clean: AttackRow | None
    authorized: Sequence[AttackRow]
    families: list[FamilyRows]
    scale: Scale


def scale_of(summaries: Sequence[Summary]) -> Scale:
    """From chance to the largest accuracy of all."""
    accuracies = [value for summary in summaries for value in summary.clean.values()]
    groups = [(*summary.hackers, *summary.yardsticks, *summary.authorized_all) for summary in summaries]
    accuracies += [result.last for group in groups for result in group]
    low = min((summary.chance or 0.0 for summary in summaries), default=0.0)
    return Scale(low, max([*accuracies, low + 1]))


def heat_map(summary: Summary) -> HeatMap | None:
    """Arrange the results of an audit, a column for each network; ``None`` without any."""
    networks = sorted({hacker.network for hacker in summary.hackers}) or sorted(summary.clean)
    networks = networks or [result.network for result in summary.authorized_all[:1]]
    if not networks:
        return None
    # Of two keys the stronger hacker, which comes first: a cell must not hide it.
    attacks = {
        family: {scheme: {result.network: result for result in reversed(results)} for scheme, results in rows.items()}
        for family, rows in by_family([*summary.hackers, *summary.yardsticks]).items()
    }
    return arrange(
        networks,
        scale_of([summary]),
        attacks,
        clean=[summary.clean.get(network) for network in networks],
        authorized=[_authorized(result, networks) for result in summary.authorized_all],
        strongest=summary.hackers[:1],
        shown=SHOWN if len({hacker.scheme for hacker in summary.hackers}) > OPEN else None,
    )


def arrange(
    columns: Sequence[str],
    scale: Scale,
    attacks: Mapping[str, Mapping[str, Mapping[str, HackerResult]]],
    *,
    clean: Sequence[float | None],
    authorized: Sequence[AttackRow],
    strongest: Sequence[HackerResult],
    shown: int | None = None,
) -> HeatMap:
    """Arrange results in rows and columns.

    Args:
        columns: Names of the columns.
        scale: Colours.
        attacks: Family → name of the row → column → result.
        clean: Clean control of each column.
        authorized: Rows of the authorised networks.
        strongest: Results that get a frame.
        shown: Number of rows of a family that are not folded away; all by default.
    """

    def cell(row: str, result: HackerResult) -> Cell:
        note = "" if result.scheme == row else result.scheme
        top = any(result is other for other in strongest)
        return Cell(result.last, result.best, *scale.colours(result.last), result.seeds, note, top)

    def attack_row(name: str, results: Mapping[str, HackerResult]) -> AttackRow:
        first = next(iter(results.values()))
        about, held = (first.about, ASSETS[first.holds]) if first.scheme == name else ("", "")
        cells = [cell(name, results[column]) if column in results else None for column in columns]
        return AttackRow(name, about, held, cells)

    families = []
    for title, named in attacks.items():
        rows = [attack_row(name, results) for name, results in named.items()]
        worst = max(result.last for results in named.values() for result in results.values())
        families.append(FamilyRows(title, rows[:shown], rows[shown:] if shown else [], worst))
    controls = [None if value is None else Cell(value, value, *scale.colours(value), 0) for value in clean]
    return HeatMap(
        columns=columns,
        clean=AttackRow("clean control", "trained on the originals", "", controls) if any(controls) else None,
        authorized=authorized,
        families=families,
        scale=scale,
    )


def _authorized(result: Result, networks: Sequence[str]) -> AttackRow:
    # A row with its cell in the column of the network, or of the same one without its wave key; else in the first.
    names = (result.network, behind_key(result.network))
    column = next((networks.index(name) for name in names if name in networks), 0)
    note = "" if networks[column] == result.network else result.network
    cell = Cell(result.last, result.best, "", "", result.seeds, note)
    cells = [cell if place == column else None for place in range(len(networks))]
    return AttackRow(with_key("authorised", result.key), "from its key", "", cells)


def shade(share: float) -> tuple[str, str]:
    """Colours of background and text for a share from 0 (pale) to 1 (dark); outside it is clipped."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    a, b = (tuple(int(_STOPS[low + i][j : j + 2], 16) for j in (0, 2, 4)) for i in (0, 1))
    mixed = [round(x + (y - x) * (place - low)) for x, y in zip(a, b, strict=True)]
    parts = (value / 255 for value in mixed)
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Whichever of near-black and white has the larger contrast by WCAG.
    ink = "#1b1d21" if (light + 0.05) / (0.012 + 0.05) >= 1.05 / (light + 0.05) else "#ffffff"
    return "#" + "".join(f"{value:02x}" for value in mixed), ink
