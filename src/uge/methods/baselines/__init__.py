"""Published protections of others, and functions of plug-ins, as rows of the table of methods.

A published protection's module is imported when its row is used, so that names need no torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uge.budget import Budget
from uge.methods.base import Earlier, Method, MethodSettings, Perturbation, Task

if TYPE_CHECKING:
    from uge.methods.baselines.base import Baseline


class Published(Method):
    """A published protection, without authorised networks.

    Args:
        name: Name in the table.
        place: ``MODULE:NAME`` of its :class:`uge.methods.baselines.base.Baseline` in this package.
        about: One sentence for lists of methods.
        revision: See :class:`uge.methods.base.Method`.
        trains: False where nothing is learned from the images.
        needs_classes: False where classes play no part.
    """

    has_options = True

    def __init__(
        self,
        name: str,
        place: str,
        about: str,
        revision: int = 0,
        *,
        trains: bool = True,
        needs_classes: bool = True,
    ) -> None:
        self.name = name
        self.about = about
        self.revision = revision
        self.trains = trains
        self.needs_classes = needs_classes
        self._place = place

    @property
    def baseline(self) -> Baseline:
        """The protection itself; its module is imported."""
        baseline: Baseline = pkgutil.resolve_name(f"uge.methods.baselines.{self._place}")
        return baseline

    def budget(self, settings: MethodSettings) -> Budget:
        """Budget that settings name, else that of the publication; 1.0 where it bounds something else."""
        return Budget(self.baseline.rho) if settings.rho is None else super().budget(settings)

    def check(self, settings: MethodSettings) -> None:
        """Refuse refinement and settings that the publication does not have."""
        super().check(settings)
        self.baseline.read_settings(settings.baseline)

    def perturb(self, task: Task) -> Perturbation:
        """Perturbations of the task's images alone."""
        return self.baseline.perturb(task)

    def check_adding(self, settings: MethodSettings, earlier: Earlier) -> None:
        """Refuse a protection with perturbations that do not follow from seed, class and image alone."""
        if not self.baseline.alone:
            super().check_adding(settings, earlier)

    def add(self, task: Task, earlier: Earlier) -> Perturbation:
        """Perturbations of further images by the same seed."""
        return self.baseline.add(task, earlier)


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


BASELINES = (
    # In their first form em and tap had other starts, restarts and rates, em-class another rule, and rem a clip.
    Published("em", "em:EM", "error-minimising noise for every image (Huang et al., ICLR 2021), of a fixed length", 1),
    Published("em-class", "em:EM_CLASS", "error-minimising noise, one pattern per class (Huang et al., ICLR 2021)", 1),
    Published("tap", "tap:TAP", "targeted adversarial poisoning (Fowl et al., NeurIPS 2021)", 1),
    Published(
        "tap-untargeted", "tap:TAP_UNTARGETED", "untargeted adversarial poisoning (Fowl et al., NeurIPS 2021)", 1
    ),
    Published("ntga", "ntga:NTGA", "neural tangent generalisation attack (Yuan and Wu, ICML 2021), steps that add up"),
    Published("rem", "rem:REM", "robust error-minimising noise (Fu et al., ICLR 2022)", 1),
    Published("cuda", "cuda:CUDA", "a random convolution for every class (Sadasivan et al., CVPR 2023)", trains=False),
    Published("lsp", "lsp:LSP", "linearly separable patches for every class (after Yu et al., KDD 2022)", trains=False),
    Published(
        "ar",
        "ar:AR",
        "autoregressive noise, a process per class (after Sandoval-Segura et al., NeurIPS 2022)",
        trains=False,
    ),
    Published("ops", "ops:OPS", "one pixel shortcut for every class (Wu et al., ICLR 2023)", trains=False),
    Published("pil", "pil:PIL", "noise that a linear network takes for the class (jinlinll/pil, ICLR 2026)"),
    Published(
        "random",
        "random:RANDOM",
        "uniform random noise for every image: a control without optimisation",
        trains=False,
        needs_classes=False,
    ),
    Published(
        "random-class", "random:RANDOM_CLASS", "uniform random noise, one pattern per class: a control", trains=False
    ),
)
"""Rows of the table of methods."""
