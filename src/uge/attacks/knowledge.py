"""Attacks by somebody who knows the authorised network: its initial parameters, or its trained weights."""

from __future__ import annotations

import functools

import torch
from torch import nn

from uge.attacks.base import Context, Entry, Preparation, with_recipe
from uge.attacks.leak import on_leak
from uge.attacks.transfer import probe
from uge.errors import UsageError
from uge.learning.training import History
from uge.runtime import stream

LEAK = 1
"""Percent of originals that the last layer on authorised features is trained with."""


def start_from(network: nn.Module, source: nn.Module) -> None:
    """Copy weights and buffers.

    Raises:
        UsageError: The networks differ in architecture.
    """
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (network, source)]
    if shapes[0] != shapes[1]:
        raise UsageError(
            "this attack starts from the authorised network's weights and needs a hacker of its architecture, got "
            f"{getattr(network, 'name', '?')} for {getattr(source, 'name', '?')}; add that one to --networks"
        )
    network.load_state_dict(source.state_dict())


def add_noise(network: nn.Module, percent: float, generator: torch.Generator) -> None:
    """Gaussian noise of ``percent`` of each parameter tensor's standard deviation, in place; buffers stay."""
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(percent / 100 * parameter.std(correction=0) * noise)


def _theta0(percent: int) -> Preparation:
    def prepare(context: Context) -> Context:
        start_from(context.network, context.theta0())
        add_noise(context.network, percent, stream(context.seed, "theta0-noise"))
        return context

    return prepare


def _finetuned(context: Context) -> Context:
    start_from(context.network, context.teacher())
    return with_recipe(lr=context.recipe.lr / 10)(context)


def _authorized_features(context: Context) -> History:
    leak = on_leak(context, LEAK)
    start_from(context.network, context.teacher())
    return probe(leak)


_knows = functools.partial(Entry.prepared, family="knowledge", needs={"key"}, same_architecture=True)

KNOWLEDGE: dict[str, Entry] = {
    "theta0-known": _knows(_theta0(0), about="starts from the authorised network's secret parameters", expected=60.0),
    **{
        f"theta0-noise-{percent}": _knows(
            _theta0(percent),
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
"""Attacks by name."""
