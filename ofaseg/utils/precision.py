"""Mixed precision over many batches."""

from contextlib import contextmanager

import torch


@contextmanager
def cast_weights_once():
    """While this is open, autocast keeps a weight that it has cast for the batches to come, on any device.

    Autocast forgets cast weights when its outermost context ends, which this one is; whether autocast is on stays as it was. Weights
    must not change meanwhile. Frozen weights (without `requires_grad`) are never kept; nor are any once another thread has left an
    autocast context of its own.
    """
    with torch.autocast("cpu", dtype=torch.get_autocast_dtype("cpu"), enabled=torch.is_autocast_enabled("cpu")):
        yield
