"""Flags that commands share, paths of outputs, and settings from files below the flags."""

import difflib
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from pydantic import BaseModel, Field, ValidationError

from uge.config import first_problem, read_config
from uge.files import local_path

_ON = Parameter(negative="")
OutPath = Annotated[Path, Parameter(converter=lambda _, tokens: local_path(tokens[0].value))]
"""A path that a command writes to; addresses such as ``s3://bucket/x`` are refused before anything is read."""


class Common(BaseModel, frozen=True):
    """Flags of every command."""

    json_output: Annotated[
        bool, Parameter(name="--json", negative=""), Field(description="Print JSON on stdout, nothing else.")
    ] = False
    verbose: Annotated[
        int, Parameter(alias="-v", count=True, negative=""), Field(description="Messages; twice for debugging.")
    ] = 0
    quiet: Annotated[bool, Parameter(alias="-q", negative=""), Field(description="No progress, only errors.")] = False
    config: Annotated[Path | None, Field(description="TOML or YAML file with settings of this command.")] = None


class Reading(Common):
    """Flags of the commands that read images."""

    image_column: Annotated[
        str | None, Field(description="Column of images in Parquet files or on the hub; by default image.")
    ] = None
    label_column: Annotated[str | None, Field(description="Column of labels there; by default label.")] = None
    source_key: Annotated[
        Path | None, Field(description="Private key of a recipient, which opens sources written as sealed:FOLDER.")
    ] = None
    max_image_pixels: Annotated[
        int | None, Field(description="Largest image in pixels that is opened; Pillow's limit by default.", ge=1)
    ] = None


class Page(Common):
    """Flags of the commands that write a page."""

    overwrite: Annotated[bool, _ON, Field(description="Replace what is in the output.")] = False


class Changing(Common):
    """Flags of the commands that change a published folder and compute nothing."""

    dry_run: Annotated[bool, _ON, Field(description="Check the input, say what would be done, and stop.")] = False


class Replacing(Page, Changing):
    """Flags of those among them that may replace something."""


class Compute(Reading):
    """Flags of the commands that compute."""

    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16-mixed"], Field(description="Arithmetic.")] = "auto"
    threads: Annotated[int | None, Field(description="CPU threads; all cores by default.", ge=1, le=1024)] = None


class Writing(Page, Compute):
    """Flags of the commands that write."""

    dry_run: Annotated[bool, _ON, Field(description="Check the input, say what would be done, and stop.")] = False


class Resumable(Writing):
    """Flags of the commands that can be interrupted and go on."""

    resume: Annotated[bool, _ON, Field(description="Go on with an interrupted run of the same settings.")] = False


FLAT = Parameter(name="*")


ENVIRONMENT = "UGE_"
"""Variables ``UGE_VERB_FLAG`` hold settings, such as ``UGE_PROTECT_RHO`` or ``UGE_AUDIT_THREADS``."""


def settings_for(tokens: Sequence[str]) -> list[Any]:
    """Settings below the flags: variables of the environment, the file given by ``--config``, the command's preset.

    A file holds the flags' names, nested ones as tables. A table named after the command goes before the rest, so that
    one file can serve several commands.

    Raises:
        UsageError: The file cannot be read.
    """
    verb = next((token for token in tokens if not token.startswith("-")), "")
    words = [word for token in tokens for word in (token.split("=", 1) if token.startswith("--config=") else [token])]
    path = next((Path(following) for flag, following in pairwise(words) if flag == "--config"), None)
    layers = [] if path is None else _layers(read_config(path, f"config file {path}"), verb, str(path))
    preset = Path(str(resources.files("uge"))) / "presets" / f"{verb}.toml"
    if verb and preset.is_file():
        layers += _layers(read_config(preset, f"preset {verb}"), verb, f"preset {verb}")
    return [cyclopts.config.Env(ENVIRONMENT), *layers]


def _layers(data: dict[str, Any], verb: str, source: str) -> list[cyclopts.config.Dict]:
    inner = data.get(verb)  # Tables of commands are no settings: cyclopts leaves them out of the rest.
    tables = [inner, data] if isinstance(inner, dict) else [data]
    return [cyclopts.config.Dict(table, use_commands_as_keys=False, source=source) for table in tables]


def sentence(error: cyclopts.CycloptsError) -> str:
    """One sentence about wrong flags or settings."""
    if isinstance(error, cyclopts.UnknownOptionError):
        return _unknown(error)
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None and error.keyword is None:
        return _missing(error)
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):
        return f"--{first_problem(cause)}"
    return " ".join(str(error).partition(" Available commands")[0].split()).rstrip(".")


def _missing(error: cyclopts.MissingArgumentError) -> str:
    """A missing argument as its usage names it, with that usage."""
    assert error.argument is not None
    command = " ".join(["uge", *(error.command_chain or ())])
    arguments = [] if error.app is None else error.app.assemble_argument_collection()
    needed = [_typed(argument) for argument in arguments if argument.required]
    usage = " ".join([command, *needed])
    return f"{_typed(error.argument).split()[0]} is missing; usage: {usage} (all of it: {command} --help)"


def _typed(argument: cyclopts.Argument) -> str:
    """An argument as a person types it: ``SOURCE``, or ``--key KEY``."""
    name = next(name for name in argument.names if name.startswith("--"))
    word = name.lstrip("-").replace("-", "_").upper()
    return word if argument.index is not None else f"{name} {word}"


def _unknown(error: cyclopts.UnknownOptionError) -> str:
    word = error.token.keyword or error.token.value
    known = {name.lstrip("-") for argument in error.argument_collection for name in argument.names}
    key = word.strip("[]").replace("][", ".").lstrip("-").partition("=")[0]
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    in_file = error.token.source != "cli"
    guess = f"; did you mean '{'' if in_file else '--'}{near[0]}'?" if near else "; see --help for what there is"
    return f"unknown setting '{key}' in {error.token.source}{guess}" if in_file else f"unknown flag '{word}'{guess}"
