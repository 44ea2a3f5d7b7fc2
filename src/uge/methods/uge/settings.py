"""Losses of the paper's method and settings of its stages. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import BaseModel, Field

LOSSES: dict[str, frozenset[str]] = {
    "uge": frozenset({"gradient_matching", "feature_distance", "undistill"}),
    "uge-no-ud": frozenset({"gradient_matching", "feature_distance"}),
    "unlearn": frozenset({"feature_distance"}),
    "undistill": frozenset({"undistill"}),
}
"""Losses of each form of the paper's method (Table 1)."""

NEED_PATH = frozenset({"gradient_matching", "undistill"})
"""Losses that follow the trajectory of an authorised network."""


class LossWeights(BaseModel, frozen=True, extra="forbid"):
    """Weights and constants of Eq. 4-11; the defaults are Table 5's for CIFAR-10.

    Attributes:
        lambda_gm: Weight of L_gm (the paper: 1).
        lambda_fd: Weight of L_fd.
        lambda_ud: Weight of L_ud.
        lambda_vm: Weight of value matching (ours), where gradients are matched.
        lambda_pm: Weight of parameter matching (ours), where gradients are matched.
        horizon: Steps of SGD after which parameters are matched.
        horizon_lr: Learning rate of those steps.
        alpha: Margin of the triplet term.
        omega: ω of L_ud.
        temperature: Distillation temperature T of L_ud.
        targets: ``"class"``: one fixed target per class; ``"image"``: the paper's rule.
        distance: Squared distances of L_fd are sums over the dimensions of the features, or means ("MSE loss").
        reduction: Gradient matching per mini-batch or per sample.
        layout: One cosine per layer, one over all parameters, or the sum over the rows of every weight matrix.
        augment: L_gm and L_fd see crops and flips, the same of a clean image and of its protected form.
        teacher: Authorised network of L_ud: ``"end"``: θ_T; ``"path"``: the snapshot θ_t of L_gm.
        fresh_hacker: L_ud draws a new random hacker for every batch.
        squared: The factor T² in L_ud, as in Eq. 10.
    """

    lambda_gm: float = Field(1.0, ge=0)
    lambda_fd: float = Field(1.0, ge=0)
    lambda_ud: float = Field(0.1, ge=0)
    lambda_vm: float = Field(0.0, ge=0)
    lambda_pm: float = Field(0.0, ge=0)
    horizon: int = Field(1, ge=1)
    horizon_lr: float = Field(0.02, gt=0)
    alpha: float = Field(0.1, ge=0)
    omega: float = Field(0.1, ge=0)
    temperature: float = Field(4.0, gt=0)
    targets: Literal["class", "image"] = "class"
    distance: Literal["sum", "mean"] = "sum"
    reduction: Literal["batch", "sample"] = "batch"
    layout: Literal["layer", "flat", "row"] = "layer"
    augment: bool = False
    teacher: Literal["end", "path"] = "end"
    fresh_hacker: bool = False
    squared: bool = True


class GeneratorSettings(BaseModel, frozen=True, extra="forbid"):
    """Size and training of the generator (Table 6: Adam 1e-3, 50 epochs, batch 128).

    Attributes:
        width: Channels after the first convolution; 2 and 4 times that inside.
        blocks: Residual blocks (Table 4: 6).
        dropout: Inside residual blocks.
        skips: Skip connections between encoder and decoder (not in Table 4).
        conditional: The perturbation may depend on the label (not in Table 4).
        output: ``"residual"``: G gives a bounded perturbation; ``"image"``: G gives an image, which is clamped around
            x, as Eq. 3 is written.
        stride: Stride of the first convolution: 1, or 4 as the sizes of Table 4 say; the two convolutions after it
            then keep the resolution.
        imitate: Steps in which the generator learns the refined perturbations, after refinement; 0 for none. New
            images get the perturbations of this generator.
        lr: Adam's learning rate.
        batch_size: Images per step.
        max_steps: Step cap; 0 leaves the generator at the identity.
        window: Steps over which the loss is averaged to judge convergence.
        tolerance: The generator has converged when two successive windows improve by less
            than this part of the loss's range so far; 0 trains for ``max_steps``, as Table 6 does.
        settle: Part of ``max_steps`` at the end in which batch norm and dropout run as they
            will when the generator is applied.
    """

    width: int = Field(32, ge=4)
    blocks: int = Field(6, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    skips: bool = False
    conditional: bool = False
    output: Literal["residual", "image"] = "residual"
    stride: Literal[1, 4] = 1
    imitate: int = Field(0, ge=0)
    lr: float = Field(1e-3, gt=0)
    batch_size: int = Field(128, ge=2)
    max_steps: Annotated[int, Parameter(name=("--max-steps", "--generator.max-steps"))] = Field(2000, ge=0)
    window: int = Field(100, ge=1)
    tolerance: float = Field(0.002, ge=0)
    settle: float = Field(0.2, ge=0, le=1)


class RefineSettings(BaseModel, frozen=True, extra="forbid"):
    """Direct optimisation of perturbations.

    Attributes:
        passes: Sign steps per image and round.
        step: First step in 8-bit levels; falls linearly to 1 over a round.
        rounds: Rounds; before each after the first, the authorised networks train from θ0
            on the *current* protected data and their new path is matched (on-policy).
        batch_size: Images per step.
        batches: ``"mixed"``, or ``"class"``: all images of a batch have one label.
        hackers: Networks in the loop, separated by commas: before every pass fresh ones are trained; empty for none.
        hacker_weight: λ_h, the weight of their loss.
        hacker_steps: Largest number of training steps of each; the number is drawn, from a quarter of it on.
        hacker_term: ``"minimise"``: their loss on protected images is minimised; ``"target"``: networks trained on
            the clean images are to take protected ones for the next class; ``"student"``: they learn from the
            authorised network, and their distance to its outputs on protected images is minimised.
    """

    passes: int = Field(10, ge=1)
    step: int = Field(2, ge=1)
    rounds: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=2)
    batches: Literal["mixed", "class"] = "mixed"
    hackers: str = ""
    hacker_weight: float = Field(1.0, ge=0)
    hacker_steps: int = Field(100, ge=1)
    hacker_term: Literal["minimise", "target", "student"] = "minimise"

    @property
    def hacker_names(self) -> list[str]:
        """Names of the networks in the loop; may be empty."""
        return [name for part in self.hackers.split(",") if (name := part.strip())]
