from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_cases import case

from uge.auditing.plan import Choice, choose
from uge.auditing.schedule import execute
from uge.auditing.summarize import summarize
from uge.auditing.worst_plan import plan_worst_case, ranked
from uge.cases.case import Case, Epoch, Job, read_cases
from uge.cases.material import CopyMaterial
from uge.config import AuditConfig
from uge.data.store import PixelStore
from uge.learning.naming import Renamed
from uge.learning.recipes import Recipe
from uge.runtime import Runtime

MakeStore = Callable[..., PixelStore]
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02)


def epochs(*measured: tuple[tuple[float, ...], tuple[float, ...]], oracle: float = 0.0) -> list[Epoch]:
    """Epochs from accuracies (on the labelled images, on the test images), each as is, one to one, many to one."""
    return [
        Epoch(epoch=n, test_accuracy=test[0], renamed=Renamed(labelled, test, (oracle, oracle)))  # type: ignore[arg-type]
        for n, (labelled, test) in enumerate(measured, 1)
    ]


def attacked(scheme: str, history: Sequence[Epoch], seed: int = 0, **more: Any) -> Case:
    values = [epoch.test_accuracy for epoch in history]
    made = case("hacker", more.pop("network", "cnn"), values[-1], best=max(values), seed=seed, scheme=scheme, **more)
    return made.model_copy(update={"history": list(history)})


def plain(scheme: str, value: float, seed: int = 0, **more: Any) -> Case:
    return attacked(scheme, epochs(((value,) * 3, (value,) * 3)), seed, **more)


class TestChoice:
    def test_the_labelled_images_choose_epoch_and_naming(self) -> None:
        history = epochs(((20, 50, 40), (20, 45, 44)), ((30, 48, 49), (33, 41, 47)))
        made = attacked("direct", history)
        choice = made.choice()
        assert (choice.epoch, choice.naming, choice.labelled, choice.test) == (1, "one to one", 50, 45)
        assert made.choice("as is").test == 33
        assert made.choice("many to one").test == 47

    def test_of_equal_ones_the_simplest_then_the_last(self) -> None:
        history = epochs(((40, 40, 40), (31, 32, 33)), ((40, 40, 40), (34, 35, 36)))
        choice = attacked("direct", history).choice()
        assert (choice.epoch, choice.naming, choice.test) == (2, "as is", 34)

    def test_without_labelled_images_the_last_epoch(self) -> None:
        made = case("hacker", "cnn", 20.0, values=[30.0, 20.0], best=30.0)
        assert (made.choice().epoch, made.choice().test, made.choice().labelled) == (2, 20.0, None)

    def test_the_bound_is_of_the_test_images(self) -> None:
        assert attacked("direct", epochs(((10,) * 3, (10, 20, 30)), oracle=44)).oracle == 44

    def test_survives_json_and_is_not_written_where_it_is_not_measured(self) -> None:
        made = attacked("direct", epochs(((40, 40, 40), (31, 32, 33))))
        assert Case.model_validate(made.as_json()) == made
        bare = case("hacker", "cnn", 20.0).as_json()
        assert "renamed" not in bare["history"][0]
        assert "long" not in bare


