"""Every verb once, on images of 16 pixels: what it prints, writes, and leaves alone."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from command import CLASSES, PAPER, TINY, contents, make_folder, run_uge, tiny
from PIL import Image

from uge.auditing.summary import Margin
from uge.cli.audit import smallest_gap
from uge.cli.main import app
from uge.cli.verbs import VERBS
from uge.networks import NETWORKS
from uge.publishing import read_manifest
from uge.sealing import make_identity
from uge.sealing.signature import SIGNATURE

LENETS = ("--networks", "lenet", "--attacks", "direct,distill")
SUMMARY_KEYS = {"clean", "authorized", "hackers", "gap", "report"}


@pytest.mark.parametrize(("fixture", "method"), [("finished", "keyed"), ("paper", "uge")])
def test_protect_publishes_and_keeps_secrets_apart(fixture: str, method: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(fixture)
    manifest = read_manifest(out)
    assert (manifest.count, manifest.classes, manifest.method) == (36, CLASSES, method)
    assert 0 < manifest.measured.linf_levels <= 10
    private = out.with_name("copy.private")
    assert private.stat().st_mode & 0o777 == 0o700
    key = {"authorized-0.key.safetensors", "authorized-0.network.py", "owner.agekey", "recipients.json"}
    secrets = {*key, "generator.safetensors", "published.json"}
    trained = {"encoder.safetensors", "protect.jsonl"} if method == "uge" else set()
    assert set(os.listdir(private)) == {*secrets, *trained, "run"}
    assert set(os.listdir(out)) == {
        "README.md",
        "TRAINING.md",
        "croissant.json",
        "tdmrep.json",
        "data",
        "manifest.json",
        "recipients",
        "sealed",
        SIGNATURE,
    }
    assert set(os.listdir(out.parent)) == {"copy", "copy.private"}


@pytest.mark.parametrize(("flags", "stage"), [(TINY, "publish"), (PAPER, "generator")], ids=["keyed", "uge"])
def test_protect_says_what_it_did(flags: tuple[str, ...], stage: str, toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "a", *flags, "--limit", "24", "--format", "imagefolder", "--json")
    found = ran.json
    assert ran.code == 0
    assert found["images"] == 24
    assert Path(found["keys"][0]).is_file()
    assert found["budget"] == {"rho": 0.04, "unit": "[0, 1] pixel value", "levels": 10}
    assert found["measured"]["linf_levels"] <= 10
    assert (tmp_path / "a" / "train" / "cat").is_dir()
    assert stage in ran.err


def test_refine_with_two_authorised_networks(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    ran = run_uge("protect", toy, out, *tiny(method="uge", authorized="lenet,lenet", refinement__passes=2), "--refine")
    assert ran.code == 0, ran.err
    manifest = read_manifest(out)
    assert [record.network for record in manifest.authorized] == ["lenet", "lenet"]
    assert len({record.weights_sha256 for record in manifest.authorized}) == 2
    assert 0 < manifest.measured.linf_levels <= 10
    assert run_uge("verify", out, "--against", toy).code == 0


def test_a_budget_of_more_than_a_byte(toy: Path, tmp_path: Path) -> None:
    refined = (*tiny(method="uge", rho=0.8, refinement__passes=2, refinement__step=200), "--refine")
    for out, flags in ((tmp_path / "a", refined), (tmp_path / "b", tiny(method="random", rho=0.8))):
        ran = run_uge("protect", toy, out, *flags, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["budget"]["levels"] == 204
        assert 128 < ran.json["measured"]["linf_levels"] <= 204
        assert run_uge("verify", out, "--against", toy).code == 0


@pytest.mark.parametrize("method", ["uge-no-ud", "unlearn", "undistill"])
def test_methods(method: str, toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "a", *tiny(method=method), "-q")
    assert ran.code == 0, ran.err
    assert read_manifest(tmp_path / "a").method == method


def test_feature_distance_alone_trains_no_authorised_network(
    interrupt: Callable[..., None], toy: Path, tmp_path: Path
) -> None:
    interrupt("uge.methods.uge.stages.record_trajectory", AssertionError)
    flags = tiny(method="unlearn", refinement__passes=1, refinement__rounds=2)
    ran = run_uge("protect", toy, tmp_path / "a", *flags, "--refine", "-q")
    assert ran.code == 0, ran.err
    assert (tmp_path / "a.private" / "authorized-0.key.safetensors").is_file()
    assert [one.network for one in read_manifest(tmp_path / "a").authorized] == ["lenet"]


def test_quiet_says_nothing(toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "a", *TINY, "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("protect", "{toy}", "{new}", *TINY),
        ("demo", "{new}"),
        ("apply", "{private}/generator.safetensors", "{toy}", "{new}"),
        ("train", "{copy}", "--key", "{private}/authorized-0.key.safetensors", "--test", "{toy}", "--save", "{new}"),
        ("audit", "{copy}", "--test", "{toy}", *LENETS, "--folder", "{new}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_dry_run_writes_nothing(arguments: tuple[str, ...], toy: Path, copy: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    places = {"toy": toy, "new": tmp_path / "new", "copy": copy, "private": copy.with_name("copy.private")}
    ran = run_uge(*(argument.format(**places) for argument in arguments), "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert isinstance(ran.json, dict)
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_verify(toy: Path, copy: Path) -> None:
    ran = run_uge("verify", copy, "--against", toy, "--json")
    assert (ran.code, ran.json["problems"], ran.json["count"]) == (0, [], 36)
    assert ran.json["measured"]["linf_levels"] == read_manifest(copy).measured.linf_levels
    assert "36 images, no deviation" in run_uge("verify", copy).out


def test_verify_names_the_changed_file(copy: Path) -> None:
    (copy / "README.md").write_text("changed")
    ran = run_uge("verify", copy, "--json", "-q")
    assert ran.code == 1
    assert len(ran.json["problems"]) == 1
    assert ran.err.count("\n") == 1
    assert "README.md" in ran.err


@pytest.mark.parametrize("text", [None, "{"])
def test_verify_without_a_manifest_still_gives_json(text: str | None, copy: Path) -> None:
    path = copy / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    ran = run_uge("verify", copy, "--json")
    assert (ran.code, ran.json["count"], ran.json["measured"]) == (1, 0, None)
    assert len(ran.json["problems"]) == 1
    assert "manifest.json" in ran.json["problems"][0]


def test_train_with_the_key(toy: Path, finished: Path, key: Path, tmp_path: Path) -> None:
    weights = tmp_path / "trained.safetensors"
    ran = run_uge("train", finished, "--key", key, "--test", toy, "--epochs", "2", "--save", weights, "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["epochs"]) == 2
    assert 0 <= ran.json["last"] <= ran.json["best"] <= 100
    assert run_uge("inspect", weights, "--json").json["metadata"]["network"] == "keyed:lenet"
    assert "not measured" in run_uge("train", finished, "--key", key).out


@pytest.mark.parametrize("fixture", ["finished", "paper"])
def test_apply_protects_new_images_of_another_size(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    more = make_folder(tmp_path / "more", ("owl", "cat"), train=3, test=0, size=21)
    generator = request.getfixturevalue(fixture).with_name("copy.private") / "generator.safetensors"
    ran = run_uge("apply", generator, more, tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert 0 < ran.json["measured"]["linf_levels"] <= 10
    assert (ran.json["images"], read_manifest(tmp_path / "out").size.height) == (6, (21, 21))
    assert run_uge("verify", tmp_path / "out", "--against", more).code == 0


def test_audit_runs_only_missing_cases(toy: Path, copy: Path) -> None:
    arguments = ("audit", copy, "--test", toy, *LENETS, "--json")
    first = run_uge(*arguments)
    assert first.code == 0, first.err
    found, folder = first.json, copy.with_name("copy.audit")
    assert set(found) >= SUMMARY_KEYS
    assert set(found["clean"]) == {"lenet", "keyed:lenet"}
    assert set(found["authorized"]) >= {"network", "last", "best", "clean"}
    assert found["authorized"]["network"] == "keyed:lenet"
    assert {hacker["scheme"] for hacker in found["hackers"]} == {"direct", "distill"}
    assert all(set(hacker) >= {"network", "scheme", "last", "best", "clean"} for hacker in found["hackers"])
    assert found["gap"] == pytest.approx(
        found["authorized"]["last"] - max(hacker["last"] for hacker in found["hackers"])
    )
    assert Path(found["report"]).read_text().startswith("<!")
    assert {"cases", "summary.json", "manifest.json", "pictures"} <= set(os.listdir(folder))

    cases = contents(folder / "cases")
    missing = folder / "cases" / "hacker-lenet-direct-protected-s0.json"
    missing.unlink()
    second = run_uge(*arguments)
    assert second.err.count("audit ") == 1
    assert "hacker-lenet-direct-protected-s0" in second.err
    kept = contents(folder / "cases")
    assert {name for name in cases if cases[name] != kept[name]} <= {missing.name}
    assert second.json["hackers"] == found["hackers"]

    assert run_uge(*arguments, "--overwrite").err.count("audit ") == len(cases)


def test_audit_without_a_key_attacks_directly(toy: Path, finished: Path, copy: Path) -> None:
    copy.with_name("copy.private").rename(copy.with_name("elsewhere"))
    ran = run_uge("audit", copy, "--test", toy, "--networks", "lenet", "--attacks", "direct", "--epochs", "1", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["authorized"], ran.json["gap"]) == (None, None)


def test_images_that_only_share_the_ids_are_no_clean_control(toy: Path, copy: Path, tmp_path: Path) -> None:
    for file in toy.rglob("*.png"):
        gray = tmp_path / "gray" / file.relative_to(toy)
        gray.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("L").save(gray)
    ran = run_uge("audit", copy, "--test", tmp_path / "gray", "--networks", "lenet", "--attacks", "direct", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["clean"] == {}
    assert any("No clean control" in warning for warning in ran.json["warnings"])


@pytest.mark.parametrize(("limit", "code"), [("-200", 0), ("200", 3)])
def test_fail_under(limit: str, code: int, toy: Path, finished: Path) -> None:
    ran = run_uge("audit", finished, "--test", toy, "--networks", "lenet", "--fail-under", limit)
    assert ran.code == code
    assert "gap" in ran.out


@pytest.mark.parametrize(
    ("holding", "gap"),
    [("nothing", 20.0), ("public", 20.0), ("clean", 10.0), ("key", -1.0)],
    ids=lambda value: str(value),
)
def test_the_gap_that_may_fail_is_of_hackers_who_hold_no_more(holding: Any, gap: float) -> None:
    margins = [
        Margin.model_construct(kind="gap", holds=holds, last=last, best=last + 1)
        for holds, last in (("nothing", 20.0), ("clean", 10.0), ("key", -1.0))
    ]
    assert smallest_gap(margins, holding) == gap
    assert smallest_gap([margins[0].model_copy(update={"kind": "protection"})], holding) is None
    assert smallest_gap(margins[2:], "clean") is None


def test_compare(toy: Path, copy: Path, tmp_path: Path) -> None:
    run_uge("audit", copy, "--test", toy, "--networks", "lenet", "--attacks", "direct", "-q")
    audit, page = copy.with_name("copy.audit"), tmp_path / "page.html"
    ran = run_uge("compare", audit, f"again={audit}", "--out", page, "--json")
    assert ran.code == 0, ran.err
    assert [one["name"] for one in ran.json["standings"]] == ["again", "copy"]
    assert [Path(path).suffix for path in ran.json["files"]] == [".html", ".md", ".csv", ".json"]
    assert run_uge("compare", audit, f"again={audit}", "--out", page).code == 2


def test_report(toy: Path, copy: Path, tmp_path: Path) -> None:
    run_uge("audit", copy, "--test", toy, "--networks", "lenet", "--attacks", "direct")
    page = tmp_path / "page.html"
    ran = run_uge("report", copy.with_name("copy.audit"), page, "--json")
    assert (ran.code, ran.json) == (0, {"report": str(page)})
    assert run_uge("report", copy.with_name("copy.audit"), page).code == 2
    assert run_uge("report", copy.with_name("copy.audit"), page, "--overwrite").code == 0


def test_inspect_tells_things_apart(toy: Path, copy: Path, paper: Path, key: Path) -> None:
    private = copy.with_name("copy.private")
    run_uge("audit", copy, "--test", toy, "--networks", "lenet", "--attacks", "direct", "-q")
    things = {
        toy: "image source",
        copy: "published folder",
        private: "private folder",
        copy.with_name("copy.audit"): "audit",
        key: "network weights",
        private / "generator.safetensors": "uge-wave-code",
        paper.with_name("copy.private") / "generator.safetensors": "uge-generator",
    }
    for thing, kind in things.items():
        ran = run_uge("inspect", thing, "--json")
        assert (ran.code, ran.json["kind"]) == (0, kind), ran.err
    found = run_uge("inspect", toy, "--json").json["splits"]
    assert found["train"] == {
        "images": 36,
        "classes": dict.fromkeys(CLASSES, 12),
        "channels": 3,
        "sizes": {"16x16": 36},
        "modes": {"3": 36},
    }
    assert found["test"]["images"] == 12
    assert run_uge("inspect", private, "--json").json["finished"] is True


def test_env() -> None:
    found = run_uge("env", "--device", "cpu", "--json").json
    assert {"uge", "torch", "python", "device", "precision", "threads"} <= set(found)
    assert found["device"] == "cpu"
    assert "torch: " in run_uge("env").out


def test_demo_takes_its_preset_below_flags(tmp_path: Path) -> None:
    found = run_uge("demo", tmp_path / "a", "--dry-run", "--json", "--max-steps", "7").json
    preset = tomllib.loads((resources.files("uge") / "presets" / "demo.toml").read_text())
    assert found["config"]["generator"]["max_steps"] == 7
    assert found["config"]["method"] == preset["demo"]["method"]
    assert ",".join(found["audit"]["networks"]) == preset["demo"]["auditing"]["networks"]
    assert found["source"] == "photos"


def test_demo_ends_with_the_summary(tmp_path: Path) -> None:
    small = tiny(size=32, max_steps=2, limit=40, auditing__networks="lenet", auditing__limit_test=20)
    ran = run_uge("demo", tmp_path / "a", *small, "--no-refine", "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json) >= {*SUMMARY_KEYS, "verified", "seconds"}
    assert ran.json["verified"] is True


def test_a_demo_whose_cases_all_fail_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr("uge.cases.pool.CopyMaterial.run", fail)
    small = tiny(
        size=32, max_steps=2, limit=40, auditing__networks="lenet", auditing__limit_test=20, auditing__workers=1
    )
    ran = run_uge("demo", tmp_path / "a", *small, "--no-refine", "--json")
    assert ran.code == 1
    assert "unexpected ValueError: no room" in ran.err
    assert "uge: no attack of the audit gave a result" in ran.err


def test_help_needs_no_torch_and_shows_every_verb() -> None:
    code = (
        "import sys\nfrom uge.cli.main import main\ntry:\n    main(['--help'])\n"
        "except SystemExit as left:\n    sys.exit(left.code or ('torch' in sys.modules and 9))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0
    for word in (*VERBS, "Exit codes"):
        assert word in ran.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "copy"),
        ("inspect", "copy.private"),
        ("inspect", "toy"),
        ("verify", "copy", "--key", "copy.private/owner.agekey", "--against", "toy"),
        ("recipients", "copy"),
        ("grant", "copy", "--to", "lab.pub"),
        ("rekey", "copy"),
        ("sign", "copy", "--overwrite"),
        ("export", "copy", "originals", "--key", "copy.private/owner.agekey"),
        ("keygen", "me.agekey"),
    ],
    ids=" ".join,
)
def test_verbs_on_files_import_no_torch(arguments: tuple[str, ...], toy: Path, copy: Path) -> None:
    copy.with_name("lab.pub").write_text(make_identity(copy.with_name("lab.agekey")).text)
    code = (
        "import sys\nfrom uge.cli.main import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as left:\n    sys.exit(left.code or ('torch' in sys.modules and 9))"
    )
    words = [str(toy) if word == "toy" else word for word in arguments]
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=copy.parent)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    ran = run_uge(verb, "--help")
    assert ran.code == 0
    assert f"uge {verb}" in ran.out
    assert "Example" in ran.out


READ = {
    ("verify", "private"),
    ("verify", "key"),
    *{(verb, flag) for verb in VERBS for flag in ("config", "source-key")},
    *{(verb, path) for verb in ("protect", "demo", "federated") for path in ("authorized-weights", "for")},
    ("apply", "noise"),
    ("train", "out"),
    ("train", "key"),
    ("verify", "out"),
    ("export", "out"),
    ("export", "key"),
    ("audit", "key"),
    ("report", "run"),
    ("request", "weights"),
    ("grant", "wrapped"),
    ("grant", "key"),
    ("rekey", "key"),
    ("recipients", "out"),
    ("push", "out"),
    ("fulfil", "request"),
}
"""Paths that a command reads only."""


def values(verb: str, chosen: Any, value: str) -> list[str]:
    """Arguments of a command: those that it must have, and ``value`` for the chosen one."""
    tokens = []
    for argument in app[verb].assemble_argument_collection():
        if argument.name == chosen.name or argument.required:
            text = value if argument.name == chosen.name else "3" if argument.hint is int else "photos"
            tokens += [argument.names[0], text]
    return tokens


def paths() -> list[Any]:
    return [
        pytest.param(verb, argument, id=f"{verb} {argument.name}")
        for verb in VERBS
        for argument in app[verb].assemble_argument_collection()
        if "Path" in str(argument.hint) and (verb, argument.name.lstrip("-").lower()) not in READ
    ]


@pytest.mark.parametrize("address", ["s3://bucket/x", "file:///x", "hf://owner/name"])
@pytest.mark.parametrize(("verb", "argument"), paths())
def test_no_command_writes_to_an_address(
    verb: str, argument: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_uge(verb, *values(verb, argument, address), "-q")
    assert (ran.code, ran.out) == (2, "")
    assert f"expected a path on this machine to write to, got the address '{address}'" in ran.err
    assert ran.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_every_command_that_writes_has_such_a_path() -> None:
    reading = {"verify", "inspect", "list", "env", "recipients", "push"}
    assert VERBS.keys() - {param.values[0] for param in paths()} == reading


def test_listing_names() -> None:
    rows = run_uge("list", "networks", "--json").json["rows"]
    assert {"name": "lenet", "about": "LeNet-5 with ReLU", "package": "uge"} in rows
    assert [row["name"] for row in rows] == list(NETWORKS)
    for table in ("attacks", "methods", "encoders", "recipes"):
        assert run_uge("list", table).out.count("\n") == len(run_uge("list", table, "--json").json["rows"]) > 1
    assert re.search(r"^jpeg10 +compresses as JPEG of quality 10$", run_uge("list", "attacks").out, re.MULTILINE)
    for verb, tables in (("audit", ("attacks", "networks")), ("protect", ("encoders", "methods"))):
        text = " ".join(run_uge(verb, "--help-all").out.replace("│", " ").split())
        assert all(f"uge list {table}" in text for table in tables)
    ran = run_uge("list", "networcs")
    assert (ran.code, "networks" in ran.err) == (2, True)


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in run_uge("--help").out
    ran = run_uge("--install-completion", "--help")
    assert (ran.code, "bash" in ran.out) == (0, True)


def test_json_is_all_that_stdout_carries(toy: Path, finished: Path) -> None:
    for arguments in (("inspect", toy), ("verify", finished), ("env",)):
        assert json.loads(run_uge(*arguments, "--json", "-v").out)


def test_protecting_says_how_visible_the_change_is_and_when_sizes_differ(toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "out", "--method", "random")
    assert re.search(r"largest change 8 of 8 .*PSNR \d\d\.\d dB, SSIM 0\.\d{3}, \d+ % of the pixels changed", ran.out)
    assert "px" not in ran.err
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "with a change that can be visible (PSNR" in card
    ran = run_uge("protect", toy, tmp_path / "other", "--method", "random", "--size", "32")
    assert "are perturbed at 32 px, and the change is scaled to each image's size" in ran.err
