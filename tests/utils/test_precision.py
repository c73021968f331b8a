"""Weights are cast once for many batches, and cast anew afterwards."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ofaseg.evaluation.evaluator import SemanticEvaluator, evaluate_batches
from ofaseg.structures import SegmentationOutput
from ofaseg.utils.precision import cast_weights_once
from ofaseg.vocabulary import ClassVocabulary


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


def test_an_error_leaves_nothing_behind_and_an_outer_autocast_stays_on():
    model, batches = torch.nn.Linear(7, 5), torch.randn(2, 2, 7)
    with pytest.raises(ValueError), cast_weights_once():
        outputs(model, batches)
        raise ValueError
    assert outputs(model, batches)[1] == 2
    with torch.autocast("cpu", dtype=torch.bfloat16), cast_weights_once():
        assert model(batches[0]).dtype == torch.bfloat16
    assert model(batches[0]).dtype == torch.float32


def test_an_evaluation_casts_its_weights_once():
    model = torch.nn.Linear(4, 3)

    def predict(batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return [SegmentationOutput(model(torch.ones(2, 2, 4)).argmax(-1)) for _ in batch["id"]]

    batches = [{"nsentences": 1, "id": torch.tensor([i]), "native_label_maps": [torch.zeros(2, 2, dtype=torch.long)]} for i in range(3)]
    with torch.no_grad(), Casts(model.weight.shape) as casts:
        evaluate_batches(batches, predict, SemanticEvaluator(ClassVocabulary(names=("a", "b", "c"))))
    assert casts.count == 1
