"""Method ``keyed``: class waves that a frozen front-end of the authorised network takes out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uge.errors import UsageError
from uge.methods.authorized import ForNetworks
from uge.methods.base import ImagesInfo, MethodSettings, Perturbation, Task

if TYPE_CHECKING:
    from uge.networks import ImageClassifier


class Keyed(ForNetworks):
    """Adds patterns of a wave key to images at their own size; nothing is trained, and images are read only once."""

    name = "keyed"
    about = (
        "every class has secret wave patterns of its own, which the authorised network's key finds and takes out "
        "again; other networks take the waves for the classes"
    )
    reads_store = False
    wave_key = True

    def check(self, settings: MethodSettings) -> None:
        """Refuse, besides unknown names, refinement and rotations."""
        super().check(settings)
        if settings.recipe.augment == "rotate-flip":
            raise UsageError(
                f"method '{self.name}' cannot follow rotations, got the augmentation 'rotate-flip'; give "
                "--recipe.augment crop-flip, or --method uge"
            )

    def networks(self, info: ImagesInfo, settings: MethodSettings) -> list[ImageClassifier]:
        """θ0 of every authorised network; those from seeds share one key, which is as strong as the budget.

        Raises:
            UsageError: As in :meth:`ForNetworks.networks`, or the key would have to clip away too much of an image.
        """
        from uge.methods.keyed.wave_code import share_key
        from uge.networks.wave_key import MOST_LEVELS

        networks = super().networks(info, settings)
        if settings.authorized_weights:
            return networks
        levels = self.budget(settings).levels
        if levels > MOST_LEVELS:
            raise UsageError(
                f"method '{self.name}' gives up the ends of the range of pixels and takes a rho of at most "
                f"{MOST_LEVELS}/255, got {settings.rho}; give a smaller --rho, or --method uge"
            )
        share_key(networks, levels)
        return networks

    def perturb(self, task: Task) -> Perturbation:
        """Wave code of the networks' key, which perturbs any image."""
        from uge.methods.apply import GENERATOR, save_perturber
        from uge.methods.keyed.wave_code import WaveCode, shared_key

        code = WaveCode(shared_key(task.networks), task.budget, task.images.classes)
        path = task.file(GENERATOR)
        if path is not None:
            save_perturber(path, code)
        network = task.networks[0]
        recipe = task.settings.recipe.json_dict()
        details = {"training_size": network.size, "channels": network.channels, "recipe": recipe}
        return Perturbation(task.budget, code, details=details)
