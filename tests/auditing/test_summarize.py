"""The summary against numbers computed by hand; warnings and the verdict sentence."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_cases import case
from scipy import stats

from uge.auditing.summarize import interval, summarize
from uge.auditing.summary import Margin, Summary, extent, separated, verdict
from uge.cases.case import Case
from uge.report.description import headline
from uge.report.tables import text_table


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
    # Seed by seed: 58 - 20, 59 - 22, 60 - 24, and at the best epochs 59 - 23, 60 - 23, 61 - 24.
    assert summary.gap == pytest.approx(37.0)
    assert summary.gap_best == pytest.approx((36 + 37 + 37) / 3)
    assert summary.margin is not None
    assert summary.margin.last_interval == pytest.approx((37 - 2.484, 37 + 2.484), abs=1e-3)
    assert (summary.margin.network_best, summary.margin.scheme_best, summary.margin.seeds) == ("resnet", "distill", 3)
    assert summary.strongest == {"network": "cnn", "scheme": "direct"}
    assert (summary.seeds, summary.chance) == (3, 10.0)
    assert [doubt.check for doubt in summary.doubts] == ["few-attacks"]
    assert Summary.model_validate_json(summary.model_dump_json()) == summary


def test_verdict_of_a_good_protection() -> None:
    sentence = verdict(summarize(three_seeds()))
    assert "authorised cnn learns about as well as from clean data (59.0% against 61.0% clean)" in sentence
    assert "the hackers tried fail, the strongest being cnn (direct) with 22.0% against 61.0% clean" in sentence
    assert "36.7 points (best epochs)" in sentence
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


def test_without_key_or_hackers() -> None:
    summary = summarize([case("clean", "cnn", 60.0), case("hacker", "cnn", 20.0)])
    assert (summary.authorized, summary.gap, summary.gap_best) == (None, None, None)
    assert any("no key" in warning for warning in summary.warnings)
    assert verdict(summary).startswith("The authorised network was not tested (no key); the hackers tried fail")
    opened = summary.model_copy(update={"facts": {"originals_opened": 1200}})
    assert verdict(opened).startswith("All 1,200 sealed originals were opened and compared with the copy, so that")
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
        case("clean", "cnn", 62.0, start="theta0", key=1),
        case("authorized", "cnn", 58.0),
        case("authorized", "cnn", 40.0, key=1),
        case("hacker", "cnn", 20.0, scheme="distill"),
        case("hacker", "cnn", 30.0, scheme="distill", key=1),
    ]
    summary = summarize(cases)
    assert [(a.last, a.clean) for a in summary.authorized_all] == [(58.0, 60.0), (40.0, 62.0)]
    assert [(h.name, h.last) for h in summary.hackers] == [("cnn (distill, key 1)", 30.0), ("cnn (distill)", 20.0)]
    assert summary.gap == 28.0


def test_still_improving_ignores_a_plateau_and_a_late_lucky_epoch() -> None:
    assert not case("clean", "cnn", 60.0, values=[20.0, 50.0, 59.0, 60.0, 59.5, 60.4]).still_improving
    assert case("clean", "cnn", 60.0, values=[20.0, 30.0, 40.0, 50.0]).still_improving
    assert not case("clean", "cnn", 60.0, values=[60.0]).still_improving


@pytest.mark.parametrize(
    ("end", "improving"),
    [
        ([14.0, 22.5, 22.6, 22.7], True),
        ([20.0, 20.0, 24.0, 23.0], True),
        ([20.0, 20.0, 22.0, 22.0], False),  # Exactly 2 points.
        ([21.0, 17.0, 20.0, 21.5], False),
        ([20.0, 25.0, 24.9, 24.9], False),  # The best epoch lies before the last tenth.
    ],
)
def test_still_improving_compares_the_last_two_tenths(end: list[float], improving: bool) -> None:
    assert case("clean", "cnn", end[-1], values=[10.0] * 16 + end).still_improving == improving


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


def test_the_margin_follows_the_strongest_hacker_of_every_seed() -> None:
    cases = [case("authorized", "cnn", 60.0, seed=seed) for seed in (0, 1)]
    cases += [case("hacker", "cnn", last, seed=seed, scheme="a") for seed, last in enumerate((50.0, 20.0))]
    cases += [case("hacker", "cnn", last, seed=seed, scheme="b") for seed, last in enumerate((20.0, 40.0))]
    summary = summarize(cases)
    assert summary.gap == pytest.approx((10 + 20) / 2)
    assert summary.strongest == {"network": "cnn", "scheme": "a"}


@pytest.mark.parametrize("kind", ["gap", "protection"])
def test_the_interval_counts_only_seeds_that_both_sides_have(kind: str) -> None:
    role = "authorized" if kind == "gap" else "clean"
    cases = [case(role, "cnn", 60.0 + seed, seed=seed) for seed in range(3)]
    cases += [case("hacker", "cnn", 20.0 + 3 * seed, seed=seed) for seed in range(3)]
    strong = [case("hacker", "cnn", 50.0 + 4 * seed, scheme="a", seed=seed) for seed in range(3)]

    def margin(*more: Case) -> Margin:
        found = summarize([*cases, *more]).margin
        assert found is not None
        assert found.kind == kind
        return found

    one, two, three = (margin(*strong[:count]) for count in (1, 2, 3))
    assert (one.last, one.seeds, one.last_interval) == (pytest.approx(11.0), 1, None)
    assert (two.last, two.seeds) == (pytest.approx(9.0), 2)
    assert two.last_interval == pytest.approx((9 - 19.06, 9 + 19.06), abs=0.01)  # 60 - 50 and 61 - 54, t = 12.706.
    assert (three.last, three.seeds) == (pytest.approx(7.0), 3)
    assert three.last_interval == pytest.approx((7 - 7.452, 7 + 7.452), abs=0.01)  # 10, 7 and 4, t = 4.303.


@settings(deadline=None)  # The first call imports scipy.
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9))
def test_interval_is_students(values: list[float]) -> None:
    found = interval(values)
    assert found is not None
    mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
    if error > 1e-9:
        assert found == pytest.approx(stats.t.interval(0.95, len(values) - 1, mean, error), abs=1e-6)
    assert interval(values[:1]) is None


def test_one_seed_has_no_interval_and_says_so() -> None:
    base = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 20.0)]
    summary = summarize(base)
    assert summary.margin is not None
    assert summary.margin.last_interval is None
    assert summary.headline == (
        "gap: 38.0 points (one seed) at the last epoch, 38.0 (one seed) at the best; "
        "authorised cnn 58.0 % against cnn by direct with 20.0 %"
    )


def test_without_a_key_the_number_is_the_protection_of_the_strongest_hacker() -> None:
    cases = [
        case("clean", "cnn", 60.0),
        case("clean", "big", 80.0),
        case("hacker", "cnn", 58.0, scheme="jpeg10"),
        case("hacker", "big", 30.0),
    ]
    summary = summarize(cases)
    assert summary.margin is not None
    assert (summary.margin.kind, summary.margin.last, summary.margin.network) == ("protection", 2.0, "cnn")
    assert summary.gap is None
    assert summary.headline.startswith("protection: 2.0 points (one seed)")


def test_margins_by_what_the_hacker_holds() -> None:
    cases = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 20.0)]
    cases += [
        case("hacker", "cnn", 30.0, scheme="mix-clean-10", needs=["clean"]),
        case("hacker", "cnn", 55.0, scheme="theta0", needs=["key"]),
        case("hacker", "checkpoint:vit", 22.0),
    ]
    summary = summarize(cases)
    assert [(m.holds, m.last, m.scheme) for m in summary.margins] == [
        ("nothing", 38.0, "direct"),
        ("public", 36.0, "direct"),
        ("clean", 28.0, "mix-clean-10"),
        ("key", 3.0, "theta0"),
    ]
    assert summary.margin == summary.margins[-1]


def test_a_yardstick_is_nobodys_attack() -> None:
    cases = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 20.0)]
    leak = case("hacker", "cnn", 57.0, scheme="clean-only-50", needs=["clean"], family="yardstick")
    summary = summarize([*cases, leak])
    assert summary.gap == 38.0
    assert [hacker.scheme for hacker in summary.hackers] == ["direct"]
    assert [(one.scheme, one.last) for one in summary.yardsticks] == [("clean-only-50", 57.0)]


@pytest.mark.parametrize(
    ("scheme", "last", "owes_nothing"),
    [
        ("mix-clean-50", 59.9, True),
        ("mix-clean-50", 60.1, False),
        ("semi-supervised-50+jpeg10", 55.0, True),
        ("last-layer-10", 55.0, False),
        ("inversion-500", 55.0, False),
    ],
)
def test_who_gets_no_more_than_his_originals_give_breaks_nothing(scheme: str, last: float, owes_nothing: bool) -> None:
    cases = [case("clean", "cnn", 62.0), case("authorized", "cnn", 61.9), case("hacker", "cnn", 15.0)]
    leak = case("hacker", "cnn", 57.0, scheme="clean-only-50", needs=["clean"], family="yardstick")
    summary = summarize([*cases, leak, case("hacker", "cnn", last, scheme=scheme, needs=["clean"])], classes=10)
    (hacker,) = (one for one in summary.hackers if one.scheme == scheme)
    assert hacker.owes_nothing == owes_nothing
    assert summary.label.startswith("broken by") != owes_nothing
    assert summary.margin is not None
    assert summary.margin.scheme == scheme


@given(st.lists(st.sampled_from(["left", "failed", "planned"]), max_size=3))
def test_a_partial_audit_is_never_called_complete(reasons: list[str]) -> None:
    base = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 15.0)]
    left = [{"attack": "jpeg10", "network": "cnn", "reason": "time"}] if "left" in reasons else []
    summary = summarize(
        base,
        left_out=left,
        failed=["hacker-cnn-blur-protected-s0"] if "failed" in reasons else [],
        planned=5 if "planned" in reasons else 3,
    )
    assert summary.partial == bool(reasons)
    total = {"left": "at least 4", "failed": "4", "planned": "5"}
    if len(set(reasons)) == 1:
        assert f"partial: 3 of {total[reasons[0]]} cases" in summary.headline
    assert ("partial: 3 of " in summary.headline) == bool(reasons)
    assert ("so far" in summary.label) == bool(reasons)
    assert ("left out: jpeg10" in summary.headline) == bool(left)
    assert ("failed: hacker-cnn-blur-protected-s0" in summary.headline) == ("failed" in reasons)


BASE = [case("clean", "cnn", 60.0), case("clean", "keyed:cnn", 60.0), case("authorized", "keyed:cnn", 58.0)]
LABELS = {
    "holds against everything tried": [case("hacker", "cnn", 15.0)],
    "partly: hackers are held back but still learn": [case("hacker", "cnn", 35.0)],
    "does not protect: plain training learns from it": [case("hacker", "cnn", 57.0)],
    "broken by grayscale and 1 more attack": [
        case("hacker", "cnn", 20.0),
        case("hacker", "cnn", 55.0, scheme="grayscale"),
        case("hacker", "cnn", 58.0, scheme="distill"),
    ],
    "not separated from a keyed hacker": [case("hacker", "keyed:cnn", 57.0), case("hacker", "cnn", 20.0)],
    "broken by distill, only with the key or the trained authorised network": [
        case("hacker", "cnn", 57.0, scheme="distill")
    ],
    "broken by theta0, only with the key or the trained authorised network": [
        case("hacker", "keyed:cnn", 57.0, scheme="theta0", needs=["key"]),
        case("hacker", "cnn", 20.0),
    ],
    "not attacked": [],
    "cannot be judged without clean controls that learn": [case("hacker", "other", 20.0)],
}


def test_where_nothing_learns_nothing_is_judged() -> None:
    weak = [case("clean", "cnn", 12.0), case("hacker", "cnn", 12.0)]
    summary = summarize(weak, classes=10)
    assert summary.label == "nothing learned, no judgement"
    assert summary.verdict.startswith(
        "Nothing was learned, not even from the originals (12.0% at most, chance is 10.0%)"
    )
    assert summarize([*weak, case("authorized", "lenet", 60.0)], classes=10).label != "nothing learned, no judgement"
    assert summarize([*weak, case("clean", "resnet8", 50.0)], classes=10).label != "nothing learned, no judgement"


def test_a_hacker_whose_network_hardly_learns_anyway_decides_nothing() -> None:
    """A control at 27 of 60 %, with chance at 10: its hacker at 26 is no sign of a broken protection."""
    good = [case("clean", "cnn", 60.0), case("hacker", "cnn", 15.0)]
    weak = [case("clean", "lenet", 26.0), case("hacker", "lenet", 26.0)]
    assert summarize([*good, *weak], classes=10).label == "cannot be judged without clean controls that learn"
    strong = [case("clean", "lenet", 40.0), case("hacker", "lenet", 39.0)]
    assert summarize([*good, *strong], classes=10).label == "does not protect: plain training learns from it"


@pytest.mark.parametrize("words", LABELS)
def test_label(words: str) -> None:
    assert summarize([*BASE, *LABELS[words]]).label == words


@pytest.mark.parametrize(
    ("known", "words", "count"),
    [
        (None, "holds against everything tried", "2 attacks"),
        (2, "holds against everything tried", "2 attacks"),
        (58, "holds against the 2 attacks tried, of 58", "2 of 58 attacks"),
    ],
)
def test_an_audit_says_how_many_attacks_there_are(known: int | None, words: str, count: str) -> None:
    """Combinations of two are none of their own."""
    hackers = [case("hacker", "cnn", 15.0, scheme=scheme) for scheme in ("direct", "jpeg10", "jpeg10+grayscale")]
    summary = summarize([*BASE, *hackers], facts={"attacks": known})
    assert summary.label == words
    assert extent(summary) == count
    assert f"{count} on 1 network" in headline({}, [], summary)
    assert f", {count}, 1 network, 1 seed" in text_table(summary)


@pytest.mark.parametrize(
    ("scheme", "needs", "words"),
    [
        ("jpeg10", [], "not separated from cnn (jpeg10)"),
        ("other-key", [], "not separated from a keyed hacker"),
        ("mix-clean-10", ["clean"], "not separated from cnn (mix-clean-10), which holds some of the originals as well"),
    ],
)
def test_label_without_a_clean_control(scheme: str, needs: list[str], words: str) -> None:
    cases = [case("authorized", "cnn", 60.0), case("hacker", "cnn", 20.0)]
    assert summarize([*cases, case("hacker", "cnn", 59.0, scheme=scheme, needs=needs)]).label == words


@pytest.mark.parametrize(("classes", "clean", "hacker"), [(200, 1.2, 0.6), (1000, 0.25, 0.1), (100, 4.9, 1.9)])
def test_a_control_that_hardly_learns_clears_nobody(classes: int, clean: float, hacker: float) -> None:
    found = summarize([case("clean", "cnn", clean), case("hacker", "cnn", hacker)], classes=classes)
    assert found.label == "nothing learned, no judgement"
    assert verdict(found).startswith("Nothing was learned")


def test_label_of_an_authorised_network_that_fails() -> None:
    cases = [case("clean", "cnn", 60.0), case("authorized", "cnn", 30.0), case("hacker", "cnn", 55.0)]
    assert summarize(cases).label == "the authorised network does not learn, hackers do"
    assert summarize([*cases[:2], case("hacker", "cnn", 12.0)]).label == "the authorised network does not learn"


def test_variants_of_authorised_training_are_no_part_of_the_number() -> None:
    base = [case("clean", "cnn", 60.0), case("authorized", "cnn", 58.0), case("hacker", "cnn", 20.0)]
    summary = summarize([*base, case("authorized", "cnn", 40.0, scheme="lr-double")])
    assert summary.gap == 38.0
    assert [(v.scheme, v.last, v.clean) for v in summary.variants] == [("lr-double", 40.0, 60.0)]
    assert [a.scheme for a in summary.authorized_all] == ["direct"]


@pytest.mark.parametrize(
    ("last", "interval", "is_separated"),
    [
        (3.0, None, False),
        (3.001, None, True),
        (20.0, (0.0, 40.0), False),
        (20.0, (0.001, 39.999), True),
        (2.9, (2.8, 3.0), False),
    ],
)
def test_a_margin_separates_above_the_noise_only(
    last: float, interval: tuple[float, float] | None, is_separated: bool
) -> None:
    cases = [case("authorized", "cnn", 60.0), case("hacker", "cnn", 20.0)]
    margin = summarize(cases).margin
    assert margin is not None
    changed = margin.model_copy(update={"last": last, "last_interval": interval, "best": 50.0})
    assert separated(changed) == is_separated
