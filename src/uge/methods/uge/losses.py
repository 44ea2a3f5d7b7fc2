"""The weighted total loss (Eq. 4) and the variants of it that the paper reports."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uge.encoders import FeatureSpace
from uge.errors import UnknownNameError, UsageError
from uge.learning.trajectory import Trajectory, network_at
from uge.methods.uge.feature_distance import class_derangement, feature_distance, least_similar_classes
from uge.methods.uge.gradient_matching import gradient_matching
from uge.methods.uge.path_matching import parameter_matching, value_matching
from uge.methods.uge.settings import LOSSES, NEED_PATH, LossWeights
from uge.methods.uge.undistill import undistill
from uge.runtime import Runtime


@dataclass
class Authorized:
    """One authorised network: a module of its architecture (never changed), and its trajectory."""

    network: nn.Module
    trajectory: Trajectory


def trained_networks(authorized: Sequence[Authorized], runtime: Runtime) -> list[nn.Module]:
    """Each authorised network as it is at the end of its trajectory, a module of its own, frozen, in eval mode."""
    return [network_at(copy.deepcopy(one.network), one.trajectory, -1, runtime) for one in authorized]


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

    Raises:
        UnknownNameError: There is no such method.
        UsageError: Something that the method needs is missing.
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
    ) -> None:
        if method not in LOSSES:
            raise UnknownNameError("method", method, LOSSES)
        self.parts, self.weights, self.runtime = LOSSES[method], weights, runtime
        self.authorized, self.space = list(authorized), space
        # Modules of its own: two entries may share one, and the caller's must keep their weights.
        self._students = [copy.deepcopy(one.network) for one in self.authorized]
        if self.parts & NEED_PATH and not self.authorized:
            raise UsageError(f"method '{method}' needs at least one authorised network, got none")
        if "feature_distance" in self.parts:
            if space is None:
                raise UsageError(f"method '{method}' needs an encoder; give --encoder local or --encoder clip:ID")
            self._text = space.text_features(classes).to(runtime.device)
            self._target_of_class = class_derangement(self._text)
        if "undistill" in self.parts:
            if hacker is None:
                raise UsageError(f"method '{method}' needs a hacker network for its undistill loss, got none")
            self._hacker = runtime.place(hacker).eval().requires_grad_(False)
            self.refresh_teachers()

    def refresh_teachers(self) -> None:
        """Take the trained networks for L_ud from the present trajectories."""
        self._teachers = trained_networks(self.authorized, self.runtime)

    def __call__(self, x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """Every part and their weighted sum ``"loss"``, differentiable in ``x_u``.

        Args:
            x: Clean pixels in [0, 1].
            x_u: Protected pixels in [0, 1], same shape.
            y: Labels.
            draw: Picks the snapshot θ_t of each authorised network.
        """
        weights, found = self.weights, dict[str, Tensor]()
        x, x_u = (pixels.to(memory_format=self.runtime.memory_format) for pixels in (x, x_u))
        if "gradient_matching" in self.parts:
            found |= self._matching(x, x_u, y, draw)
        if "feature_distance" in self.parts:
            found["feature_distance"] = self._feature_distance(x, x_u, y)
        if "undistill" in self.parts:
            with self.runtime.autocast():
                found["undistill"] = undistill(
                    self._teachers, self._hacker, x_u, y, omega=weights.omega, temperature=weights.temperature
                )
        scale = {
            "gradient_matching": weights.lambda_gm,
            "feature_distance": weights.lambda_fd,
            "undistill": weights.lambda_ud,
            "value_matching": weights.lambda_vm,
            "parameter_matching": weights.lambda_pm,
        }
        found["loss"] = torch.stack([scale[name] * value for name, value in found.items()]).sum()
        return found

    def _matching(self, x: Tensor, x_u: Tensor, y: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """L_gm, and what else is to keep authorised networks on their path, at one snapshot of each."""
        weights = self.weights
        networks = [self._snapshot(number, draw) for number in range(len(self.authorized))]
        with self.runtime.autocast():
            found = {
                "gradient_matching": gradient_matching(
                    networks, x, x_u, y, reduction=weights.reduction, layout=weights.layout
                )
            }
            if weights.lambda_vm:
                found["value_matching"] = value_matching(networks, x, x_u)
            if weights.lambda_pm:
                found["parameter_matching"] = parameter_matching(
                    networks, x, x_u, y, steps=weights.horizon, lr=weights.horizon_lr
                )
        return found

    def _feature_distance(self, x: Tensor, x_u: Tensor, y: Tensor) -> Tensor:
        assert self.space is not None
        # Only the encoder runs under autocast: similarities in bf16 would tie, and pick another target.
        with torch.no_grad(), self.runtime.autocast():
            clean = self.space.image_features(x)
        with self.runtime.autocast():
            protected = self.space.image_features(x_u)
        fixed = self.weights.targets == "class"
        targets = self._target_of_class[y] if fixed else least_similar_classes(clean, self._text, y)
        return feature_distance(clean, protected, self._text, y, targets, alpha=self.weights.alpha)

    def _snapshot(self, number: int, draw: torch.Generator) -> nn.Module:
        # The last snapshot is the trained network θ_T; Eq. 6 sums over t < T.
        trajectory = self.authorized[number].trajectory
        index = int(torch.randint(0, max(len(trajectory) - 1, 1), (1,), generator=draw))
        return network_at(self._students[number], trajectory, index, self.runtime)
