from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uge.attacks import ATTACKS, find_attack
from uge.attacks.variants import VARIANTS
from uge.auditing.plan import FIRST_STEPS, Choice, choose, combinations, plan
from uge.cases.case import Case, Job
from uge.errors import UnknownNameError, UsageError

NEEDING = {need: [name for name, row in ATTACKS.items() if need in row.needs] for need in ("key", "clean", "public")}
BY_CLAIMS = [name for name, row in ATTACKS.items() if "claims" in row.uses]
EVERYTHING: dict[str, Any] = {"keys": ["cnn"], "controls": True, "public": True, "few": True, "claims": True}


def jobs(*arguments: Any, **options: Any) -> tuple[Job, ...]:
    return plan(*arguments, **options).jobs


class TestPlan:
    @pytest.mark.parametrize("controls", [False, True])
    @pytest.mark.parametrize(("networks", "seeds", "keys"), [(1, 1, 0), (2, 1, 1), (3, 2, 1), (2, 2, 3)])
    def test_counts(self, networks: int, seeds: int, keys: int, controls: bool) -> None:
        names, attacks = ["cnn", "lenet", "resnet8"][:networks], ["direct", "distill"] if keys else ["direct"]
        variants = ["order", "adam"] if keys else []
        found = jobs(names, attacks, seeds, ["cnn"] * keys, controls=controls, variants=variants)
        roles = [job.role for job in found]
        assert (roles.count("authorized"), roles.count("hacker"), roles.count("clean")) == (
            seeds * keys * 3,
            seeds * networks * (1 + keys),
            seeds * (keys + networks) * controls,
        )
        assert len({job.id for job in found}) == len(found)

    @given(
        attacks=st.lists(st.sampled_from(sorted(ATTACKS)), min_size=1, max_size=6),
        keys=st.integers(1, 3),
        seeds=st.integers(1, 3),
    )
    def test_teachers_come_before_their_students(self, attacks: list[str], keys: int, seeds: int) -> None:
        found = jobs(["cnn"], attacks, seeds, **EVERYTHING | {"keys": ["keyed:cnn"] * keys})
        for place, job in enumerate(found):
            if job.taught:
                earlier = {(other.seed, other.key) for other in found[:place] if other.teaches}
                assert (job.seed, job.key) in earlier

    def test_who_starts_where_on_what(self) -> None:
        found = jobs(["cnn"], ["direct", "distill"], 1, ["resnet8"], controls=True, variants=["order"])
        assert [(job.role, job.network, job.start, job.scheme, job.data, job.key, job.family) for job in found] == [
            ("clean", "resnet8", "theta0", "direct", "clean", 0, "plain"),
            ("authorized", "resnet8", "theta0", "direct", "protected", 0, "plain"),
            ("clean", "cnn", "random", "direct", "clean", None, "plain"),
            ("hacker", "cnn", "random", "direct", "protected", None, "plain"),
            ("hacker", "cnn", "random", "distill", "protected", 0, "knowledge"),
            ("authorized", "resnet8", "theta0", "order", "protected", 0, "variant"),
        ]

    def test_names_given_twice_count_once(self) -> None:
        options: dict[str, Any] = {"seeds": 1, "keys": ["cnn"], "controls": True}
        twice = plan(["cnn", "lenet", "cnn"], ["direct", "direct"], **options)
        assert twice == plan(["cnn", "lenet"], ["direct"], **options)

    def test_whoever_knows_theta0_builds_its_network(self) -> None:
        same = [name for name, row in ATTACKS.items() if row.same_architecture]
        found = jobs(["lenet"], same, 1, ["keyed:cnn", "resnet8"], controls=True, public=True, few=True)
        hackers = [job for job in found if job.role == "hacker"]
        assert {(job.network, job.key) for job in hackers} == {("keyed:cnn", 0), ("resnet8", 1)}
        assert len(hackers) == 2 * len(same)

    @pytest.mark.parametrize("need", NEEDING)
    def test_what_needs_something_is_left_out_unless_named(self, need: str) -> None:
        there = EVERYTHING | {{"key": "keys", "clean": "controls"}.get(need, need): [] if need == "key" else False}
        found = plan(["cnn"], choose(["all"]), 1, **there)
        assert [one.attack for one in found.left_out] == NEEDING[need] != []
        assert all("give --" in one.reason for one in found.left_out)
        assert {job.scheme for job in found.jobs} == set(ATTACKS) - set(NEEDING[need])
        with pytest.raises(UsageError, match=f"the attack '{NEEDING[need][0]}' needs .*; give --"):
            plan(["cnn"], choose([NEEDING[need][0]]), 1, **there)

    def test_what_reads_a_manifest_is_left_out_without_one(self) -> None:
        there = EVERYTHING | {"claims": False}
        found = plan(["cnn"], choose(["all"]), 1, **there)
        assert [one.attack for one in found.left_out] == BY_CLAIMS != []
        assert {one.reason for one in found.left_out} == {
            "it needs a manifest of uge protect, which says how the copy was made"
        }
        with pytest.raises(UsageError, match="the attack 'own-key' needs a manifest of uge protect"):
            plan(["cnn"], choose(["own-key"]), 1, **there)

    def test_an_audit_without_labelled_images_leaves_nothing_out_for_want_of_them(self) -> None:
        found = plan(["cnn"], choose(["all"]), 1, **EVERYTHING | {"few": False})
        assert not found.left_out
        assert "few-labelled" not in {job.scheme for job in found.jobs}
        with pytest.raises(UsageError, match=r"the attack 'few-labelled' needs .*; give --worst-case"):
            plan(["cnn"], ["few-labelled"], 1, ["cnn"], controls=True, public=True)

    def test_a_folder_without_any_authorised_network_leaves_no_attack_on_it_out(self) -> None:
        options = EVERYTHING | {"keys": [], "controls": False, "variants": ["order"]}
        found = plan(["cnn"], choose(["all"]), 1, authorized=False, **options)
        assert {entry.attack for entry in found.left_out} == set(NEEDING["clean"]) - set(NEEDING["key"])
        assert found.jobs == plan(["cnn"], choose(["all"]), 1, **options).jobs

    def test_refuses(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'distill'"):
            plan(["cnn"], ["destill"], 1, ["cnn"], controls=True)
        for networks, attacks, seeds in (([], ["direct"], 1), (["cnn"], [], 1), (["cnn"], ["direct"], 0)):
            with pytest.raises(UsageError, match="an audit needs"):
                plan(networks, attacks, seeds, [], controls=True)


class TestChoose:
    def test_groups_and_names(self) -> None:
        assert choose(["all"]) == Choice(tuple(ATTACKS), frozenset(), True)
        assert choose(["standard", "direct"], ["direct", "distill"]) == Choice(("direct", "distill"), {"direct"})
        purify = [name for name, row in ATTACKS.items() if row.family == "purify"]
        assert choose(["purify"]).names == tuple(purify) != ()
        assert choose(["grayscale+distill"]) == Choice(("grayscale+distill",), {"grayscale+distill"})

    @pytest.mark.parametrize("word", ["destill", "grayscale+destill", "destill+grayscale"])
    def test_unknown(self, word: str) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown attack .destill.; did you mean .distill.\?.*preprocess"):
            choose(["direct", word])


def case(scheme: str, best: float, network: str = "cnn", seed: int = 0) -> Case:
    job = Job("hacker", network, "random", scheme, "protected", seed, 0 if "key" in find_attack(scheme).needs else None)
    return Case(
        id=job.id, role="hacker", network=network, start="random", scheme=scheme, data="protected", seed=seed,
        key=job.key or 0, last=best / 2, best=best, best_epoch=1,
    )  # fmt: skip


class TestCombinations:
    CASES = (("direct", 99), ("jpeg30", 60), ("jpeg10", 70), ("distill", 69), ("cutout16", 40), ("clean-only-50", 90))

    def test_the_two_best_of_all_and_of_those_that_need_nothing(self) -> None:
        found = combinations([case(*one) for one in self.CASES], 2)
        assert [(job.scheme, job.network, job.seed, job.key) for job in found] == [
            *(("jpeg10+cutout16", "cnn", seed, None) for seed in (0, 1)),  # Two JPEGs would be one and the same.
            *(("jpeg10+distill", "cnn", seed, 0) for seed in (0, 1)),
        ]
        assert {find_attack(job.scheme).family for job in found} == {"combination"}
        assert [job.taught for job in found] == [False, False, True, True]

    @given(st.permutations(CASES))
    def test_the_order_of_the_cases_does_not_matter(self, results: list[tuple[str, float]]) -> None:
        assert combinations([case(*one) for one in results], 1) == combinations([case(*one) for one in self.CASES], 1)

    def test_two_filters_of_different_kinds(self) -> None:
        found = combinations([case("sharpen", 50), case("low-pass", 60), case("mix-clean-50", 30)], 1)
        assert [job.scheme for job in found] == ["low-pass+sharpen"]

    def test_originals_are_mixed_in_before_a_filter(self) -> None:
        found = combinations([case("mix-clean-50", 70), case("grayscale", 60)], 1)
        assert [job.scheme for job in found] == ["mix-clean-50+grayscale"]

    def test_each_network_has_its_own(self) -> None:
        cases = [case("grayscale", 60), case("distill", 50), case("jpeg10", 70, "lenet"), case("cutout16", 40, "lenet")]
        assert {(job.network, job.scheme) for job in combinations(cases, 1)} == {
            ("cnn", "grayscale+distill"),
            ("lenet", "jpeg10+cutout16"),
        }

    def test_only_the_first_repetition_counts(self) -> None:
        assert combinations([case("grayscale", 60), case("distill", 50, seed=1)], 2) == []

    @given(st.lists(st.tuples(st.sampled_from(sorted(ATTACKS)), st.floats(0, 100)), max_size=8))
    def test_what_is_combined(self, results: list[tuple[str, float]]) -> None:
        for job in combinations([case(scheme, best) for scheme, best in dict(results).items()], 1):
            first, second = (ATTACKS[name] for name in job.scheme.split("+"))
            assert {first.family, second.family} & set(FIRST_STEPS)
            assert "yardstick" not in {first.family, second.family}
            assert first.prepare is not None
            assert not first.same_architecture
            assert not second.same_architecture


def test_variants_have_names_of_their_own() -> None:
    assert not set(VARIANTS) & set(ATTACKS)
