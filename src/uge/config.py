"""Everything that can be set, in one place: the same models give command line, files and manifest."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uge.errors import UsageError
from uge.learning.recipes import Recipe
from uge.methods.uge.settings import GeneratorSettings, LossWeights, RefineSettings

STANDARD_ATTACKS = ("direct", "distill", "grayscale", "jpeg30", "jpeg10", "wave-removal", "pattern-estimation")
"""What ``standard`` stands for among attacks: the paper's two, and filters that are cheap and break much."""

Method = Literal[
    "keyed",
    "uge",
    "uge-no-ud",
    "unlearn",
    "undistill",
    "em",
    "em-class",
    "tap",
    "tap-untargeted",
    "ntga",
    "rem",
    "cuda",
    "lsp",
    "ar",
    "ops",
    "pil",
    "random",
    "random-class",
]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """Settings from fields.

        Raises:
            UsageError: A name or value is wrong.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise UsageError(first_problem(error)) from None


class ProtectConfig(_Settings):
    """How a data set is protected."""

    authorized: Annotated[str, Field(description="Authorised network, or several separated by commas.")] = "cnn"
    authorized_seed: Annotated[
        int, Field(description="With the clean images, makes θ0; the k-th network gets seed + k.")
    ] = 0
    authorized_weights: Annotated[
        tuple[Path, ...], Field(description="Safetensors file(s) with θ0 instead of a seed.")
    ] = ()
    requests: Annotated[
        tuple[Path, ...], Parameter(name="--for"), Field(description="Receivers' signed requests; they name networks.")
    ] = ()
    method: Annotated[
        Method, Field(description="keyed: a wave key in the authorised network; the paper's losses; or a baseline.")
    ] = "keyed"
    rho: Annotated[
        str | None,
        Field(description="L-inf budget in [0, 1] units, 0.04 or 8/255; by default 0.04, or the baseline's own."),
    ] = None
    encoder: Annotated[str, Field(description="Feature space: local, or clip:ID with a hub id or a folder.")] = "local"
    size: Annotated[int | None, Field(description="Side length for training; the native one by default.", ge=16)] = None
    limit: Annotated[int | None, Field(description="Protect the first N images only.", ge=1)] = None
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


class PublishConfig(_Settings):
    """How the protected copy is written."""

    format: Annotated[Literal["parquet", "imagefolder"], Field(description="Layout of the published folder.")] = (
        "parquet"
    )
    codec: Annotated[
        Literal["webp", "png"] | None, Field(description="Lossless codec; webp in Parquet, png in folders.")
    ] = None


class AuditConfig(_Settings):
    """How a published folder is attacked."""

    networks: Annotated[
        str,
        Field(description="Architectures of the hackers (uge list networks), separated by commas, or checkpoint:PATH."),
    ] = "cnn,resnetc20"
    attacks: Annotated[
        str,
        Field(description="Attacks (uge list attacks), families, A+B, standard or all, separated by commas."),
    ] = "standard"
    combine: Annotated[
        bool, Field(description="Combine the two best attacks as well; --attacks all does so anyway.")
    ] = False
    variants: Annotated[
        str, Field(description="What the authorised user changes: names, all or none, separated by commas.")
    ] = "order"
    seeds: Annotated[int, Field(description="Repetitions.", ge=1)] = 1
    budget: Annotated[str, Field(description="Time there is: 90s, 10m, 1h, or full for all there is to run.")] = "full"
    workers: Annotated[
        str, Field(description="Cases that run at once, or auto; they share the threads.", pattern=r"^(auto|[1-9]\d*)$")
    ] = "1"
    executor: Annotated[Literal["local", "ray"], Field(description="Local processes, or Ray (extra ray).")] = "local"
    size: Annotated[int | None, Field(description="Side length for training; by default the manifest's.", ge=16)] = None
    limit_test: Annotated[int | None, Field(description="First N test images only.", ge=1)] = None
    seed: Annotated[int, Field(description="Root seed of the audit.")] = 1000
    epochs: Annotated[int | None, Field(description="Epochs, if other than the recipe's.", ge=1)] = None
    recipe: Annotated[str | None, Field(description="Named recipe; by default the key's own.")] = None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with settings, in one sentence that starts with the setting's name."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
    return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}"


def read_config(path: Path) -> dict[str, Any]:
    """Read a TOML or YAML file of settings.

    Raises:
        UsageError: The file is missing, is neither, or holds no table.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"the config file {path} cannot be read; check its path") from None
    return parse_config(text, path.suffix, f"config file {path}")


def parse_config(text: str, suffix: str, name: str) -> dict[str, Any]:
    """Settings from the text of a TOML (suffix ``.toml``) or YAML file.

    Raises:
        UsageError: The text is neither, or holds no table.
    """
    try:
        data = tomllib.loads(text) if suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        kind = "TOML" if suffix == ".toml" else "YAML"
        raise UsageError(f"the {name} is no valid {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"the {name} must hold settings by name, got {type(data).__name__}")
    return data
