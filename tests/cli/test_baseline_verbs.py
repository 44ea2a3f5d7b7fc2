"""Protections of others by the command line: `protect --method NAME`, and `apply` with noise made elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import make_folder, refused, reproducible, run_uge, tiny

from uge.data import load_images
from uge.methods.baselines.random import RANDOM_CLASS
from uge.networks import build, save_weights
from uge.networks.checkpoint import checkpoint_hash
from uge.publishing import read_manifest


def test_a_baseline_from_images_to_audit(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    ran = run_uge("protect", toy, out, "--method", "random", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["keys"] == []
    assert (ran.json["budget"]["levels"], ran.json["measured"]["linf_levels"]) == (8, 8)
    manifest = read_manifest(out)
    assert (manifest.method, manifest.authorized) == ("random", ())
    details = manifest.method_details
    assert (details["norm"], details["scope"], details["linf_claimed"], details["clipped"]) == (
        "Linf",
        "sample",
        True,
        False,
    )
    assert sorted(path.name for path in (tmp_path / "copy.private").rglob("*") if path.is_file()) == [
        "delta.int8",
        "done.json",
        "owner.agekey",
        "published.json",
        "recipients.json",
        "run.json",
    ]
    assert run_uge("verify", out, "--against", toy).code == 0
    audit = run_uge("audit", out, "--test", toy, "--networks", "lenet", "--attacks", "direct", "--epochs", 1, "--json")
    assert audit.code == 0, audit.err
    assert audit.json["authorized"] is None
    assert [one["network"] for one in audit.json["hackers"]] == ["lenet"]
    assert run_uge("inspect", out, "--json").json["authorized"] == []
    assert run_uge("inspect", tmp_path / "copy.private", "--json").json["finished"] is True


@pytest.mark.parametrize("name", ["ops", "lsp"])
def test_what_is_not_linf_bounded_says_so(name: str, toy: Path, tmp_path: Path) -> None:
    assert run_uge("protect", toy, tmp_path / "a", "--method", name, "-q").code == 0
    manifest = read_manifest(tmp_path / "a")
    assert manifest.budget.rho == 1
    assert manifest.method_details["linf_claimed"] is False
    assert 0 < manifest.method_details["l2_mean"] <= manifest.method_details["l2_max"]
    clean = load_images(str(toy), split="train")
    copy = load_images(str(tmp_path / "a"))
    lengths = [np.linalg.norm((copy.read(i).astype(int) - clean.read(i)) / 255.0) for i in range(len(clean))]
    assert manifest.method_details["l2_mean"] == pytest.approx(np.mean(lengths), abs=1e-4)
    assert manifest.method_details["l2_max"] == pytest.approx(np.max(lengths), abs=1e-4)
    assert "no L-inf bound is claimed" in (tmp_path / "a" / "README.md").read_text()


def test_a_smaller_budget_clips_and_is_recorded(toy: Path, tmp_path: Path) -> None:
    assert run_uge("protect", toy, tmp_path / "a", "--method", "ops", "--rho", "0.04", "-q").code == 0
    manifest = read_manifest(tmp_path / "a")
    assert (manifest.budget.levels, manifest.measured.linf_levels) == (10, 10)
    assert (manifest.method_details["clipped"], manifest.method_details["linf_claimed"]) == (True, True)


def test_settings_of_a_baseline(toy: Path, tmp_path: Path) -> None:
    for place, flags in (("a", ["--baseline.pixels", "2"]), ("b", ["--config", str(tmp_path / "run.toml")])):
        (tmp_path / "run.toml").write_text("[baseline]\npixels = 2\n")
        ran = run_uge("protect", toy, tmp_path / place, "--method", "ops", *flags, "-q")
        assert ran.code == 0, ran.err
        assert read_manifest(tmp_path / place).method_details["settings"] == {"pixels": 2}
    assert reproducible(tmp_path / "a") == reproducible(tmp_path / "b")


def test_manifests_do_not_tell_where_checkpoints_lie(toy: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "home" / "mine.safetensors"
    save_weights(checkpoint, build("lenet", 3, seed=0, size=16))
    name, digest = f"checkpoint:{checkpoint}", f"checkpoint:{checkpoint_hash(f'checkpoint:{checkpoint}')[:12]}"
    em = ("--method=em", f"--baseline.surrogate={name}", "--baseline.theta-steps=1", "--baseline.steps=1")
    refine = (*tiny(method="uge", refinement__passes=1), "--refine", f"--refinement.hackers=lenet,{name}")
    found = []
    for place, flags in (("a", em), ("b", (*refine, "--refinement.hacker-steps=1"))):
        ran = run_uge("protect", toy, tmp_path / place, *flags, "-q")
        assert ran.code == 0, ran.err
        assert "home" not in (tmp_path / place / "manifest.json").read_text()
        found.append(read_manifest(tmp_path / place).method_details)
    assert found[0]["settings"]["surrogate"] == digest
    assert found[1]["refinement"]["hackers"] == f"lenet,{digest}"


def test_another_training_size_than_the_images(toy: Path, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "large", train=3, size=40)
    ran = run_uge("protect", source, tmp_path / "a", "--method", "lsp", "--size", "16", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["measured"]["unchanged_images"] == 0
    assert load_images(str(tmp_path / "a")).read(0).shape == (40, 40, 3)
    assert read_manifest(tmp_path / "a").method_details["training_size"] == 16


def test_resume_after_the_perturbation_was_made(
    toy: Path, tmp_path: Path, interrupt: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--method", "random-class", "-q")
    assert run_uge("protect", toy, tmp_path / "whole", *flags).code == 0
    with monkeypatch.context():
        interrupt("uge.publishing.layout.file_sha256", KeyboardInterrupt)
        assert run_uge("protect", toy, tmp_path / "cut", *flags).code == 130
    monkeypatch.undo()
    assert (tmp_path / "cut.private" / "run" / "delta.int8").is_file()
    monkeypatch.setattr("uge.methods.baselines.random.RANDOM_CLASS", replace(RANDOM_CLASS, function=None))
    ran = run_uge("protect", toy, tmp_path / "cut", *flags, "--resume")
    assert ran.code == 0, ran.err
    assert reproducible(tmp_path / "cut") == reproducible(tmp_path / "whole")


def test_noise_made_elsewhere(toy: Path, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(-5, 6, (36, 16, 16, 3))
    np.savez(tmp_path / "a.npz", mine=(levels / 255).astype(np.float32), other=np.zeros(3))
    ran = run_uge("apply", f"{tmp_path}/a.npz:mine", toy, tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["scope"], ran.json["unit"], ran.json["measured"]["linf_levels"]) == ("sample", "[0, 1]", 5)
    assert "36×16×16×3 float32, one perturbation per image, read as [0, 1], largest 5 levels" in ran.err
    clean, copy = load_images(str(toy), split="train"), load_images(str(tmp_path / "out"))
    for number in range(36):
        wanted = (clean.read(number).astype(int) + levels[number]).clip(0, 255)
        np.testing.assert_array_equal(copy.read(number), wanted)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.method, manifest.budget.levels, manifest.method_details["clipped"]) == ("foreign", 5, False)
    assert run_uge("verify", tmp_path / "out", "--against", toy).code == 0
    tight = run_uge("apply", f"{tmp_path}/a.npz:mine", toy, tmp_path / "tight", "--rho", "2/255", "--json")
    assert tight.json["measured"]["linf_levels"] == 2
    assert read_manifest(tmp_path / "tight").method_details["clipped"] is True


def test_class_wise_noise(toy: Path, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(-5, 6, (3, 3, 16, 16)).astype(np.int8)
    np.save(tmp_path / "a.npy", levels)
    ran = run_uge("apply", tmp_path / "a.npy", toy, tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["scope"], ran.json["unit"]) == ("class", "levels")
    clean, copy = load_images(str(toy), split="train"), load_images(str(tmp_path / "out"))
    for number in range(36):
        wanted = (clean.read(number).astype(int) + levels[clean.labels[number]].transpose(1, 2, 0)).clip(0, 255)
        np.testing.assert_array_equal(copy.read(number), wanted)


def test_what_apply_refuses(toy: Path, finished: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((7, 16, 16, 3), np.int8))
    generator = finished.with_name("copy.private") / "generator.safetensors"
    for words, *arguments in (
        ("has 7 rows, expected 36 (images) or 3 (classes)", tmp_path / "a.npy"),
        ("there is no noise file", tmp_path / "gone.npy"),
        ("--rho, --scope, --unit and --perturbed are for foreign noise", generator, "--rho=0.04"),
        ('Choose from: "sample", "class"', tmp_path / "a.npy", "--scope=image"),
    ):
        first, *flags = arguments
        refused(2, words, "apply", first, toy, tmp_path / "out", *flags, inside=tmp_path)


def test_dry_run_of_a_baseline(toy: Path, tmp_path: Path) -> None:
    ran = run_uge("protect", toy, tmp_path / "a", "--method", "cuda", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["authorized"], ran.json["levels"]) == ([], 255)
    assert not (tmp_path / "a.private").exists()
