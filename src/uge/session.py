"""What every step of the command line is given: where it computes, who watches, what it may replace."""

from __future__ import annotations

from dataclasses import dataclass, field

from uge.progress import Display, Silent
from uge.runtime import Runtime


@dataclass(frozen=True)
class Session:
    """How steps are run.

    Attributes:
        runtime: Device and precision.
        progress: Shows stages.
        resume: Go on with an interrupted run of the same settings.
        overwrite: Replace what is in the output.
        dry_run: Read and check the input, say what would be done, write nothing.
    """

    runtime: Runtime
    progress: Display = field(default_factory=Silent)
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
