"""Weights are cast once for many batches, and cast anew afterwards."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ofaseg.utils.precision import cast_weights_once


class Casts(TorchDispatchMode):
    """Counts the casts of a tensor of a given shape to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16 and result.shape == self.shape:
            self.count += 1
        return result


def outputs(model, batches):
    """Of every batch under autocast of its own, and how often the weight was cast."""
    with torch.no_grad(), Casts(model.weight.shape) as casts:
        results = []
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                results.append(model(batch))
    return torch.stack(results), casts.count


def test_one_cast_for_all_batches_and_the_same_results():
    torch.manual_seed(0)
    model, batches = torch.nn.Linear(7, 5), torch.randn(3, 2, 7)
    expected, each = outputs(model, batches)
    with cast_weights_once():
        found, once = outputs(model, batches)
        again, none = outputs(model, batches)
        assert model(batches[0]).dtype == torch.float32  # it does not switch autocast on
    assert (each, once, none) == (3, 1, 0)
    assert torch.equal(found, expected) and torch.equal(again, expected) and found.dtype == torch.bfloat16
    with torch.no_grad():
        model.weight.mul_(2), model.bias.mul_(2)
    with cast_weights_once():  # nothing is left from before
        changed, once = outputs(model, batches)
    assert once == 1 and torch.equal(changed, 2 * expected)
