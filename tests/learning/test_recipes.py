import pytest

from uge.data.augment import AUGMENTATIONS
from uge.errors import UnknownNameError, UsageError
from uge.learning.recipes import RECIPES, SCHEDULES, Recipe, recipe

# Tables 5 and 6: learning rate in the epochs counted from 0.
CIFAR10 = {0: 0.1, 79: 0.1, 80: 0.01, 119: 0.01, 120: 0.001, 159: 0.001}
FINE = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 0.0008, 199: 0.0008}
CNN = {0: 1e-3, 50: 1e-3, 99: 1e-3}
TABLES = {
    "paper-cifar10": (160, 4, CIFAR10),
    "paper-cifar10-cnn": (100, 4, CNN),
    "paper-cifar100": (200, 20, FINE),
    "paper-tinyimagenet": (200, 20, FINE),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("steps", [1, 7, 391])
def test_tables_5_and_6(name: str, steps: int) -> None:
    epochs, temperature, rates = TABLES[name]
    paper = RECIPES[name]
    assert (paper.epochs, paper.temperature, paper.batch_size) == (epochs, temperature, 128)
    assert (paper.momentum, paper.weight_decay, paper.alpha) == (0.9, 5e-4, 0.9)
    total = epochs * steps
    for epoch, rate in rates.items():
        for step in (epoch * steps, epoch * steps + steps - 1):
            assert paper.rate(step / total) == pytest.approx(rate), (epoch, step)


def test_augmentation_and_optimiser_of_the_paper() -> None:
    assert RECIPES["paper-cifar10-cnn"].optimizer == "adam"
    assert {name: RECIPES[name].augment for name in TABLES if name != "paper-cifar10-cnn"} == {
        "paper-cifar10": "crop-flip",
        "paper-cifar100": "crop-flip",
        "paper-tinyimagenet": "rotate-flip",
    }


def test_readings_of_the_plain_cnns_recipe() -> None:
    decays, none, sgd = (RECIPES[f"paper-cifar10-cnn{name}"] for name in ("", "-no-decay", "-sgd"))
    assert none == decays.model_copy(update={"weight_decay": 0.0})
    assert (sgd.optimizer, sgd.epochs, sgd.weight_decay) == ("sgd", decays.epochs, decays.weight_decay)


def test_one_cycle_rises_to_the_peak_and_falls() -> None:
    rates = [Recipe(lr=0.2).rate(step / 100) for step in range(101)]
    assert max(rates) == rates[25] == pytest.approx(0.2)
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[0] == pytest.approx(0.008)
    assert rates[-1] == pytest.approx(0.002)


def test_cosine_and_constant() -> None:
    cosine = Recipe(schedule="cosine", lr=1)
    assert [cosine.rate(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert {Recipe(schedule="constant", lr=0.3).rate(p) for p in (0, 0.3, 1)} == {0.3}


def test_choices_are_those_of_the_tables() -> None:
    fields = Recipe.model_json_schema()["properties"]
    assert set(fields["schedule"]["enum"]) == set(SCHEDULES)
    assert set(fields["augment"]["enum"]) == set(AUGMENTATIONS)


def test_changes() -> None:
    assert recipe("short", epochs=3, lr=0.5) == RECIPES["short"].model_copy(update={"epochs": 3, "lr": 0.5})


def test_refuses() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'short'"):
        recipe("shrt")
    for change in ({"epochs": 0}, {"lr": -1}, {"optimizer": "lion"}, {"no_such": 1}):
        with pytest.raises(UsageError, match="cannot take"):
            recipe("short", **change)
