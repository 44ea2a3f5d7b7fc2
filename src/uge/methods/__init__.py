"""Methods: everything that perturbs images, in one table. Importing it imports no torch."""

from uge.methods.base import ImagesInfo, Method, MethodSettings, Perturbation, Task
from uge.methods.table import METHODS, method, method_for

__all__ = ["METHODS", "ImagesInfo", "Method", "MethodSettings", "Perturbation", "Task", "method", "method_for"]
