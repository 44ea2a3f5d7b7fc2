"""Imported first, for what this does, in the process from which :mod:`uge.processes` forks others: they switch back."""

from uge import loading

loading.begin()
