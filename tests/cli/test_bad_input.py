"""Bad input: one sentence on stderr, the right exit code, and nothing half-written."""

import errno
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command import CLASSES, TINY, make_folder, refused, reproducible, run_uge, tiny
from PIL import Image

from uge.files import UnreadableError

Interrupt = Callable[..., None]


# Sources that cannot be protected: how to make one, exit code, words.


def empty(place: Path) -> None:
    place.mkdir()


def one_class(place: Path) -> None:
    make_folder(place, ("cat",))


def one_image_each(place: Path) -> None:
    make_folder(place, train=1)


def unreadable(place: Path) -> None:
    make_folder(place)
    (place / "train" / "dog" / "003.png").write_bytes(b"this is no image")


def truncated(place: Path) -> None:
    make_folder(place)
    file = place / "train" / "dog" / "003.png"
    file.write_bytes(file.read_bytes()[:-300])


def bomb(place: Path) -> None:
    make_folder(place)
    Image.new("1", (20000, 20000)).save(place / "train" / "dog" / "003.png")


def no_images(place: Path) -> None:
    for name in CLASSES:
        (place / name).mkdir(parents=True)
        (place / name / "notes.txt").write_text("no image")


def rows(place: Path, labels: list[int], names: list[str]) -> None:
    place.mkdir()
    png = make_folder(place / "tmp", train=1) / "train" / "cat" / "000.png"
    image = pa.array([{"bytes": png.read_bytes(), "path": None}] * len(labels))
    shutil.rmtree(place / "tmp")
    names_json = str(names).replace("'", '"')
    features = f'{{"info": {{"features": {{"label": {{"names": {names_json}, "_type": "ClassLabel"}}}}}}}}'
    table = pa.table({"image": image, "label": pa.array(labels)}).replace_schema_metadata({"huggingface": features})
    pq.write_table(table, place / "train.parquet")


def mixed_sizes(place: Path) -> None:
    make_folder(place, train=3)
    make_folder(place / "more", train=1, size=24)
    for name in CLASSES:
        (place / "more" / "train" / name / "000.png").rename(place / "train" / name / "big.png")
    shutil.rmtree(place / "more")


SOURCES = [
    (empty, 1, "got no image"),
    (one_class, 1, "all images are of one class ('cat'); at least two classes are needed"),
    (one_image_each, 1, "class 'cat' has one image; at least two per class are needed"),
    (unreadable, 1, "dog/003.png: "),
    (truncated, 1, "dog/003.png: "),
    (bomb, 1, "(a decompression bomb?)"),
    (no_images, 1, "got no image"),
    (functools.partial(rows, labels=[0, 1] * 3, names=["cat", "cat"]), 1, "two classes are both named 'cat'"),
    (functools.partial(rows, labels=[0, 1, 7] * 3, names=["cat", "dog"]), 1, "label 7 is out of range for 2 classes"),
    (functools.partial(rows, labels=[0, 1, -1] * 3, names=["cat", "dog"]), 1, "label -1 is out of range"),
    (lambda place: None, 2, "there is no file or folder"),
]
SOURCE_NAMES = (
    "empty one-class one-each unreadable truncated bomb no-images same-name label-7 label-minus-1 missing".split()  # noqa: SIM905
)


@pytest.mark.parametrize(("make", "code", "words"), SOURCES, ids=SOURCE_NAMES)
def test_sources(make: Callable[[Path], None], code: int, words: str, tmp_path: Path) -> None:
    make(tmp_path / "source")
    refused(code, words, "protect", tmp_path / "source", tmp_path / "out", *TINY, inside=tmp_path)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    mixed_sizes(tmp_path / "source")
    flags = tiny(size=None)
    refused(2, "give --size N", "protect", tmp_path / "source", tmp_path / "out", *flags, inside=tmp_path)
    assert run_uge("protect", tmp_path / "source", tmp_path / "out", *TINY).code == 0


# Settings that cannot be.

