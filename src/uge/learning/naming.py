"""Names of a classifier's outputs from a few labelled images: as they are, one to one, many to one. Needs no torch.

A perturbation that moves images towards other classes permutes the outputs of what is trained on them. Ten labelled
clean images a class are enough to see that, and to name the outputs anew.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Naming = Literal["as is", "one to one", "many to one"]
#: Ways of naming outputs, the simplest first.
NAMINGS: tuple[Naming, ...] = get_args(Naming)
_FOLDS = 10


@dataclass(frozen=True)
class Renamed:
    """Accuracies of one network in percent, with its outputs named in the three ways of :data:`NAMINGS`.

    Attributes:
        labelled: On the labelled images, each named by the others (:func:`cross_validated`).
        test: On the test images, by the names that the labelled images give.
        oracle: On the test images, by the names that the test images themselves give: one to one, and many to one. An
            upper bound, which no attacker can choose.
    """

    labelled: tuple[float, float, float]
    test: tuple[float, float, float]
    oracle: tuple[float, float]


def confusion(predicted: Integers, labels: Integers, classes: int) -> Integers:
    """Counts of (output, label), classes × classes."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted, labels), 1)
    return counts


def names(counts: Integers, naming: Naming) -> Integers:
    """Label of each output, classes.

    One to one is the assignment with the most images right. Many to one gives each output the label of most of its
    images. An output keeps its own label where another is no better.

    Args:
        counts: From :func:`confusion`.
        naming: Way of naming.
    """
    own = np.arange(len(counts))
    if naming == "as is":
        return own
    gains = counts + np.eye(len(counts)) / (2 * len(counts))  # All ties together weigh less than one image.
    if naming == "many to one":
        return np.asarray(gains.argmax(1), np.int64)
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(gains, maximize=True)[1], np.int64)


def accuracy(counts: Integers, named: Integers) -> float:
    """Accuracy in percent of outputs with these names."""
    return 100 * float(counts[np.arange(len(counts)), named].sum()) / float(counts.sum())


def cross_validated(predicted: Integers, labels: Integers, classes: int, naming: Naming) -> float:
    """Accuracy in percent on labelled images, a tenth of them at a time, named by the other nine tenths.

    Names that were chosen on all images would always look best where there are most of them to choose from.

    Args:
        predicted: Outputs, one for each labelled image.
        labels: Their labels; image n of a class is in tenth n mod 10.
        classes: Number of classes.
        naming: Way of naming.
    """
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    right = 0
    for fold in range(_FOLDS):
        held = rank % _FOLDS == fold
        named = names(confusion(predicted[~held], labels[~held], classes), naming)
        right += int((named[predicted[held]] == labels[held]).sum())
    return 100 * right / len(labels)


def rename(labelled: tuple[Integers, Integers], test: tuple[Integers, Integers], classes: int) -> Renamed:
    """Accuracies under all namings.

    Args:
        labelled: Outputs and labels of the labelled images, at least one.
        test: Outputs and labels of the test images, at least one.
        classes: Number of classes.

    Example:
        >>> import numpy as np
        >>> labels = np.repeat(np.arange(3), 4)
        >>> rename(((labels + 1) % 3, labels), ((labels + 1) % 3, labels), 3)
        Renamed(labelled=(0.0, 100.0, 100.0), test=(0.0, 100.0, 100.0), oracle=(100.0, 100.0))
    """
    counts = confusion(*labelled, classes)
    tested = confusion(*test, classes)
    scores = [cross_validated(*labelled, classes, naming) for naming in NAMINGS]
    reached = [accuracy(tested, names(counts, naming)) for naming in NAMINGS]
    bounds = [accuracy(tested, names(tested, naming)) for naming in NAMINGS[1:]]
    return Renamed(
        (round(scores[0], 4), round(scores[1], 4), round(scores[2], 4)),
        (round(reached[0], 4), round(reached[1], 4), round(reached[2], 4)),
        (round(bounds[0], 4), round(bounds[1], 4)),
    )


def better(*forms: Renamed) -> Renamed:
    """The one with the highest accuracy on the labelled images, the first of equal ones, with the bounds of all.

    Args:
        forms: Accuracies of one network on several forms of the same images, at least one.
    """
    best = max(forms, key=lambda form: max(form.labelled))
    return replace(best, oracle=(max(form.oracle[0] for form in forms), max(form.oracle[1] for form in forms)))
