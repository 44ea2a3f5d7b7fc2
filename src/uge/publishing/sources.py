"""Originals of a published folder by public sample id, from one source or one for each addition."""

from collections.abc import Sequence

from uge.data.images import ImageSet
from uge.data.pixels import added_id, public_id
from uge.errors import UsageError


class Sources:
    """Sources of the images of a published folder.

    Args:
        sources: Source of the first publication, then those of its additions, in order. The last one given stands for
            all that follow, as a source does that grew.
        additions: Number of additions.
        classes: Class names of the folder; sources of additions may lack some.

    Attributes:
        classes: Class names of each source, those of additions brought into the order of the folder where that can be.

    Raises:
        UsageError: There are more sources than the folder can have.
    """

    def __init__(self, sources: Sequence[ImageSet], additions: int, classes: Sequence[str]) -> None:
        if len(sources) > additions + 1:
            raise UsageError(
                f"expected at most {additions + 1} sources of originals, one and one for each addition, got "
                f"{len(sources)}; leave the others out"
            )
        first, *later = sources
        ordered = [first, *(_relabelled(images, classes) for images in later)]
        self.classes = [images.classes for images in ordered]
        self._places: dict[str, tuple[ImageSet, int]] = {}
        for addition in range(additions + 1):
            images = ordered[min(addition, len(ordered) - 1)]
            for place, id in enumerate(images.ids):
                self._places[public_id(added_id(id, addition))] = images, place

    def find(self, id: str) -> tuple[ImageSet, int] | None:
        """Source and place in it of the original with a public sample id."""
        return self._places.get(public_id(id))


def _relabelled(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    if not images.labelled:
        return images
    used = {images.classes[label] for label in set(images.labels.tolist())}
    return images.relabelled(classes) if used <= set(classes) else images
