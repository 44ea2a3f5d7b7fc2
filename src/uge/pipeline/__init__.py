"""The steps of the command line as functions: configuration in, results out. Imports torch."""
