"""The paper's method and its reduced forms."""

from uge.methods.authorized import ForNetworks
from uge.methods.base import MethodSettings, Perturbation, Task
from uge.methods.uge.settings import LOSSES, NEED_PATH


class Paper(ForNetworks):
    """Trains a generator under losses of the paper (Algorithm 1), and refines images where asked to.

    Args:
        name: A name in :data:`uge.methods.uge.settings.LOSSES`.
        about: One sentence for lists of methods.
    """

    refines = True

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.about = about
        self.needs_paths = bool(LOSSES[name] & NEED_PATH)

    def check(self, settings: MethodSettings) -> None:
        """Refuse, besides other unknown names, that of the undistill loss's hacker."""
        from uge.networks import check_name

        super().check(settings)
        if "undistill" in LOSSES[self.name]:
            check_name(settings.hacker)

    def perturb(self, task: Task) -> Perturbation:
        """Trained generator, and refined perturbations where asked for."""
        from uge.methods.uge.stages import Stages

        return Stages(task, LOSSES[self.name]).run()


FORMS = (
    Paper(
        "uge",
        "three losses at once: gradient matching keeps the images learnable for the authorised network, feature "
        "distance leads other networks astray, undistill makes the authorised network a poor teacher",
    ),
    Paper(
        "uge-no-ud",
        "two losses: gradient matching keeps the images learnable for the authorised network, feature distance leads "
        "other networks astray; nothing is done against distillation",
    ),
    Paper("unlearn", "the feature distance alone, which leads every network astray; no network is favoured"),
    Paper("undistill", "the undistill loss alone, which makes the authorised network a poor teacher"),
)
"""The variants of the paper's Table 1."""
