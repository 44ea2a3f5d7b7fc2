"""JPEG compression of a batch of images."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Images as a reader of their JPEG files sees them, with the usual halved resolution of colour.

    Args:
        pixels: uint8, batch × channels × height × width, one channel or three.
        quality: From 1 to 95.

    Returns:
        uint8, the same shape.
    """
    decoded = []
    for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(pixels.device)
