"""All settings in one place: the same models give command line, files and manifest."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from cyclopts import Parameter
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from uge.errors import UsageError
from uge.files import UnreadableError, local_path, parse, read_text
from uge.methods import METHODS, MethodSettings
from uge.methods.base import DEFAULT_METHOD

MOST_SEEDS = 1000
"""Repetitions of a training run, at most."""
STANDARD_ATTACKS = ("direct", "distill", "grayscale", "jpeg30", "jpeg10", "wave-removal", "pattern-estimation")
"""Attacks behind the name ``standard``: the paper's two, and filters that are cheap and break much."""

WORST_CASE: dict[str, Any] = {
    "networks": ("cnn", "resnet8"),
    "attacks": ("all",),
    "variants": ("none",),
    "seeds": 3,
    "recipe": "short",
    "epochs": 5,
    "limit_test": 2000,
}
"""Settings of the worst case (docs/worst-case.md), where no others are given."""


def _split(names: str | Sequence[str]) -> tuple[str, ...]:
    text = names if isinstance(names, str) else ",".join(names)
    listed = tuple(name.strip() for name in text.split(",") if name.strip())
    if not listed:
        raise PydanticCustomError("names", "expected names separated by commas")
    return listed


def _fingerprints(texts: Sequence[str]) -> tuple[str, ...]:
    from uge.sealing.signing_key import pinned_fingerprint  # Its library takes long to load.

    return tuple(map(pinned_fingerprint, texts))


Names = Annotated[tuple[str, ...], Parameter(negative="", show_default=",".join), BeforeValidator(_split)]
"""Names, at least one; commas separate them on the command line and in files of settings."""


class _Settings(BaseModel, frozen=True, extra="forbid"):
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


class ProtectConfig(_Settings, MethodSettings):
    """Settings of a protection: those of its method, and of its images and receivers."""

    method: Annotated[
        str,
        AfterValidator(lambda name: METHODS[name].name),
        Field(
            description="How images are perturbed: robust, preview, keyed (held by obscurity), uge (the paper's) or a "
            "published baseline (uge list methods).",
            json_schema_extra={"enum": list(METHODS)},
        ),
    ] = DEFAULT_METHOD
    requests: Annotated[
        tuple[Path, ...], Parameter(name="--for"), Field(description="Receivers' signed requests; they name networks.")
    ] = ()
    expect_signer: Annotated[
        tuple[str, ...],
        Parameter(negative=""),
        AfterValidator(_fingerprints),
        Field(description="Refuse requests that another key signed: its fingerprint, or a file of it.", exclude=True),
    ] = ()
    limit: Annotated[
        int | None,
        Field(
            description="Protect N images only: the first, of each class in its share if sorted.",
            ge=1,
        ),
    ] = None


class PublishConfig(_Settings):
    """Form of the protected copy on disk."""

    format: Annotated[
        Literal["parquet", "imagefolder", "webdataset"], Field(description="Layout of the published folder.")
    ] = "parquet"
    codec: Annotated[
        Literal["webp", "png"] | None, Field(description="Lossless codec; webp in Parquet, png in folders.")
    ] = None
    seal: Annotated[bool, Field(description="Seal the originals into the copy, for the owner and those of --to.")] = (
        True
    )
    to: Annotated[
        tuple[str, ...],
        Parameter(negative=""),
        Field(description="Public key (age1…, ssh-ed25519 …, or its file) that opens the originals; repeatable."),
    ] = ()
    anonymous: Annotated[
        bool, Parameter(negative=""), Field(description="Number the recipients' files instead of naming them.")
    ] = False
    keep_metadata: Annotated[
        bool, Parameter(negative=""), Field(description="Seal image files byte for byte, with their EXIF data.")
    ] = False
    identity: Annotated[
        str | None,
        AfterValidator(lambda text: None if text is None else str(local_path(text))),
        Field(description="Your private key (PEM), which signs a sealed copy; made on first use.", exclude=True),
    ] = None
    license: Annotated[
        str | None, Field(description="Licence of the copy: an SPDX identifier such as CC-BY-4.0, or other.")
    ] = None
    license_name: Annotated[str | None, Field(description="Name of the licence, with --license other.")] = None
    license_link: Annotated[str | None, Field(description="Address of its text, with --license other.")] = None
    reserve: Annotated[
        bool, Field(description="Say in the copy that text and data mining is reserved: a sign, not a lock.")
    ] = True
    reservation: Annotated[
        str | None,
        Field(description="Wording of it; by default that of the EU's directive.", min_length=1),
    ] = None
    again: Annotated[
        bool, Parameter(negative=""), Field(description="Protect a protected copy once more.", exclude=True)
    ] = False
    sealed_only: Annotated[
        str | None,
        Field(description="Split, such as test, whose images are sealed for the recipients and not published."),
    ] = None


