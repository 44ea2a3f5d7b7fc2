"""Networks that carry a secret wave key in front of an ordinary architecture."""

from __future__ import annotations

import torch
from torch import Tensor

from uge.networks.base import ImageClassifier
from uge.networks.wave_key import WaveKey


class KeyedClassifier(ImageClassifier):
    """An ordinary network behind a frozen :class:`WaveKey` (``keyed:NAME``).

    What a protection with the same key adds does not reach the network, so it learns as from the
    originals, from any seed and in any order. In evaluation mode it gives no answer, equal logits,
    for images that were protected with its key: outputs on the published images are what a
    distilling attacker needs, and nobody else.

    Args:
        base: The architecture behind the key.
        key: The secret; its buffers are part of the weights, and never trained.
        name: ``keyed:`` and the name of ``base``.
    """

    def __init__(self, base: ImageClassifier, key: WaveKey, name: str) -> None:
        super().__init__(name=name, classes=base.classes, channels=base.channels, size=base.size, mean=0.0, std=1.0)
        self.base, self.key = base, key

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D) of the base network; see the base class."""
        return self.base.features(self._restored(x)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images ``x`` (B, channels, H, W) in [0, 1]; zeros for protected ones in evaluation."""
        restored, marked = self._restored(x)
        logits: Tensor = self.base(restored)
        return logits if marked is None else logits.masked_fill(marked[:, None], 0.0)

    def _restored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images without what the key finds in them, and which ones were protected (not asked for in training)."""
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            found = self.key.match(exact)
            restored = self.key.restore(exact, found).contiguous(memory_format=torch.channels_last)
            return restored, None if self.training else self.key.marked(found)
