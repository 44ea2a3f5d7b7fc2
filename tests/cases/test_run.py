import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import uge
from uge.attacks import ATTACKS, Context
from uge.attacks.base import Claims, prepared
from uge.auditing.plan import Plan, plan
from uge.auditing.schedule import execute
from uge.cases.case import Case, Job, read_case, read_cases
from uge.cases.material import CopyMaterial, key_network, key_recipe
from uge.data.store import PixelStore
from uge.errors import UsageError, WeightsError
from uge.learning.recipes import Recipe
from uge.learning.resume import load_checkpoint
from uge.learning.training import evaluate, fit
from uge.networks import build, save_weights, weights_hash
from uge.progress import Progress
from uge.runtime import Runtime, stream_seed

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02, temperature=3)
MakeStore = Callable[..., PixelStore]
FEW = ["direct", "distill", "distill-inside", "grayscale", "jpeg75", "wave-removal", "other-key", "distill-jpeg75"]
"""Attacks that need nothing beyond a teacher; all of them are tried in tests/attacks."""


class Recorder:
    """Notes which cases were run."""

    def __init__(self) -> None:
        self.run: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        self.run.append(name.split()[-1])
        yield lambda done, total, figures: None

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.safetensors"
    save_weights(path, build("lenet", 3, seed=5, size=16), {"recipe": RECIPE.model_dump_json()})
    return path


class Run:
    """An audit that notes which cases it runs."""

    def __init__(self, material: CopyMaterial) -> None:
        self.material = material
        self.progress = Recorder()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.material, name)

    def run(self, jobs: Sequence[Job]) -> list[Case]:
        return execute(self.material, Plan(tuple(jobs)), progress=self.progress).cases


@pytest.fixture
def make_audit(make_store: MakeStore, runtime: Runtime, key: Path, tmp_path: Path) -> Callable[..., Run]:
    def make(**changes: Any) -> Run:
        stores = {"protected": make_store(), "clean": make_store(seed=1), "test": make_store(seed=2)}
        options = {"keys": [key], "recipe": RECIPE, "runtime": runtime}
        return Run(CopyMaterial(tmp_path / "audit", **{**stores, **options, **changes}))

    return make


