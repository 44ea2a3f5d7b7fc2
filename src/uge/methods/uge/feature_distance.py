"""Feature distance loss L_fd, which makes the protected copy unlearnable (Eq. 7-9), and its target classes."""

from typing import Literal

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uge.errors import UsageError


def feature_distance(
    clean: Tensor,
    protected: Tensor,
    text: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.1,
    distance: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """L_fd = mean[ -‖F - F'‖² + ‖F' - T_c‖² + max(0, α - ‖F' - T_y‖²) ] (Eq. 7-9).

    Args:
        clean: F, L2-normalised image features of x, batch × dim.
        protected: F', L2-normalised image features of x_u, batch × dim.
        text: T, L2-normalised text features of all classes, classes × dim.
        labels: y, int64, batch.
        targets: c ≠ y, int64, batch: F' is pulled towards the text of class c.
        alpha: Margin α of the triplet term (Table 5: 0.1).
        distance: ``"sum"``: ‖·‖² is the sum over dimensions, as Eq. 7 and 8 are written; the margin then acts on
            features close to their own class only. ``"mean"``: the mean over dimensions, the "MSE loss" of the text
            below Eq. 8; the margin then acts on nearly every image.

    Returns:
        A scalar; at least -4 (opposite features, on the target), with ``"mean"`` at least -4 / dim.

    Example:
        >>> import torch
        >>> text = torch.eye(2)  # Two classes with orthogonal text features.
        >>> label, target = torch.tensor([0]), torch.tensor([1])
        >>> feature_distance(text[:1], text[1:], text, label, target).item()  # F' is on the target.
        -2.0
    """
    reduce = torch.sum if distance == "sum" else torch.mean
    away = -reduce((clean - protected).square(), 1)
    pull = reduce((protected - text[targets]).square(), 1)
    push = F.relu(alpha - reduce((protected - text[labels]).square(), 1))
    return (away + pull + push).mean()


def least_similar_classes(clean: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    """The paper's target of each image: argmin over c ≠ y of Sim(F, T_c).

    Args:
        clean: L2-normalised image features, batch × dim.
        text: L2-normalised text features, classes × dim.
        labels: int64, batch.
    """
    return (clean @ text.T).scatter(1, labels[:, None], torch.inf).argmin(1)


def class_derangement(text: Tensor) -> Tensor:
    """One fixed target per class: the permutation without fixed points of least total similarity.

    A target that is the same for the whole class protects far better than one per image
    (docs/method.md). Ties break the same way every time.

    Args:
        text: L2-normalised text features, classes × dim.

    Returns:
        int64, classes: entry y is the target of class y, never y itself.

    Raises:
        UsageError: There is only one class.
    """
    if len(text) < 2:
        raise UsageError("the targets of feature distance need at least two classes, got one; give images of more")
    cost = (text @ text.T).double().cpu().fill_diagonal_(1e6)
    _, target = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(target, dtype=torch.int64, device=text.device)
