"""The library protects to the very pixels, keys and generators of the command line."""

from pathlib import Path

from command import contents, run_uge, tiny

import uge
from uge.learning.recipes import Recipe
from uge.methods.uge.settings import GeneratorSettings, RefineSettings

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
