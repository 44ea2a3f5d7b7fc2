"""Tables and figures of the paper as lists of cells. Needs no torch.

Every cell names the training runs whose mean it is, and the paper's number beside it. A run
that several tables need has one specification (:mod:`uge.paper.specs`), so it is done once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from typing import Any

from uge.errors import UnknownNameError
from uge.learning.recipes import Recipe
from uge.methods.table import METHODS
from uge.methods.uge.settings import LOSSES
from uge.names import KEYED
from uge.paper.plan import Cell, Experiment, Section
from uge.paper.scale import DATA, Scale, label
from uge.paper.specs import ORIGINAL, Copy, Federation, Images, Unit

NETWORKS = {
    "CNN": "cnn",
    "ResNetC-20": "resnetc20",
    "ResNetC-32": "resnetc32",
    "ResNet-18": "resnet18",
    "MobileNetV2": "mobilenetv2",
    "ShuffleNetV2": "shufflenetv2",
}
"""Networks by their names in the paper."""
LARGER = ("MobileNetV2", "ShuffleNetV2", "ResNet-18")
HACKERS = {
    "cifar10": ("CNN", "ResNetC-20", "ResNetC-32", "ResNet-18"),
    "cifar100": LARGER,
    "tinyimagenet": LARGER,
    "tinyimagenet20": LARGER,
}
"""Hackers of Table 1 on each data set."""
RHO = "0.04"
"""Budget of the paper."""
VARIANTS = {
    "Original": "original",
    "Unlearn": "unlearn",
    "UnDistill": "undistill",
    "UGEs w-o UD": "uge-no-ud",
    "UGEs": "uge",
    "Keyed (ours)": "keyed",
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
    "Keyed (ours)": "keyed",
}
"""Rows of Table 3 and the methods behind them; from ``random noise`` on they are not in the paper's table."""
PaperTable = dict[str, dict[str, float | None]]
Run = Callable[..., Unit]
"""Training run once its ``seed`` is given."""


def has_key(method: str) -> bool:
    """True where authorised networks carry a wave key."""
    return method != ORIGINAL and METHODS[method].wave_key


def authorized_name(method: str, network: str) -> str:
    """Name of an authorised network, with the prefix of its wave key."""
    return f"{KEYED}{network}" if has_key(method) else network


