"""Command line: one file for each group of verbs, shared flags, progress on the terminal."""
