"""Images added to a sealed folder: perturbed as its own, sealed for its recipients, and measured as a whole."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import contents, make_folder, refused, run_uge, tiny
from PIL import Image

import uge
from uge.pipeline.originals import find_originals
from uge.publishing import read_manifest
from uge.sealing.signing_key import open_identity

LAYOUTS = ("parquet", "imagefolder")
IDENTITY = "--identity=owner.pem"


def more(root: Path, classes: tuple[str, ...] = ("cat", "owl"), count: int = 3, start: int = 0) -> Path:
    """Images of their own, under names that the first source has as well."""
    random = np.random.default_rng(start + 1)
    for name in classes:
        place = root / "train" / name
        place.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, and the first one published in each layout, for its owner and ``lab``; not to be changed."""
    place = tmp_path_factory.mktemp("world")
    make_folder(place / "first", train=3, test=1)
    more(place / "more")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        open_identity(Path("owner.pem"))
        Path("lab.pub").write_text(run_uge("keygen", "lab.agekey", "--json").json["public_key"])
        for layout in LAYOUTS:
            flags = ("--to=lab.pub", f"--format={layout}", IDENTITY, "-q")
            assert run_uge("protect", "first", layout, *tiny(), *flags).code == 0
    return place


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, as the current folder, that a test may change."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def append(source: str, out: str, *flags: str) -> dict[str, object]:
    ran = run_uge("protect", source, out, "--append", IDENTITY, "--json", *flags)
    assert ran.code == 0, ran.err
    return dict(ran.json)


