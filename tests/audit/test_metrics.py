"""The summary against numbers computed by hand; warnings and the verdict sentence."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uge.audit.cases import Case, Epoch, case_id
from uge.audit.metrics import Summary, summarize, verdict


def case(role: Any, network: str, last: float, *, best: float | None = None, seed: int = 0, **more: Any) -> Case:
    scheme, data = more.pop("scheme", "direct"), "clean" if role == "clean" else "protected"
    start = more.pop("start", "theta0" if role == "authorized" else "random")
    values = more.pop("values", [last])
    return Case(
        id=case_id(role, network, scheme, data, seed, start=start, variant=more.pop("variant", "")),
        role=role,
        network=network,
        start=start,
        scheme=scheme,
        data=data,
        seed=seed,
        recipe=more.pop("recipe", {"classes": 10, "seed": seed}),
        history=[Epoch(epoch=i + 1, test_accuracy=value) for i, value in enumerate(values)],
        last=last,
        best=last if best is None else best,
        best_epoch=values.index(max(values)) + 1,
        **more,
    )


def three_seeds() -> list[Case]:
    cases = []
    for seed in range(3):
        cases += [
            case("clean", "cnn", 60 + seed, seed=seed),
            case("clean", "resnet", 70.0, seed=seed),
            case("authorized", "cnn", 58 + seed, best=59 + seed, seed=seed),
            case("hacker", "cnn", 20 + 2 * seed, seed=seed),
            case("hacker", "resnet", 12.0, best=16.0, seed=seed),
            case("hacker", "resnet", 18.0, best=23.0, seed=seed, scheme="distill"),
        ]
    return cases


def test_means_by_hand() -> None:
    summary = summarize(three_seeds())
    assert summary.clean == {"cnn": 61.0, "resnet": 70.0}
    assert summary.authorized is not None
    assert summary.authorized.model_dump(include={"network", "last", "best", "clean", "std"}) == {
        "network": "cnn",
        "last": 59.0,
        "best": 60.0,
        "clean": 61.0,
        "std": 1.0,
    }
    assert [(h.network, h.scheme, h.last, h.best, h.std) for h in summary.hackers] == [
        ("cnn", "direct", 22.0, 22.0, 2.0),
        ("resnet", "distill", 18.0, 23.0, 0.0),
        ("resnet", "direct", 12.0, 16.0, 0.0),
    ]
    assert [h.same_architecture for h in summary.hackers] == [True, False, False]
    assert [h.clean for h in summary.hackers] == [61.0, 70.0, 70.0]
    assert (summary.gap, summary.gap_best) == (59.0 - 22.0, 60.0 - 23.0)
    assert summary.strongest is not None
    assert (summary.strongest.network, summary.strongest.scheme) == ("cnn", "direct")
    assert (summary.seeds, summary.chance, summary.warnings) == (3, 10.0, [])
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


def test_verdict_of_a_good_protection() -> None:
    sentence = verdict(summarize(three_seeds()))
    assert "authorised cnn learns about as well as from clean data (59.0% against 61.0% clean)" in sentence
    assert "the hackers tried fail, the strongest being cnn (direct) with 22.0% against 61.0% clean" in sentence
    assert "37.0 points" in sentence
    assert "one seed" not in sentence


@pytest.mark.parametrize(
    ("hacker", "words"), [(20.0, "tried fail"), (40.0, "held back but still learn"), (58.0, "hackers still learn")]
)
@pytest.mark.parametrize(
    ("authorized", "learns"), [(59.0, "about as well"), (50.0, "with a loss"), (30.0, "does not learn properly")]
)
def test_verdict_thresholds(hacker: float, words: str, authorized: float, learns: str) -> None:
    cases = [case("clean", "cnn", 60.0), case("authorized", "cnn", authorized), case("hacker", "cnn", hacker)]
    sentence = verdict(summarize(cases))
    assert words in sentence
    assert learns in sentence
    assert "with one seed, differences under about 3 points mean nothing" in sentence
    assert ("no real advantage" in sentence) == (authorized - hacker <= 3)


def test_verdict_uses_the_smaller_gap() -> None:
    cases = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 20.0, best=40.0)]
    assert "the gap is 18.0 points (best epochs)" in verdict(summarize(cases))


WARNINGS = {
    "No clean control for resnet": [case("hacker", "resnet", 20.0)],
    "below twice chance": [case("clean", "bad", 15.0), case("hacker", "bad", 12.0)],
    "Hacker above its own clean control: cnn (direct)": [case("hacker", "cnn", 61.0)],
    "Fewer than 3 seeds (1)": [],
    "differ by more than 5 points for cnn (direct)": [case("hacker", "cnn", 20.0, best=30.0)],
    "Still improving at the end: hacker cnn (direct)": [case("hacker", "cnn", 20.0, values=[10.0, 15.0, 20.0])],
    "different recipes": [case("hacker", "cnn", 20.0), case("hacker", "cnn", 20.0, seed=1, recipe={"lr": 1})],
    "clearly below the first, which the gap is about: small": [
        case("authorized", "small", 40.0),
        case("clean", "small", 60.0),
    ],
}


@pytest.mark.parametrize("sentence", WARNINGS)
def test_warning(sentence: str) -> None:
    base = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 20.0, scheme="distill")]
    found = [warning for warning in summarize(base + WARNINGS[sentence]).warnings if sentence in warning]
    assert len(found) == 1
    assert found[0].endswith(".")
    expected = set() if sentence.startswith("Fewer") else {sentence}
    assert expected.isdisjoint(summarize(base).warnings)


def test_without_key_or_hackers() -> None:
    summary = summarize([case("clean", "cnn", 60.0), case("hacker", "cnn", 20.0)])
    assert (summary.authorized, summary.gap, summary.gap_best) == (None, None, None)
    assert any("no key" in warning for warning in summary.warnings)
    assert verdict(summary).startswith("The authorised network was not tested (no key); the hackers tried fail")
    assert any("No hacker" in warning for warning in summarize([case("authorized", "cnn", 60.0)]).warnings)
    assert "no hacker was tried" in verdict(summarize([]))


def test_unjudged_hackers_do_not_hide_one_that_learns() -> None:
    base = [case("clean", "cnn", 60.0), case("hacker", "resnet", 20.0)]
    assert "cannot all be judged" in verdict(summarize([*base, case("hacker", "cnn", 20.0)]))
    assert "hackers still learn" in verdict(summarize([*base, case("hacker", "cnn", 58.0)]))


def test_control_prefers_the_same_start_and_scheme() -> None:
    controls = [
        case("clean", "cnn", 60.0),
        case("clean", "cnn", 64.0, start="theta0"),
        case("clean", "cnn", 50.0, scheme="distill"),
    ]
    protected = [
        case("authorized", "cnn", 58.0),
        case("hacker", "cnn", 20.0),
        case("hacker", "cnn", 21.0, scheme="distill"),
    ]
    summary = summarize(controls + protected)
    assert summary.clean == {"cnn": 60.0}
    assert summary.authorized is not None
    assert summary.authorized.clean == 64.0
    assert {h.scheme: h.clean for h in summary.hackers} == {"direct": 60.0, "distill": 50.0}


def test_two_keys_of_one_architecture_stay_apart() -> None:
    cases = [
        case("clean", "cnn", 60.0, start="theta0"),
        case("clean", "cnn", 62.0, start="theta0", variant="key1"),
        case("authorized", "cnn", 58.0),
        case("authorized", "cnn", 40.0, variant="key1"),
        case("hacker", "cnn", 20.0, scheme="distill"),
        case("hacker", "cnn", 30.0, scheme="distill", variant="key1"),
    ]
    summary = summarize(cases)
    assert [(a.last, a.clean) for a in summary.authorized_all] == [(58.0, 60.0), (40.0, 62.0)]
    assert [(h.name, h.last) for h in summary.hackers] == [("cnn (distill, key 1)", 30.0), ("cnn (distill)", 20.0)]
    assert summary.gap == 28.0


def test_still_improving_ignores_a_plateau_and_a_late_lucky_epoch() -> None:
    assert not case("clean", "cnn", 60.0, values=[20.0, 50.0, 59.0, 60.0, 59.5, 60.4]).still_improving
    assert case("clean", "cnn", 60.0, values=[20.0, 30.0, 40.0, 50.0]).still_improving
    assert not case("clean", "cnn", 60.0, values=[60.0]).still_improving


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["direct", "distill"]), st.floats(0, 100)), min_size=1)
)
def test_gap_is_never_larger_than_against_any_hacker(rows: list[tuple[str, str, float]]) -> None:
    cases = [case("hacker", network, last, seed=i, scheme=scheme) for i, (network, scheme, last) in enumerate(rows)]
    summary = summarize([*cases, case("authorized", "a", 50.0)])
    assert summary.gap is not None
    assert all(summary.gap <= 50.0 - hacker.last + 1e-9 for hacker in summary.hackers)
    assert verdict(summary).endswith(".")
    assert summarize(reversed([*cases, case("authorized", "a", 50.0)])).clean == summary.clean