class TestNumber:
    @pytest.fixture
    def cases(self) -> list[Case]:
        renamed = epochs(((17, 33, 30), (16, 32, 31)), oracle=35)
        seeds = [
            attacked("direct", renamed),
            attacked("direct", epochs(((17, 33, 30), (16, 36, 31)), oracle=37), seed=1),
        ]
        seeds += [plain("jpeg10", 30.0, seed) for seed in range(2)]
        seeds += [case("hacker", "cnn", value, seed=seed, scheme="few-labelled", family="yardstick", needs=["few"])
                  for seed, value in enumerate((24.0, 26.0))]  # fmt: skip
        seeds += [case("clean", "cnn", 60.0 + seed, seed=seed) for seed in range(2)]
        seeds.append(plain("mix-clean-50", 58.0, needs=["clean"]))
        control = plain("jpeg10", 50.0)
        return [*seeds, control.model_copy(update={"data": "clean", "id": "control"})]

    def test_is_the_largest_over_attacks_after_renaming(self, cases: list[Case]) -> None:
        summary = summarize(cases, facts={"labelled": 100, "psnr_db": 29.5, "ssim": 0.93})
        worst = summary.worst_case
        assert worst is not None
        row = worst.short.worst
        assert (row.scheme, row.naming, row.reached.value, row.seeds) == ("direct", "one to one", 34.0, 2)
        assert row.reached.std == pytest.approx(8**0.5)
        assert (row.last, row.one_to_one, row.many_to_one, row.oracle) == (16, 34, 31, 36)
        assert row.clean is not None
        assert row.clean.value == 60.5
        assert worst.short.no_copy is not None
        assert worst.short.no_copy.reached.value == 25.0
        assert summary.headline.startswith("worst case, 1 epoch: 34.0 ± 2.8 % by direct on cnn, renamed one to one")
        assert "so that the copy adds 9.0 points" in summary.verdict

    def test_attacks_with_originals_stand_apart(self, cases: list[Case]) -> None:
        worst = summarize(cases).worst_case
        assert worst is not None
        assert [row.scheme for row in worst.short.apart] == ["mix-clean-50"]
        assert "mix-clean-50" not in [row.scheme for row in worst.short.attacks]

    def test_an_attack_on_clean_images_is_its_control_and_no_clean_control(self, cases: list[Case]) -> None:
        summary = summarize(cases)
        assert summary.worst_case is not None
        controls = {row.scheme: row.control for row in summary.worst_case.short.attacks}
        assert controls["jpeg10"] is not None
        assert controls["jpeg10"].value == 50.0
        assert summary.clean == {"cnn": 60.5}

    def test_the_last_epoch_counts_where_the_choice_is_worse(self) -> None:
        history = epochs(((50, 10, 10), (20, 5, 5)), ((40, 10, 10), (30, 5, 5)))
        worst = summarize([attacked("direct", history)]).worst_case
        assert worst is not None
        assert (worst.short.worst.chosen.value, worst.short.worst.reached.value) == (20, 30)

    def test_the_long_form_is_counted_apart(self, cases: list[Case]) -> None:
        long = plain("jpeg10", 47.0, long=True).model_copy(update={"id": "long"})
        worst = summarize([*cases, long]).worst_case
        assert worst is not None
        assert worst.long is not None
        assert worst.long.worst.reached.value == 47
        assert worst.short.worst.reached.value == 34

    def test_a_copy_that_adds_nothing_or_hides_nothing_is_called_so(self) -> None:
        alone = case("hacker", "cnn", 25.0, scheme="few-labelled", family="yardstick", needs=["few"])
        clean = case("clean", "cnn", 60.0)
        labels = [summarize([plain("direct", value), alone, clean]).label for value in (27.0, 40.0, 59.0)]
        assert labels[0].endswith("no more than without the copy")
        assert labels[1] == "worst case 40.0 % of 60.0 % clean"
        assert labels[2].endswith("the copy holds nothing back")

    def test_a_sealed_copy_has_the_clean_control_as_its_authorised_accuracy(self, cases: list[Case]) -> None:
        assert "Authorised" not in summarize(cases).verdict
        opened = summarize(cases, facts={"originals_opened": 1000})
        assert "authorised = clean 60.5" in opened.headline
        verdict = opened.verdict
        assert "Authorised training is training on the originals, 60.5 ± 0.7 %: all 1,000 sealed originals" in verdict

    def test_an_attack_that_trains_on_the_labelled_images_counts_by_its_last_epoch(self, cases: list[Case]) -> None:
        trained = case("hacker", "cnn", 44.0, scheme="last-layer-few", family="transfer", needs=["few"])
        worst = summarize([*cases, trained]).worst_case
        assert worst is not None
        assert (worst.short.worst.scheme, worst.short.worst.reached.value) == ("last-layer-few", 44)
        assert worst.short.worst.labelled is None

    def test_an_ordinary_audit_has_none(self) -> None:
        assert summarize([case("hacker", "cnn", 20.0), case("clean", "cnn", 60.0)]).worst_case is None


class TestPlan:
    def test_every_attack_once_without_the_long_form(self) -> None:
        work = plan_worst_case(["cnn", "resnet8"], choose(["all"]), 3, [], controls=True, authorized=False)
        schemes = [job.scheme for job in work.jobs if job.role == "hacker"]
        assert "few-labelled" in schemes
        assert "longer" not in schemes
        assert len(schemes) == len(set(schemes)) > 30
        assert {(job.network, job.seed, job.long) for job in work.jobs} == {("cnn", 0, False)}

    def test_the_strongest_go_on(self) -> None:
        work = plan_worst_case(
            ["cnn", "resnet8"], choose(["direct", "jpeg10", "jpeg30"]), 2, [], controls=True, strongest=1
        )
        cases = [
            plain("direct", 20.0),
            plain("jpeg10", 40.0),
            plain("jpeg30", 30.0),
            plain("mix-clean-50", 60.0, needs=["clean"]),
        ]
        assert ranked(cases, "cnn") == ["jpeg10", "jpeg30", "direct"]
        repeated, elsewhere, lengthened, controls = (stage(cases) for stage in work.then)
        alone = ("few-labelled", "protected")
        assert [(job.scheme, job.data, job.network, job.seed) for job in repeated] == [
            ("direct", "clean", "cnn", 1),
            (*alone, "cnn", 1),
            ("jpeg10", "protected", "cnn", 1),
        ]
        assert {(job.network, job.seed) for job in elsewhere} == {("resnet8", 0), ("resnet8", 1)}
        assert {(job.network, job.seed, job.long) for job in lengthened} == {
            (network, seed, True) for network in ("cnn", "resnet8") for seed in range(2)
        }
        assert [(job.scheme, job.data) for job in controls] == [("jpeg10", "clean"), ("jpeg30", "clean")]

    def test_none_of_the_strongest(self) -> None:
        work = plan_worst_case(["cnn"], Choice(("direct",)), 3, [], controls=False, strongest=0)
        assert [list(stage([plain("direct", 20.0)])) for stage in work.then] == [[]]


