"""``python -m uge``."""

from uge.cli.main import main

main()
