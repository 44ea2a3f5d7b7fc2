"""The yardstick of conditional learnability, on a handful of images."""

import importlib
import importlib.util
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uge.cases.case import Case, read_case, read_cases
from uge.errors import UsageError
from uge.files import read_json
from uge.learning.recipes import Recipe
from uge.learning.training import DivergedError, EpochResult, History
from uge.networks import build
from uge.progress import Silent

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    bench = importlib.import_module("conditional.bench")
    summary = importlib.import_module("conditional.summary")
    place = importlib.util.spec_from_file_location("conditional_command", BENCHMARKS / "conditional.py")
    command = importlib.util.module_from_spec(place)
    place.loader.exec_module(command)
finally:
    sys.path.remove(str(BENCHMARKS))

FLAGS = ["generator.max_steps=0", "refine=true"]
LABEL = "unlearn-cnn-s0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for number, name in enumerate(("a", "b", "c")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(60 + 60 * number, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The networks that were trained by the yardstick (not by the protector)."""
    found: list[Any] = []
    real = bench.fit
    monkeypatch.setattr(
        bench, "fit", lambda network, *rest, **named: (found.append(network), real(network, *rest, **named))[1]
    )
    return found


def call(data: Path, results: Path, *more: str, flags: list[str] = FLAGS) -> None:
    options = ["--method", "unlearn", "--authorized", "cnn", "--smoke", "--limit", "24"]
    command.main([str(data), str(results), *options, "--protect-flag", *flags, *more])


def test_every_case_is_run_once(data: Path, tmp_path: Path, trained: list[Any], capsys: Any) -> None:
    results = tmp_path / "results"
    call(data, results, "--only", "hacker-cnn-distill")
    found = read_json(results / LABEL / "summary.json")
    assert [e["id"] for e in found["cases"] if e["last"] is not None] == [
        "authorized-cnn-direct-protected-s0",
        "hacker-cnn-distill-protected-s0",
    ]
    assert len(trained) == 2, "a student brings its teacher with it"
    assert [target["met"] for target in found["targets"].values()] == [None] * 5

    capsys.readouterr()
    call(data, results)
    table = capsys.readouterr().out
    found = read_json(results / LABEL / "summary.json")
    kinds = ["authorized", *["plain"] * 2, *["distill"] * 2, "control", *["clean"] * 2, *["variant"] * 4]
    assert [e["kind"] for e in found["cases"]] == kinds
    assert len(trained) == len(kinds)
    own, clean = read_cases(results / LABEL), read_cases(results / "clean")
    assert len(own) == 9
    assert {case.role for case in clean} == {"clean"}
    assert {case.id: case.last for case in own + clean} == {e["id"]: e["last"] for e in found["cases"]}
    assert all(e["id"] in table for e in found["cases"])
    assert all(isinstance(target["met"], bool) for target in found["targets"].values())
    assert (results / "published" / LABEL / "manifest.json").is_file()
    assert found["protect"]["seconds"] > 0
    assert found["protect"]["resumed"] is False
    assert str(data) not in json.dumps(found)

    call(data, results)
    call(data, results, "--summary-only")
    command.main(["--table", str(results)])
    assert "| unlearn-cnn |" in capsys.readouterr().out
    assert len(trained) == len(kinds), "nothing was run again"
    assert read_json(results / LABEL / "summary.json") == found

    (results / LABEL / "cases" / "hacker-cnn-direct-protected-s0.json").unlink()
    call(data, results, "--summary-only")
    lost = read_json(results / LABEL / "summary.json")
    assert [lost["targets"][name]["met"] for name in ("plain", "gap", "gap_best")] == [None] * 3
    assert lost["targets"]["distill"] == found["targets"]["distill"]
    with pytest.raises(SystemExit, match="give another --label"):
        call(data, results, flags=["generator.max_steps=1"])

    # The same cases with another epoch count are others, and a diverged one is a result.
    setup = bench.Setup(str(data), results, LABEL, 0, 24, 300, 1, ("cnn",), "auto")
    one = bench.Bench(setup)
    assert [one.finished(job) for job in one.jobs[:2]] == [True, False]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "fit", _diverge)
        case = one.run(one.jobs[1])
    assert read_case(one.cases(one.jobs[1]) / f"{case.id}.json") == case
    assert (case.last, case.best_epoch, case.history[0].loss) == (10.0, 1, None)
    assert one.finished(one.jobs[1])


def _diverge(*_: Any, **__: Any) -> History:
    raise DivergedError(History([EpochResult(1, math.nan, 10.0, 10.0)]))


def setup(**changes: Any) -> Any:
    fields = {"data": "", "results": Path(), "label": "", "seed": 3, "limit": 9, "limit_test": None, "epochs": 15}
    return bench.Setup(**{**fields, "hackers": ("cnn", "resnet8"), "device": "cpu", **changes})


