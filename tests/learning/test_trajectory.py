from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from uge.data.store import PixelStore
from uge.errors import UsageError, WeightsError
from uge.learning.recipes import Recipe
from uge.learning.trajectory import Trajectory, network_at, record_trajectory, snapshot_steps
from uge.networks import build, weights_hash
from uge.runtime import Runtime

RECIPE = Recipe(epochs=3, batch_size=4)  # 3 steps an epoch
MakeStore = Callable[..., PixelStore]


def network() -> nn.Module:
    return build("resnet8", 3, seed=0, size=16)


@pytest.mark.parametrize(("total", "count"), [(1000, 10), (9, 4), (3, 10), (1, 2)])
def test_snapshots_are_dense_early_and_include_both_ends(total: int, count: int) -> None:
    steps = snapshot_steps(total, count)
    assert (steps[0], steps[-1]) == (0, total)
    assert len(set(steps)) == len(steps) <= count
    gaps = [after - before for before, after in pairwise(steps)]
    assert all(late >= early - 1 for early, late in pairwise(gaps))


def test_snapshots_are_the_states_of_the_run(make_store: MakeStore, runtime: Runtime) -> None:
    net = network()
    trajectory = record_trajectory(net, make_store(), RECIPE, seed=0, runtime=runtime, snapshots=[3, 0])
    assert trajectory.steps == [0, 3, 9]
    assert len(trajectory) == 3
    assert weights_hash(trajectory.state(0)) == weights_hash(network())
    assert weights_hash(trajectory.state(-1)) == weights_hash(net)
    shorter = network()
    stop = record_trajectory(shorter, make_store(), RECIPE, seed=0, runtime=runtime, snapshots=[0, 3, 4])
    assert weights_hash(stop.state(1)) == weights_hash(trajectory.state(1)) != weights_hash(stop.state(2))


def test_a_folder_holds_the_same(make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> None:
    store = make_store()
    memory = record_trajectory(network(), store, RECIPE, seed=0, runtime=runtime, snapshots=4, test=store)
    record_trajectory(network(), store, RECIPE, seed=0, runtime=runtime, snapshots=4, test=store, folder=tmp_path)
    loaded = Trajectory.load(tmp_path)
    assert loaded.steps == memory.steps
    assert loaded.history.epochs == memory.history.epochs
    for index in range(len(memory)):
        assert weights_hash(loaded.state(index)) == weights_hash(memory.state(index))


def test_resumes_after_an_interruption(make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> None:
    whole = record_trajectory(network(), make_store(), RECIPE, seed=0, runtime=runtime, snapshots=9)

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options = {"seed": 0, "runtime": runtime, "snapshots": 9, "folder": tmp_path / "path"}
    options["checkpoint"] = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        record_trajectory(network(), make_store(), RECIPE, progress=stop, **options)
    with pytest.raises(UsageError, match="no finished trajectory"):
        Trajectory.load(tmp_path / "path")
    resumed = record_trajectory(network(), make_store(), RECIPE, **options)
    for index in range(len(whole)):
        assert weights_hash(resumed.state(index)) == weights_hash(whole.state(index))


def test_network_at_is_frozen_and_in_eval_mode(make_store: MakeStore, runtime: Runtime) -> None:
    trajectory = record_trajectory(network(), make_store(), RECIPE, seed=0, runtime=runtime, snapshots=3)
    frozen = network_at(network().train(), trajectory, 1, runtime)
    assert weights_hash(frozen) == weights_hash(trajectory.state(1))
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        frozen.head.bias.add_(1)
    assert weights_hash(frozen) != weights_hash(trajectory.state(1))


def test_damage_is_named(make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> None:
    trajectory = record_trajectory(network(), make_store(), RECIPE, seed=0, runtime=runtime, folder=tmp_path)
    for damage in (lambda path: path.write_bytes(b"no tensors"), lambda path: path.unlink()):
        damage(tmp_path / "step-0000000.safetensors")
        with pytest.raises(WeightsError, match="step-0000000"):
            trajectory.state(0)


def test_refuses(make_store: MakeStore, runtime: Runtime, tmp_path: Path) -> None:
    for wrong, reason in (1, "at least 2"), ([0, 10], "0 to 9"), ([-1], "0 to 9"):
        with pytest.raises(UsageError, match=reason):
            record_trajectory(network(), make_store(), RECIPE, seed=0, runtime=runtime, snapshots=wrong)
    with pytest.raises(UsageError, match="needs a folder"):
        record_trajectory(network(), make_store(), RECIPE, seed=0, runtime=runtime, checkpoint=tmp_path / "checkpoint")
