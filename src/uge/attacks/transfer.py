"""Attacks with features from other images, or with features that stay while the last layer is trained again."""

import functools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.attacks.base import Context, Entry, learn, prepared
from uge.attacks.leak import REVISION, on_leak
from uge.data.loader import Batch
from uge.errors import UsageError
from uge.learning.objectives import full_precision
from uge.learning.training import History, fit
from uge.networks import ImageClassifier, build
from uge.networks.head import feature_state, last_layer
from uge.progress import part_of
from uge.runtime import seeded, stream_seed


def classifier(network: nn.Module) -> ImageClassifier:
    """The network, checked to have features that can be taken.

    Raises:
        UsageError: It was not made by ``uge.networks.build``.
    """
    if not isinstance(network, ImageClassifier):
        raise UsageError(f"this attack needs a network made by uge.networks.build, got {type(network).__name__}")
    return network


def on_frozen_features(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of the last layer on features that stay: evaluation mode, no gradient, no new statistics."""
    network.eval()
    with torch.no_grad():
        features = classifier(network).features(batch.x)
    logits = last_layer(network)(features)
    return {"loss": F.cross_entropy(full_precision(logits), batch.y), "logits": logits}


def probe(context: Context) -> History:
    """Train a fresh last layer of ``context.network`` on ``context.store``; nothing else changes."""
    network = classifier(context.network)
    network.requires_grad_(False)
    layer = last_layer(network).requires_grad_(True)
    with seeded(context.seed, "last-layer"):
        layer.reset_parameters()
    history = learn(context, on_frozen_features)
    network.requires_grad_(True)
    return history


def pretrained(context: Context) -> Context:
    """The context with features that were trained on public images; the last layer starts afresh.

    Raises:
        UsageError: There are no public images, or they have other channels.
    """
    network = classifier(context.network)
    public = context.public()
    if public.channels != network.channels:
        raise UsageError(f"public images must have {network.channels} channels, got {public.channels}")
    seed = stream_seed(context.seed, "backbone")
    other = build(network.name, len(public.classes), channels=public.channels, size=public.size, seed=seed)
    fit(other, public, context.recipe, seed=seed, runtime=context.runtime)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    network.load_state_dict(
        {name: value for name, value in feature_state(other).items() if shapes[name] == value.shape}, strict=False
    )
    return context


def _last_layer_again(context: Context, percent: int) -> History:
    leak = on_leak(context, percent)  # first, so that nothing is trained where there are no originals
    first = learn(replace(context, progress=part_of(context.progress, 0, 2)))
    second = probe(replace(leak, progress=part_of(context.progress, 1, 2)))
    return replace(second, seconds=first.seconds + second.seconds)


TRANSFER: dict[str, Entry] = {
    "backbone-frozen": Entry(
        lambda context: probe(pretrained(context)),
        "transfer",
        "trains its features on public images and only the last layer on the published ones",
        cost=1.5,
        expected=20.0,
        needs=frozenset({"public"}),
    ),
    "backbone-finetuned": prepared(
        pretrained,
        "transfer",
        "trains on public images first and then everything on the published ones",
        cost=2.0,
        expected=10.0,
        needs=frozenset({"public"}),
    ),
    "linear-probe": Entry(
        probe, "transfer", "trains only the last layer, on the features of random weights", cost=0.5, expected=5.0
    ),
    **{
        f"last-layer-{percent}": Entry(
            functools.partial(_last_layer_again, percent=percent),
            "transfer",
            f"trains on the published images and then the last layer again on {percent} % leaked originals",
            cost=1.5,
            expected=gain,
            needs=frozenset({"clean"}),
            revision=REVISION,
        )
        for percent, gain in ((1, 10.0), (10, 20.0))
    },
}
