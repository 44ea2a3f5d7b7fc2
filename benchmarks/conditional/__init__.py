"""The yardstick of conditional learnability; ``benchmarks/conditional.py`` is its command."""
