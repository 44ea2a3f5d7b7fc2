import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fragile_networks import allowance

from uge.auditing.plan import LeftOut, Plan, plan
from uge.auditing.schedule import (
    AuditResult,
    Pace,
    Schedule,
    by_damage,
    execute,
    forecast,
    parse_budget,
    time_left,
    warm_up,
)
from uge.cases.case import Case, Job, read_cases
from uge.cases.material import CopyMaterial
from uge.cases.pool import SHARED, LocalProcesses, Outcome, Serial, StoredImages, require_ray, shared
from uge.data.store import PixelStore
from uge.errors import MissingExtraError, UsageError
from uge.learning.recipes import Recipe
from uge.networks import build, save_weights
from uge.progress import Silent
from uge.runtime import Runtime

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02, temperature=3)
MakeStore = Callable[..., PixelStore]


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def make_material(make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> Callable[..., CopyMaterial]:
    key = tmp_path / "key.safetensors"
    save_weights(key, build("lenet", 3, seed=5, size=16), {"recipe": RECIPE.model_dump_json()})
    stores = {"protected": make_store(), "clean": make_store(seed=1), "test": make_store(seed=2)}

    def make(folder: str = "audit", **changes: Any) -> CopyMaterial:
        return CopyMaterial(
            tmp_path / folder, **{**stores, "keys": [key], "recipe": RECIPE, "runtime": runtime, **changes}
        )

    return make


@pytest.fixture
def left() -> Iterator[Path]:
    """How often the fragile network may still kill a worker of this process."""
    path = allowance(os.getpid())
    yield path
    path.unlink(missing_ok=True)


def results(found: AuditResult) -> list[dict[str, Any]]:
    """Cases without how long they took, and without the commit, which may change while the tests run."""
    cases = [case.model_copy(update={"seconds": 0}).as_json() for case in found.cases]
    return [{**case, "environment": {**case["environment"], "uge": None}} for case in cases]


def hackers(*networks: str, schemes: tuple[str, ...] = ("direct",)) -> Plan:
    return Plan(tuple(Job("hacker", n, "random", s, "protected", 0) for n in networks for s in schemes))


class TestWorkers:
    def test_the_same_bytes_whatever_the_number_of_workers(self, make_material: Callable[..., CopyMaterial]) -> None:
        work = plan(["lenet"], ["direct", "distill", "grayscale"], 1, ["lenet"], controls=True, variants=["order"])
        alone, notes = make_material("one"), Notes()
        one = execute(alone, work)
        several = make_material("several")
        found = execute(several, work, workers=3, progress=notes)
        assert results(found) == results(one)
        assert [case.id for case in found.cases] == [job.id for job in work.jobs]
        assert len(notes.lines) == len(work.jobs)
        for material in (alone, several):
            assert len(read_cases(material.folder)) == len(work.jobs)
        weights = [sorted((material.folder / "weights").iterdir()) for material in (alone, several)]
        assert [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]
        assert not list(several.folder.glob(f"{SHARED}*"))

    @pytest.mark.parametrize("kills", [1, 2])
    def test_a_killed_worker_takes_only_its_own_case(
        self, kills: int, make_material: Callable[..., CopyMaterial], left: Path
    ) -> None:
        left.write_text(str(kills))
        material, notes = make_material(), Notes()
        work = hackers("fragile_networks:fragile", "lenet", "resnet8")
        found = execute(material, work, workers=2, progress=notes)
        assert sum("once more" in line for line in notes.lines) == 1
        note = material.folder / "failed" / f"{work.jobs[0].id}.json"
        survivors = [case.network for case in found.cases]
        if kills == 1:
            assert (survivors, found.failed) == (["fragile_networks:fragile", "lenet", "resnet8"], [])
            assert not note.exists()
            return
        assert (survivors, found.failed) == (["lenet", "resnet8"], [work.jobs[0].id])
        failure = json.loads(note.read_text())
        assert (failure["id"], failure["tries"]) == (work.jobs[0].id, 2)
        assert "died" in failure["error"]
        again = execute(material, work)
        assert (len(again.cases), again.failed) == (3, [])
        assert not note.exists()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_an_attack_that_fails_is_no_end(self, workers: int, make_material: Callable[..., CopyMaterial]) -> None:
        material, work = make_material(), hackers("fragile_networks:faulty", "lenet")
        found = execute(material, work, workers=workers)
        assert [case.network for case in found.cases] == ["lenet"]
        assert found.failed == [work.jobs[0].id]
        assert found.planned == 2
        failure = json.loads((material.folder / "failed" / f"{work.jobs[0].id}.json").read_text())
        assert failure["error"] == "unexpected RuntimeError: out of memory"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_wrong_use_is_the_end(self, workers: int, make_material: Callable[..., CopyMaterial]) -> None:
        student = Job("hacker", "lenet", "random", "distill", "protected", 0, 0)
        with pytest.raises(UsageError, match="run that case first"):
            execute(make_material(), Plan((student,)), workers=workers)

    def test_an_interrupted_audit_keeps_what_is_finished(
        self, make_material: Callable[..., CopyMaterial], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work = hackers("lenet", schemes=("direct", "grayscale", "jpeg75"))
        whole = execute(make_material("whole"), work)
        material, waits, real = make_material(), [0], LocalProcesses.wait

        def interrupted(self: LocalProcesses) -> list[Outcome]:
            waits[0] += 1
            if waits[0] == 2:
                raise KeyboardInterrupt
            return real(self)

        monkeypatch.setattr(LocalProcesses, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(material, work, workers=2)
        kept = len(read_cases(material.folder))
        assert kept >= 1
        assert not list(material.folder.glob(f"{SHARED}*"))
        monkeypatch.undo()
        notes = Notes()
        assert results(execute(material, work, workers=2, progress=notes)) == results(whole)
        assert len(notes.lines) == len(work.jobs) - kept

    def test_images_are_shared_as_files_and_removed(self, make_material: Callable[..., CopyMaterial]) -> None:
        material = make_material()
        with shared(material, 2) as setup:
            opened = setup.open()
            assert opened.stores.keys() == material.stores.keys()
            for name, store in opened.stores.items():
                assert store.digest() == material.stores[name].digest()
                assert not store.pixels.resident
            assert opened.digests == material.digests
        assert not list(material.folder.glob(f"{SHARED}*"))

    def test_stored_images(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = make_store(count=7, size=18, channels=1)
        image = StoredImages.write(store, tmp_path / "images")
        assert image.open(torch.device("cpu")).digest() == store.digest()
        assert (tmp_path / "images").stat().st_size == 7 * 18 * 18

    def test_refuses(self, make_material: Callable[..., CopyMaterial]) -> None:
        for options, words in (({"workers": 0}, "at least one worker"), ({"executor": "cloud"}, "executor of local")):
            with pytest.raises(UsageError, match=words):
                execute(make_material(), hackers("lenet"), **options)


class TestRay:
    def test_one_sentence_where_it_is_absent(
        self, make_material: Callable[..., CopyMaterial], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "ray", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'uge\[ray\]'"):
            execute(make_material(), hackers("lenet"), executor="ray")

    @pytest.mark.heavy
    def test_actors_give_the_same_bytes_and_survive_a_kill(
        self, make_material: Callable[..., CopyMaterial], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("ray")
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        )
        assert require_ray().__name__ == "ray"
        work = hackers("lenet", "fragile_networks:faulty", schemes=("direct", "grayscale"))
        one = execute(make_material("one"), work)
        found = execute(make_material("ray"), work, workers=2, executor="ray")
        assert results(found) == results(one)
        assert found.failed == one.failed


@dataclass
class Watch:
    """A clock that moves only when a case is run."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fake:
    """Runs cases in no time, and moves the clock by what they would take."""

    watch: Watch
    takes: Callable[[Job], float]
    size: int = 1
    running: list[Job] = field(default_factory=list)
    ran: list[Job] = field(default_factory=list)

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def start(self, job: Job, name: str) -> None:
        self.running.append(job)

    def wait(self) -> list[Outcome]:
        job = self.running.pop(0)
        self.ran.append(job)
        self.watch.now += self.takes(job)
        case = Case(
            id=job.id, role=job.role, network=job.network, start=job.start, scheme=job.scheme, data=job.data,
            seed=job.seed, key=job.key or 0, last=50, best=50 + len(job.scheme), best_epoch=1, seconds=self.takes(job),
        )  # fmt: skip
        return [Outcome(job, case, self.takes(job))]


PLAIN = {"lenet": 10.0, "cnn": 20.0, "resnet8": 10.0}


def takes(job: Job) -> float:
    return PLAIN[job.network] * job.entry.cost


@pytest.fixture
def limited(make_material: Callable[..., CopyMaterial]) -> Callable[..., tuple[AuditResult, Fake]]:
    def run(work: Plan, seconds: float, real: Callable[[Job], float] = takes) -> tuple[AuditResult, Fake]:
        watch = Watch()
        fake = Fake(watch, real)
        left = time_left(seconds, watch)
        schedule = Schedule(make_material(), work, Silent(), lambda: fake, 1, left, PLAIN.__getitem__)
        return schedule.run(), fake

    return run


ATTACKS = ["direct", "grayscale", "jpeg10", "distill", "adversarial"]


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("1.5m", 90), ("full", None)]
    )
    def test_parse(self, text: str, seconds: float | None) -> None:
        assert parse_budget(text) == seconds

    @pytest.mark.parametrize("text", ["", "10", "m", "10 m", "0s", "-1m", "1d", "10mm", "fully"])
    def test_parse_refuses(self, text: str) -> None:
        with pytest.raises(UsageError, match="expected a budget such as"):
            parse_budget(text)

    def test_the_order_is_by_damage_per_second(self) -> None:
        work = plan(["lenet", "cnn"], ATTACKS, 2, ["resnet8"], controls=True, variants=["order", "adam"])
        found = by_damage(work.jobs, takes)
        assert sorted(found, key=lambda job: job.id) == sorted(work.jobs, key=lambda job: job.id)
        attack = [job.role == "hacker" and job.family != "yardstick" and job.data == "protected" for job in found]
        kinds = [(job.seed, 0 if job.essential else 2 - one) for job, one in zip(found, attack, strict=True)]
        assert kinds == sorted(kinds)
        attacks = [job for job, one in zip(found, attack, strict=True) if one and not job.essential and job.seed == 0]
        worth = [job.entry.expected / takes(job) for job in attacks]
        assert worth == sorted(worth, reverse=True)

    def test_a_forecast_fills_the_time_by_damage(self) -> None:
        work = plan(["lenet"], ATTACKS, 1, ["lenet"], controls=True)
        whole = forecast(work.jobs, lambda network: 10.0, workers=2)
        assert whole.seconds.keys() == {job.id for job in work.jobs}
        assert (whole.left_out, whole.total) == ([], sum(whole.seconds.values()) / 2)
        some = forecast(work.jobs, lambda network: 10.0, workers=2, limit=whole.total / 2)
        assert 0 < len(some.left_out) < len(work.jobs)
        assert some.total <= whole.total / 2
        assert not {job.id for job in work.jobs if job.essential} & {*some.left_out}

    def test_attacks_on_clean_images_come_last(self) -> None:
        protected = [Job("hacker", "cnn", "random", name, "protected", 0) for name in ("direct", "jpeg10", "distill")]
        clean = [Job("hacker", "cnn", "random", "jpeg10", "clean", 0)]
        yardstick = [Job("hacker", "cnn", "random", "few-labelled", "protected", 0)]
        found = by_damage([*clean, *yardstick, *protected], takes)
        assert found[0].scheme == "direct"
        assert found[-2:] == [*yardstick, *clean]

    @pytest.mark.parametrize("seconds", [80, 100, 140, 200, 400, 1000])
    def test_nothing_is_started_that_would_end_too_late(
        self, seconds: float, limited: Callable[..., tuple[AuditResult, Fake]]
    ) -> None:
        work = plan(["lenet", "cnn"], ATTACKS, 1, ["resnet8"], controls=True, variants=["order"])
        found, fake = limited(work, seconds)
        assert fake.watch.now <= seconds
        assert {job.id for job in fake.ran} == {case.id for case in found.cases}
        assert found.planned == len(work.jobs) == len(found.cases) + len(found.left_out)
        assert all(job in fake.ran for job in work.jobs if job.essential)
        assert all("no time" in one.reason and "budget" in one.reason for one in found.left_out)
        shortest = min((takes(job) for job in work.jobs if job not in fake.ran), default=float("inf"))
        assert fake.watch.now + shortest > seconds

    def test_a_budget_without_room_for_plain_training_is_refused(
        self, limited: Callable[..., tuple[AuditResult, Fake]]
    ) -> None:
        work = plan(["lenet"], ATTACKS, 1, ["resnet8"], controls=True)
        with pytest.raises(UsageError, match=r"take about 40 s, but 30 s .* left; give a larger --budget"):
            limited(work, 30)

    def test_a_machine_slower_than_guessed_is_noticed(self, limited: Callable[..., tuple[AuditResult, Fake]]) -> None:
        work = plan(["lenet"], ["direct", "grayscale", "jpeg10", "jpeg75"], 1, [], controls=True)
        found, fake = limited(work, 60, lambda job: 2 * takes(job))
        assert [job.scheme for job in fake.ran] == ["direct", "direct", "jpeg10"]
        assert fake.watch.now == 60
        assert {one.attack for one in found.left_out} == {"grayscale", "jpeg75"}

    def test_students_of_a_teacher_that_was_left_out_are_too(
        self, limited: Callable[..., tuple[AuditResult, Fake]]
    ) -> None:
        work = plan(["lenet"], ["direct", "distill"], 1, ["resnet8"], controls=False)
        found, _ = limited(work, 25, lambda job: 30.0 if job.role == "authorized" else 1.0)
        assert [one.attack for one in found.left_out] == ["direct", "distill"]

    def test_combinations_have_time_kept_for_them(self, limited: Callable[..., tuple[AuditResult, Fake]]) -> None:
        work = plan(["lenet"], ["direct", "jpeg10", "mixup", "cutmix", "cutout16"], 2, [], controls=True, combine=True)
        found, fake = limited(work, 65)
        combined = [job for job in fake.ran if "+" in job.scheme]
        assert [(job.seed, job.scheme) for job in combined] == [(0, "jpeg10+mixup")]
        assert any("kept for the combination" in one.reason for one in found.left_out)
        assert found.planned == len(work.jobs) + 2
        assert fake.watch.now <= 65

    def test_without_a_limit_the_combination_comes_after_the_first_repetition(
        self, limited: Callable[..., tuple[AuditResult, Fake]]
    ) -> None:
        work = plan(["lenet"], ["direct", "grayscale", "cutout16"], 2, [], controls=False, combine=True)
        found, fake = limited(work, 1e9)
        assert [(job.seed, job.scheme) for job in fake.ran if "+" in job.scheme] == [
            (0, "grayscale+cutout16"),
            (1, "grayscale+cutout16"),
        ]
        assert not found.left_out
        assert found.planned == len(found.cases) == len(work.jobs) + 2

    def test_finished_cases_cost_nothing(self, make_material: Callable[..., CopyMaterial]) -> None:
        material, work = make_material(), hackers("lenet", schemes=("direct", "grayscale"))
        whole = execute(material, work)
        asked: list[str] = []
        run = Schedule(material, work, Silent(), lambda: Serial(material, Silent()), 1, time_left(1e-9), asked.append)
        assert results(run.run()) == results(whole)
        assert asked == []

    def test_left_out_once_for_all_repetitions(self, limited: Callable[..., tuple[AuditResult, Fake]]) -> None:
        found, _ = limited(plan(["lenet"], ["direct", "adversarial"], 3, [], controls=False), 30)
        assert [one.attack for one in found.left_out] == ["adversarial"]

    def test_the_pace_learns(self) -> None:
        pace = Pace({"lenet": 10.0, "cnn": 20.0})
        gray, plain = (Job("hacker", "lenet", "random", name, "protected", 0) for name in ("grayscale", "direct"))
        pace.learn(gray, 40.0)
        assert pace.seconds(gray) == 40.0
        assert pace.seconds(Job("hacker", "cnn", "random", "grayscale", "protected", 0)) == 80.0
        pace.learn(plain, 5.0)
        assert (pace.seconds(plain), pace.seconds(gray)) == (5.0, 20.0)

    def test_a_warm_up_guesses_the_time_of_a_case(
        self, make_material: Callable[..., CopyMaterial], make_store: MakeStore
    ) -> None:
        recipe = RECIPE.model_copy(update={"epochs": 3, "batch_size": 16})
        material = make_material(protected=make_store(count=480), test=make_store(count=60, seed=2), recipe=recipe)
        guess = warm_up(material, "lenet")
        job = Job("hacker", "lenet", "random", "direct", "protected", 0)
        case = material.run(job)
        assert case.seconds / 5 < guess < 5 * case.seconds


def test_left_out_is_json() -> None:
    assert json.loads(json.dumps(vars(LeftOut("a", "b", "c")))) == {"attack": "a", "network": "b", "reason": "c"}
