"""Neural tangent generalisation attack, on the kernel of an infinitely wide network (Yuan and Wu, ICML 2021).

One fault of the original code is not copied: each of its ten sign steps starts again from the clean image, with the
length of the whole budget, so that they are worth one. Here each goes on from the present δ.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.loader import epoch_order, fetch
from uge.data.store import Records
from uge.errors import UsageError
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.methods.baselines.ntk import Kernel, cnn, flow, fnn
from uge.methods.baselines.surrogate import sign_steps
from uge.runtime import stream

_NETWORKS: dict[str, tuple[Kernel, float]] = {"fnn": (fnn, 4096.0), "cnn": (cnn, 8.0)}
"""The kernel of a network, and the time of the prediction that was published as best for it."""


class NTGASettings(Settings):
    """max over δ of the loss on held-out images that the NTK predicts. To scale down: ``steps``.

    Attributes:
        network: ``"fnn"`` (5 dense layers) or ``"cnn"`` (2 convolutions, 3 dense layers; forty times as slow).
        time: t of the prediction; 4096 and 8 by default.
        loss: On the predictions for the held-out images.
        block: Images that are perturbed together; there are at least two blocks.
        held_out: Clean images on which the loss is predicted: the same for all blocks, less the block's own.
        steps: Sign steps.
        step: Their length in 8-bit levels (published: 1.1 · 8/10).
        chunk: Images whose kernels are computed at once.
    """

    network: Literal["fnn", "cnn"] = "fnn"
    time: float | None = Field(None, gt=0)
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    block: int = Field(512, ge=2)
    held_out: int = Field(512, ge=1)
    steps: int = Field(10, ge=1)
    step: float = Field(0.88, gt=0)
    chunk: int = Field(32, ge=1)


class BlockAttack:
    """The held-out loss of one block, as a function of the block's pixels.

    Args:
        kernel: Of the network.
        targets: Centred one-hot labels of the block, n × C, float64.
        held_out: Clean pixels in [0, 1] of other images.
        labels: Their labels.
        time: t of the prediction.
        loss: ``"cross-entropy"`` or ``"mse"``.
        chunk: Images at once.
    """

    def __init__(
        self, kernel: Kernel, targets: Tensor, held_out: Tensor, labels: Tensor, *, time: float, loss: str, chunk: int
    ) -> None:
        self.kernel, self.targets, self.others, self.labels = kernel, targets, held_out, labels
        self.time, self.measure, self.chunk = time, loss, chunk
        self.gradients = 0

    @torch.no_grad()
    def _kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the block's pixels among themselves, n × n, and of the held-out images with them, m × n, in float64."""
        parts = torch.split(x, self.chunk)
        rows = ((self.kernel(part, x).double(), self.kernel(part, self.others).double()) for part in parts)
        own, others = (torch.cat(found) for found in zip(*rows, strict=True))
        return (own + own.T) / 2, others.T  # Rounding alone makes it unsymmetric.

    def predictions(self, x: Tensor) -> Tensor:
        """What a network trained on pixels ``x`` predicts for the held-out images, m × C."""
        return flow(*self._kernels(x), self.targets, self.time)

    def loss(self, predictions: Tensor) -> Tensor:
        """Mean loss of predictions for the held-out images."""
        if self.measure == "mse":
            return F.mse_loss(predictions, centred(self.labels, self.targets.shape[1]))
        return F.cross_entropy(predictions, self.labels)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the held-out loss in pixels ``x`` of the block (in [0, 1]).

        The kernels' gradients come first; then every chunk of images is differentiated through its own rows of the
        kernels, so that the graph of one chunk is in memory, never that of the block.
        """
        train, cross = (values.requires_grad_(True) for values in self._kernels(x))
        loss = self.loss(flow(train, cross, self.targets, self.time))
        by_train, by_cross = torch.autograd.grad(loss, (train, cross))
        by_train, by_cross = (by_train + by_train.T).to(x.dtype), by_cross.T.to(x.dtype)
        found = []
        for rows in torch.split(torch.arange(len(x)), self.chunk):
            part = x[rows].detach().requires_grad_(True)
            score = (self.kernel(part, x) * by_train[rows]).sum()
            score = score + (self.kernel(part, self.others) * by_cross[rows]).sum()
            found.append(torch.autograd.grad(score, part)[0])
        self.gradients += len(x)
        return torch.cat(found)


def centred(labels: Tensor, classes: int) -> Tensor:
    """One-hot labels minus their mean 1/C, float64."""
    return F.one_hot(labels, classes).double() - 1 / classes


def blocks(count: int, settings: NTGASettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(block, held-out) indices: every image is in one block, none of them among the block's held-out images.

    All blocks share one held-out set, spread over the order, of which each leaves out its own images.

    Raises:
        UsageError: There are fewer than two images.
    """
    if count < 2:
        raise UsageError(f"the ntga baseline needs at least two images, one to hold out, got {count}")
    order = epoch_order(count, stream(seed, "ntga", "order"))
    wanted = min(settings.held_out, count)
    # Blocks with other judges are pushed in other directions, and then there is no pattern for a hacker to learn.
    common = order[torch.arange(wanted) * count // wanted]
    for block in torch.chunk(order, max(2, -(-count // settings.block))):
        others = common[~torch.isin(common, block)]
        yield block, others if len(others) else order[~torch.isin(order, block)][: settings.held_out]


def neural_tangent_attack(material: Material) -> Records:
    """δ that raises the loss on held-out images that gradient flow on the perturbed block leads to.

    Args:
        material: Images, budget, seed; ``options`` are :class:`NTGASettings`.

    Raises:
        UsageError: A setting is wrong, or there are fewer than two images.
    """
    settings, store, out = material.settings(NTGASettings), material.store, material.records()
    kernel, time = _NETWORKS[settings.network]
    done, gradients = 0, 0
    for block, held_out in blocks(len(store), settings, material.seed):
        batch, others = fetch(store, block), fetch(store, held_out)
        attack = BlockAttack(
            kernel,
            centred(batch.y, len(store.classes)),
            others.x,
            others.y,
            time=settings.time or time,
            loss=settings.loss,
            chunk=settings.chunk,
        )
        clean = batch.x * 255
        delta = sign_steps(
            clean,
            torch.zeros_like(clean),
            lambda x, attack=attack: -attack.gradient(x),  # type: ignore[misc]
            steps=settings.steps,
            step=settings.step,
            bound=material.budget.levels,
        )
        out.write(block, material.stored(store.pixels.read(block), delta / 255))
        done, gradients = done + len(block), gradients + attack.gradients
        if material.progress is not None:
            material.progress(done, len(store), {"gradients": float(gradients)})
    return out


NTGA = Baseline(
    make=neural_tangent_attack,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="neural tangent generalisation attack (Yuan and Wu, ICML 2021)",
    settings=NTGASettings,
)
