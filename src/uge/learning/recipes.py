"""Training recipes: the paper's (Tables 5 and 6) and short ones for one machine; no torch here."""

import math
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from uge.errors import UnknownNameError, UsageError

LONGER = 3
"""Factor of the epochs of the attack ``longer`` and of the long form of the worst case."""


class Recipe(BaseModel):
    """Settings of a network's training; every field goes into every result.

    Attributes:
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: Peak learning rate.
        epochs: Passes over the data.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: L2 factor.
        schedule: Course of the learning rate.
        milestones: Epochs (from 0) at which ``multistep`` multiplies by ``gamma``.
        gamma: Factor of ``multistep``.
        augment: Random changes of the training images.
        temperature: T of distillation (Table 5).
        alpha: Weight of the KL term of distillation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(0.1, gt=0)
    epochs: int = Field(15, ge=1)
    batch_size: int = Field(128, ge=2)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["one-cycle", "multistep", "cosine", "constant"] = "one-cycle"
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0)
    augment: Literal["none", "crop", "flip", "crop-flip", "rotate-flip"] = "crop-flip"
    temperature: float = Field(4.0, gt=0)
    alpha: float = Field(0.9, ge=0, le=1)

    def rate(self, progress: float) -> float:
        """Learning rate after the share ``progress`` of the run, in [0, 1]."""
        return self.lr * SCHEDULES[self.schedule](self, progress)

    @property
    def about(self) -> str:
        """The recipe in one line."""
        steps = f" ×{self.gamma:g} after {', '.join(map(str, self.milestones))}" if self.milestones else ""
        decay = f"weight decay {self.weight_decay:g}" if self.weight_decay else "no weight decay"
        return (
            f"{self.optimizer.upper() if self.optimizer == 'sgd' else 'Adam'} at {self.lr:g}, {self.epochs} epochs, "
            f"{self.schedule}{steps}, batches of {self.batch_size}, {decay}, {self.augment}"
        )

    def json_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return self.model_dump(mode="json")


def _one_cycle(recipe: Recipe, progress: float) -> float:
    """Linear warm-up over a quarter of the run, then linear decay to 1 % of the peak."""
    if progress < 0.25:
        return 0.04 + 0.96 * progress / 0.25
    return max(0.01, 1 - 0.99 * (progress - 0.25) / 0.75)


def _multistep(recipe: Recipe, progress: float) -> float:
    # A tolerance, since progress · epochs of a whole epoch may come out a hair below it.
    epoch = progress * recipe.epochs + 1e-9
    return recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)


#: Factor of the peak learning rate after a share of the run, in [0, 1].
SCHEDULES: dict[str, Callable[[Recipe, float], float]] = {
    "one-cycle": _one_cycle,
    "multistep": _multistep,
    "cosine": lambda recipe, progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda recipe, progress: 1.0,
}

#: Recipes by name: ``paper-*`` are Tables 5 and 6, ``short`` and ``quick`` are one-cycle runs for a CPU.
RECIPES: dict[str, Recipe] = {
    "short": Recipe(epochs=15),
    "quick": Recipe(epochs=8),
    "paper-cifar10": Recipe(epochs=160, schedule="multistep", milestones=(80, 120), gamma=0.1),
    # Table 6 has Adam for the plain CNN, the text SGD for every network, and nothing says whether Adam decays weights.
    "paper-cifar10-cnn": Recipe(optimizer="adam", lr=1e-3, epochs=100, schedule="constant"),
    "paper-cifar10-cnn-no-decay": Recipe(optimizer="adam", lr=1e-3, epochs=100, schedule="constant", weight_decay=0.0),
    "paper-cifar10-cnn-sgd": Recipe(epochs=100, schedule="multistep", milestones=(50, 75), gamma=0.1),
    "paper-cifar100": Recipe(epochs=200, schedule="multistep", milestones=(60, 120, 160), gamma=0.2, temperature=20),
    "paper-tinyimagenet": Recipe(
        epochs=200, schedule="multistep", milestones=(60, 120, 160), gamma=0.2, temperature=20, augment="rotate-flip"
    ),
}


def recipe(name: str, **changes: Any) -> Recipe:
    """Recipe of a name, with some fields changed.

    Raises:
        UnknownNameError: There is no recipe of that name.
        UsageError: A change has a wrong name or value.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    try:
        return Recipe.model_validate({**RECIPES[name].model_dump(), **changes})
    except ValueError as error:
        raise UsageError(f"recipe '{name}' cannot take {changes}: {str(error).splitlines()[2].strip()}") from error


def longer(recipe: Recipe, times: int) -> Recipe:
    """The recipe with its epochs and milestones multiplied by a whole number."""
    milestones = tuple(times * epoch for epoch in recipe.milestones)
    return recipe.model_copy(update={"epochs": times * recipe.epochs, "milestones": milestones})


def with_epochs(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe with another number of epochs; unchanged without one.

    Raises:
        UsageError: The number is below 1.
    """
    if epochs is not None and epochs < 1:
        raise UsageError(f"epochs must be at least 1, got {epochs}; give a whole number above 0")
    return recipe if epochs is None else recipe.model_copy(update={"epochs": epochs})