class TestPlan:
    def test_the_recipe_of_the_key_is_for_the_authorised_and_once_for_hackers(self) -> None:
        own = Recipe(epochs=15, lr=0.02, batch_size=64)
        jobs = bench.plan(setup(), "keyed:lenet", own)
        hacking = ("plain", "distill")
        authorized = [job for job in jobs if job.network == "keyed:lenet" and job.kind not in hacking]
        assert [(j.kind, j.recipe.lr, j.recipe.batch_size) for j in authorized] == [
            ("authorized", 0.02, 64),
            ("control", 0.02, 64),
            ("variant", 0.02, 64),
            ("variant", 0.02, 128),
            ("variant", 0.01, 64),
            ("variant", 0.04, 64),
        ]
        # The architecture behind the key is a hacker as well, and so is the keyed one with a key of its own.
        names = ["cnn", "resnet8", "lenet", "keyed:lenet"]
        hackers = [job for job in jobs if job.kind in hacking]
        assert [(j.kind, j.network) for j in hackers] == [(k, n) for k in ("plain", "distill", "plain") for n in names]
        assert [job.recipe == own for job in hackers] == [False] * 8 + [True] * 4
        assert [job.network for job in jobs if job.kind == "clean"] == names[:3]

    def test_nothing_is_there_twice_where_recipes_are_alike(self) -> None:
        jobs = bench.plan(setup(), "cnn", Recipe(epochs=15))
        assert len(jobs) == len(set(jobs)) == 1 + 2 * 2 + 1 + 2 + 4
        orders = {job.variant: job.order for job in jobs}
        assert orders["protector-order"] not in {order for name, order in orders.items() if name != "protector-order"}
        assert len(set(orders.values())) == 2


def test_students_wait_for_their_teacher_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, other_started, log = bench.plan(setup(), "cnn", Recipe()), threading.Event(), list[str]()

    def work(job: Any) -> Any:
        if job.kind == "authorized":
            assert other_started.wait(10)
            log.append("taught")
        other_started.set()
        log.append(job.kind)
        return SimpleNamespace(id=job.kind, last=0.0, best=0.0, seconds=0.0)

    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
    monkeypatch.setattr(bench, "run_in_worker", work)
    progress = SimpleNamespace(note=lambda text: None)
    cases = list(bench.run_jobs(SimpleNamespace(setup=None), jobs, 2, progress))
    assert sorted(case.id for case in cases) == sorted(job.kind for job in jobs)
    assert log.index("plain") < log.index("taught") < log.index("distill")
    assert list(bench.run_jobs(SimpleNamespace(run=lambda job, _: job), jobs, 1, Silent())) == jobs


def test_code_counts_and_weights_do_not() -> None:
    digests = [bench.code_digest(build(name, 3, seed=seed)) for name, seed in (("cnn", 0), ("cnn", 1), ("resnet8", 0))]
    assert digests[0] == digests[1] != digests[2]


def case(name: str, last: float, best: float) -> Case:
    fields: dict[str, Any] = {"role": "hacker", "network": "n", "start": "random", "data": "protected", "seed": 0}
    return Case(id=name, last=last, best=best, best_epoch=1, **fields)


CASES = {
    "authorized": ("authorized", case("authorized", 80.0, 82.0)),
    "plain-a": ("plain", case("plain-a", 20.0, 45.0)),
    "plain-b": ("plain", case("plain-b", 30.0, 31.0)),
    "distill-a": ("distill", case("distill-a", 40.5, 41.0)),
    "control": ("control", case("control", 83.5, 84.0)),
    "clean": ("clean", case("clean", 86.0, 86.0)),
}


def summarized(**changes: Case | None) -> dict[str, Any]:
    cases = {name: changes.get(name.replace("-", "_"), one) for name, (_, one) in CASES.items()}
    entries = [{"id": name, "kind": kind, "network": "cnn"} for name, (kind, _) in CASES.items()]
    protect = {"seconds": 10.0, "resumed": False}
    settings = {"method": "m", "seed": 0}
    plan = {"label": "m-s0", "group": "m", "base": "cnn", "settings": settings, "protect": protect, "cases": entries}
    return summary.summarize(plan, {name: one for name, one in cases.items() if one is not None})


