"""Every check finds what it is for, in an audit that is otherwise without doubt, and nothing else."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_cases import case

from uge.auditing.checks import CHECKS, Evidence, overlap
from uge.auditing.summarize import summarize
from uge.auditing.summary import Summary
from uge.cases.case import Case, Epoch

GOOD = {"budget_levels": 10, "linf_levels": 10, "overlap": 0, "test_images": 10_000, "label_agreement": 1.0}


def sound() -> list[Case]:
    cases = []
    for seed in range(3):
        cases += [
            case("clean", "cnn", 60.0, seed=seed),
            case("authorized", "cnn", 59.0, seed=seed),
            case("hacker", "cnn", 20.0 + seed, seed=seed),
            case("hacker", "cnn", 25.0, seed=seed, scheme="grayscale", family="preprocess"),
        ]
    return cases


def only(*roles: str) -> list[Case]:
    return [one for one in sound() if one.role in roles]


def replaced(role: str, **changes: Any) -> list[Case]:
    return [one.model_copy(update=changes) if one.role == role and one.scheme == "direct" else one for one in sound()]


def lost() -> list[Epoch]:
    return [Epoch(epoch=1, loss=2.0, test_accuracy=20.0), Epoch(epoch=2, loss=None, test_accuracy=20.0)]


def climbing() -> list[Epoch]:
    return [Epoch(epoch=n, loss=1.0, test_accuracy=value) for n, value in enumerate((5.0, 12.0, 20.0), 1)]


TROUBLE: dict[str, tuple[list[Case], dict[str, Any], dict[str, Any]]] = {
    "labels": (sound(), {"label_agreement": 0.9}, {}),
    "overlap": (sound(), {"overlap": 3}, {}),
    "budget": (sound(), {"linf_levels": 11}, {}),
    "no-key": (only("clean", "hacker"), {}, {}),
    "no-hacker": (only("clean", "authorized"), {}, {}),
    "failed": (sound(), {}, {"failed": ["hacker-cnn-blur-protected-s0"]}),
    "no-control": (only("authorized", "hacker"), {}, {}),
    "control-low": ([*sound(), case("clean", "bad", 15.0)], {}, {}),
    "control-below-authorized": (replaced("clean", last=50.0, best=50.0), {}, {}),
    "above-control": ([*sound(), *(case("hacker", "cnn", 64.0, seed=s, scheme="mixup") for s in range(3))], {}, {}),
    "no-effect": (replaced("hacker", last=58.0, best=58.0), {}, {}),
    "trained-start": (replaced("authorized", start_accuracy=13.1), {}, {}),
    "retention": (replaced("authorized", last=55.0, best=55.0), {}, {}),
    "diverged": (replaced("hacker", history=lost()), {}, {}),
    "not-converged": (replaced("hacker", history=climbing(), best_epoch=3), {}, {}),
    "best-above-last": (replaced("hacker", best=30.0), {}, {}),
    "few-seeds": ([one for one in sound() if one.seed < 2], {}, {}),
    "small-test": (sound(), {"test_images": 10}, {}),
    "few-attacks": ([one for one in sound() if one.scheme != "grayscale"], {}, {}),
    "mixed-recipes": (
        [one.model_copy(update={"recipe": {"lr": one.seed}}) if one.role == "authorized" else one for one in sound()],
        {},
        {},
    ),
    "weaker-keys": (
        [*sound(), *(case("authorized", "small", 40.0, seed=s) for s in range(3)), case("clean", "small", 41.0)],
        {},
        {},
    ),
}
COMPANY = {"control-below-authorized": {"above-control"}}


def test_every_check_has_its_trouble() -> None:
    assert set(TROUBLE) == set(CHECKS)


def test_a_sound_audit_has_no_doubts() -> None:
    summary = summarize(sound(), classes=10, facts=GOOD)
    assert summary.doubts == []
    assert summary.warnings == []


@pytest.mark.parametrize("name", TROUBLE)
def test_the_check_finds_its_trouble_alone(name: str) -> None:
    cases, facts, more = TROUBLE[name]
    summary = summarize(cases, classes=10, facts={**GOOD, **facts}, **more)
    assert {doubt.check for doubt in summary.doubts} == {name} | COMPANY.get(name, set())
    for doubt in summary.doubts:
        assert doubt.what.endswith(".")
        assert doubt.advice.endswith(".") or not doubt.advice
        assert str(doubt) in summary.warnings


def test_foreign_warnings_come_first_and_survive_the_round_trip() -> None:
    summary = summarize(sound(), classes=10, facts={**GOOD, "overlap": 1}, warnings=["The disk was slow."])
    assert summary.warnings[0] == "The disk was slow."
    assert len(summary.warnings) == 2
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


@pytest.mark.parametrize("name", ["budget", "overlap", "labels"])
def test_data_checks_need_no_cases(name: str) -> None:
    check = CHECKS[name]
    assert check.find(Evidence(facts={**GOOD, **TROUBLE[name][1]}))
    assert not check.find(Evidence(facts=GOOD))
    assert not check.find(Evidence())


@pytest.mark.parametrize(("start", "images"), [(12.9, 10_000), (15.0, 100), (None, 10_000)])
def test_a_start_at_chance_is_no_trouble(start: float | None, images: int) -> None:
    cases, facts = replaced("authorized", start_accuracy=start), {**GOOD, "test_images": images}
    assert "trained-start" not in {doubt.check for doubt in summarize(cases, classes=10, facts=facts).doubts}


def test_only_training_on_the_copy_is_checked_for_mixed_recipes() -> None:
    """Clean controls of an attack may train otherwise; no mean goes over them and others."""
    cases = replaced("clean", recipe={"lr": 0.1})
    cases += [case("clean", "cnn", 60.0, seed=seed, recipe={"lr": 0.2}) for seed in range(3, 6)]
    assert not CHECKS["mixed-recipes"].find(Evidence(cases))
    copy = [one.model_copy(update={"data": "protected", "role": "hacker"}) for one in cases if one.role == "clean"]
    assert CHECKS["mixed-recipes"].find(Evidence(copy)) == ("hacker cnn (direct)",)


@given(st.lists(st.binary(max_size=2)), st.lists(st.binary(max_size=2)))
def test_overlap_counts_test_images_that_were_published(published: list[bytes], test: list[bytes]) -> None:
    found = overlap(iter(published), iter(test))
    assert found == len([one for one in test if one in published])
    assert overlap(published, test * 2) == 2 * found


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 50_000))
def test_a_larger_test_set_never_adds_doubt(authorized: float, hacker: float, images: int) -> None:
    cases = [case("authorized", "cnn", authorized), case("hacker", "cnn", hacker)]

    def doubted(count: int) -> bool:
        return "small-test" in {d.check for d in summarize(cases, facts={"test_images": count}).doubts}

    assert doubted(images) or not doubted(10 * images)


def test_needs_no_torch() -> None:
    code = "import sys, uge.auditing.summarize, uge.auditing.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
