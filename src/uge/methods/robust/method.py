"""The row ``robust`` of the table of methods. Needs no torch until it is used."""

from __future__ import annotations

from uge.data.images import ImageSet
from uge.errors import UsageError
from uge.methods.base import ANEW, Earlier, Method, MethodSettings, Perturbation, Task
from uge.methods.robust.settings import CLUSTERS


class Robust(Method):
    """Moves every image towards one other class on several networks, through random filters; none is favoured.

    Clusters of features take the place of classes where there are fewer than two.
    """

    name = "robust"
    about = (
        "every image is moved towards one other class on several networks at once, through random filters; made for "
        "the lowest accuracy of the strongest attack that knows how it works"
    )

    def check(self, settings: MethodSettings) -> None:
        """Refuse, besides refinement, unknown surrogates and filters without any share.

        Raises:
            UnknownNameError: There is no such network.
            UsageError: The settings of surrogates or filters are wrong.
        """
        from uge.networks import check_name

        super().check(settings)
        for surrogate in settings.robust.surrogate_names:
            check_name(surrogate.network)
        if settings.robust.by == "generator" and not settings.robust.generator:
            raise UsageError(
                "--robust.by generator needs one; give its steps as well, for instance --robust.generator 2000"
            )
        if not sum(settings.robust.filters.model_dump().values()):
            raise UsageError("every filter of method 'robust' has the share 0; give at least one a share above 0")

    def check_images(self, images: ImageSet, settings: MethodSettings) -> ImageSet:
        """Images by classes, unless clusters take the place of these."""
        if settings.robust.takes_clusters(images.check().class_counts):
            return images
        return super().check_images(images, settings)

    def perturb(self, task: Task) -> Perturbation:
        """Perturbations of the task's images alone."""
        from uge.methods.robust.stages import run

        return run(task)

    def check_adding(self, settings: MethodSettings, earlier: Earlier) -> None:
        """Refuse a run without its surrogates, or one by clusters, which say nothing of further images.

        Raises:
            UsageError: As in :meth:`Method.check_adding`.
        """
        if (earlier.folder / "run" / CLUSTERS).is_file():
            raise UsageError(f"{earlier.folder} took clusters of its own images in place of classes; {ANEW}")
        from uge.methods.apply import GENERATOR
        from uge.methods.robust.surrogates import file_name

        by_generator = settings.robust.by == "generator"
        for number, _ in enumerate([] if by_generator else settings.robust.surrogate_names):
            earlier.file("run", file_name(number))
        if by_generator:
            earlier.file(GENERATOR)

    def add(self, task: Task, earlier: Earlier) -> Perturbation:
        """Perturbations of further images by the same steps on the same surrogates, towards the same classes."""
        from uge.methods.robust.stages import add

        return add(task, earlier)