def verified(out: str, *sources: str) -> None:
    """Nothing deviates, for the owner and for the recipient, from the sources in that order."""
    against = [f"--against={source}" for source in sources]
    for key in (f"{out}.private/owner.agekey", "lab.agekey"):
        ran = run_uge("verify", out, "--key", key, *against, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["opened"] == ran.json["count"] == read_manifest(Path(out)).count


@pytest.mark.parametrize("out", LAYOUTS)
def test_further_images_are_published_and_sealed(out: str, here: Path) -> None:
    before = contents(Path(out))
    result = append("more", out, *tiny(), "--to=lab.pub", f"--format={out}")  # As it was made.
    assert (result["added"], result["skipped"], result["images"]) == (6, 0, 15)
    after = contents(Path(out))
    kept = [name for name in before if name.startswith(("data/", "train/", "sealed/", "recipients/"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    manifest = read_manifest(Path(out))
    assert (manifest.class_counts, manifest.additions) == ((6, 3, 6), (6,))
    verified(out, "first", "more")
    more(here / "third", classes=("dog",), start=7)
    append("third", out)
    verified(out, "first", "more", "third")
    assert read_manifest(Path(out)).additions == (6, 3)
    assert manifest.sealed is not None
    fresh = read_manifest(Path(out)).sealed
    assert fresh is not None
    assert len({shard.salt for shard in fresh.shards}) == len(fresh.shards) == 3


@pytest.mark.parametrize("out", LAYOUTS)
def test_every_reader_sees_all_images(out: str, here: Path) -> None:
    append("more", out)
    published = uge.load_images(out)
    originals = uge.open(out, key="lab.agekey")
    assert list(published.ids) == list(originals.ids)
    assert published.labels.tolist() == originals.labels.tolist()
    sources = [
        uge.load_images(name, split="train").read(row)
        for name, count in (("first", 9), ("more", 6))
        for row in range(count)
    ]
    assert all(np.array_equal(originals.read(row), pixels) for row, pixels in enumerate(sources))
    changes = [np.abs(published.read(row).astype(int) - pixels.astype(int)).max() for row, pixels in enumerate(sources)]
    assert 0 < min(changes) <= max(changes) <= read_manifest(Path(out)).budget.levels
    assert run_uge("export", out, "exported", "--key", "lab.agekey", "-q").code == 0
    assert len(list(Path("exported").rglob("*.png"))) == 15
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(here / out), cache_dir=str(here / "cache"))["train"]
    assert sorted(loaded["label"]) == sorted(published.labels.tolist())


def test_recipients_can_be_changed_afterwards(here: Path) -> None:
    append("more", "parquet")
    Path("new.pub").write_text(run_uge("keygen", "new.agekey", "--json").json["public_key"])
    assert run_uge("grant", "parquet", "--to", "new.pub", IDENTITY, "-q").code == 0
    assert run_uge("rekey", "parquet", "--drop", "new", IDENTITY, "-q").code == 0
    verified("parquet", "first", "more")
    more(here / "third", classes=("dog",), start=7)
    append("third", "parquet")
    verified("parquet", "first", "more", "third")


def test_images_that_are_there_are_left_out(here: Path) -> None:
    """The source is the first one, grown: its old images are told by their pixels."""
    before = contents(here)
    result = append("first", "parquet")
    assert (result["added"], result["skipped"]) == (0, 9)
    assert contents(here) == before
    shutil.copy("more/train/cat/000.png", "first/train/cat/later.png")
    Path("first/train/cat/000.png").rename("first/train/cat/renamed.png")
    dry = append("first", "parquet", "--dry-run")
    assert (dry["added"], dry["skipped"], dry["images"]) == (1, 9, 9)
    assert contents(Path("parquet")) == {
        name.removeprefix("parquet/"): data for name, data in before.items() if name.startswith("parquet/")
    }
    append("first", "parquet")
    Path("first/train/cat/renamed.png").rename("first/train/cat/000.png")
    verified("parquet", "first")
    published = uge.load_images("parquet")
    originals = find_originals("first", None, published, additions=1).images  # The clean control of an audit.
    assert originals is not None
    assert originals.labels.tolist() == published.labels.tolist()


def test_ids_by_number_do_not_collide(here: Path) -> None:
    random = np.random.default_rng(3)
    for name in ("a", "b"):
        images = random.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
        np.savez(f"{name}.npz", x_train=images, y_train=np.arange(8) % 2)
    assert run_uge("protect", "a.npz", "arrays", *tiny(), IDENTITY, "--to=lab.pub", "-q").code == 0
    append("b.npz", "arrays")
    verified("arrays", "a.npz", "b.npz")
    assert len(set(uge.load_images("arrays").ids)) == 16


OTHERS = {
    "uge": {},
    "unlearn": {},
    "robust": {"robust__surrogates": "lenet", "robust__epochs": 1, "robust__steps": 2, "authorized": None},
    "random": {"authorized": None},
    "random-class": {"authorized": None},
    "lsp": {"authorized": None},
    "ar": {"authorized": None},
    "cuda": {"authorized": None},
    "preview": {"authorized": None, "baseline__kind": "pixel8"},
}


@pytest.mark.parametrize("method", OTHERS)
def test_methods_that_perturb_each_image_alone(method: str, here: Path) -> None:
    assert run_uge("protect", "first", "other", *tiny(method=method, **OTHERS[method]), IDENTITY, "-q").code == 0
    append("more", "other")
    ran = run_uge("verify", "other", "--against=first", "--against=more", "--key=other.private/owner.agekey", "--json")
    assert ran.code == 0, ran.err
    manifest = read_manifest(Path("other"))
    assert manifest.measured.unchanged_images == 0
    if "l2_mean" in manifest.method_details:
        published, originals = uge.load_images("other"), uge.open("other", key="other.private/owner.agekey")
        changes = [published.read(row).astype(float) - originals.read(row) for row in range(15)]
        lengths = [float(np.linalg.norm(change)) / 255 for change in changes]
        assert manifest.method_details["l2_mean"] == pytest.approx(np.mean(lengths), abs=1e-5)
        assert manifest.method_details["l2_max"] == pytest.approx(max(lengths), abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_without_labels(layout: str, here: Path) -> None:
    for name, source in (("plain", "first"), ("later", "more")):
        Path(name).mkdir()
        for file in Path(source).glob("train/cat/*.png"):
            shutil.copy(file, f"{name}/{file.name}")
    settings = ("--method=preview", "--baseline.kind=pixel8", f"--format={layout}", IDENTITY, "--to=lab.pub", "-q")
    assert run_uge("protect", "plain", "out", *settings).code == 0
    assert append("later", "out")["images"] == 6
    verified("out", "plain", "later")
    refused(1, "the class 'cat' is none of out", "protect", "more", "out", "--append", IDENTITY, inside=here)
    refused(1, "later has no labels", "protect", "later", "parquet", "--append", IDENTITY, inside=here)


def test_clusters_say_nothing_of_further_images(here: Path) -> None:
    settings = tiny(method="robust", **OTHERS["robust"], robust__clusters=2)
    assert run_uge("protect", "first", "clusters", *settings, IDENTITY, "-q").code == 0
    refused(2, "took clusters of its own images", "protect", "more", "clusters", "--append", IDENTITY, inside=here)


REFUSED = [
    ("more", ("--rho=8/255",), "parquet was protected without --rho, got 8/255; leave it out"),
    ("more", ("--recipe.epochs=3",), "parquet was protected with --recipe.epochs 1, got 3; leave it out"),
    ("more", ("--method=uge",), "parquet was protected with --method keyed, got uge; leave it out"),
    ("more", ("--format=imagefolder",), "parquet was published with --format parquet, got imagefolder"),
    ("more", ("--no-seal",), "leave out --no-seal"),
    ("more", ("--to=new.pub",), "'new.pub' is none of them; use uge grant"),
    ("more", ("--anonymous",), "leave out --anonymous"),
    ("more", ("--sealed-only=test",), "leave out --sealed-only"),
    ("more", ("--overwrite",), "leave out --resume and --overwrite"),
    ("strange", (), "the class 'yak' is none of parquet"),
    ("moved", (), "in the class 'cat' and not 'dog'; correct the source"),
    ("parquet", (), "protected copy already"),
    ("parquet", ("--again",), "overlap"),
]


@pytest.mark.parametrize(("source", "flags", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_additions_that_are_refused(source: str, flags: tuple[str, ...], words: str, here: Path) -> None:
    Path("new.pub").write_text(run_uge("keygen", "new.agekey", "--json").json["public_key"])
    more(here / "strange", classes=("cat", "yak"))
    (here / "moved" / "train" / "dog").mkdir(parents=True)
    shutil.copy("first/train/cat/000.png", "moved/train/dog/000.png")
    code = 1 if source in ("strange", "moved") else 2
    refused(code, words, "protect", source, "parquet", "--append", IDENTITY, *flags, inside=here)


def test_folders_to_which_nothing_can_be_added(here: Path) -> None:
    def refuse(out: str, words: str, *flags: str) -> None:
        refused(2, words, "protect", "more", out, "--append", *(flags or (IDENTITY,)), inside=here)

    assert run_uge("protect", "first", "open", *tiny(), "--no-seal", "-q").code == 0
    refuse("open", "holds nothing sealed, and images are added to sealed folders alone")
    assert run_uge("apply", "parquet.private/generator.safetensors", "more", "applied", IDENTITY, "-q").code == 0
    refuse("applied", "was not made by uge protect (method 'generator')")
    open_identity(Path("mallory.pem"))
    refuse("parquet", "only that key may sign its changes", "--identity=mallory.pem")
    state = Path("parquet.private/run/run.json")
    config = json.loads(state.read_text())
    state.write_text(json.dumps({**config, "config": {**config["config"], "refine": True}}))
    refuse("parquet", "--refine optimised every image")
    state.write_text(json.dumps({**config, "config": {**config["config"], "method": "em"}}))
    refuse("parquet", "method 'em' finds the perturbations of all its images together")
    state.write_text(json.dumps(config))
    Path("parquet.private/generator.safetensors").unlink()
    refuse("parquet", "generator.safetensors is missing, by which further images are perturbed")
    state.unlink()
    refuse("parquet", "which has the settings of parquet; bring the private folder back")
    Path("fed/server-0").mkdir(parents=True)
    Path("fed/federation.json").write_text("{}")
    Path("imagefolder").rename("fed/server-0/published")
    refuse("fed/server-0/published", "is the part of a server in the federation")


def test_resuming_does_not_lose_what_was_added(here: Path) -> None:
    append("more", "parquet")
    again = ("protect", "first", "parquet", *tiny(), "--to=lab.pub", IDENTITY, "--resume")
    assert run_uge(*again, "-q").code == 0
    verified("parquet", "first", "more")
    Path("parquet/TRAINING.md").unlink()
    refused(2, "would lose images that were added", *again, inside=here)
    assert run_uge(*again[:-1], "--overwrite", "-q").code == 0
    verified("parquet", "first")


def test_read_only_files_are_linked_and_read_only_folders_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in Path("parquet").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # For a superuser, as in containers, nothing is read-only.
    monkeypatch.setattr("os.access", lambda path, mode: bool(Path(path).stat().st_mode & 0o200))
    words = " is read-only, so that nothing can be added"
    refused(2, words, "protect", "more", "parquet", "--append", IDENTITY, inside=here)
    for path in Path("parquet").iterdir():
        path.chmod(0o755 if path.is_dir() else 0o444)
    append("more", "parquet")
    verified("parquet", "first", "more")


def test_a_changed_folder_gets_no_images(here: Path) -> None:
    shard = Path("parquet/data/train-00000-of-00001.parquet")
    shard.write_bytes(shard.read_bytes()[:-1] + b"0")
    refused(1, "files that are missing or changed", "protect", "more", "parquet", "--append", IDENTITY, inside=here)
