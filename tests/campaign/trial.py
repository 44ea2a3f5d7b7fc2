"""One run of a command in a child process, watched for time, memory, tracebacks and leftovers."""

import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 60.0
MEGABYTES = 700
"""Memory that a command on tiny input may take beyond what the parent holds at the fork."""

CEILING = 3 << 30
"""Bytes of address space beyond the parent's, so that a run without a limit of its own cannot take the machine."""


@dataclass
class Trial:
    """Result of one run.

    Attributes:
        code: Exit code; negative for the number of a signal.
        out: Standard output.
        err: Standard error.
        seconds: Duration.
        megabytes: Peak memory of the child.
        findings: Sentences about what must not happen.
    """

    code: int
    out: str
    err: str
    seconds: float
    megabytes: float
    findings: list[str] = field(default_factory=list)


class Started:
    """A command that runs in a forked child.

    Args:
        arguments: What follows ``uge``.
        folder: Working directory.
    """

    def __init__(self, arguments: Sequence[str | Path], folder: Path) -> None:
        self.began = time.monotonic()
        name = f"{folder.name}.{os.getpid()}.{self.began}"
        self.files = [folder.parent / f"{name}.{stream}" for stream in ("stdout", "stderr")]
        self.child = os.fork()
        if self.child == 0:
            _be_the_child([str(argument) for argument in arguments], folder, self.files)

    def end(self, *, seconds: float = SECONDS, kill_after: float | None = None) -> Trial:
        """Wait for the end, or bring it about after some seconds of work or of standing still, and judge it."""
        hung = killed = False
        worked = 0.0  # Seconds of the processor: another one may be busy with other programs.
        moved = self.began
        while True:
            ended, status, usage = os.wait4(self.child, os.WNOHANG)
            if ended:
                break
            now = time.monotonic()
            if (used := _processor_seconds(self.child)) > worked:
                worked, moved = used, now
            hung = hung or worked > seconds or now - moved > seconds
            killed = killed or (kill_after is not None and now - self.began > kill_after)
            if hung or killed:
                os.kill(self.child, signal.SIGKILL)
            time.sleep(0.002)
        texts = [path.read_bytes().decode("utf-8", "replace") if path.exists() else "" for path in self.files]
        for path in self.files:
            path.unlink(missing_ok=True)
        duration = time.monotonic() - self.began
        trial = Trial(os.waitstatus_to_exitcode(status), *texts, duration, usage.ru_maxrss / 1024)
        if not killed:
            trial.findings = _judge(trial, hung)
        return trial


def run(arguments: Sequence[str | Path], folder: Path, *, seconds: float = SECONDS) -> Trial:
    """Run ``uge ARGUMENTS`` in a forked child, in ``folder``, and judge how it ends.

    Libraries are loaded once in the parent, so that a run takes a fraction of a second.
    """
    return Started(arguments, folder).end(seconds=seconds)


def _be_the_child(arguments: list[str], folder: Path, files: Sequence[Path]) -> None:
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + CEILING, -1))
        from uge.cli.main import main

        main(arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _processor_seconds(process: int) -> float:
    """Seconds of the processor that a process has used, its ended threads included; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mapped_bytes() -> int:
    """Size of this process's address space."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # Not on Linux: a generous guess.
        return 1 << 36
    return pages * resource.getpagesize()


def _judge(trial: Trial, hung: bool) -> list[str]:
    findings = []
    if hung:
        return [f"still running after {SECONDS:.0f} s"]
    if trial.code < 0:
        findings.append(f"died of signal {-trial.code}")
    elif trial.code not in (0, 1, 2, 3):
        findings.append(f"exit code {trial.code}")
    if trial.megabytes > parent_megabytes() + MEGABYTES:
        findings.append(f"took {trial.megabytes - parent_megabytes():.0f} MB")
    if "Traceback" in trial.err or "unexpected" in trial.err:
        findings.append("ends with a traceback or an unexpected error")
    if trial.code in (1, 2) and not trial.out:
        errors = [line for line in trial.err.splitlines() if line.startswith("uge: ")]
        if len(errors) != 1 and "problem" not in trial.err:
            findings.append(f"{len(errors)} sentences about what is wrong, not one")
    if hidden := {character for character in trial.out + trial.err if not _visible(character)}:
        findings.append(f"prints control characters: {sorted(hidden)!r}")
    return findings


def _visible(character: str) -> bool:
    code = ord(character)
    bidirectional = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in (0x200E, 0x200F, 0x061C)
    return character in "\n\t" or not (code < 32 or 127 <= code < 160 or bidirectional)


def parent_megabytes() -> float:
    """Peak memory of this process, which a forked child starts from."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
