"""The paper's tables and figures as lists of cells. Needs no torch.

Every cell says which training runs it is the mean of, and which number of the paper it stands beside. A run
that several tables need has one specification (:mod:`uge.paper.specs`), so it is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from uge.errors import UnknownNameError
from uge.paper.cells import Cell, Experiment, Section
from uge.paper.paper_numbers import NOWHERE, PaperTable, paper_table
from uge.paper.scale import DATA, label
from uge.paper.specifications import HACKERS, Lists
from uge.paper.specs import ORIGINAL, Unit

OURS = "keyed"
VARIANTS = {
    "Original": "original",
    "Unlearn": "unlearn",
    "UnDistill": "undistill",
    "UGEs w-o UD": "uge-no-ud",
    "UGEs": "uge",
    "Keyed (ours)": OURS,
}
"""Rows of Table 1 and the methods behind them; the last is this project's default, not the paper's."""
ULES = {
    "EM": "em",
    "TAP": "tap",
    "NTGA": "ntga",
    "REM": "rem",
    "CUDA": "cuda",
    "L_fd only": "unlearn",
    "random noise": "random",
    "LSP": "lsp",
    "AR": "ar",
    "OPS": "ops",
    "PIL": "pil",
    "Keyed (ours)": OURS,
}
"""Rows of Table 3 and the methods behind them; from ``random noise`` on they are not in the paper's table."""


@dataclass
class _Block:
    """A section under construction."""

    lists: Lists
    data: str
    paper: PaperTable
    cells: list[Cell] = field(default_factory=list)

    @property
    def seeds(self) -> range:
        """The repetitions."""
        return range(self.lists.scale.seeds)

    def add(
        self, row: str, column: str, units: Sequence[Sequence[Unit]], control: Sequence[Unit] = (), *, seek: str = ""
    ) -> None:
        """One cell from its runs by repetition; ``seek`` is the column's name in the paper where that differs."""
        groups = tuple(tuple(group) for group in units)
        paper = self.paper.number(row, seek or column)
        self.cells.append(Cell(row, column, paper, groups, tuple((unit,) for unit in control)))

    def done(self, title: str = "") -> Section:
        rows = tuple(dict.fromkeys(cell.row for cell in self.cells))
        columns = tuple(dict.fromkeys(cell.column for cell in self.cells))
        printed = {cell.row for cell in self.cells if cell.paper is not None}
        added = frozenset(rows) - printed if printed else frozenset[str]()
        images = self.lists.images(self.data).name
        return Section(
            title or label(self.data), rows, columns, tuple(self.cells), frozenset(added),
            images if images != self.data else "",
        )  # fmt: skip


def _rows(block: _Block, variant: str, authorized: Sequence[str], heads: Sequence[str], hackers: Sequence[str]) -> None:
    """A "Normal" row and a "Distill" row per authorised network, for one variant."""
    lists, data, method, seeds = block.lists, block.data, VARIANTS[variant], block.seeds
    clean = method == ORIGINAL
    for number, head in enumerate(heads):
        own = [] if clean else [lists.authorized(data, ORIGINAL, authorized, number, seed) for seed in seeds]
        units = [[lists.authorized(data, method, authorized, number, seed)] for seed in seeds]
        block.add(f"{variant}/Normal", head, units, own)
    for teacher in [None, *range(len(authorized))]:
        several = f"-{teacher + 1}" if teacher is not None and len(authorized) > 1 else ""
        row = f"{variant}/{'Normal' if teacher is None else f'Distill{several}'}"
        for column in hackers:
            name = lists.network(column.removeprefix("hacker "))
            # Where authorised and hackers' columns have the same names, the paper's columns tell them apart.
            seek = column if column in block.paper.columns else column.removeprefix("hacker ")
            control = [] if clean and teacher is None else [lists.clean(data, name, seed) for seed in seeds]
            units = [[lists.hacker(data, method, authorized, name, seed, teacher)] for seed in seeds]
            block.add(row, column, units, control, seek=seek)


def table1(lists: Lists) -> Experiment:
    """The ablation: variants × schemes × hackers × data sets."""
    sections = []
    for data in lists.data_sets("cifar10", "cifar100", "tinyimagenet", "tinyimagenet20"):
        known = data in ("cifar10", "cifar100", "tinyimagenet")
        block = _Block(lists, data, paper_table("table1", DATA[data].label) if known else NOWHERE)
        for variant in VARIANTS:
            _rows(block, variant, [lists.network("ResNet-18")], ["authorised"], HACKERS[data])
        sections.append(block.done())
    return Experiment("table1", "Table 1: ablation", tuple(sections))


def _several(name: str, title: str, authorized: Sequence[str], heads: Sequence[str], hackers: Sequence[str]) -> Maker:
    def make(lists: Lists) -> Experiment:
        block = _Block(lists, "cifar10", paper_table(name))
        for variant in ("Original", "UGEs"):
            _rows(block, variant, [lists.network(one) for one in authorized], heads, hackers)
        return Experiment(name, title, (block.done(),))

    return make


def table3(lists: Lists) -> Experiment:
    """Feature distance alone against other unlearnable examples, on a ResNet-18."""
    block, name = _Block(lists, "cifar10", paper_table("table3")), lists.network("ResNet-18")
    for data in lists.data_sets("cifar10", "cifar100"):
        for row, method in ULES.items():
            control = [lists.clean(data, name, seed) for seed in block.seeds]
            protected = [[lists.victim(data, method, name, seed)] for seed in block.seeds]
            block.add(row, f"{label(data)} clean", [[unit] for unit in control])
            block.add(row, f"{label(data)} protected", protected, control)
    return Experiment("table3", "Table 3: comparison with unlearnable examples", (block.done("ResNet-18"),))


