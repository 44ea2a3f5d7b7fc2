"""Help: few flags first, all of them on request, and a missing argument named as it is typed."""

import re

import pytest
from command import run_uge

from uge.cli.help import COMMANDS, FLAGS, SHARED
from uge.cli.main import app
from uge.cli.verbs import VERBS


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))


def names_of(verb: str) -> set[str]:
    return {name for argument in app[verb].assemble_argument_collection() for name in argument.names}


@pytest.mark.parametrize("verb", VERBS)
def test_flags_of_every_command_come_second(verb: str) -> None:
    short = run_uge(verb, "--help").out
    whole = run_uge(verb, "--help-all").out
    assert "more flags: uge" in short
    assert verb in short.partition("more flags")[2]
    assert "more flags: uge" not in whole
    listed = {argument.name for argument in app[verb].assemble_argument_collection() if argument.show}
    missing = {name for name in listed if name.rpartition(".")[2] not in whole}  # Long names are broken.
    assert len(missing) <= len(listed) / 20
    for text in (short, whole):
        assert not re.search(r":(data|class|func):|``|env var", text)
    assert not flags_of(short.partition("╭")[2].rpartition("╯")[0]) & (SHARED - {"--threads", "--device"})


@pytest.mark.parametrize("verb", FLAGS)
def test_a_command_with_many_flags_shows_about_ten(verb: str) -> None:
    named = [name for _, names in FLAGS[verb] for name in names]
    assert len(named) <= 13
    assert not {*named} - names_of(verb), "a flag was renamed: give it its place in the help"
    shown = run_uge(verb, "--help").out
    assert all(name in shown for name in named)


def test_every_command_has_a_group_and_help_shows_it() -> None:
    text = run_uge("--help").out
    assert all(re.search(rf"^│ {verb} ", text, re.MULTILINE) for verb in VERBS)
    places = [text.index(title) for title in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("protect",), "SOURCE is missing; usage: uge protect SOURCE OUT"),
        (("protect", "a"), "OUT is missing; usage: uge protect SOURCE OUT"),
        (("audit", "a"), "--test is missing; usage: uge audit OUT --test TEST"),
        (("protect", "a", "b", "--config"), "--config requires an argument"),
    ],
)
def test_a_missing_argument_is_named_as_it_is_typed(typed: tuple[str, ...], words: str) -> None:
    ran = run_uge(*typed)
    assert ran.code == 2
    assert words in ran.err
