"""The weighted total loss (Eq. 4) and the variants of it that the paper reports.

Names in this package: ``x`` are clean pixels and ``x_u`` protected ones, both in [0, 1]. ``delta`` is a perturbation as
a tensor or a record, in [0, 1] units in the generator and in 8-bit levels where it is stored. ``levels`` are whole
8-bit steps of the perturbation of stored images.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uge.data.augment import crop_flip
from uge.encoders import FeatureSpace
from uge.errors import UnknownNameError, UsageError
from uge.learning.trajectory import Trajectory, network_at
from uge.methods.uge.feature_distance import class_derangement, feature_distance, least_similar_classes
from uge.methods.uge.matching import gradient_matching, parameter_matching, value_matching
from uge.methods.uge.settings import LOSSES, NEED_PATH, LossWeights
from uge.methods.uge.undistill import undistill
from uge.runtime import Runtime


@dataclass
class Authorized:
    """One authorised network: a module of its architecture (never changed), and its trajectory."""

    network: nn.Module
    trajectory: Trajectory


def trained_networks(authorized: Sequence[Authorized], runtime: Runtime) -> list[nn.Module]:
    """Copies of the authorised networks with the weights at the end of their trajectories, frozen, in eval mode."""
    return [network_at(copy.deepcopy(path.network), path.trajectory, -1, runtime) for path in authorized]


class TotalLoss:
    """L_all = λ_gm L_gm + λ_fd L_fd + λ_ud L_ud on one batch (Eq. 4), minimised over x_u.

    Where L_gm is part of the method, λ_vm L_vm + λ_pm L_pm (ours) can be added; both weights are 0 by default.

    Args:
        method: A name in :data:`LOSSES`.
        weights: λ and constants.
        authorized: Authorised networks with their trajectories (L_gm, L_ud).
        hacker: A randomly initialised network with the statistics of clean images (L_ud).
        space: Image and text features (L_fd).
        classes: Class names.
        runtime: Device and precision.
        fresh_hacker: Makes such a hacker from a seed, where L_ud draws one for every batch.

    Raises:
        UnknownNameError: There is no such method.
        UsageError: The method needs an authorised network, a hacker or a feature space that is not given.
    """

    def __init__(
        self,
        method: str,
        weights: LossWeights,
        *,
        authorized: Sequence[Authorized],
        hacker: nn.Module | None,
        space: FeatureSpace | None,
        classes: Sequence[str],
        runtime: Runtime,
        fresh_hacker: Callable[[int], nn.Module] | None = None,
    ) -> None:
        if method not in LOSSES:
            raise UnknownNameError("method", method, LOSSES)
        self.parts = LOSSES[method]
        self.weights = weights
        self.runtime = runtime
        self.space = space
        # Modules of its own: two entries may share one, and the caller's must keep their weights.
        self._students = [copy.deepcopy(path.network) for path in authorized]
        if self.parts & NEED_PATH and not authorized:
            raise UsageError(f"method '{method}' needs at least one authorised network, got none; give one")
        if "feature_distance" in self.parts:
            if space is None:
                raise UsageError(
                    f"method '{method}' needs an encoder, got none; give --encoder local or --encoder clip:ID"
                )
            self._text = space.text_features(classes).to(runtime.device)
            self._target_of_class = class_derangement(self._text)
        if "undistill" in self.parts:
            if hacker is None:
                raise UsageError(f"method '{method}' needs a hacker network for its undistill loss, got none; give one")
            self._hacker = runtime.place(hacker).eval().requires_grad_(False)
        self._fresh_hacker = fresh_hacker if weights.fresh_hacker else None
        self.follow(authorized)

    def follow(self, authorized: Sequence[Authorized]) -> None:
        """Use new trajectories of the same networks, and the networks at their end as teachers of L_ud."""
        self.authorized = list(authorized)
        if "undistill" in self.parts:
            self._teachers = trained_networks(authorized, self.runtime)

    def __call__(self, x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """Every part of the loss and their weighted sum ``"loss"``, differentiable in ``x_u``.

        Args:
            x: Clean pixels in [0, 1].
            x_u: Protected pixels in [0, 1], same shape.
            y: Labels.
            draw: Picks the snapshot θ_t of each authorised network, crops and flips, and a fresh hacker.
        """
        weights = self.weights
        whole = x_u  # L_ud sees no crops: neither does the text of Eq. 11.
        if weights.augment:
            channels = x.shape[1]
            x, x_u = torch.split(crop_flip(torch.cat([x, x_u], 1), draw), channels, 1)
        x, x_u, whole = (pixels.to(memory_format=self.runtime.memory_format) for pixels in (x, x_u, whole))
        parts = dict[str, Tensor]()
        networks = list[nn.Module]()
        if "gradient_matching" in self.parts or (weights.teacher == "path" and "undistill" in self.parts):
            networks = [
                network_at(student, path.trajectory, _snapshot(path.trajectory, draw), self.runtime)
                for student, path in zip(self._students, self.authorized, strict=True)
            ]
        if "gradient_matching" in self.parts:
            with self.runtime.autocast():
                parts["gradient_matching"] = gradient_matching(
                    networks, x, x_u, y, reduction=weights.reduction, layout=weights.layout
                )
                if weights.lambda_vm:
                    parts["value_matching"] = value_matching(networks, x, x_u)
                if weights.lambda_pm:
                    parts["parameter_matching"] = parameter_matching(
                        networks, x, x_u, y, steps=weights.horizon, lr=weights.horizon_lr
                    )
        if "feature_distance" in self.parts:
            parts["feature_distance"] = self._feature_distance(x, x_u, y)
        if "undistill" in self.parts:
            hacker = self._hacker
            if self._fresh_hacker is not None:
                seed = int(torch.randint(2**31, (1,), generator=draw))
                hacker = self._fresh_hacker(seed).eval().requires_grad_(False)
            with self.runtime.autocast():
                parts["undistill"] = undistill(
                    networks if weights.teacher == "path" else self._teachers,
                    hacker,
                    whole,
                    y,
                    omega=weights.omega,
                    temperature=weights.temperature,
                    squared=weights.squared,
                )
        scale = {
            "gradient_matching": weights.lambda_gm,
            "feature_distance": weights.lambda_fd,
            "undistill": weights.lambda_ud,
            "value_matching": weights.lambda_vm,
            "parameter_matching": weights.lambda_pm,
        }
        return {**parts, "loss": torch.stack([scale[name] * value for name, value in parts.items()]).sum()}

    def _feature_distance(self, x: Tensor, x_u: Tensor, y: Tensor) -> Tensor:
        assert self.space is not None
        # Only the encoder runs under autocast: similarities in bf16 would tie, and pick another target.
        with torch.no_grad(), self.runtime.autocast():
            clean = self.space.image_features(x)
        with self.runtime.autocast():
            protected = self.space.image_features(x_u)
        fixed = self.weights.targets == "class"
        targets = self._target_of_class[y] if fixed else least_similar_classes(clean, self._text, y)
        alpha, distance = self.weights.alpha, self.weights.distance
        return feature_distance(clean, protected, self._text, y, targets, alpha=alpha, distance=distance)


def _snapshot(trajectory: Trajectory, draw: torch.Generator) -> int:
    # The last snapshot is the trained network θ_T; Eq. 6 sums over t < T.
    return int(torch.randint(0, max(len(trajectory) - 1, 1), (1,), generator=draw))
