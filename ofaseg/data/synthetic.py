"""Random class layouts: the artificial images of image-free training (IFSeg section 3.2)."""

import numpy as np


def nearest_indices(source: int, target: int) -> np.ndarray:
    """(target,) source positions of nearest resizing, floor(i * source / target)."""
    return np.arange(target) * source // target


def resize_nearest(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) -> (height, width) by nearest neighbour with the top-left rule of `nearest_indices`."""
    return grid[nearest_indices(grid.shape[0], height)][:, nearest_indices(grid.shape[1], width)]


class ArtificialImageSampler:
    """Draws mosaics of class ids, a pure function of (seed, epoch, index).

    `index` is the position in the whole epoch, not in a rank's share, so any number of workers and ranks draws the
    same mosaics and no two ranks draw one mosaic twice.

    Args:
        num_classes: classes are drawn uniformly from 0..num_classes-1.
        grid_size: (h, w) of the patch grid that stands in for an image.
        target_size: (H, W) of the label map that the loss is computed on.
        min_side, max_side: both sides of the coarse layout are uniform on min_side..max_side (the paper's S is 32).
    """

    def __init__(self, num_classes: int, grid_size: tuple[int, int], target_size: tuple[int, int], min_side: int, max_side: int, seed: int):
        if not 1 <= min_side <= max_side:
            raise ValueError(f"artificial layout sides must satisfy 1 <= min <= max, got {min_side} and {max_side}")
        self.num_classes, self.grid_size, self.target_size = num_classes, grid_size, target_size
        self.min_side, self.max_side, self.seed = min_side, max_side, seed

    def __call__(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns class ids on the patch grid (h, w) and on the target (H, W), both resized from one coarse layout, int64."""
        rng = np.random.default_rng((self.seed, epoch, index))
        height, width = rng.integers(self.min_side, self.max_side + 1, size=2)
        layout = rng.integers(0, self.num_classes, size=(height, width))
        return resize_nearest(layout, *self.grid_size), resize_nearest(layout, *self.target_size)
