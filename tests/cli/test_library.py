"""The library protects to the very pixels, keys and generators of the command line."""

import html
from pathlib import Path

import numpy as np
from command import contents, run_uge, tiny

import uge
from uge.learning.recipes import Recipe
from uge.methods.uge.settings import GeneratorSettings, RefineSettings
from uge.runtime import Runtime

GENERATOR = GeneratorSettings(width=8, blocks=1, lr=0.02, max_steps=6)


def images_of(out: Path) -> dict[str, bytes]:
    return contents(out / "data")


def same_secrets(ours: Path, theirs: Path) -> None:
    for name in ("authorized-0.key.safetensors", "generator.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_a_keyed_protection_is_that_of_the_command_line(toy: Path, finished: Path, tmp_path: Path) -> None:
    images, runtime = uge.load_images(toy), uge.Runtime.create()
    authorized = uge.authorize("keyed:lenet", images, epochs=1, seed=0)
    uge.publish(uge.protect(images, authorized, runtime=runtime), tmp_path / "copy")
    assert images_of(tmp_path / "copy") == images_of(finished)
    same_secrets(tmp_path / "copy.private", finished.with_name("copy.private"))
    assert uge.verify(tmp_path / "copy", against=images).ok


def test_equal_settings_give_equal_results(toy: Path, paper: Path, tmp_path: Path) -> None:
    runtime = uge.Runtime.create()
    images = uge.load_images(toy)
    path = uge.record_trajectory("lenet", images, epochs=1, seed=0, runtime=runtime)
    options = {"hacker": "lenet", "generator": GENERATOR, "encoder_recipe": Recipe(epochs=1), "runtime": runtime}
    uge.publish(uge.protect(images, path, **options), tmp_path / "copy")
    assert images_of(tmp_path / "copy") == images_of(paper)
    same_secrets(tmp_path / "copy.private", paper.with_name("copy.private"))

    refinement = RefineSettings(passes=2, rounds=2)
    uge.publish(uge.protect(images, path, refine=True, refinement=refinement, **options), tmp_path / "refined")
    flags = (*tiny(method="uge", refinement__passes=2, refinement__rounds=2), "--refine")
    assert run_uge("protect", toy, tmp_path / "cli" / "refined", *flags, "-q").code == 0
    assert images_of(tmp_path / "refined") == images_of(tmp_path / "cli" / "refined")
    assert run_uge("inspect", tmp_path / "refined.private", "--json").json["kind"] == "private folder"


def test_the_whole_way_in_python(toy: Path, tmp_path: Path) -> None:
    """From images to a comparison of two audits, with no command line."""
    images, runtime = uge.load_images(toy), Runtime.create("cpu", "fp32")
    protected = uge.protect(images, method="random", budget=0.04, runtime=runtime)
    uge.publish(protected, tmp_path / "a", license="MIT")
    key = tmp_path / "a.private" / "owner.agekey"
    trained = uge.train(tmp_path / "a", key=key, network="lenet", epochs=1, test=toy, runtime=runtime)
    assert (trained["trained_on"], trained["network"]) == ("originals", "lenet")
    assert 0 <= trained["last"] <= 100
    short = {"test": toy, "networks": ["lenet"], "attacks": ["direct"], "variants": [], "epochs": 1}
    first = uge.audit(tmp_path / "a", **short, runtime=runtime)
    table = first.to_pandas()
    assert list(table["attack"]) == ["direct"]
    assert table["last"][0] == first.hackers[0].last
    assert first.headline.split(";")[0] in html.unescape(first._repr_html_())
    np.savez(tmp_path / "noise.npz", np.full((len(images), *images.read(0).shape), 3, np.int8))
    manifest = uge.apply(tmp_path / "noise.npz", toy, tmp_path / "b", runtime=runtime)
    assert manifest.count == len(images)
    uge.audit(tmp_path / "b", **short, runtime=runtime)
    found = uge.compare(tmp_path / "a.audit", f"noise={tmp_path / 'b.audit'}")
    assert set(found.to_pandas().columns) == {"a", "noise"}
    uge.compare(tmp_path / "a.audit", tmp_path / "b.audit", out=tmp_path / "both.html")
    assert (tmp_path / "both.html").is_file()
