"""Hackers in the loop of direct optimisation (ours): networks trained on the copy as it is before every pass.

The feature distance (Eq. 7-9) fights one encoder. Here a pool of fresh networks is trained before every pass, each
for a number of steps of its own, and the perturbation is moved so that they learn something else than the picture:

- ``minimise``: L_h = mean over the pool of CE(h(x_u), y), with h trained on the protected images. The perturbation
  already holds what they were to learn, as in error-minimising noise (Huang et al., ICLR 2021), which has one such
  network.
- ``target``: L_h = mean of CE(h(x_u), t(y)), with h trained on the *clean* images and t the next class, as in
  targeted adversarial poisoning (Fowl et al., NeurIPS 2021): to clean networks the image looks like another class.
- ``student``: L_h = mean of KL(f(x_u) ‖ h(x_u)) between outputs softened by T, with h distilled (Eq. 10) from the
  trained authorised network f on the protected images: error-minimising noise for distillation. The perturbation
  shall give away the outputs of f, so that a student need not learn the picture. Students have three temperatures in
  turn.
"""

from collections.abc import Callable, Sequence
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.store import PixelStore
from uge.learning.objectives import Objective, distillation, full_precision, soft_kl, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.methods.uge.settings import RefineSettings
from uge.networks import build
from uge.runtime import Runtime, stream, stream_seed

Losses = Callable[[Tensor, Tensor, Tensor, torch.Generator], dict[str, Tensor]]
"""From clean and protected pixels, labels and a random stream to every part of a loss and their sum ``"loss"``."""
_RECIPE = Recipe(epochs=1, batch_size=128, lr=0.1)
_LEAST = 4  # A hacker is trained for at least one in four of the steps.
_TEMPERATURES = (4.0, 1.0, 16.0)


def train_hackers(
    store: PixelStore,
    settings: RefineSettings,
    *,
    teachers: Sequence[nn.Module] = (),
    seed: int,
    name: Sequence[str | int],
    runtime: Runtime,
) -> list[nn.Module]:
    """A pool of fresh networks, trained on ``store``; the same for the same seed and name.

    Args:
        store: Training images of the hackers: clean ones for ``target``, else protected ones.
        settings: Names of the networks, and the largest number of steps.
        teachers: Trained authorised networks: hackers distil from them in turn. Without, they learn from labels.
        seed: Root seed.
        name: Names the pool in the random streams.
        runtime: Device and precision.

    Returns:
        The networks in evaluation mode, whose parameters need no gradient.
    """
    most = settings.hacker_steps
    hackers = list[nn.Module]()
    for number, architecture in enumerate(settings.hacker_names):
        draw = stream(seed, "hackers", *name, number)
        steps = int(torch.randint(max(1, most // _LEAST), most + 1, (1,), generator=draw))
        count = steps * min(_RECIPE.batch_size, len(store))
        rounds = [torch.randperm(len(store), generator=draw) for _ in range(-(-count // len(store)))]
        own_seed = stream_seed(seed, "hackers", "network", *name, number)
        network = build(architecture, len(store.classes), channels=store.channels, size=store.size, seed=own_seed)
        objective: Objective = supervised
        if teachers:
            teacher = teachers[number % len(teachers)]
            objective = distillation(teacher, temperature=_TEMPERATURES[number % len(_TEMPERATURES)])
        fit(
            network,
            store.subset(torch.cat(rounds)[:count]),
            _RECIPE,
            seed=own_seed,
            runtime=runtime,
            objective=objective,
        )
        hackers.append(network.eval().requires_grad_(False))
    return hackers


def hacker_loss(
    hackers: Sequence[nn.Module],
    x_u: Tensor,
    y: Tensor,
    *,
    term: str,
    classes: int,
    teachers: Sequence[nn.Module] = (),
) -> Tensor:
    """L_h: the mean over hackers and images of the cross-entropy with the label or with the next class, or of the KL.

    Args:
        hackers: From :func:`train_hackers`, at least one.
        x_u: Protected pixels in [0, 1].
        y: Labels.
        term: ``minimise``, ``target`` or ``student``.
        classes: Number of classes.
        teachers: For ``student``, the teachers of the hackers; no gradient flows through their outputs.

    Returns:
        A scalar, at least 0, differentiable in ``x_u``.

    Example:
        >>> import torch
        >>> hacker = torch.nn.Flatten()  # Two pixels as the logits of two classes.
        >>> x_u, y = torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([0])
        >>> [round(hacker_loss([hacker], x_u, y, term=term, classes=2).item(), 3) for term in ("minimise", "target")]
        [0.127, 2.127]
    """
    if term == "student":
        with torch.no_grad():
            answers = [teacher(x_u) for teacher in teachers]
        losses = [
            soft_kl(hacker(x_u), answer, temperature)
            for hacker, answer, temperature in zip(hackers, cycle(answers), cycle(_TEMPERATURES), strict=False)
        ]
    else:
        goal = y if term == "minimise" else (y + 1) % classes
        losses = [F.cross_entropy(full_precision(hacker(x_u)), goal) for hacker in hackers]
    return torch.stack(losses).mean()


def with_hackers(
    total: Losses,
    hackers: Sequence[nn.Module],
    settings: RefineSettings,
    *,
    classes: int,
    teachers: Sequence[nn.Module] = (),
    runtime: Runtime,
) -> Losses:
    """L_all + λ_h · L_h, as a function of the same arguments as ``total``."""

    def losses(x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        parts = total(x, x_u, y, draw)
        with runtime.autocast():
            pixels = x_u.to(memory_format=runtime.memory_format)
            loss = hacker_loss(hackers, pixels, y, term=settings.hacker_term, classes=classes, teachers=teachers)
        return {**parts, "hackers": loss, "loss": parts["loss"] + settings.hacker_weight * loss}

    return losses
