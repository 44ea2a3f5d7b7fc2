"""Settings that methods read: one model for the command line, files of settings and the library. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from uge.learning.recipes import Recipe
from uge.methods.uge.settings import GeneratorSettings, LossWeights, RefineSettings


class MethodSettings(BaseModel):
    """Everything that a method may read; each field's description says what it sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    authorized: Annotated[str, Field(description="Authorised network, or several separated by commas.")] = "cnn"
    authorized_seed: Annotated[
        int, Field(description="With the clean images, makes θ0; the k-th network gets seed + k.")
    ] = 0
    authorized_weights: Annotated[
        tuple[Path, ...], Field(description="Safetensors file(s) with θ0 instead of a seed.")
    ] = ()
    method: Annotated[str, Field(description="Name in the table of methods.")] = "keyed"
    rho: Annotated[
        str | None,
        Field(description="L-inf budget in [0, 1] units, 0.04 or 8/255; by default 0.04, or the baseline's own."),
    ] = None
    encoder: Annotated[str, Field(description="Feature space: local, or clip:ID with a hub id or a folder.")] = "local"
    size: Annotated[int | None, Field(description="Side length for training; the native one by default.", ge=16)] = None
    refine: Annotated[bool, Field(description="Optimise every image's perturbation directly as well.")] = False
    snapshots: Annotated[int, Field(description="Snapshots per trajectory.", ge=2)] = 10
    hacker: Annotated[str, Field(description="Architecture of the random hacker in the undistill loss.")] = "resnetc20"
    seed: Annotated[int, Field(description="Root seed of the run.")] = 0
    recipe: Annotated[Recipe, Field(description="How the authorised network trains.")] = Recipe()
    encoder_recipe: Annotated[Recipe, Field(description="How the local encoder trains.")] = Recipe()
    loss: Annotated[LossWeights, Field(description="Weights and constants of the losses.")] = LossWeights()
    generator: Annotated[GeneratorSettings, Field(description="The perturbation generator.")] = GeneratorSettings()
    refinement: Annotated[RefineSettings, Field(description="Direct optimisation.")] = RefineSettings()
    baseline: Annotated[
        dict[str, str], Field(description="A baseline's settings, as --baseline.NAME VALUE (docs/baselines.md).")
    ] = {}
