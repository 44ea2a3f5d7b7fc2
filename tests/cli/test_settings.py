"""Settings: flags over a file over a preset, and what is said when one is wrong."""

from pathlib import Path

import pytest
from command import run_uge

TOML = """
method = "keyed"
authorized = "lenet"
rho = "8/255"
size = 16
max-steps = 3
[recipe]
epochs = 2
lr = 0.05
"""
YAML = """
method: keyed
authorized: lenet
rho: 8/255
size: 16
max-steps: 3
recipe: {epochs: 2, lr: 0.05}
"""


def config_of(*arguments: str | Path) -> dict[str, object]:
    ran = run_uge("protect", *arguments, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    return dict(ran.json["config"])


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML)])
def test_flags_beat_a_file(name: str, text: str, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    found = config_of(toy, tmp_path / "out", "--config", file, "--recipe.epochs", "5")
    assert (found["authorized"], found["rho"], found["size"]) == ("lenet", "8/255", 16)
    assert found["recipe"]["epochs"] == 5
    assert found["recipe"]["lr"] == 0.05
    assert found["generator"]["max_steps"] == 3


def test_variables_go_between_flags_and_a_file(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.toml"
    file.write_text(TOML)
    monkeypatch.setenv("UGE_PROTECT_RHO", "4/255")
    monkeypatch.setenv("UGE_PROTECT_RECIPE_LR", "0.2")
    monkeypatch.setenv("UGE_AUDIT_SEEDS", "none")  # Of another command.
    found = config_of(toy, tmp_path / "out", "--config", file)
    assert (found["rho"], found["recipe"]["lr"], found["size"]) == ("4/255", 0.2, 16)
    assert config_of(toy, tmp_path / "out", "--config", file, "--rho", "6/255")["rho"] == "6/255"
    monkeypatch.setenv("UGE_PROTECT_RHO", "much")
    ran = run_uge("protect", toy, tmp_path / "out", "--config", file, "--dry-run")
    assert ran.code == 2
    assert "much" in ran.err


def test_a_file_may_hold_one_table_per_verb(toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[protect]\nmethod = "keyed"\nauthorized = "lenet"\n[audit]\nseeds = 3\n')
    assert config_of(toy, tmp_path / "out", f"--config={file}")["authorized"] == "lenet"
    assert run_uge("inspect", toy, "--config", file, "--json").code == 0


def test_settings_beside_the_table_of_a_verb_count(toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(
        'method = "keyed"\nauthorized = "cnn"\nrho = "8/255"\n[recipe]\nepochs = 3\nlr = 0.05\n'
        '[protect]\nmethod = "keyed"\nauthorized = "lenet"\n[protect.recipe]\nepochs = 2\n[audit]\nseeds = 3\n'
    )
    found = config_of(toy, tmp_path / "out", "--config", file)
    assert (found["authorized"], found["rho"]) == ("lenet", "8/255")
    assert (found["recipe"]["epochs"], found["recipe"]["lr"]) == (2, 0.05)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('rhoo = "0.04"', "unknown setting 'rhoo' in {file}; did you mean 'rho'?"),
        ('rhoo = "0.04"\n[protect]\nseed = 1', "unknown setting 'rhoo' in {file}; did you mean 'rho'?"),
        ("[recipe]\nepoch = 3", "unknown setting 'recipe.epoch' in {file}; did you mean 'recipe.epochs'?"),
        ("[recipe]\nepochs = 0", "--recipe.epochs: input should be greater than or equal to 1, got '0'"),
        ('seed = "x"', "--seed: input should be a valid integer"),
        ("rho = ", "{file} is no valid TOML"),
        ("xyzzy = 1", "unknown setting 'xyzzy' in {file}; see --help"),
    ],
)
def test_wrong_settings_in_a_file(text: str, words: str, toy: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    ran = run_uge("protect", toy, tmp_path / "out", "--config", file)
    assert (ran.code, ran.out) == (2, "")
    assert words.format(file=file) in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rhoo", "0.04"], "unknown flag '--rhoo'; did you mean '--rho'?"),
        (
            ["--method", "ugly"],
            "--method: unknown method 'ugly'; did you mean 'uge'? (there are: ar, cuda, em, em-class, keyed,",
        ),
        (["--size", "8"], "--size: input should be greater than or equal to 16"),
        (["--threads", "0"], "--threads: input should be greater than or equal to 1"),
        (["--config"], "--config requires an argument"),
        (["--resume", "--overwrite"], "--resume goes on with a run and --overwrite starts again"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_flags(arguments: list[str], words: str, toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "out", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_unknown_verbs_and_missing_arguments(toy: Path) -> None:
    ran = run_uge("protec", toy)
    assert ran.code == 2
    assert 'Did you mean "protect"?' in ran.err
    ran = run_uge("protect", toy)
    assert ran.code == 2
    assert "OUT" in ran.err.upper()
