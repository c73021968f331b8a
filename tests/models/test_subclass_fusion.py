"""Fusion of subclasses against written-out sums over classes, subclasses and patches."""

import math

import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.layers.subclass_fusion import RULES, padded_subclasses, subclass_maps

COUNTS = [3, 1, 4]


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(0)

    def unit(*shape):
        return F.normalize(torch.randn(*shape, 16, generator=generator), dim=-1)

    filled, mask = padded_subclasses(unit(sum(COUNTS)), COUNTS)
    return unit(2, 9), unit(2), filled, mask, unit(3)


def naive(patches, image, subclasses, mask, superclasses, rule, temperature):
    result = torch.zeros(len(patches), patches.shape[1], len(subclasses))
    for b in range(len(patches)):
        for k, count in enumerate(COUNTS):
            names = [subclasses[k, n] for n in range(count)]
            for p, patch in enumerate(patches[b]):
                maps = [float(patch @ name) for name in names]
                if rule == "softmax":
                    weights = [math.exp(float(name @ image[b]) / temperature) for name in names]
                    value = sum(w * m for w, m in zip(weights, maps)) / sum(weights)
                elif rule == "mean":
                    value = sum(maps) / count
                elif rule == "superclass_mean":
                    value = (sum(maps) + float(patch @ superclasses[k])) / (count + 1)
                elif rule == "max":
                    value = max(maps)
                else:
                    value = temperature * math.log(sum(math.exp(m / temperature) for m in maps) / count)
                result[b, p, k] = value
    return result


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("rule", RULES)
def test_rules(case, rule, temperature):
    torch.testing.assert_close(subclass_maps(*case, rule, temperature), naive(*case, rule, temperature), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["max", "logsumexp"])
def test_chunks_change_nothing(case, rule, monkeypatch):
    whole = subclass_maps(*case, rule, 0.1)
    monkeypatch.setattr("ofaseg.models.layers.subclass_fusion.CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(subclass_maps(*case, rule, 0.1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_only_the_class_itself(case, rule):
    """With the list [superclass] every rule is plain SimSeg."""
    patches, image, _, _, superclasses = case
    maps = subclass_maps(patches, image, superclasses[:, None], torch.ones(3, 1, dtype=torch.bool), superclasses, rule, 0.3)
    torch.testing.assert_close(maps, patches @ superclasses.T, rtol=0, atol=1e-6)


def test_repeated_subclasses_weigh_by_their_number(case):
    patches, image, filled, mask, superclasses = case
    twice = torch.cat([filled, filled[:, :1]], 1), torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], 1)
    maps = subclass_maps(patches, image, *twice, superclasses)
    weights = (filled @ image[0]).exp().masked_fill(~mask, 0)
    weights[:, 0] *= 2
    vectors = torch.einsum("kn,knd->kd", weights / weights.sum(1, keepdim=True), filled)
    torch.testing.assert_close(maps[0], patches[0] @ vectors.T, rtol=0, atol=1e-6)


def test_mistakes(case):
    with pytest.raises(ValueError, match="known: softmax"):
        subclass_maps(*case, "median")
    with pytest.raises(ValueError, match="above 0"):
        subclass_maps(*case, "softmax", 0.0)
    with pytest.raises(ValueError, match="class 1 has no subclass"):
        padded_subclasses(torch.zeros(3, 4), [2, 0, 1])
