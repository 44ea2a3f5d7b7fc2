"""Methods: everything that perturbs images, in one table. Importing it imports no torch."""

from uge.methods.base import ImagesInfo, Method, Perturbation, Task
from uge.methods.table import METHODS, method, method_for

__all__ = ["METHODS", "ImagesInfo", "Method", "Perturbation", "Task", "method", "method_for"]