class TestRun:
    @pytest.fixture
    def material(self, make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> CopyMaterial:
        return CopyMaterial(
            tmp_path / "audit",
            make_store(),
            make_store(seed=2),
            runtime,
            RECIPE,
            clean=make_store(seed=1),
            few=make_store(count=9, seed=3),
        )

    def test_all_stages_run_once_and_are_resumed(self, material: CopyMaterial) -> None:
        work = plan_worst_case(["lenet", "cnn"], choose(["direct", "grayscale"]), 2, [], controls=True, strongest=1)
        found = execute(material, work)
        assert found.planned == len(found.cases) == len(read_cases(material.folder))
        assert not found.left_out
        worst = summarize(found.cases, planned=found.planned).worst_case
        assert worst is not None
        assert worst.long is not None
        assert (worst.short.epochs, worst.long.epochs) == (2, 6)
        assert {row.network for row in worst.short.attacks} == {"lenet", "cnn"}
        before = {path: path.stat().st_mtime_ns for path in (material.folder / "cases").iterdir()}
        again = execute(material, work)
        assert [case.id for case in again.cases] == [case.id for case in found.cases]
        assert {path: path.stat().st_mtime_ns for path in (material.folder / "cases").iterdir()} == before

    def test_a_stage_without_time_is_left_out_and_named(self, material: CopyMaterial) -> None:
        work = plan_worst_case(["lenet"], choose(["direct"]), 1, [], controls=True, strongest=1)
        first = execute(material, work)
        for made in first.cases:
            if made.long:
                material.ledger.forget(made.id)
        left = execute(material, work, left=lambda: 0.001)
        assert [made.id for made in left.cases] == [made.id for made in first.cases if not made.long]
        assert {entry.attack for entry in left.left_out} == {"direct, long form", "few-labelled, long form"}

    def test_labelled_images_determine_a_case(self, material: CopyMaterial, make_store: MakeStore) -> None:
        job = Job("hacker", "lenet", "random", "direct", "protected", 0)
        other = CopyMaterial(
            material.folder,
            material.protected,
            material.test,
            material.runtime,
            RECIPE,
            few=make_store(count=9, seed=4),
        )
        bare = CopyMaterial(material.folder, material.protected, material.test, material.runtime, RECIPE)
        long = Job("hacker", "lenet", "random", "direct", "protected", 0, long=True)
        marks = [material.fingerprint(job), other.fingerprint(job), bare.fingerprint(job), material.fingerprint(long)]
        assert len(set(marks)) == 4

    def test_training_without_the_copy_does_not_depend_on_it(
        self, material: CopyMaterial, make_store: MakeStore
    ) -> None:
        job = Job("hacker", "lenet", "random", "few-labelled", "protected", 0)
        other, larger = (
            CopyMaterial(material.folder, store, material.test, material.runtime, RECIPE, few=material.few)
            for store in (make_store(seed=9), make_store(count=15))
        )
        assert other.fingerprint(job) == material.fingerprint(job) != larger.fingerprint(job)


def test_settings_that_were_given_go_before_those_of_the_worst_case() -> None:
    worst = AuditConfig.checked(worst_case=True, seeds=1, networks="lenet")
    assert (worst.seeds, worst.networks, worst.epochs, worst.attacks) == (1, ("lenet",), 5, ("all",))
    assert AuditConfig.checked().epochs is None
    assert AuditConfig.checked().attacks == ("standard",)


def test_a_copy_that_hides_nothing_is_called_so_even_where_the_originals_give_no_more_than_labelled_images() -> None:
    alone = case("hacker", "cnn", 31.0, scheme="few-labelled", family="yardstick", needs=["few"])
    label = summarize([plain("direct", 32.0), alone, case("clean", "cnn", 30.0)]).label
    assert label == "worst case 32.0 % of 30.0 % clean: the copy holds nothing back"
