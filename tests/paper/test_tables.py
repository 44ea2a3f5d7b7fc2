"""The lists of cells at the real scales: complete, each paper number once, work shared."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sections import cell_at

from uge.config import ProtectConfig
from uge.errors import UnknownNameError, UsageError
from uge.networks.table import check_name
from uge.paper.laboratory import protect_config
from uge.paper.ledger import PaperLedger
from uge.paper.plan import Cell, Experiment, plan
from uge.paper.scale import DATA, SCALES, Scale, parse_data, scale
from uge.paper.specs import ORIGINAL, Unit
from uge.paper.tables import EXPERIMENTS, TableSpecs, experiments, paper_table

PRINTED = {"table2": 16, "table3": 24, "table7": 14, "table8": 16, "table9": 29}
each_scale = pytest.mark.parametrize("size", SCALES.values(), ids=SCALES)


def one(name: str, size: Scale, **given: str) -> Experiment:
    return experiments(name, TableSpecs(size, given))[0]


def cells(experiment: Experiment) -> Iterator[Cell]:
    return (cell for section in experiment.sections for cell in section.cells)


def all_units(size: Scale) -> set[Unit]:
    return {u for e in experiments("all", TableSpecs(size)) for cell in cells(e) for u in cell.all_units}


@each_scale
def test_table_1_holds_every_number_of_the_paper_at_its_place(size: Scale) -> None:
    experiment = one("table1", size)
    assert [section.title for section in experiment.sections] == ["CIFAR-10", "CIFAR-100", "TinyImageNet"]
    for section in experiment.sections:
        paper = paper_table("table1", section.title)
        assert section.columns == tuple(next(iter(paper.values())))
        assert len({(c.row, c.column) for c in section.cells}) == len(section.cells)
        for row, numbers in paper.items():
            for column in numbers:
                number = numbers[column]
                beside = [cell.paper for cell in section.cells if (cell.row, cell.column) == (row, column)]
                assert beside == ([] if number is None else [number])
        assert not section.added & paper.keys()
        assert {"Keyed (ours)/Normal", "Keyed (ours)/Distill"} <= section.added
        assert len(section.cells) == 6 * (2 * len(section.columns) - 1)


@each_scale
@pytest.mark.parametrize(("name", "count"), PRINTED.items())
def test_other_tables_hold_every_number_of_the_paper_once(name: str, count: int, size: Scale) -> None:
    experiment, paper = one(name, size), paper_table(name)
    beside = [(cell.row, cell.column, cell.paper) for cell in cells(experiment) if cell.paper is not None]
    printed = [number for numbers in paper.values() for number in numbers.values() if number is not None]
    assert len(beside) == len({(row, column) for row, column, _ in beside}) == len(printed) == count
    assert all(paper[row][column] == number for row, column, number in beside)


@each_scale
def test_every_cell_has_a_run_per_repetition_that_the_product_knows(size: Scale) -> None:
    size = size.changed(seeds=2)
    for experiment in experiments("all", TableSpecs(size)):
        for cell in cells(experiment):
            assert len(cell.units or cell.federations) == 2
    for unit in all_units(size):
        check_name(unit.network)
        assert unit.scheme == ("distill" if unit.teacher else "direct")
        assert unit.teacher is None or unit.teacher.of == unit.of
        if unit.of.method != ORIGINAL:
            config = protect_config(unit.of)
            assert isinstance(config, ProtectConfig)
            assert (config.method, config.limit, config.size) == (unit.of.method, size.limit, size.size)


@each_scale
def test_ids_name_one_result_each(size: Scale) -> None:
    units = all_units(size.changed(seeds=2))
    assert len({unit.id for unit in units}) == len(units)
    assert max(Counter(unit.id.lower() for unit in units).values()) == 1
    copies = {unit.of for unit in units}
    assert len({copy.id for copy in copies}) == len(copies)


def test_repetitions_are_protected_anew_and_the_originals_are_not() -> None:
    units = all_units(scale("cpu").changed(seeds=3))
    seeds = Counter(copy.method for copy in {unit.of for unit in units if unit.of.images.name == "cifar10"})
    assert seeds[ORIGINAL] == 1
    assert seeds["unlearn"] == seeds["undistill"] == 3
    assert all(protect_config(u.of).seed == u.seed for u in units if u.of.method != ORIGINAL)


def test_tables_share_what_they_have_in_common() -> None:
    size = scale("cpu")
    ours = cell_at(one("table3", size).sections[0], "L_fd only", "CIFAR-10 protected")
    first = one("table1", size).sections[0]
    unlearn = cell_at(first, "Unlearn/Normal", "authorised")
    clean = cell_at(first, "Original/Normal", "CNN")
    assert ours.units == unlearn.units
    others = [cell for name in ("table2", "table7", "table8", "fig3", "fig7") for cell in cells(one(name, size))]
    controls = {unit for cell in others for group in cell.control for unit in group}
    controls = {
        unit for unit in controls if (unit.network, unit.role, unit.of.images.name) == ("cnn", "hacker", "cifar10")
    }
    assert controls == {clean.units[0][0]}
    cifar10 = next(section for section in one("fig3", size).sections if section.title == "CIFAR-10")
    at_004 = cell_at(cifar10, "ρ = 0.04", "CNN normal")
    expected = Cell("UGEs/Normal", "CNN", 26.46, at_004.units, at_004.control)
    assert cell_at(first, "UGEs/Normal", "CNN") == expected


def test_everything_at_once_is_no_more_than_the_union() -> None:
    specs = TableSpecs(scale("cpu"))
    apart = [plan(experiments(name, specs)) for name in EXPERIMENTS]
    together = plan(experiments("all", specs))
    assert set(together.alone) == {unit for part in apart for unit in part.alone}
    assert len(together.alone) == len(set(together.alone)) < sum(len(part.alone) for part in apart)
    assert all(unit.teacher in together.alone for unit in together.taught)


def test_the_paper_scale_is_tables_5_and_6() -> None:
    size = scale("paper")
    by_data = {c.images.name: protect_config(c) for c in {u.of for u in all_units(size)} if c.method == "uge"}
    assert {name: (c.loss.lambda_ud, c.loss.omega, c.loss.temperature) for name, c in by_data.items()} == {
        "cifar10": (0.1, 0.1, 4.0),
        "cifar100": (0.1, 0.1, 20.0),
        "tinyimagenet": (1.0, 0.01, 20.0),
    }
    assert by_data["cifar10"].generator.max_steps == 50 * -(-50000 // 128)
    assert by_data["tinyimagenet"].generator.max_steps == 100 * -(-100000 // 128)
    assert {c.generator.tolerance for c in by_data.values()} == {0}, "Table 6's epochs are run to the end"
    assert size.recipe("cifar10", "cnn").optimizer == "adam"
    assert size.recipe("cifar10", "resnet18").epochs == 160
    assert size.limit is None


def test_hackers_of_table_9_train_by_their_own_recipe() -> None:
    run = TableSpecs(scale("paper")).federation("cifar10", seed=0)
    assert (run.recipe.epochs, run.recipes["cnn"].optimizer, run.recipes["cnn"].epochs) == (160, "adam", 100)
    alike = TableSpecs(scale("cpu")).federation("cifar10", seed=0)
    assert not alike.recipes


@pytest.mark.parametrize(
    ("folder", "tables"), [("cpu", ["table3"]), ("cpu-bf16", ["table1", "table2", "table8", "table9", "fig3"])]
)
def test_all_published_results_still_count(folder: str, tables: list[str]) -> None:
    """A file that another revision of a method made must be taken down."""
    place, specs = Path(__file__).parents[2] / "results" / "reproduce" / folder, TableSpecs(scale("cpu"))
    ledger, wanted = PaperLedger(place), plan(experiment for name in tables for experiment in experiments(name, specs))
    units = {unit for unit in (*wanted.alone, *wanted.taught) if unit.of.images.name == "cifar10"}
    made = {copy for copy in wanted.copies if copy.images.name == "cifar10"} | set(wanted.federations)
    counted = {unit.id for unit in units if ledger.case(unit) is not None}
    counted |= {spec.id for spec in made if ledger.result(spec) is not None}
    published = {path.stem for name in ("cases", "protections", "federated") for path in (place / name).glob("*.json")}
    assert published == counted
    assert published


def test_images_that_a_wave_key_protects_are_not_rotated() -> None:
    keyed = [u for u in all_units(scale("paper")) if u.of.method == "keyed" and u.of.images.name == "tinyimagenet"]
    plain = [u for u in all_units(scale("paper")) if u.of.method == "uge" and u.of.images.name == "tinyimagenet"]
    assert {unit.recipe.augment for unit in keyed} == {"crop-flip"}
    assert {unit.recipe.augment for unit in plain} == {"rotate-flip"}


def test_a_stand_in_keeps_its_own_name() -> None:
    shown = [s.title for s in one("table1", scale("cpu"), tinyimagenet20="somewhere").sections]
    assert shown[-1] == DATA["tinyimagenet20"].label != DATA["tinyimagenet"].label
    last = one("table1", scale("cpu"), tinyimagenet20="somewhere").sections[-1]
    assert all(cell.paper is None for cell in last.cells)
    smoke = one("table1", scale("smoke"), cifar10="here")
    assert [section.stand_in for section in smoke.sections] == ["", "photos", "photos"]


def test_a_shorter_run_keeps_its_milestones_in_place() -> None:
    size = scale("paper").changed(epochs=16, limit=500)
    recipe = size.recipe("cifar10", "resnet18")
    assert (recipe.epochs, recipe.milestones) == (16, (8, 12))
    assert (size.limit_test, scale("cpu").changed(limit=500).limit_test) == (None, 500)
    assert all(unit.recipe.epochs == 16 and unit.of.images.limit == 500 for unit in all_units(size))


def test_the_plain_cnn_takes_another_recipe() -> None:
    size = scale("paper").changed(cnn_recipe="paper-cifar10-cnn-sgd", epochs=20)
    assert (size.recipe("cifar10", "cnn").optimizer, size.recipe("cifar10", "cnn").milestones) == ("sgd", (10, 15))
    assert size.recipe("cifar10", "resnet18") == scale("paper").changed(epochs=20).recipe("cifar10", "resnet18")
    with pytest.raises(UsageError, match="own, not cpu"):
        scale("cpu").changed(cnn_recipe="paper-cifar10-cnn-sgd")


def test_wrong_names_and_numbers_are_refused() -> None:
    for wrong in (("cifar10",), ("cifar10=",), ("cifar10=a", "cifar10=b")):
        with pytest.raises(UsageError):
            parse_data(wrong)
    with pytest.raises(UnknownNameError, match="cifar10"):
        parse_data(("cifar=a",))
    with pytest.raises(UnknownNameError, match="table1"):
        experiments("tabel1", TableSpecs(scale("smoke")))
    with pytest.raises(UnknownNameError):
        scale("large")
    with pytest.raises(UsageError, match="--epochs"):
        scale("cpu").changed(epochs=0)
    with pytest.raises(UsageError, match="no cell"):
        plan(experiments("table2", TableSpecs(scale("cpu"))), ["ResNet-99"])


def test_an_absurd_number_of_seeds_is_refused_before_plans_are_made() -> None:
    with pytest.raises(UsageError, match="--seeds must be at most 1000, got 1001"):
        scale("cpu").changed(seeds=1001)
