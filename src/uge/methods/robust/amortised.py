"""A generator that learns the loss of the steps over the whole set, and so perturbs images that come later."""

import torch
from torch import Tensor

from uge.data.store import PixelStore
from uge.files import EventLog
from uge.methods.apply import GENERATOR, load_generator, save_perturber
from uge.methods.base import Task
from uge.methods.robust.perturb import DRAWN, Steps
from uge.methods.uge.generator import Generator
from uge.methods.uge.hackers import Losses
from uge.methods.uge.protector import make_generator, train_generator


def through_steps(steps: Steps, goals: Tensor) -> Losses:
    """Mean loss of a batch's images over all surrogates, each through a filter and a window of its own.

    Args:
        steps: Surrogates, filters and loss.
        goals: Target of every class.
    """

    def losses(x: Tensor, x_u: Tensor, labels: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        count = len(steps.surrogates)
        numbers = torch.rand(len(labels), count, DRAWN, generator=draw)
        aims = goals.to(labels.device)[labels]
        return {"loss": steps.total(x_u, labels, aims, numbers) / (len(labels) * count)}

    return losses


def trained_generator(task: Task, store: PixelStore, steps: Steps, goals: Tensor) -> Generator:
    """The generator of a task, trained or read from its folder.

    Its perturbation depends on the image and on its class; on the image alone where clusters take the place of classes,
    since those of later images are not known. Images of another size are perturbed at the training size.

    Args:
        task: The task.
        store: Its images, with clusters in place of labels where these are missing or not wanted.
        steps: Surrogates, filters and loss.
        goals: Target of every class or cluster.

    Raises:
        UGEError: The loss became NaN or infinite.
    """
    settings = task.settings.generator.model_copy(
        update={
            "max_steps": task.settings.robust.generator,
            "skips": True,
            "conditional": store is task.store,
            "tolerance": 0.0,
        }
    )
    path = task.file(GENERATOR)
    if path is not None and path.is_file():
        return load_generator(path)
    generator = make_generator(settings, store, task.budget, seed=task.settings.seed, size=store.size)
    with task.progress.stage("generator") as on_progress:
        train_generator(
            generator,
            store,
            through_steps(steps, goals),
            settings,
            seed=task.settings.seed,
            runtime=task.runtime,
            checkpoint=task.file("run", "generator.checkpoint.safetensors"),
            events=EventLog(task.file("protect.jsonl")),
            progress=on_progress,
        )
    if path is not None:
        save_perturber(path, generator)
    return generator
