"""The command line ``uge``: commands by subject, shared flags, progress on the terminal."""
