"""``python -m uge``."""

from uge.cli import main

main()
