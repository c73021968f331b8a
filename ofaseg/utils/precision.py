"""Mixed precision over many batches."""

from contextlib import contextmanager

import torch


@contextmanager
def cast_weights_once():
    """While this is open, autocast keeps a weight that it has cast for the batches to come, on any device.

    Autocast forgets cast weights when its outermost context ends, which this one is; it does not switch autocast on. Weights must not
    change meanwhile.
    """
    with torch.autocast("cpu", enabled=False):
        yield
