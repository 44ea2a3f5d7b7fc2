"""Imported first in the process from which workers are forked: libraries load without the garbage collector."""

import gc
import os

gc.disable()
# In every child, in this order: a program may fork its own from there, too.
os.register_at_fork(after_in_child=gc.freeze)
os.register_at_fork(after_in_child=gc.enable)
