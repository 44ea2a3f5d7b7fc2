"""Imported first, for what this does, in the process from which :mod:`uge.processes` and others fork."""

import os

from uge import loading

loading.begin()
os.register_at_fork(after_in_child=loading.end)  # In every child: a program may fork its own from there, too.