@dataclass(frozen=True)
class TableSpecs:
    """Makes the specifications of tables.

    Attributes:
        scale: Sizes, recipes and seeds.
        given: Sources of the data sets that the user has, by name.
    """

    scale: Scale
    given: dict[str, str] = field(default_factory=dict)

    def data_sets(self, *names: str) -> list[str]:
        """Data sets of the paper, and others only where they were given."""
        return [name for name in names if name != "tinyimagenet20" or name in self.given]

    def network(self, name: str) -> str:
        """Network that stands for one of the paper."""
        return self.scale.networks.get(NETWORKS[name], NETWORKS[name])

    def images(self, data: str) -> Images:
        """Clean images of a data set, or of its stand-in."""
        name = self.scale.named(data, self.given)
        return Images(name=name, limit=self.scale.limit, limit_test=self.scale.limit_test, size=self.scale.size)

    def copy(self, data: str, method: str, authorized: Sequence[str], *, seed: int, rho: str | None = RHO) -> Copy:
        """Published copy; the originals are the same for every seed and every network."""
        images = self.images(data)
        if method == ORIGINAL:
            return Copy(images=images, method=method)
        names = tuple(authorized_name(method, name) for name in authorized)
        settings = self._settings(images.name, method, names)
        return Copy(images=images, method=method, authorized=names, rho=rho, seed=seed, settings=settings)

    def authorized(
        self, data: str, method: str, names: Sequence[str], number: int, *, seed: int, rho: str = RHO
    ) -> Unit:
        """Training of authorised network ``number`` from θ0 on a copy (or on the originals)."""
        of = self.copy(data, method, names, seed=seed, rho=rho)
        return Unit(
            of=of,
            role="authorized",
            network=authorized_name(method, names[number]),
            number=number,
            recipe=self._recipe(of, names[number]),
            seed=seed,
        )

    def hacker(
        self,
        data: str,
        method: str,
        authorized: Sequence[str],
        network: str,
        *,
        seed: int,
        teacher: int | None = None,
        rho: str | None = RHO,
    ) -> Unit:
        """Training of a hacker, on labels or on the answers of authorised network ``teacher``."""
        of = self.copy(data, method, authorized, seed=seed, rho=rho)
        return Unit(
            of=of,
            role="hacker",
            network=network,
            scheme="direct" if teacher is None else "distill",
            recipe=self._recipe(of, network),
            seed=seed,
            teacher=None
            if teacher is None
            else self.authorized(data, method, authorized, teacher, seed=seed, rho=rho or RHO),
        )

    def clean(self, data: str, network: str, *, seed: int) -> Unit:
        """Clean control: a hacker on the originals."""
        return self.hacker(data, ORIGINAL, (), network, seed=seed)

    def victim(self, data: str, method: str, network: str, *, seed: int) -> Unit:
        """Network that an unlearnable copy is to hold back; the paper's own runs are those of Table 1."""
        if LOSSES.get(method):
            return self.authorized(data, method, [network], 0, seed=seed)
        if has_key(method):
            return self.hacker(data, method, [network], network, seed=seed)
        return self.hacker(data, method, (), network, seed=seed, rho=None)

    def federation(self, data: str, *, seed: int) -> Federation:
        """Federated run of Table 9: two servers, a ResNet-18 for all of them."""
        images = self.images(data)
        network = self.network("ResNet-18")
        hackers = (self.network("CNN"), network)
        recipes = {name: self.scale.recipe(images.name, name) for name in hackers}
        return Federation(
            images=images,
            method="uge",
            network=network,
            hackers=hackers,
            rho=RHO,
            recipe=recipes[network],
            recipes={name: recipe for name, recipe in recipes.items() if recipe != recipes[network]},
            seed=seed,
            settings=self._settings(images.name, "uge", (network,)),
        )

    def _recipe(self, of: Copy, network: str) -> Recipe:
        recipe = self.scale.recipe(of.images.name, network)
        # A wave key cannot follow rotations, so no network rotates the images that it protects.
        rotated = has_key(of.method) and recipe.augment == "rotate-flip"
        return recipe.model_copy(update={"augment": "crop-flip"}) if rotated else recipe

    def _settings(self, data: str, method: str, names: Sequence[str]) -> dict[str, Any]:
        """Settings of ``uge protect`` that matter to this method."""
        scale = self.scale
        if not LOSSES.get(method):
            options = scale.baselines.get(method)
            return {"baseline": {name: str(value) for name, value in options.items()}} if options else {}
        settings = {**scale.protect, "recipe": scale.recipe(data, names[0]).json_dict()}
        if data in scale.losses:
            settings["loss"] = {**settings.get("loss", {}), **scale.losses[data]}
        if data in scale.steps:
            settings["generator"] = {**settings.get("generator", {}), "max_steps": scale.steps[data]}
        return settings


@cache
def paper_table(name: str, part: str = "") -> PaperTable:
    """Table as printed in the paper (CVPR 2024): row to column to test accuracy in percent, None where it has none.

    Args:
        name: ``"table1"`` and so on.
        part: The data set, as the paper writes it, where a table has one block for each.

    Raises:
        KeyError: There is no such table or part.
    """
    table = json.loads((resources.files("uge.paper") / "paper_tables.json").read_text(encoding="utf-8"))[name]
    table = table[part] if part else table
    return {row: dict(zip(table["columns"], values, strict=True)) for row, values in table["rows"].items()}


