"""Perturbation budget ρ, measured on the 8-bit pixels that are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uge.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """L-infinity bound on the change of every stored pixel value.

    Args:
        rho: The bound in [0, 1] units (the paper: 0.04 = 10.2/255). Stored pixels are whole 8-bit
            levels, so a value changes by at most ``levels`` = floor(255 ρ).

    Raises:
        UsageError: ρ is no number in (0, 1], or too small to change one 8-bit level.

    Example:
        >>> Budget.parse("8/255").levels
        8
    """

    rho: float = 0.04

    def __post_init__(self) -> None:
        if not (isinstance(self.rho, int | float) and math.isfinite(self.rho) and 0 < self.rho <= 1):
            raise UsageError(
                f"rho must be above 0 and at most 1 (pixel values in [0, 1]), got {self.rho}; the paper uses 0.04"
            )
        if self.levels < 1:
            raise UsageError(f"rho {self.rho} is less than one 8-bit level; give at least {1 / 255:.5f} (1/255)")

    @property
    def levels(self) -> int:
        """Largest change of a stored pixel value in 8-bit levels, 1 to 255."""
        return math.floor(self.rho * 255 + 1e-6)

    @classmethod
    def parse(cls, text: str | float | Budget) -> Budget:
        """Budget of ``0.04`` or ``"8/255"``; a budget comes back as it is.

        Raises:
            UsageError: The text is neither a number nor a fraction, or the number is no budget.
        """
        if isinstance(text, Budget):
            return text
        try:
            rho = float(Fraction(text)) if isinstance(text, str) else float(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise UsageError(f"rho must be a number such as 0.04 or a fraction such as 8/255, got '{text}'") from None
        return cls(rho)

    def add(self, clean: Any, delta: Any) -> Any:
        """Stored pixels after adding a perturbation in levels.

        Args:
            clean: uint8 pixels, NumPy array or torch tensor of any shape.
            delta: Perturbation in 8-bit levels (signed integers), same shape.

        Returns:
            uint8 pixels within ``levels`` of ``clean`` and within 0..255, of the same kind.
        """
        wide = np.int16 if isinstance(clean, np.ndarray) else clean.new_empty(0).short().dtype
        # Clipped before the cast: a delta of a wider type must not wrap around. A byte cannot even hold larger bounds.
        if delta.dtype.itemsize > 1 or self.levels <= 127:
            delta = delta.clip(-self.levels, self.levels)
        return _cast((_cast(clean, wide) + _cast(delta, wide)).clip(0, 255), clean.dtype)

    @staticmethod
    def measure(clean: NDArray[np.uint8], protected: NDArray[np.uint8]) -> int:
        """Largest absolute difference of two uint8 arrays of one shape, in 8-bit levels."""
        return int(np.abs(clean.astype(np.int16) - protected.astype(np.int16)).max(initial=0))


def _cast(array: Any, dtype: Any) -> Any:
    return array.astype(dtype) if isinstance(array, np.ndarray) else array.to(dtype)
