"""Specifications of results: images, copy, network and recipe of a training run. Needs no torch.

A specification has everything that determines a result, so equal specifications are one file,
whichever table asks for it.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from uge.cases.case import Data, Job, Role
from uge.files import fingerprint
from uge.learning.recipes import Recipe

ORIGINAL = "original"
"""Method of a copy that is not protected."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of all fields."""
        return fingerprint(self.model_dump(mode="json"))

    def __hash__(self) -> int:
        return hash(self.digest)


class Images(_Spec):
    """Clean images of a data set.

    Attributes:
        name: Name of the data set.
        limit: Number of training images; None for all.
        limit_test: Number of test images; None for all.
        size: Side length in training, in pixels; None for the native one.
    """

    name: str
    limit: int | None = None
    limit_test: int | None = None
    size: int | None = None


class Copy(_Spec):
    """Published copy, or the originals.

    Attributes:
        images: The originals.
        method: A method of ``uge protect``, or :data:`ORIGINAL`.
        authorized: Authorised networks, in order; none for the originals and for methods without any.
        rho: L-inf budget as ``uge protect`` takes it; None for the method's own.
        seed: Number of the repetition.
        settings: Other settings of ``uge protect``.
    """

    images: Images
    method: str
    authorized: tuple[str, ...] = ()
    rho: str | None = None
    seed: int = 0
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the files of the copy."""
        budget = "" if self.rho is None else f"-r{self.rho.replace('/', '_')}"
        nets = "".join(f"-{name.replace(':', '_')}" for name in self.authorized[:2])
        more = f"-and{len(self.authorized) - 2}" if len(self.authorized) > 2 else ""
        return f"{self.images.name}-{self.method}{nets}{more}{budget}-{self.digest[:8]}-s{self.seed}"


class Unit(_Spec):
    """Training run of one network.

    Attributes:
        of: The training images.
        role: ``authorized`` starts from θ0; ``hacker`` from initial parameters of its own.
        network: Name of the architecture.
        scheme: ``direct`` or ``distill``.
        number: Number of the authorised network; the seed of θ0 goes up with it.
        recipe: Training recipe.
        seed: Number of the repetition.
        teacher: Authorised network that a distilling hacker learns from.
    """

    of: Copy
    role: Role
    network: str
    scheme: str = "direct"
    number: int = 0
    recipe: Recipe
    seed: int = 0
    teacher: Unit | None = None

    @functools.cached_property
    def job(self) -> Job:
        """Training run as a job; a network that trains directly on originals is a clean control."""
        data: Data = "clean" if self.of.method == ORIGINAL else "protected"
        keyed = self.role == "authorized"
        return Job(
            role="clean" if data == "clean" and self.scheme == "direct" else self.role,
            network=self.network,
            start="theta0" if keyed else "random",
            scheme=self.scheme,
            data=data,
            seed=self.seed,
            key=self.teacher.number if self.teacher else self.number if keyed else None,
            variant=f"{self.of.images.name}-{self.of.method}-{self.digest[:8]}",
        )

    @functools.cached_property
    def id(self) -> str:
        """Name of the case."""
        return self.job.id


class Federation(_Spec):
    """Federated run: every server protects its own classes for one global network.

    Attributes:
        images: Images of all servers together.
        method: A method of ``uge protect``.
        network: The global network.
        hackers: Networks that hackers train on the published parts.
        servers: Number of servers.
        rho: L-inf budget.
        recipe: Training recipe.
        recipes: Recipes of hackers, by network, where they differ from ``recipe``.
        seed: Number of the repetition.
        settings: Other settings of ``uge protect``.
    """

    images: Images
    method: str
    network: str
    hackers: tuple[str, ...]
    servers: int = 2
    rho: str
    recipe: Recipe
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    seed: int = 0
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the result."""
        return f"federated-{self.images.name}-{self.method}-{self.network}-{self.digest[:8]}-s{self.seed}"
