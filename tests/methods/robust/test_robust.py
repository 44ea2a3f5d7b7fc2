"""The method robust on tiny images: surrogates, targets, perturbations, resuming, any size."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import uge
from uge.budget import Budget
from uge.data.images import ImageSet
from uge.data.loader import fetch
from uge.data.pixels import resize
from uge.data.store import PixelStore, Records, load_pixels
from uge.errors import UnknownNameError, UsageError
from uge.learning.training import evaluate
from uge.methods import METHODS, MethodSettings, Task
from uge.methods.apply import GENERATOR, load_perturber, place_delta, protected_images
from uge.methods.robust import stages
from uge.methods.robust.amortised import through_steps
from uge.methods.robust.perturb import DRAWN, Steps, batch_rows, class_targets, perturb, window
from uge.methods.robust.settings import EFFORTS, FilterShares, RobustSettings
from uge.methods.robust.surrogates import train_surrogates
from uge.methods.uge.generator import Generator
from uge.methods.uge.settings import GeneratorSettings
from uge.networks import ImageClassifier, build
from uge.runtime import Runtime, seeded, stream

TINY = RobustSettings(surrogates="cnn,resnet8@4", epochs=2, steps=6)
PLAIN = FilterShares(jpeg=0, gray=0, blur=0, half=0, bits=0, colour=0)
MakeTask = Callable[..., Task]


@pytest.fixture
def make_task(make_images: Callable[..., ImageSet], runtime: Runtime) -> MakeTask:
    """Makes tasks of 24 images in three classes; takes what ``make_images`` takes."""

    def make(
        folder: Path | None = None, *, seed: int = 0, size: int = 16, settings: RobustSettings = TINY, **options: object
    ) -> Task:
        images = make_images(**{"count": 24, "separable": True, "size": size, **options})
        config = MethodSettings(method="robust", seed=seed, robust=settings)
        return Task(images, config, Budget(), (), runtime, lambda: load_pixels(images, size=16), folder=folder)

    return make


def levels(task: Task) -> Tensor:
    delta = METHODS["robust"].perturb(task).delta
    assert delta is not None
    return delta.read(torch.arange(delta.count))


@pytest.fixture
def surrogates() -> Sequence[ImageClassifier]:
    """Untrained networks."""
    names = ("cnn", "resnet8")
    return [build(name, 3, size=16, seed=seed).eval().requires_grad_(False) for seed, name in enumerate(names)]


def test_perturbations_are_whole_levels_within_the_budget_and_those_of_the_seed(make_task: MakeTask) -> None:
    first, again, other = (levels(make_task(seed=seed)) for seed in (0, 0, 1))
    assert first.dtype == torch.int8
    assert 0 < first.abs().max() <= 10
    assert first.flatten(1).any(1).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_folder_changes_nothing_and_a_run_resumes(make_task: MakeTask, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(stages, "batch_rows", lambda store: list(torch.arange(len(store)).split(8)))
    alone = levels(make_task())
    real = Steps.perturbation
    calls: list[int] = []

    def counted(self: Steps, clean: Tensor, *rest: object) -> Tensor:
        calls.append(len(clean))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, clean, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Steps, "perturbation", counted)
    with pytest.raises(KeyboardInterrupt):
        levels(make_task(tmp_path))
    trained = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("surrogate-?.safetensors")}
    assert len(trained) == 2
    assert torch.equal(levels(make_task(tmp_path)), alone)
    assert len(calls) == 4, "the first batch is not done again"
    assert trained == {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in trained}


def test_training_that_was_cut_off_ends_with_the_same_weights(
    make_store: Callable[..., PixelStore], runtime: Runtime, tmp_path: Path
) -> None:
    store = make_store(count=24, separable=True)

    def train(place: Callable[[str], Path | None], stop: int = 99) -> ImageClassifier:
        def progress(done: int, total: int, figures: dict[str, float]) -> None:
            if done == stop:
                raise KeyboardInterrupt

        settings = RobustSettings(surrogates="cnn@4", epochs=3)
        return train_surrogates(store, settings, seed=0, runtime=runtime, place=place, progress=progress)[0]

    with pytest.raises(KeyboardInterrupt):
        train(lambda name: tmp_path / name, stop=2)
    resumed = train(lambda name: tmp_path / name)
    whole = train(lambda name: None)
    for (name, one), (_, other) in zip(resumed.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_perturbations_belong_to_sample_ids(
    make_images: Callable[..., ImageSet], surrogates: Sequence[ImageClassifier], runtime: Runtime
) -> None:
    images = make_images(count=20, separable=True)
    store = load_pixels(images)
    steps = Steps(surrogates, FilterShares(), Budget(), 4, 0, runtime)
    goals = class_targets("next", store, surrogates, runtime)

    def made(rows: list[Tensor], ids: Sequence[str] = images.ids) -> Tensor:
        records = Records(20, (3, 16, 16), torch.int8)
        perturb(store, ids, goals, steps, records, rows)
        return records.read(torch.arange(20))

    in_order = made(list(torch.arange(20).split(5)))
    assert torch.equal(made(list(torch.arange(20).flip(0).split(5))), in_order)
    renamed = ["other", *images.ids[1:]]
    changed = (made(list(torch.arange(20).split(5)), renamed) != in_order).flatten(1).any(1)
    assert changed.tolist() == [True, *[False] * 19]


def test_surrogates_take_perturbed_images_for_the_target(
    make_store: Callable[..., PixelStore], runtime: Runtime
) -> None:
    store = make_store(count=60, separable=True)
    settings = RobustSettings(surrogates="resnet8,cnn@4", epochs=15, filters=PLAIN)
    surrogates = train_surrogates(store, settings, seed=0, runtime=runtime)
    assert min(evaluate(network, store, runtime) for network in surrogates) > 90
    goals = class_targets("next", store, surrogates, runtime)
    batch = fetch(store, torch.arange(60))
    steps = Steps(surrogates, PLAIN, Budget(40 / 255), 12, 0, runtime)
    clean = store.pixels.read(torch.arange(60))
    delta = steps.perturbation(clean, batch.y, goals[batch.y], [f"{row:04d}" for row in range(60)])
    with torch.inference_mode():
        for surrogate in surrogates:
            before, after = (surrogate(x).log_softmax(1) for x in (batch.x, batch.x + delta / 255))
            moved = (after - before).gather(1, goals[batch.y][:, None])
            assert (moved > 0).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["next", "far", "near"])
def test_no_class_is_its_own_target_and_no_two_share_one(
    kind: str, make_store: Callable[..., PixelStore], surrogates: Sequence[ImageClassifier], runtime: Runtime
) -> None:
    goals = class_targets(kind, make_store(count=60, separable=True), surrogates, runtime)
    assert sorted(goals.tolist()) == [0, 1, 2]
    assert all(goal != own for own, goal in enumerate(goals.tolist()))


def test_far_and_near_follow_the_surrogates(make_store: Callable[..., PixelStore], runtime: Runtime) -> None:
    class Answers(torch.nn.Module):
        """Finds class 1 likely for 0, 2 for 1, 3 for 2 and 0 for 3, by the brightness that tells classes apart."""

        def forward(self, x: Tensor) -> Tensor:
            own = ((x.mean((1, 2, 3)) * 255 - 40) / 175 * 3).round().long()
            return torch.eye(4)[own] * 5 + torch.eye(4)[(own + 1) % 4]

    store = make_store(count=16, classes=4, separable=True)
    network: Sequence[ImageClassifier] = [Answers()]  # type: ignore[list-item]
    assert class_targets("near", store, network, runtime).tolist() == [1, 2, 3, 0]
    far = class_targets("far", store, network, runtime)
    assert not (far == torch.tensor([1, 2, 3, 0])).any()


def test_one_class_alone_is_refused(make_store: Callable[..., PixelStore], runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="needs two of them, got 1"):
        class_targets("next", make_store(classes=1), [], runtime)


@pytest.mark.parametrize("options", [{"channels": 1}, {"size": 37}, {"size": (18, 30)}])
def test_gray_images_and_images_of_any_size(options: dict[str, object], make_task: MakeTask, runtime: Runtime) -> None:
    task = make_task(**options)  # type: ignore[arg-type]
    perturbation = METHODS["robust"].perturb(task)
    for clean, copy in perturbation.pairs(task.images, runtime):
        assert isinstance(clean, np.ndarray)
        assert isinstance(copy, np.ndarray)
        change = copy.astype(int) - clean
        assert 0 < np.abs(change).max() <= 10
        touched = change.any(2)
        assert touched.any(0).mean() > 0.9, "no column of a border is left as it was"
        assert touched.any(1).mean() > 0.9


def test_the_library_takes_settings(make_images: Callable[..., ImageSet], runtime: Runtime) -> None:
    images = make_images(count=12, separable=True)
    protected = uge.protect(images, method="robust", robust=TINY, budget="4/255", runtime=runtime)
    changes = [np.abs(sample.pixels.astype(int) - images.read(row)).max() for row, sample in enumerate(protected)]
    assert set(changes) <= {1, 2, 3, 4}
    assert protected.provenance.method_details["robust"]["surrogates"] == "cnn,resnet8@4"


def test_windows_are_shifted_and_flipped_by_their_numbers() -> None:
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(3, 1, 16, 16)
    same, shifted, flipped = window(x, torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.99, 0.9], [0.5, 0.5, 0.1]]))
    assert torch.equal(same, x[0])
    assert torch.equal(shifted[0, 0, :14], x[0, 0, 0, 2:])
    assert torch.equal(flipped, x[0].flip(2))


def test_large_images_come_in_small_batches(make_store: Callable[..., PixelStore]) -> None:
    assert len(batch_rows(make_store(count=12, size=16))) == 1
    assert [len(rows) for rows in batch_rows(make_store(count=5, size=400))] == [2, 2, 1]


def test_effort_scales_the_work_and_settings_override_it() -> None:
    low, standard, high = (RobustSettings(effort=name).work for name in EFFORTS)  # type: ignore[arg-type]
    assert low.steps < standard.steps < high.steps
    assert low.epochs < standard.epochs < high.epochs
    assert RobustSettings(effort="low", steps=99).work == low._replace(steps=99)
    assert RobustSettings(surrogates="cnn, resnet8@4").surrogate_names == [("cnn", 0), ("resnet8", 4)]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (RobustSettings(surrogates="cnn@x"), UsageError, "whole levels above 0, got 'cnn@x'"),
        (RobustSettings(by="generator"), UsageError, "give its steps as well"),
        (RobustSettings(surrogates="cn"), UnknownNameError, "did you mean 'cnn'"),
        (RobustSettings(filters=FilterShares(**dict.fromkeys(FilterShares.model_fields, 0))), UsageError, "share 0"),
    ],
)
def test_wrong_settings_are_refused_before_any_image(
    settings: RobustSettings, error: type[UsageError], message: str
) -> None:
    with pytest.raises(error, match=message):
        METHODS["robust"].check(MethodSettings(method="robust", robust=settings))


LEARNED = TINY.model_copy(update={"generator": 40})
SMALL = GeneratorSettings(width=4, blocks=1, batch_size=8, lr=0.01)


def test_a_generator_learns_the_loss_and_leaves_perturbations_as_they_are(make_task: MakeTask, tmp_path: Path) -> None:
    plain = make_task()
    task = make_task(tmp_path, settings=LEARNED)
    task = replace(task, settings=task.settings.model_copy(update={"generator": SMALL}))
    made = METHODS["robust"].perturb(task)
    assert made.delta is not None
    assert torch.equal(made.delta.read(torch.arange(24)), levels(plain))
    generator = load_perturber(tmp_path / GENERATOR)
    assert isinstance(generator, Generator)
    surrogates = [network.eval() for network in train_surrogates(task.store, TINY, seed=0, runtime=task.runtime)]
    goals = class_targets("next", task.store, surrogates, task.runtime)
    losses = through_steps(Steps(surrogates, PLAIN, task.budget, 1, 0, task.runtime), goals)
    batch = fetch(task.store, torch.arange(24))
    with torch.inference_mode():
        delta = generator(batch.x, batch.y)
        before, after = (losses(batch.x, x, batch.y, stream(0, "test"))["loss"] for x in (batch.x, batch.x + delta))
    assert 0 < (255 * delta).abs().max() <= 10
    assert after < before


def test_the_loss_of_a_generator_is_the_mean_over_images_and_surrogates(
    make_store: Callable[..., PixelStore], surrogates: Sequence[ImageClassifier], runtime: Runtime
) -> None:
    store = make_store(count=6)
    batch = fetch(store, torch.arange(6))
    goals = torch.tensor([1, 2, 0])
    losses = through_steps(Steps(surrogates, PLAIN, Budget(), 1, 0, runtime), goals)
    x = batch.x.clone().requires_grad_(True)
    found = losses(batch.x, x, batch.y, stream(0, "test"))["loss"]
    numbers = torch.rand(6, 2, DRAWN, generator=stream(0, "test"))
    naive = torch.stack(
        [
            -surrogate(window(x[row : row + 1], numbers[row : row + 1, place, :3])).log_softmax(1)[
                0, goals[batch.y[row]]
            ]
            for row in range(6)
            for place, surrogate in enumerate(surrogates)
        ]
    ).mean()
    assert found.item() == pytest.approx(naive.item(), rel=1e-4)
    (own,) = torch.autograd.grad(found, x, retain_graph=True)
    (expected,) = torch.autograd.grad(naive, x)
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-6)


def test_new_images_of_any_size_are_perturbed_at_the_training_size(
    make_images: Callable[..., ImageSet], runtime: Runtime
) -> None:
    images = make_images(count=3, size=(20, 34))
    with seeded(0, "generator"):
        generator = Generator(3, Budget(), width=4, blocks=1, skips=True, classes=images.classes, size=16).eval()
        torch.nn.init.normal_(generator.decoder[-1].weight, std=0.3)
    pairs = [*protected_images(images, generator, runtime)]
    for row, (clean, copy) in enumerate(pairs):
        assert isinstance(clean, np.ndarray)
        assert isinstance(copy, np.ndarray)
        small = resize(clean, 16)
        number = generator.numbers(images.classes)[images.labels[row]]
        delta = torch.from_numpy(next(generator.levels([small], [number]))).permute(2, 0, 1)
        np.testing.assert_array_equal(copy, Budget().add(clean, place_delta(delta, clean, np.zeros(0, np.int8))))
    direct = Records(3, (3, 16, 16), torch.int8)
    assert all((clean == copy).all() for clean, copy in protected_images(images, generator, runtime, delta=direct))


def test_a_copy_by_the_generator_alone_is_what_apply_makes(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task(tmp_path, settings=LEARNED.model_copy(update={"by": "generator"}))
    task = replace(task, settings=task.settings.model_copy(update={"generator": SMALL}))
    made = METHODS["robust"].perturb(task)
    assert made.delta is None
    generator = load_perturber(tmp_path / GENERATOR)
    again = protected_images(task.images, generator, task.runtime)
    for (clean, copy), (_, other) in zip(made.pairs(task.images, task.runtime), again, strict=True):
        np.testing.assert_array_equal(copy, other)
        assert (copy != clean).any()
