"""Means of every step: device, progress, and what it may resume or replace."""

from dataclasses import dataclass, field

from uge.progress import Display, Silent
from uge.runtime import Runtime


@dataclass(frozen=True)
class Session:
    """Device, progress and permissions of a run.

    Attributes:
        runtime: Device and precision.
        progress: Shows stages.
        resume: Go on with an interrupted run of the same settings.
        overwrite: Replace an earlier output.
        dry_run: Read and check the input, and write nothing.
    """

    runtime: Runtime
    progress: Display = field(default_factory=Silent)
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
