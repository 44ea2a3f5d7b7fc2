"""Imported first in the process from which workers are forked: libraries load without the garbage collector."""

import gc
import os

from uge.processes import collect_again

gc.disable()
os.register_at_fork(after_in_child=collect_again)  # In every child: a program may fork its own from there, too.
