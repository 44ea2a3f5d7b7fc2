"""Networks with a secret wave key in front of an ordinary architecture."""

import torch
from torch import Tensor

from uge.networks.base import ImageClassifier
from uge.networks.wave_key import WaveKey


class KeyedClassifier(ImageClassifier):
    """A frozen :class:`WaveKey` in front of an ordinary network (``keyed:NAME``).

    The perturbation of a protection with the same key does not reach the network, which learns as from the originals,
    from any seed and in any order. In evaluation mode, images that were protected with the key get no answer, that is,
    equal logits: a distilling attacker needs outputs on the published images, an ordinary user does not.

    Args:
        base: Network behind the key.
        key: The secret; its buffers are part of the weights, and never trained.
        name: ``keyed:`` and the name of ``base``.
    """

    def __init__(self, base: ImageClassifier, key: WaveKey, name: str) -> None:
        super().__init__(name=name, classes=base.classes, channels=base.channels, size=base.size, mean=0.0, std=1.0)
        self.base = base
        self.key = key

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, D) of the base network; see the base class."""
        return self.base.features(self._restored(x)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images ``x`` (B, channels, H, W) in [0, 1]; zeros for protected ones in evaluation."""
        restored, marked = self._restored(x)
        logits: Tensor = self.base(restored)
        return logits if marked is None else logits.masked_fill(marked[:, None], 0.0)

    def _restored(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images without the patterns of the key, and (in evaluation only) True for each protected one."""
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            match = self.key.match(exact)
            restored = self.key.restore(exact, match).contiguous(memory_format=torch.channels_last)
            return restored, None if self.training else self.key.marked(match)
