"""Cached biases follow the weights, keep to their limit, and do not travel with copies."""

import copy
import pickle

import torch
from torch import nn

from ofaseg.models.ifseg import SegOFA, architecture_config
from ofaseg.models.ofa.bias_cache import BiasCache, weights_version


def test_made_once_per_version():
    cache, layer, made = BiasCache(), nn.Linear(2, 2), []

    def make():
        made.append(1)
        return torch.zeros(4)

    for _ in range(2):
        cache.get(weights_version([layer]), "grid", 0, make)
    assert len(made) == 1
    with torch.no_grad():
        layer.weight.add_(1)
    cache.get(weights_version([layer]), "grid", 0, make)
    assert len(made) == 2


def test_old_groups_make_room_and_the_limit_holds():
    cache = BiasCache(limit=100)
    for group in ("a", "b"):
        for item in range(4):
            cache.get((), group, item, lambda: torch.zeros(5))
    assert list(cache.groups) == ["a", "b"] or "a" not in cache.groups
    assert cache.bytes <= 100
    for item in range(10):
        cache.get((), "c", item, lambda: torch.zeros(5))
    assert cache.bytes <= 100 and list(cache.groups) == ["c"] and len(cache.groups["c"]) == 5


def test_copies_start_empty():
    cache = BiasCache(limit=100)
    cache.get((), "a", 0, lambda: torch.zeros(5))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.limit == 100 and not other.groups


def test_model_answers_follow_its_weights():
    torch.manual_seed(0)
    model = SegOFA(architecture_config("segofa_nano"), 60, [[4], [5]]).eval()
    inputs = {"src_tokens": torch.tensor([[0, 9, 4, 5, 2]]), "patch_images": torch.randint(0, 256, (1, 3, 96, 120), dtype=torch.uint8)}
    first = model.predict(**inputs).class_logits
    assert model.encoder.bias_cache.groups and torch.equal(model.predict(**inputs).class_logits, first)
    with torch.enable_grad():
        torch.testing.assert_close(model(**inputs).class_logits.detach(), first, rtol=1e-4, atol=1e-5)
    state = {
        key: value + 0.05 * torch.randn_like(value) if value.is_floating_point() else value for key, value in model.state_dict().items()
    }
    for name in ("encoder.embed_tokens.weight", "encoder.seg_embed_tokens.weight"):
        for key in (name, name.replace("encoder", "decoder")):
            state[key] = state[name]
    state["decoder.seg_projection.weight"] = state["encoder.seg_embed_tokens.weight"]
    model.load_state_dict(state)
    second = model.predict(**inputs).class_logits
    fresh = SegOFA(architecture_config("segofa_nano"), 60, [[4], [5]]).eval()
    fresh.load_state_dict(state)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, fresh.predict(**inputs).class_logits)
