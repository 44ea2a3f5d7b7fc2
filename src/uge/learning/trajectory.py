"""Snapshots of an authorised network on its way from θ0, on the clean data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from uge.data.store import PixelStore
from uge.errors import UsageError, WeightsError
from uge.files import read_json, write_atomic, write_json
from uge.learning.recipes import Recipe
from uge.learning.training import History, fit, steps_per_epoch
from uge.progress import Progress
from uge.runtime import Runtime

State = dict[str, Tensor]
_FILE = "step-{:07d}.safetensors"


@dataclass
class Trajectory:
    """Snapshots θ_t of one training run, in memory or in a folder.

    Attributes:
        steps: Optimiser steps done at each snapshot, rising; the last is the trained network.
        history: Accuracies of the run.
        folder: Folder of the snapshots as safetensors; None keeps them in memory.
    """

    steps: list[int]
    history: History
    folder: Path | None = None
    _states: dict[int, State] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.steps)

    def state(self, index: int) -> State:
        """State dict of snapshot ``index``; a negative one counts from the end.

        Raises:
            WeightsError: Its file is missing or damaged.
        """
        step = self.steps[index]
        if self.folder is None:
            return self._states[step]
        path = self.folder / _FILE.format(step)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"snapshot {path} cannot be read ({error}); start again with --overwrite") from error

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Trajectory that was recorded in a folder.

        Raises:
            UsageError: The folder holds none, or an unfinished one.
        """
        index = folder / "trajectory.json"
        if not index.is_file():
            raise UsageError(f"{folder} holds no finished trajectory; record one first")
        meta = read_json(index)
        return cls(list(meta["steps"]), History.from_json(meta["history"]), folder)


def snapshot_steps(total: int, count: int) -> list[int]:
    """At most ``count`` steps from 0 to ``total``, dense early (quadratic spacing).

    Raises:
        UsageError: ``count`` is below 2.
    """
    if count < 2:
        raise UsageError(f"a trajectory needs at least 2 snapshots, got {count}")
    return sorted({round(total * (i / (count - 1)) ** 2) for i in range(count)})


def record_trajectory(
    network: nn.Module,
    store: PixelStore,
    recipe: Recipe,
    *,
    seed: int,
    runtime: Runtime,
    snapshots: int | Sequence[int] = 10,
    test: PixelStore | None = None,
    folder: Path | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trajectory:
    """Train ``network`` from its present state (θ0), with snapshots on the way (Sec. 3.2 of the paper).

    Args:
        network: Holds θ0; ends trained.
        store: Clean images, or protected ones for on-policy use.
        recipe: Recipe of the authorised user.
        seed: Root of the data order; the authorised user's may differ.
        runtime: Device and precision.
        snapshots: Number of snapshots, dense early; or their steps.
        test: Images on which accuracy is measured after every epoch.
        folder: Folder for the snapshots as safetensors; None keeps them in memory.
        checkpoint: See :func:`uge.learning.training.fit`.
        progress: See :func:`uge.learning.training.fit`.

    Raises:
        UsageError: A snapshot is asked for at a step that the run does not have, or a checkpoint
            without a folder (snapshots in memory do not outlive an interruption).
    """
    if checkpoint is not None and folder is None:
        raise UsageError("a trajectory with a checkpoint needs a folder for its snapshots; give one")
    total = recipe.epochs * steps_per_epoch(len(store), min(recipe.batch_size, len(store)))
    steps = snapshot_steps(total, snapshots) if isinstance(snapshots, int) else sorted({*snapshots, total})
    if not 0 <= steps[0] <= steps[-1] <= total:
        raise UsageError(f"snapshots must be steps from 0 to {total}, got {steps}")
    states = dict[int, State]()

    def take_snapshot(step: int, module: nn.Module) -> None:
        if step in steps:
            state = {key: value.detach().cpu().clone().contiguous() for key, value in module.state_dict().items()}
            if folder is None:
                states[step] = state
            else:
                write_atomic(folder / _FILE.format(step), save(state), secret=True)

    history = fit(
        network,
        store,
        recipe,
        seed=seed,
        runtime=runtime,
        test=test,
        observer=take_snapshot,
        checkpoint=checkpoint,
        progress=progress,
    )
    if folder is not None:
        write_json(folder / "trajectory.json", {"steps": steps, "history": history.to_json()})
    return Trajectory(steps, history, folder, states)


def network_at(network: nn.Module, trajectory: Trajectory, index: int, runtime: Runtime) -> nn.Module:
    """``network`` with the weights of snapshot ``index``, on the run's device, frozen, in evaluation mode."""
    network.load_state_dict(trajectory.state(index))
    return runtime.place(network).eval().requires_grad_(False)