class TestSummary:
    def test_arithmetic(self) -> None:
        found = summarized()
        assert (found["gap_last"], found["gap_best"]) == (39.5, 35.0)  # 80 - 40.5 and 80 - 45
        assert found["hackers"]["plain"] == {
            "last": 30.0,
            "best": 45.0,
            "last_case": "plain-b",
            "best_case": "plain-a",
            "missing": 0,
        }
        assert found["retention"] == {"own_control": -3.5, "base_control": -6.0}
        assert {name: target["met"] for name, target in found["targets"].items()} == dict.fromkeys(
            found["targets"], True
        )

    @pytest.mark.parametrize(
        ("change", "missed"),
        [
            ({"authorized": case("authorized", 79.4, 90.0)}, ["authorized"]),
            ({"plain_b": case("plain-b", 35.01, 35.01)}, ["plain"]),
            ({"distill_a": case("distill-a", 45.01, 45.01)}, ["distill"]),
            ({"distill_a": case("distill-a", 40.0, 60.5)}, ["gap_best"]),
            ({"distill_a": case("distill-a", 60.5, 60.5)}, ["distill", "gap", "gap_best"]),
        ],
    )
    def test_a_target_is_missed(self, change: dict[str, Case], missed: list[str]) -> None:
        targets = summarized(**change)["targets"]
        assert [name for name, target in targets.items() if target["met"] is False] == missed

    @pytest.mark.parametrize(
        ("lost", "unknown"),
        [
            ("authorized", ["authorized", "gap", "gap_best"]),
            ("plain_a", ["plain", "gap", "gap_best"]),
            ("distill_a", ["distill", "gap", "gap_best"]),
            ("control", ["authorized"]),
            ("clean", []),
        ],
    )
    def test_what_a_missing_case_leaves_open(self, lost: str, unknown: list[str]) -> None:
        found = summarized(**{lost: None})
        assert [name for name, target in found["targets"].items() if target["met"] is None] == unknown
        assert "| – | – | – |" in summary.case_table(found)

    def test_mean_and_deviation_over_seeds(self, tmp_path: Path) -> None:
        runs = [summarized(), summarized(authorized=case("authorized", 82.0, 82.0))]
        runs[1]["settings"] = {"method": "m", "seed": 1}
        other = {**summarized(plain_a=None), "group": "other", "settings": {"method": "other", "seed": 0}}
        found = summary.aggregate(runs)
        assert found["authorized"] == (81.0, pytest.approx(math.sqrt(2)), 2)
        assert found["plain"] == (30.0, 0.0, 2)
        assert summary.aggregate([other])["gap_last"] == (39.5, None, 1)
        for number, one in enumerate([*runs, other]):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "summary.json").write_text(json.dumps(one))
        assert summary.seeds_table(tmp_path).splitlines()[2:4] == [
            "| m | 81.0 ± 1.4 (83.5 ± 0.0) | 30.0 ± 0.0 | 40.5 ± 0.0 | 40.5 ± 1.4 / 36.0 ± 1.4 | 10 ± 0 | 2 |",
            "| other (1 cases missing) | 80.0 (83.5) | 30.0 | 40.5 | 39.5 / 39.0 | 10 | 1 |",
        ]

    def test_every_network_over_seeds(self) -> None:
        def run(last: float) -> dict[str, Any]:
            ids = {
                "authorized": ("authorized-k-direct-protected-s7", "keyed:cnn", last),
                "plain": ("hacker-cnn-direct-protected-s7", "cnn", 20.0),
                "distill": ("hacker-cnn-distill-protected-s7", "cnn", None),
                "control": ("clean-k-s7", "keyed:cnn", 80.0),
                "variant": ("authorized-k-direct-protected-lr-x0.5-s7", "keyed:cnn", 70.0),
            }
            cases = [
                {"id": name, "kind": kind, "network": network, "last": value, "best": value and value + 1}
                for kind, (name, network, value) in ids.items()
            ]
            return {"group": "m", "cases": cases}

        assert summary.networks_table([run(74.0), run(76.0)]).splitlines() == [
            "| m | on labels | distilled | on clean images |",
            "|---|--:|--:|--:|",
            "| authorized keyed:cnn | 75.0 ± 1.4 (76.0 ± 1.4) | – | 80.0 ± 0.0 (81.0 ± 0.0) |",
            "| authorized keyed:cnn, lr-x0.5 | 70.0 ± 0.0 (71.0 ± 0.0) | – | – |",
            "| hacker cnn | 20.0 ± 0.0 (21.0 ± 0.0) | – | – |",
        ]


class TestFlags:
    def test_dotted_names_change_one_setting(self) -> None:
        flags = ["refine=true", "refinement.passes=4", "recipe.lr=0.05", "recipe.milestones=[1, 2]"]
        fields = command.config_fields(flags, method="unlearn", rho="0.04", recipe={"epochs": 7})
        assert fields["recipe"] == {"epochs": 7, "lr": "0.05", "milestones": [1, 2]}
        config = bench.ProtectConfig.checked(**fields)
        assert (config.refine, config.refinement.passes, config.rho) == (True, 4, "0.04")
        assert config.recipe == Recipe(epochs=7, lr=0.05, milestones=(1, 2))

    @pytest.mark.parametrize("flag", ["refine", "seed=1", "method=uge", "=3"])
    def test_refuses(self, flag: str) -> None:
        with pytest.raises(UsageError, match="KEY=VALUE"):
            command.config_fields([flag])

    def test_refuses_half_a_command(self, capsys: Any) -> None:
        with pytest.raises(SystemExit):
            command.main(["data"])
        assert "RESULTS" in capsys.readouterr().err
