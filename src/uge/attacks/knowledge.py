"""Attacks with the authorised network at hand: distillation (Eq. 10), its initial parameters, its trained weights."""

import copy
import functools
from typing import Any

import torch
from torch import nn

from uge.attacks.base import BOTH_TESTS, Context, Entry, Need, Preparation, changing, learn, prepared, with_recipe
from uge.attacks.leak import on_leak
from uge.attacks.preprocess import TRANSFORMS
from uge.attacks.transfer import probe
from uge.errors import UsageError
from uge.learning.objectives import distillation
from uge.learning.training import History
from uge.runtime import stream

LEAK = 1  # Percent of originals that the last layer on authorised features is trained with.
_KEY: frozenset[Need] = frozenset({"key"})


def distill(context: Context) -> History:
    """Learn from the authorised network's soft outputs on the published images ("Distill" in the paper's tables).

    The network answers in evaluation mode, as for a hacker who can only query it.
    """
    return _learn(context, context.teacher())


def distill_inside(context: Context) -> History:
    """Distil from the trained network itself, which runs in training mode."""
    teacher = copy.deepcopy(context.teacher())
    teacher.register_forward_pre_hook(_to_training_mode)
    return _learn(context, teacher)


def _to_training_mode(network: nn.Module, inputs: Any) -> None:
    network.train()


def _learn(context: Context, teacher: nn.Module) -> History:
    return learn(context, distillation(teacher, temperature=context.recipe.temperature, alpha=context.recipe.alpha))


_distils = functools.partial(Entry, family="knowledge", cost=1.4, expected=20.0, needs=_KEY)


def _after(prepare: Preparation, about: str, **properties: Any) -> Entry:
    return _distils(lambda context: distill(prepare(context)), about=about, **properties)


def start_from(network: nn.Module, source: nn.Module) -> None:
    """Copy weights and buffers.

    Raises:
        UsageError: The networks differ in architecture.
    """
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (network, source)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            "this attack starts from the authorised network's weights and needs a hacker of its architecture, got "
            f"{getattr(network, 'name', '?')} for {getattr(source, 'name', '?')}; add that one to --networks"
        )
    network.load_state_dict(source.state_dict())


@torch.no_grad()
def add_noise(network: nn.Module, percent: float, generator: torch.Generator) -> None:
    """Gaussian noise of ``percent`` of each parameter tensor's standard deviation, in place; buffers stay."""
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(percent / 100 * parameter.std(correction=0) * noise)


def _from_theta0(context: Context, percent: int) -> Context:
    start_from(context.network, context.theta0())
    add_noise(context.network, percent, stream(context.seed, "theta0-noise"))
    return context


def _finetuned(context: Context) -> Context:
    start_from(context.network, context.teacher())
    return with_recipe(lr=context.recipe.lr / 10)(context)


def _authorized_features(context: Context) -> History:
    leak = on_leak(context, LEAK)
    start_from(context.network, context.teacher())
    return probe(leak)


_knows = functools.partial(prepared, family="knowledge", needs=_KEY, same_architecture=True)

KNOWLEDGE: dict[str, Entry] = {
    # T and α not named are the recipe's.
    "distill": _distils(distill, about="learns from the trained authorised network's answers on the published images"),
    "distill-inside": _distils(
        distill_inside, about="holds the trained authorised network and learns from what it computes in training mode"
    ),
    "distill-t1": _after(with_recipe(temperature=1.0), "distils at temperature 1, so from nearly hard answers"),
    "distill-t20": _after(with_recipe(temperature=20.0), "distils at temperature 20, so from very soft answers"),
    "distill-hard": _after(with_recipe(alpha=1.0), "distils from the authorised network's answers alone, no labels"),
    "distill-grayscale": _after(
        changing(TRANSFORMS["grayscale"]), "distils on gray copies of all images", revision=BOTH_TESTS
    ),
    "distill-jpeg75": _after(
        changing(TRANSFORMS["jpeg75"]), "distils on copies compressed as JPEG of quality 75", revision=BOTH_TESTS
    ),
    "theta0-known": _knows(
        functools.partial(_from_theta0, percent=0),
        about="starts from the authorised network's secret parameters",
        expected=60.0,
    ),
    **{
        f"theta0-noise-{percent}": _knows(
            functools.partial(_from_theta0, percent=percent),
            about=f"starts from the secret parameters plus noise of {percent} % of their spread, buffers exact",
            expected=gain,
        )
        for percent, gain in ((10, 40.0), (50, 20.0), (100, 10.0))
    },
    "finetune-authorized": _knows(
        _finetuned,
        about="trains the trained authorised network on, with a tenth of the learning rate",
        expected=60.0,
    ),
    "authorized-features": Entry(
        _authorized_features,
        "knowledge",
        f"keeps the trained authorised network's features and trains a new last layer on {LEAK} % leaked originals",
        cost=0.7,
        expected=60.0,
        needs=frozenset({"key", "clean"}),
        same_architecture=True,
    ),
}