SETTINGS = [
    ({"rho": "0"}, "rho must be above 0"),
    ({"rho": "-1"}, "rho must be above 0"),
    ({"rho": "1.5"}, "rho must be above 0 and at most 1"),
    ({"rho": "abc"}, "rho must be a number such as 0.04 or a fraction such as 8/255, got 'abc'"),
    ({"rho": "0.001"}, "less than one 8-bit level"),
    ({"authorized": "lennet"}, "unknown network 'lennet'; did you mean 'lenet'?"),
    ({"authorized": ","}, "expected names separated by commas"),
    ({"authorized": "checkpoint:weights.safetensors"}, "cannot start from parameters that others may have"),
    ({"hacker": "shufelnetv2", "method": "uge"}, "unknown network 'shufelnetv2'; did you mean 'shufflenetv2'?"),
    ({"method": "uge", "refinement__hackers": "cnn,lennet"}, "unknown network 'lennet'; did you mean 'lenet'?"),
    (
        {"method": "unlearn", "refinement__hackers": "cnn", "refinement__hacker_term": "student"},
        "method 'unlearn' trains no authorised network, from which hackers in the loop could learn; give --method uge",
    ),
    ({"method": "uge", "generator__imitate": 3}, "--generator.imitate learns what --refine finds; give that as well"),
    ({"encoder": "locl"}, "unknown encoder 'locl'; did you mean 'local'?"),
    ({"encoder": "clip"}, "unknown encoder 'clip'"),
    ({"method": "ugee"}, "--method: unknown method 'ugee'; did you mean 'uge'?"),
    ({"method": "pil", "baseline__stepz": 3}, "unknown setting of the baseline 'stepz'; did you mean 'step'?"),
    ({"method": "pil", "baseline__steps": "x"}, "baseline setting steps: input should be a valid integer"),
    ({"method": "keyed", "baseline__steps": 3}, "method 'keyed' is no baseline, got --baseline.steps"),
    ({"method": "random", "refine": "true"}, "method 'random' has nothing to refine"),
    ({"method": "uge", "authorized": "cnn,keyed:lenet"}, "got 'keyed:lenet'; give lenet, or --method keyed"),
    ({"method": "unlearn", "authorized": "keyed:lenet"}, "got 'keyed:lenet'; give lenet, or --method keyed"),
    ({"authorized": "keyed:lennet"}, "unknown network 'lennet'; did you mean 'lenet'?"),
    ({"recipe__augment": "rotate-flip"}, "method 'keyed' cannot follow rotations, got the augmentation 'rotate-flip'"),
    ({"refine": "true"}, "method 'keyed' has nothing to refine; leave out --refine, or choose --method uge"),
    ({"size": 15}, "greater than or equal to 16"),
    ({"limit": 0}, "greater than or equal to 1"),
    ({"device": "cuda:63"}, "CUDA devices are here; use --device auto"),
    ({"device": "tpu"}, "device must be auto, cpu, cuda"),
    ({"config": "missing.toml"}, "the config file missing.toml cannot be read"),
    ({"authorized_weights": "missing.safetensors"}, "expected a safetensors file at missing.safetensors"),
]