class AuditConfig(_Settings):
    """Attacks on a published folder."""

    worst_case: Annotated[
        bool,
        Parameter(negative=""),
        Field(
            description="Find the worst case over all attacks. It has defaults of its own: --networks cnn,resnet8 "
            "--attacks all --variants none --seeds 3 --recipe short --epochs 5 --limit-test 2000."
        ),
    ] = False
    strongest: Annotated[
        int,
        Field(description="Attacks that --worst-case repeats on more seeds and networks, and longer.", ge=0),
    ] = 8
    networks: Annotated[
        Names,
        Field(description="Architectures of the hackers (uge list networks), separated by commas, or checkpoint:PATH."),
    ] = ("cnn", "resnetc20")
    attacks: Annotated[
        Names, Field(description="Attacks (uge list attacks), families, A+B, standard or all, separated by commas.")
    ] = ("standard",)
    combine: Annotated[
        bool, Field(description="Combine the two best attacks as well; --attacks all does so anyway.")
    ] = False
    variants: Annotated[
        Names, Field(description="What the authorised user changes: names, all or none, separated by commas.")
    ] = ("order",)
    seeds: Annotated[int, Field(description="Repetitions.", ge=1, le=MOST_SEEDS)] = 1
    budget: Annotated[str, Field(description="Time there is: 90s, 10m, 1h, or full for all there is to run.")] = "full"
    workers: Annotated[
        str, Field(description="Cases that run at once, or auto; they share the threads.", pattern=r"^(auto|[1-9]\d*)$")
    ] = "1"
    executor: Annotated[Literal["local", "ray"], Field(description="Local processes, or Ray (extra ray).")] = "local"
    size: Annotated[
        int | None, Field(description="Side length for training; by default the manifest's.", ge=16, le=4096)
    ] = None
    limit_test: Annotated[
        int | None,
        Field(
            description="N test images only: the first, of each class in its share if sorted.",
            ge=1,
        ),
    ] = None
    seed: Annotated[int, Field(description="Root seed of the audit.")] = 1000
    epochs: Annotated[int | None, Field(description="Epochs, if other than the recipe's.", ge=1)] = None
    recipe: Annotated[str | None, Field(description="Named recipe; by default the key's own.")] = None

    @model_validator(mode="before")
    @classmethod
    def _worst_case_defaults(cls, fields: Any) -> Any:
        # Settings that were given stay; they are told from defaults by being there.
        return {**WORST_CASE, **fields} if isinstance(fields, dict) and fields.get("worst_case") else fields


def first_problem(error: ValidationError) -> str:
    """First fault of settings, in one sentence that starts with the setting's name."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
    if first["type"] == "value_error":
        return f"{name}: {first['ctx']['error']}"
    return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r}"


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Read a TOML or YAML file of settings, called ``name`` in messages.

    Raises:
        UsageError: The file is missing, is neither, or holds no table.
    """
    kind = "TOML" if path.suffix == ".toml" else "YAML"
    try:
        data = parse(tomllib.loads if kind == "TOML" else yaml.safe_load, read_text(path))
    except (UnreadableError, UnicodeDecodeError) as error:
        raise UsageError(f"the {name} cannot be read: {getattr(error, 'reason', 'it is no UTF-8')}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"the {name} is no valid {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(f"the {name} must hold settings by name, got {type(data).__name__}")
    return data
