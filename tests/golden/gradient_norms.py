"""Norms of gradients against stored ones, where values at the kink of a ReLU may fall on either side of it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-4
"""Relative; what the official code meets across library versions."""


class MovedTies(TorchFunctionMode):
    """Every rectified value that is zero up to rounding becomes as much above zero (`side` 1) or below it (`side` -1).

    A value at the kink of a ReLU lets its gradient through or not by the last bit of a sum, and so by the number of threads and the memory
    layout. What counts as rounding is 2e-6 of the layer's largest value.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.relu:
            x = args[0].detach()
            near = 2e-6 * x.abs().max()
            args = (torch.where(x.abs() < near, self.side * near + args[0] - x, args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def _far(golden: dict[str, float], *found: dict[str, float]) -> dict[str, float]:
    """Name -> relative distance of golden norms that lie further than the tolerance from all between the least and the largest found.

    Norms below 1e-6 of the largest stand for gradients that are zero.
    """
    far = {}
    for name, norm in golden.items():
        norms = [norms[name] for norms in found]
        distance = max(min(norms) / norm - 1, 1 - max(norms) / norm)
        if norm >= 1e-6 * max(golden.values()) and distance >= TOLERANCE:
            far[name] = distance
    return far


def assert_norms(norms: dict[str, float], golden: dict[str, float], again: Callable[[], dict[str, float]]) -> None:
    """Fails unless both have the same names, and each golden norm is the one found, or between those with ties at kinks on either side.

    Args:
        norms, golden: name -> Euclidean norm of a gradient.
        again: computes `norms` from the inputs on; called only when one is far off.
    """
    assert set(norms) == set(golden)
    if not _far(golden, norms):
        return
    sides = []
    for side in (1, -1):
        with MovedTies(side):
            sides.append(again())
    wrong = _far(golden, norms, *sides)
    assert not wrong, wrong