@dataclass
class _Block:
    """Section under construction."""

    specs: TableSpecs
    data: str
    paper: PaperTable
    cells: list[Cell] = field(default_factory=list)

    def add(self, row: str, column: str, runs: Sequence[Run], control: Run | None = None) -> None:
        """Add the mean of ``runs``, beside the paper's number."""
        seeds = range(self.specs.scale.seeds)
        units = tuple(tuple(run(seed=seed) for run in runs) for seed in seeds)
        controls = () if control is None else tuple((control(seed=seed),) for seed in seeds)
        # Where authorised and hackers' columns have the same names, the paper's columns tell them apart.
        printed = self.paper.get(row, {})
        number = printed.get(column, printed.get(column.removeprefix("hacker ")))
        self.cells.append(Cell(row, column, number, units, controls))

    def done(self, title: str = "") -> Section:
        rows = tuple(dict.fromkeys(cell.row for cell in self.cells))
        printed = {cell.row for cell in self.cells if cell.paper is not None}
        images = self.specs.images(self.data).name
        return Section(
            title=title or label(self.data),
            rows=rows,
            columns=tuple(dict.fromkeys(cell.column for cell in self.cells)),
            cells=tuple(self.cells),
            added=frozenset(rows) - printed if printed else frozenset(),
            stand_in=images if images != self.data else "",
        )


def _rows(block: _Block, variant: str, authorized: Sequence[str], heads: Sequence[str], hackers: Sequence[str]) -> None:
    """Add a "Normal" row and a "Distill" row per authorised network for one variant."""
    specs = block.specs
    clean = VARIANTS[variant] == ORIGINAL
    for number, head in enumerate(heads):
        own = partial(specs.authorized, block.data, ORIGINAL, authorized, number)
        run = partial(specs.authorized, block.data, VARIANTS[variant], authorized, number)
        block.add(f"{variant}/Normal", head, [run], None if clean else own)
    for teacher in [None, *range(len(authorized))]:
        several = f"-{teacher + 1}" if teacher is not None and len(authorized) > 1 else ""
        row = f"{variant}/{'Normal' if teacher is None else f'Distill{several}'}"
        for column in hackers:
            network = specs.network(column.removeprefix("hacker "))
            control = None if clean and teacher is None else partial(specs.clean, block.data, network)
            run = partial(specs.hacker, block.data, VARIANTS[variant], authorized, network, teacher=teacher)
            block.add(row, column, [run], control)


def table1(specs: TableSpecs) -> Experiment:
    """Ablation: variants × schemes × hackers × data sets."""
    sections = []
    for data in specs.data_sets("cifar10", "cifar100", "tinyimagenet", "tinyimagenet20"):
        block = _Block(specs, data, {} if data == "tinyimagenet20" else paper_table("table1", DATA[data].label))
        for variant in VARIANTS:
            _rows(block, variant, [specs.network("ResNet-18")], ["authorised"], HACKERS[data])
        sections.append(block.done())
    return Experiment("table1", "Table 1: ablation", tuple(sections))


def _several(
    specs: TableSpecs, name: str, title: str, authorized: Sequence[str], heads: Sequence[str], hackers: Sequence[str]
) -> Experiment:
    block = _Block(specs, "cifar10", paper_table(name))
    for variant in ("Original", "UGEs"):
        _rows(block, variant, [specs.network(network) for network in authorized], heads, hackers)
    return Experiment(name, title, (block.done(),))


def table3(specs: TableSpecs) -> Experiment:
    """Feature distance alone against other unlearnable examples, on a ResNet-18."""
    block = _Block(specs, "cifar10", paper_table("table3"))
    network = specs.network("ResNet-18")
    for data in specs.data_sets("cifar10", "cifar100"):
        control = partial(specs.clean, data, network)
        for row, method in ULES.items():
            block.add(row, f"{label(data)} clean", [control])
            block.add(row, f"{label(data)} protected", [partial(specs.victim, data, method, network)], control)
    return Experiment("table3", "Table 3: comparison with unlearnable examples", (block.done("ResNet-18"),))


def fig3(specs: TableSpecs) -> Experiment:
    """Accuracy against the budget ρ; at ρ = 0 on the originals."""
    sections = []
    networks = [specs.network("ResNet-18")]
    for data in specs.data_sets("cifar10", "cifar100"):
        block = _Block(specs, data, {})
        hacker = HACKERS[data][0]
        name = specs.network(hacker)
        own = partial(specs.authorized, data, ORIGINAL, networks, 0)
        control = partial(specs.clean, data, name)
        for rho in ("0", *specs.scale.rhos):
            row = f"ρ = {rho}"
            method = ORIGINAL if rho == "0" else "uge"
            authorized = partial(specs.authorized, data, method, networks, 0, rho=rho)
            run = partial(specs.hacker, data, method, networks, name, rho=rho)
            block.add(row, "authorised", [authorized], None if rho == "0" else own)
            block.add(row, f"{hacker} normal", [run], None if rho == "0" else control)
            block.add(row, f"{hacker} distilled", [partial(run, teacher=0)], control)
        sections.append(block.done())
    return Experiment("fig3", "Figure 3: accuracy against the budget ρ", tuple(sections), drawn=True)


