"""An attack and a protection for UGE; the entry points in pyproject.toml register them."""

import numpy as np


def posterize(images, labels):
    """Keeps four of 256 levels."""
    return images // 64 * 85


def checkerboard(images, labels, levels, seed):
    """Adds a checkerboard to every image, of squares that are as wide as the label's number says."""
    rows, columns = np.indices(images.shape[1:3])
    width = np.asarray(labels)[:, None, None] + 1
    board = np.where((rows // width + columns // width) % 2, levels, -levels)
    return np.broadcast_to(board[..., None], images.shape)
