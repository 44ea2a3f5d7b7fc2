"""Rows of the table of methods for published protections and for functions of plug-ins. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from uge.budget import Budget
from uge.methods.base import Method, MethodSettings, Perturbation, Task

if TYPE_CHECKING:
    from uge.methods.baselines.base import Baseline


class Published(Method):
    """A published protection, without authorised networks.

    Args:
        name: Name in the table.
        place: ``MODULE:NAME`` of its :class:`uge.methods.baselines.base.Baseline` in this package.
        about: One sentence for lists of methods.
    """

    has_options = True

    def __init__(self, name: str, place: str, about: str) -> None:
        self.name = name
        self.about = about
        self._place = place

    @property
    def baseline(self) -> Baseline:
        """The protection itself; its module is imported."""
        module, _, attribute = self._place.partition(":")
        baseline: Baseline = getattr(import_module(f"uge.methods.baselines.{module}"), attribute)
        return baseline

    @property
    def default_budget(self) -> Budget:
        """L-inf budget of the publication; 1.0 where that bounds something else."""
        return Budget(self.baseline.rho)

    def check(self, settings: MethodSettings) -> None:
        """Refuse refinement and settings that the publication does not have."""
        from uge.methods.baselines.base import read_settings

        super().check(settings)
        read_settings(self.baseline.settings, settings.baseline)

    def perturb(self, task: Task) -> Perturbation:
        """Perturbations of the task's images alone."""
        from uge.methods.baselines.base import perturb

        return perturb(self.baseline, task)


class OfFunction(Published):
    """A plug-in protection that is one function.

    Args:
        name: Name in the table.
        function: Called with all images at the training size (uint8, N × H × W × C), their labels (int64, N), the
            budget in 8-bit levels and the seed; returns the change of every value in whole levels, an array of signed
            integers of the images' shape. Larger changes are clipped to the budget.
        about: One sentence for lists of methods and the manifest; by default the first line of its docstring.
    """

    def __init__(self, name: str, function: Callable[..., Any], about: str) -> None:
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        super().__init__(name, "", about or summary.rstrip(".") or f"the function {function.__qualname__}")
        self._function = function

    @property
    def baseline(self) -> Baseline:
        """The function as a protection."""
        from uge.methods.baselines.base import of_function

        return of_function(self.name, self._function, self.about)