@pytest.mark.parametrize(
    ("changes", "words"), SETTINGS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_settings(changes: dict[str, object], words: str, toy: Path, tmp_path: Path) -> None:
    refused(2, words, "protect", toy, tmp_path / "out", *tiny(**changes), inside=tmp_path)


def test_clip_without_its_weights_names_the_way_out(monkeypatch: pytest.MonkeyPatch, toy: Path, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    flags = tiny(method="uge", encoder="clip:openai/clip-vit-base-patch32")
    ran = refused(2, "--encoder local", "protect", toy, tmp_path / "out", *flags, inside=tmp_path)
    assert "is not in the cache and HF_HUB_OFFLINE is set" in ran.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_gpu(toy: Path, tmp_path: Path) -> None:
    words = "device 'cuda' was asked for, but 0 CUDA devices are here"
    refused(2, words, "protect", toy, tmp_path / "out", *TINY, "--device", "cuda", inside=tmp_path)


# Outputs.


def test_outputs_that_overlap_the_source(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    for out in (source, source / "out", source / "train" / "cat"):
        refused(2, "overlap", "protect", source, out, *TINY, "--overwrite", inside=tmp_path)
    source.rename(tmp_path / "out.private")
    arguments = ("protect", tmp_path / "out.private", tmp_path / "out", *TINY, "--overwrite")
    refused(2, "overlap", *arguments, inside=tmp_path)


def test_an_output_with_too_long_a_name(toy: Path, tmp_path: Path) -> None:
    refused(2, "the name is too long", "protect", toy, tmp_path / ("x" * 252), *TINY, inside=tmp_path)


def test_outputs_that_are_taken(toy: Path, copy: Path, tmp_path: Path) -> None:
    words = "holds an earlier run; give --resume to go on with it or --overwrite to start again"
    refused(2, words, "protect", toy, copy, *TINY, inside=tmp_path)
    words = "has other settings, images or precision than this one"
    refused(2, words, "protect", toy, copy, *tiny(seed=1), "--resume", inside=tmp_path)
    refused(2, words, "protect", toy, copy, *TINY, "--limit", "30", "--resume", inside=tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for flags in ((), ("--resume",)):
        words = f"the output folder {foreign} is not empty"
        refused(2, words, "protect", toy, foreign, *TINY, *flags, inside=tmp_path)
    refused(2, "is not empty", "apply", copy / "../copy.private/generator.safetensors", toy, foreign, inside=tmp_path)
    (tmp_path / "new.private").mkdir()
    (tmp_path / "new.private" / "diary.txt").write_text("mine")
    for flags in ((), ("--resume",)):
        words = "new.private is not empty; choose another output"
        refused(2, words, "protect", toy, tmp_path / "new", *TINY, *flags, inside=tmp_path)


def test_overwrite_replaces_only_what_was_written_here(
    toy: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "copy.private"
    words = "did not write, so that it is not replaced"
    for name in ("thesis", "new.private", "other.private.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chapter.txt").write_text("mine")
    for name in ("thesis", "new", "other"):
        refused(2, words, "protect", toy, tmp_path / name, *TINY, "--overwrite", inside=tmp_path)
    monkeypatch.chdir(tmp_path / "thesis")
    refused(2, words, "protect", toy, ".", *TINY, "--overwrite", inside=tmp_path)
    generator = private / "generator.safetensors"
    refused(2, words, "apply", generator, toy, private, "--overwrite", inside=tmp_path)
    words = "overlap; choose an output outside that folder"
    refused(2, words, "apply", generator, toy, private / "out", inside=tmp_path)
    assert run_uge("apply", generator, toy, copy, "--overwrite", "-q").code == 0


def test_the_noise_is_not_overwritten(toy: Path, copy: Path) -> None:
    np.save(copy / "noise.npy", np.ones((3, 16, 16, 3), np.int8))
    words = "overlap; choose an output outside that folder"
    refused(2, words, "apply", copy / "noise.npy", toy, copy, "--overwrite", inside=copy.parent)


@pytest.mark.parametrize("verb", ["protect", "apply"])
def test_outputs_that_are_pipes(verb: str, toy: Path, key: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    arguments = {"protect": (toy, tmp_path / "pipe", *TINY), "apply": (key.parent / "generator.safetensors", toy)}
    more = (tmp_path / "pipe",) if verb == "apply" else ()
    refused(2, "is no regular file or folder", verb, *arguments[verb], *more, "--overwrite", inside=tmp_path)
    assert (tmp_path / "pipe").is_fifo()


def saturated(toy: Path, place: Path, *, without: int) -> Path:
    """A copy of the toy set in which noise that only adds changes nothing, but for the first images of each class."""
    for file in toy.rglob("*.png"):
        white = place / file.relative_to(toy)
        white.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(file)
        (image if int(file.stem) < without else Image.new("RGB", image.size, "white")).save(white)
    return place


def test_originals_are_not_published_as_protected(toy: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "noise.npy", np.ones((3, 16, 16, 3), np.int8))
    noise, words = tmp_path / "noise.npy", "no image was changed; nothing was published"
    refused(1, words, "apply", noise, saturated(toy, tmp_path / "white", without=0), tmp_path / "a", inside=tmp_path)
    mixed = saturated(toy, tmp_path / "mixed", without=1)
    ran = run_uge("apply", noise, mixed, tmp_path / "b", "-q")
    assert (ran.code, ran.out) == (0, "")
    assert "33 of 36 images in" in ran.err
    assert "are unchanged originals, from which anybody learns" in ran.err


def test_a_limit_that_leaves_too_little_is_named(toy: Path, tmp_path: Path) -> None:
    words = "of the source only --limit 4 images were taken, so try more"
    refused(1, words, "protect", toy, tmp_path / "out", *TINY, "--limit", "4", inside=tmp_path)


@pytest.mark.parametrize("epochs", ["0", "-1"])
def test_training_without_epochs(epochs: str, finished: Path, key: Path, tmp_path: Path) -> None:
    words = f"epochs must be at least 1, got {epochs}"
    refused(2, words, "train", finished, "--key", key, "--epochs", epochs, inside=tmp_path)


def test_weights_are_saved_to_a_file(finished: Path, key: Path, tmp_path: Path) -> None:
    words = "expected a file name for the weights, got the folder"
    refused(2, words, "train", finished, "--key", key, "--save", tmp_path, "--overwrite", inside=tmp_path)


def test_results_inside_the_published_folder(toy: Path, copy: Path, tmp_path: Path) -> None:
    key = tmp_path / "copy.private" / "authorized-0.key.safetensors"
    words = "lies inside the published folder"
    refused(2, words, "train", copy, "--key", key, "--save", copy / "weights", inside=tmp_path)
    refused(2, words, "audit", copy, "--test", toy, "--folder", copy / "audit", inside=tmp_path)


DISKS = {errno.EROFS: "the file system is read-only", errno.ENOSPC: "the disk is full"}


@pytest.mark.parametrize("code", DISKS, ids=["read-only", "full"])
@pytest.mark.parametrize("method", ["mkdir", "write_bytes"])
def test_disks_that_take_nothing(
    method: str, code: int, monkeypatch: pytest.MonkeyPatch, toy: Path, tmp_path: Path
) -> None:
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, refuse)
        refused(2, DISKS[code], "protect", toy, tmp_path / "out", *TINY, inside=tmp_path)
    assert run_uge("protect", toy, tmp_path / "out", *TINY).code == 0


@pytest.mark.parametrize("target", ["uge.publishing.writer.encode", "uge.publishing.layout.file_sha256"])
def test_a_disk_that_fills_while_publishing(
    target: str, interrupt: Interrupt, monkeypatch: pytest.MonkeyPatch, toy: Path, finished: Path, tmp_path: Path
) -> None:
    interrupt(target, OSError(errno.ENOSPC, "No space left on device"))
    ran = run_uge("protect", toy, tmp_path / "copy", *TINY, "-q")
    assert ran.code == 2
    assert "the disk is full; free some space and run again, with --resume where the command has it" in ran.err
    assert ran.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["copy.private"]
    monkeypatch.undo()
    assert run_uge("protect", toy, tmp_path / "copy", *TINY, "--resume").code == 0
    assert reproducible(tmp_path / "copy") == reproducible(finished)


# Audits and what they compare with.


AUDITS = [
    (("--networks", "lennet"), 2, "unknown network 'lennet'; did you mean 'lenet'?"),
    (("--attacks", "distil"), 2, "unknown attack 'distil'; did you mean 'distill'?"),
    (("--recipe", "shrt"), 2, "unknown recipe 'shrt'; did you mean 'short'?"),
    (("--seeds", "0"), 2, "--seeds"),
    (("--networks", ","), 2, "expected names separated by commas"),
]


@pytest.mark.parametrize(("flags", "code", "words"), AUDITS, ids=lambda value: value[0] if len(str(value)) > 3 else "")
def test_audits(flags: tuple[str, ...], code: int, words: str, toy: Path, finished: Path, tmp_path: Path) -> None:
    arguments = ("audit", finished, "--test", toy, "--folder", tmp_path / "audit", *flags)
    refused(code, words, *arguments, inside=tmp_path)


def test_distillation_needs_a_key(toy: Path, copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "copy.private")
    words = "needs the authorised network's key; give --key FILE, or leave it out"
    for attacks in ("direct,distill", "distill-inside"):
        arguments = ("audit", copy, "--test", toy, "--networks", "lenet", "--attacks", attacks)
        refused(2, words, *arguments, inside=tmp_path)


def test_test_sets_with_other_classes(finished: Path, key: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", ("ant", "bee", "cow"))
    words = "the test images have the classes ['ant', 'bee', 'cow'], but the published folder has"
    arguments = ("--test", other, "--networks", "lenet", "--folder", tmp_path / "audit")
    refused(1, words, "audit", finished, *arguments, inside=tmp_path)
    refused(1, words, "train", finished, "--key", key, "--test", other, "--save", tmp_path / "new", inside=tmp_path)


def test_things_that_are_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    refused(2, "missing", "verify", missing, inside=tmp_path)
    refused(2, "missing", "inspect", missing, inside=tmp_path)
    refused(2, "missing", "audit", missing, "--test", "photos", inside=tmp_path)
    refused(2, "missing", "train", missing, "--key", missing, inside=tmp_path)
    refused(2, "missing", "apply", missing, "photos", tmp_path / "out", inside=tmp_path)
    refused(2, "missing", "report", missing, tmp_path / "page.html", inside=tmp_path)


def test_an_original_that_is_too_large_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, most: int) -> bytes:
        raise UnreadableError(path, "it has 8,589,934,592 bytes")

    source = make_folder(tmp_path / "source")
    monkeypatch.setattr("uge.data.formats.folder.read_bytes", fail)
    refused(1, "8,589,934,592 bytes", "protect", source, tmp_path / "out", *tiny(method="keyed"), inside=tmp_path)


def test_damaged_pixels_found_late_leave_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", train=40)
    file = source / "train" / "owl" / "037.png"
    file.write_bytes(np.random.default_rng(0).bytes(200))
    refused(1, "owl/037.png", "protect", source, tmp_path / "out", *TINY, inside=tmp_path)
    generator_run = tmp_path / "other"
    assert run_uge("protect", make_folder(tmp_path / "fine"), generator_run, *TINY).code == 0
    generator = tmp_path / "other.private" / "generator.safetensors"
    refused(1, "owl/037.png", "apply", generator, source, tmp_path / "more", inside=tmp_path)