def fig7(specs: TableSpecs) -> Experiment:
    """Accuracy against the number of authorised networks; a plain CNN is the hacker."""
    hacker = specs.network("CNN")
    block = _Block(specs, "cifar10", {})
    clean = partial(specs.clean, block.data, hacker)
    for count in range(1, specs.scale.networks_most + 1):
        row = f"{count} authorised"
        networks = [specs.network("ResNet-18")] * count
        run = partial(specs.hacker, block.data, "uge", networks, hacker)
        authorized = [partial(specs.authorized, block.data, "uge", networks, number) for number in range(count)]
        block.add(row, "authorised (mean)", authorized, partial(specs.authorized, block.data, ORIGINAL, networks, 0))
        block.add(row, "CNN normal", [run], clean)
        block.add(row, "CNN distilled (mean)", [partial(run, teacher=number) for number in range(count)], clean)
    return Experiment("fig7", "Figure 7: number of authorised networks", (block.done(),), drawn=True)


def _pictures(specs: TableSpecs, name: str, title: str, data: Sequence[str]) -> Experiment:
    copy = partial(specs.copy, authorized=[specs.network("ResNet-18")], seed=0)
    shown = [copy(images, method) for images in specs.data_sets(*data) for method in ("uge", "keyed")]
    return Experiment(name, title, pictures=tuple(dict.fromkeys(shown)))


def table9(specs: TableSpecs) -> Experiment:
    """Two servers with half of the classes each, one global network."""
    paper = paper_table("table9")
    runs = tuple(specs.federation("cifar10", seed=seed) for seed in range(specs.scale.seeds))
    block = _Block(specs, "cifar10", paper)
    places = [(row, column, number) for row, numbers in paper.items() for column, number in numbers.items()]
    block.cells += [Cell(*place, federations=runs) for place in places if place[2] is not None]
    section = replace(block.done(), columns=tuple(paper["average"]))
    return Experiment("table9", "Table 9: federated learning", (section,))


EXPERIMENTS: dict[str, Callable[[TableSpecs], Experiment]] = {
    "table1": table1,
    "table2": partial(
        _several,
        name="table2",
        title="Table 2: two authorised networks",
        authorized=["ResNet-18"] * 2,
        heads=["Net-1", "Net-2"],
        hackers=["CNN", "ResNetC-20"],
    ),
    "table3": table3,
    "table7": partial(
        _several,
        name="table7",
        title="Table 7: three authorised networks",
        authorized=["ResNet-18"] * 3,
        heads=["Net-1", "Net-2", "Net-3"],
        hackers=["CNN"],
    ),
    "table8": partial(
        _several,
        name="table8",
        title="Table 8: authorised networks of two architectures",
        authorized=["CNN", "ResNet-18"],
        heads=["authorised CNN", "authorised ResNet-18"],
        hackers=["hacker CNN", "hacker ResNet-18"],
    ),
    "table9": table9,
    "fig3": fig3,
    "fig4": partial(_pictures, name="fig4", title="Figure 4: original, noise, protected", data=["cifar10", "cifar100"]),
    "fig6": partial(
        _pictures, name="fig6", title="Figure 6: original, noise, protected", data=["tinyimagenet", "tinyimagenet20"]
    ),
    "fig7": fig7,
}
"""Tables and figures by name."""


def experiments(name: str, specs: TableSpecs) -> list[Experiment]:
    """Experiment by name, or ``all`` of them.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name != "all" and name not in EXPERIMENTS:
        raise UnknownNameError("table or figure", name, [*EXPERIMENTS, "all"])
    return [make(specs) for known, make in EXPERIMENTS.items() if name in ("all", known)]
