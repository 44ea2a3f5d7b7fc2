"""Version of the code that wrote a result."""

import functools
import subprocess
from importlib import metadata
from pathlib import Path


@functools.cache
def code_version() -> str:
    """Version of this package, with the git commit when it runs from a checkout: ``"1.0.0+g0123456789ab"``."""
    version = metadata.version("uge")
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return version
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return version
    return f"{version}+g{commit.stdout.strip()}" if commit.returncode == 0 else version