@pytest.mark.parametrize("spoils", [True, False])
def test_accuracy_counts_on_test_images_as_they_came_or_changed_by_the_attack(
    spoils: bool, make_audit: Callable[..., Run], make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack that ruins test images is as strong as without; one that repairs them counts where it repairs."""
    monkeypatch.setattr(ATTACKS, "_rows", dict(ATTACKS._rows))
    store, test = (make_store(count=48, separable=True, seed=seed) for seed in (0, 1))
    calls: list[int] = []

    @uge.attack("once")
    def once(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        trained = bool((labels >= 0).all())
        calls.append(len(images))
        return torch.zeros_like(images) if spoils and not trained else images

    recipe = Recipe(epochs=4, batch_size=16, lr=0.05)
    audit = make_audit(protected=store, clean=store, test=test, recipe=recipe, keys=[])
    case = audit.run([Job("hacker", "cnn", "random", "once", "protected", 0)])[0]
    assert calls == [48, 48]
    assert case.tested == ("original" if spoils else "changed")
    assert case.last > 90
    others = [epoch.other_accuracy for epoch in case.history]
    if spoils:
        assert max(others) < 50
    else:
        assert others == [epoch.test_accuracy for epoch in case.history]
    assert read_case(audit.folder / "cases" / f"{case.id}.json") == case
    plain = audit.run([Job("hacker", "cnn", "random", "direct", "protected", 0)])[0].as_json()
    assert "tested" not in plain
    assert not any("other_accuracy" in epoch for epoch in plain["history"])


def ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


@pytest.mark.parametrize("network", ["lenet", "cnn", "resnet8"])
@pytest.mark.parametrize("attack", FEW)
def test_every_attack_trains_every_network(
    attack: str, network: str, make_store: MakeStore, runtime: Runtime, tmp_path: Path
) -> None:
    learner, teacher = (build(network, 3, seed=seed, size=16) for seed in (0, 1))
    before, taught, told = weights_hash(learner), weights_hash(teacher), []
    context = Context(
        network=learner,
        store=make_store(),
        test=make_store(count=7, seed=2),
        recipe=RECIPE,
        seed=0,
        runtime=runtime,
        teacher=lambda: teacher,
        progress=lambda done, total, figures: told.append((done, total)),
    )
    history = ATTACKS[attack].run(context)
    assert [epoch.epoch for epoch in history.epochs] == [1, 2]
    assert told == [(1, 2), (2, 2)]
    assert all(0 <= epoch.test_accuracy <= 100 and epoch.loss > 0 for epoch in history.epochs)
    assert weights_hash(learner) != before
    assert weights_hash(teacher) == taught
    again = build(network, 3, seed=0, size=16)
    assert ATTACKS[attack].run(replace(context, network=again)).epochs == history.epochs
    assert weights_hash(again) == weights_hash(learner)


def test_attacks_differ(make_store: MakeStore, runtime: Runtime) -> None:
    found = {name: {learnt(name, seed, make_store(), runtime) for seed in (1, 2)} for name in FEW}
    for name, hashes in found.items():
        assert len(hashes) == (2 if name.startswith("distill") else 1)  # the others do not ask for a teacher
    assert found.pop("distill-inside") == found["distill"]  # a LeNet answers alike in both modes
    assert len(set.union(*found.values())) == sum(map(len, found.values()))


def learnt(attack: str, seed: int, store: PixelStore, runtime: Runtime) -> str:
    """Digest of a student after an attack with a teacher of this seed."""
    learner, teacher = (build("lenet", 3, seed=number, size=16) for number in (0, seed))
    ATTACKS[attack].run(Context(learner, store, store, RECIPE, 0, runtime, lambda: teacher))
    return weights_hash(learner)


@pytest.mark.parametrize("attack", FEW)
def test_gray_images_can_be_attacked(attack: str, make_store: MakeStore, runtime: Runtime) -> None:
    learner, teacher = (build("lenet", 3, seed=seed, size=16, channels=1) for seed in (0, 1))
    store = make_store(channels=1)
    history = ATTACKS[attack].run(Context(learner, store, store, RECIPE, 0, runtime, lambda: teacher))
    assert len(history.epochs) == RECIPE.epochs


JOBS = plan(["lenet", "resnet8"], ["direct", "distill"], 1, ["lenet"], controls=True).jobs


class TestAudit:
    def test_every_case_is_written_once(self, make_audit: Callable[..., Run]) -> None:
        audit = make_audit()
        cases = audit.run(JOBS)
        assert audit.progress.run == ids(JOBS) == [case.id for case in cases]
        assert read_cases(audit.folder) == sorted(cases, key=lambda case: case.id)
        assert audit.run(JOBS) == cases
        again = make_audit()
        assert again.run(JOBS) == cases
        assert again.progress.run == []
        for case, job in zip(cases, JOBS, strict=True):
            assert (case.role, case.network, case.scheme, case.start, case.data) == (
                job.role,
                job.network,
                job.scheme,
                job.start,
                job.data,
            )
            assert len(case.history) == 2
            assert case.best == max(epoch.test_accuracy for epoch in case.history)
            assert case.last == case.history[-1].test_accuracy
            assert case.recipe == {**RECIPE.json_dict(), "classes": 3, "size": 16}

    def test_only_missing_cases_are_run(self, make_audit: Callable[..., Run]) -> None:
        audit = make_audit()
        cases = audit.run(JOBS)
        lost = [JOBS[1].id, JOBS[-1].id]
        for name in lost:
            (audit.folder / "cases" / f"{name}.json").unlink()
        again = make_audit()
        assert _results(again.run(JOBS)) == _results(cases)
        assert again.progress.run == lost

    def test_a_damaged_case_is_run_again(self, make_audit: Callable[..., Run]) -> None:
        cases = make_audit().run(JOBS[:2])
        again = make_audit()
        path = again.folder / "cases" / f"{JOBS[0].id}.json"
        for damage in (path.read_text()[:50], '{"schema": 1}', "[]"):
            path.write_text(damage)
            assert _results(again.run(JOBS[:2])) == _results(cases)
        assert again.progress.run == [JOBS[0].id] * 3
        assert read_case(path).id == JOBS[0].id

    @pytest.mark.parametrize(
        ("change", "stale"),
        [
            ({"protected": 3}, [job for job in JOBS if job.data == "protected"]),
            ({"seed": 1}, JOBS),
            ({"recipe": RECIPE.model_copy(update={"lr": 0.01})}, JOBS),
            ({"runtime": Runtime(torch.device("cpu"), "bf16-mixed")}, JOBS),
            ({"test": 3}, JOBS),
            ({"clean": 4}, [job for job in JOBS if job.data == "clean"]),
            ({"theta0": 6}, [job for job in JOBS if job.key is not None]),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_what_determines_a_case_makes_it_stale(
        self,
        change: dict[str, Any],
        stale: list[Job],
        make_audit: Callable[..., Run],
        make_store: MakeStore,
        key: Path,
    ) -> None:
        make_audit().run(JOBS)
        ((what, value),) = change.items()
        if what == "theta0":
            save_weights(key, build("lenet", 3, seed=value, size=16), {"recipe": RECIPE.model_dump_json()})
            again = make_audit()
        else:
            again = make_audit(**{what: make_store(seed=value) if what in ("protected", "test", "clean") else value})
        again.run(JOBS)
        assert again.progress.run == ids(stale)

    def test_a_revised_attack_is_run_again_and_no_other(
        self, make_audit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jobs = plan(["lenet"], ["direct", "mixup", "grayscale"], 1, [], controls=False).jobs
        make_audit(keys=[]).run(jobs)
        mixup = replace(ATTACKS["mixup"], revision=ATTACKS["mixup"].revision + 1)
        monkeypatch.setattr("uge.attacks.ATTACKS", {**ATTACKS, "mixup": mixup})
        again = make_audit(keys=[])
        again.run(jobs)
        assert again.progress.run == [job.id for job in jobs if job.scheme == "mixup"]

    def test_claims_of_the_copy_count_for_what_reads_them(self, make_audit: Callable[..., Run]) -> None:
        jobs = plan(["lenet"], ["direct", "adversarial-rho"], 1, [], controls=False, claims=True).jobs
        make_audit(keys=[], claims=Claims("tap", 0.04)).run(jobs)
        again = make_audit(keys=[], claims=Claims("tap", 0.02))
        again.run(jobs)
        assert again.progress.run == ids([job for job in jobs if job.scheme == "adversarial-rho"])

    def test_an_attack_says_what_it_measured(
        self, make_audit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measuring(context: Context) -> Context:
            context.figures["psnr_after"] = 31.23456
            return context

        monkeypatch.setattr("uge.attacks.ATTACKS", {**ATTACKS, "grayscale": prepared(measuring, "purify", "measures")})
        (case,) = make_audit(keys=[]).run(plan(["lenet"], ["grayscale"], 1, [], controls=False).jobs)
        assert case.figures == {"psnr_after": 31.2346}

    def test_a_yardstick_does_not_depend_on_the_copy(
        self, make_audit: Callable[..., Run], make_store: MakeStore
    ) -> None:
        jobs = [
            job
            for job in plan(["lenet"], ["mix-clean-50", "clean-only-50"], 1, [], controls=True).jobs
            if job.role == "hacker"
        ]
        first = make_audit(keys=[]).run(jobs)
        other = make_audit(keys=[], protected=make_store(seed=9))
        second = other.run(jobs)
        assert other.progress.run == ids([job for job in jobs if job.scheme == "mix-clean-50"])
        assert first[1] == second[1]

    def test_all_attacks_of_a_repetition_know_the_same_leak(self, make_audit: Callable[..., Run]) -> None:
        jobs = plan(["lenet"], ["mix-clean-10", "clean-only-10"], 2, [], controls=True).jobs
        leaks = {
            (job.scheme, job.seed): make_audit(keys=[]).context(job).leak_seed for job in jobs if job.role == "hacker"
        }
        assert leaks["mix-clean-10", 0] == leaks["clean-only-10", 0] != leaks["mix-clean-10", 1]

    def test_a_case_names_the_recipe_that_trained_it(self, make_audit: Callable[..., Run]) -> None:
        jobs = plan(["lenet"], ["direct", "lr-tenth", "longer"], 1, [], controls=False).jobs
        direct, slower, longer = make_audit(keys=[], recipe=RECIPE).run(jobs)
        assert slower.recipe["lr"] == pytest.approx(direct.recipe["lr"] / 10)
        assert (direct.recipe["epochs"], longer.recipe["epochs"]) == (2, 6)

    def test_a_network_that_starts_from_a_checkpoint(self, make_audit: Callable[..., Run], tmp_path: Path) -> None:
        path = tmp_path / "elsewhere.safetensors"
        save_weights(path, build("lenet", 7, seed=1, size=16))
        jobs = plan([f"checkpoint:{path}"], ["direct", "linear-probe"], 1, [], controls=True).jobs
        cases = make_audit(keys=[]).run(jobs)
        assert [case.network for case in cases] == [f"checkpoint:{path}"] * 3
        save_weights(path, build("lenet", 7, seed=2, size=16))
        again = make_audit(keys=[])
        assert _results(again.run(jobs)) != _results(cases)
        assert again.progress.run == ids(jobs)

    def test_the_teacher_is_the_trained_authorised_network(
        self, make_audit: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taught, loaded = list[str](), list[Path]()

        def load(path: Path, *parts: Any) -> dict[str, Any]:
            loaded.append(path)
            return load_checkpoint(path, *parts)

        def spy(context: Context) -> Any:
            taught.append(weights_hash(context.teacher()))
            return ATTACKS["direct"].run(context)

        spied = replace(ATTACKS["distill"], run=spy)
        monkeypatch.setattr("uge.attacks.ATTACKS", {**ATTACKS, "distill": spied})
        monkeypatch.setattr("uge.learning.resume.load_checkpoint", load)
        audit = make_audit()
        audit.run(JOBS)
        assert loaded == [audit.folder / "weights" / f"{JOBS[1].id}.safetensors"] * 2  # once for each student
        expected = build("lenet", 3, seed=5, size=16)
        seed = stream_seed(audit.seed, "audit", "authorized", "direct", 0)
        history = fit(expected, audit.protected, RECIPE, seed=seed, runtime=audit.runtime, test=audit.test)
        assert taught == [weights_hash(expected)] * 2
        assert audit.run(JOBS)[1].last == history.last

    def test_a_lost_or_foreign_teacher_is_trained_again(self, make_audit: Callable[..., Run]) -> None:
        audit = make_audit()
        cases = audit.run(JOBS)
        weights = audit.folder / "weights" / f"{JOBS[1].id}.safetensors"
        good = weights.read_bytes()
        other = make_audit(recipe=RECIPE.model_copy(update={"epochs": 1}))
        case = audit.folder / "cases" / f"{JOBS[1].id}.json"
        kept = case.read_text()
        other.run(JOBS[:2])
        foreign = weights.read_bytes()
        assert foreign != good
        case.write_text(kept)  # as if the other run had been killed before its case was written
        for damage in (foreign, b"no weights"):
            weights.write_bytes(damage)
            again = make_audit()
            assert _results(again.run(JOBS)[1:2]) == _results(cases[1:2])
            assert JOBS[1].id in again.progress.run
            assert weights.read_bytes() == good

    def test_the_authorised_network_is_measured_before_training(self, make_audit: Callable[..., Run]) -> None:
        audit = make_audit()
        cases = audit.run(JOBS)
        start = evaluate(build("lenet", 3, seed=5, size=16), audit.test, audit.runtime)
        expected = [start if job.role == "authorized" else None for job in JOBS]
        assert [case.start_accuracy for case in cases] == expected

    def test_a_student_without_its_teacher_is_refused(self, make_audit: Callable[..., Run]) -> None:
        with pytest.raises(UsageError, match="run that case first"):
            make_audit().run([JOBS[-1]])

    def test_repetitions_differ_in_start_and_order(self, make_audit: Callable[..., Run]) -> None:
        audit = make_audit()
        first, second = audit.run(plan(["resnet8"], ["direct"], 2, [], controls=False).jobs)
        assert [epoch.loss for epoch in first.history] != [epoch.loss for epoch in second.history]


def _results(cases: list[Case]) -> list[dict[str, Any]]:
    """Cases without how long they took."""
    return [case.model_copy(update={"seconds": 0}).as_json() for case in cases]


class TestKey:
    def test_network_and_recipe_come_from_the_file(self, key: Path, make_store: MakeStore) -> None:
        assert weights_hash(key_network(key, make_store())) == weights_hash(build("lenet", 3, seed=5, size=16))
        assert key_recipe(key) == RECIPE

    def test_a_key_for_other_data(self, key: Path, make_store: MakeStore) -> None:
        for other in ({"classes": 4}, {"channels": 1}, {"size": 18}):
            with pytest.raises(UsageError, match="made with this folder"):
                key_network(key, make_store(**other))

    def test_a_plug_in_runs_only_where_it_is_trusted(self, key: Path, make_store: MakeStore) -> None:
        save_weights(key, build("linear_network:linear", 3, seed=5, size=16))
        with pytest.raises(UsageError, match="'linear_network:linear', whose code would be run; give --trust-plug"):
            key_network(key, make_store())
        assert key_network(key, make_store(), plugins=True).name == "linear_network:linear"

    @pytest.mark.parametrize("recipe", ["{", '{"lr": -1}', '{"unknown": 1}'])
    def test_a_damaged_recipe(self, recipe: str, key: Path) -> None:
        save_weights(key, build("lenet", 3, seed=5, size=16), {"recipe": recipe})
        with pytest.raises(WeightsError, match="--recipe"):
            key_recipe(key)
        save_weights(key, build("lenet", 3, seed=5, size=16))
        assert key_recipe(key) == Recipe()


def test_a_network_that_diverges_is_a_result(make_audit: Callable[..., Run]) -> None:
    audit = make_audit(recipe=RECIPE.model_copy(update={"lr": 1e30}))
    (case,) = audit.run([Job("hacker", "lenet", "random", "direct", "protected", 0)])
    assert case.history[-1].loss is None
    assert case.last <= case.best
    assert case == read_cases(audit.folder)[0]