def fig3(lists: Lists) -> Experiment:
    """Accuracy against the budget ρ."""
    sections = []
    for data in lists.data_sets("cifar10", "cifar100"):
        block, hacker = _Block(lists, data, NOWHERE), HACKERS[data][0]
        for rho in ("0", *lists.scale.rhos):
            _budget(block, rho, hacker)
        sections.append(block.done())
    return Experiment("fig3", "Figure 3: accuracy against the budget ρ", tuple(sections), drawn=True)


def _budget(block: _Block, rho: str, hacker: str) -> None:
    """One row of Fig. 3; at ρ = 0 the originals."""
    lists, data, row, clean, seeds = block.lists, block.data, f"ρ = {rho}", rho == "0", block.seeds
    name, nets, method = lists.network(hacker), [lists.network("ResNet-18")], ORIGINAL if clean else "uge"
    own = [lists.authorized(data, ORIGINAL, nets, 0, seed) for seed in seeds]
    control = [lists.clean(data, name, seed) for seed in seeds]
    protected = [[lists.authorized(data, method, nets, 0, seed, rho)] for seed in seeds]
    block.add(row, "authorised", protected, [] if clean else own)
    normal, distilled = (
        [[lists.hacker(data, method, nets, name, seed, teacher, rho)] for seed in seeds] for teacher in (None, 0)
    )
    block.add(row, f"{hacker} normal", normal, [] if clean else control)
    block.add(row, f"{hacker} distilled", distilled, control)


def fig7(lists: Lists) -> Experiment:
    """Accuracy against the number of authorised networks; a plain CNN is the hacker."""
    data, method, hacker = "cifar10", "uge", lists.network("CNN")
    block = _Block(lists, data, NOWHERE)
    seeds, clean = block.seeds, [lists.clean(data, hacker, seed) for seed in block.seeds]
    for count in range(1, lists.scale.networks_most + 1):
        nets, row, numbers = [lists.network("ResNet-18")] * count, f"{count} authorised", range(count)
        protected = [[lists.authorized(data, method, nets, number, seed) for number in numbers] for seed in seeds]
        own = [lists.authorized(data, ORIGINAL, nets, 0, seed) for seed in seeds]
        distilled = [[lists.hacker(data, method, nets, hacker, seed, number) for number in numbers] for seed in seeds]
        block.add(row, "authorised (mean)", protected, own)
        block.add(row, "CNN normal", [[lists.hacker(data, method, nets, hacker, seed)] for seed in seeds], clean)
        block.add(row, "CNN distilled (mean)", distilled, clean)
    return Experiment("fig7", "Figure 7: number of authorised networks", (block.done(),), drawn=True)


def _pictures(name: str, title: str, *data: str) -> Maker:
    def make(lists: Lists) -> Experiment:
        nets = [lists.network("ResNet-18")]
        shown = [lists.copy(one, method, nets, 0) for one in lists.data_sets(*data) for method in ("uge", OURS)]
        return Experiment(name, title, pictures=tuple(dict.fromkeys(shown)))

    return make


def table9(lists: Lists) -> Experiment:
    """Two servers with half of the classes each, one global network."""
    paper = paper_table("table9")
    runs = tuple(lists.federation("cifar10", seed) for seed in range(lists.scale.seeds))
    cells = [
        Cell(row, column, paper.number(row, column), federations=runs) for row in paper.rows for column in paper.columns
        if paper.number(row, column) is not None
    ]  # fmt: skip
    images = lists.images("cifar10").name
    section = Section(
        label("cifar10"), tuple(paper.rows), paper.columns, tuple(cells), stand_in=images if images != "cifar10" else ""
    )
    return Experiment("table9", "Table 9: federated learning", (section,))


Maker = Callable[[Lists], Experiment]
EXPERIMENTS: dict[str, Maker] = {
    "table1": table1,
    "table2": _several(
        "table2", "Table 2: two authorised networks", ["ResNet-18"] * 2, ["Net-1", "Net-2"], ["CNN", "ResNetC-20"]
    ),
    "table3": table3,
    "table7": _several(
        "table7", "Table 7: three authorised networks", ["ResNet-18"] * 3, ["Net-1", "Net-2", "Net-3"], ["CNN"]
    ),
    "table8": _several(
        "table8",
        "Table 8: authorised networks of two architectures",
        ["CNN", "ResNet-18"],
        ["authorised CNN", "authorised ResNet-18"],
        ["hacker CNN", "hacker ResNet-18"],
    ),
    "table9": table9,
    "fig3": fig3,
    "fig4": _pictures("fig4", "Figure 4: original, noise, protected", "cifar10", "cifar100"),
    "fig6": _pictures("fig6", "Figure 6: original, noise, protected", "tinyimagenet", "tinyimagenet20"),
    "fig7": fig7,
}
"""What can be reproduced, by name."""


def experiments(what: str, lists: Lists) -> list[Experiment]:
    """One experiment by name, or all of them.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if what == "all":
        return [make(lists) for make in EXPERIMENTS.values()]
    if what not in EXPERIMENTS:
        raise UnknownNameError("table or figure", what, [*EXPERIMENTS, "all"])
    return [EXPERIMENTS[what](lists)]
