"""Cached biases follow the weights, keep to their limit, and do not travel with copies."""

import copy
import pickle

import pytest
import torch
from fairseq.optim import build_optimizer
from omegaconf import OmegaConf
from torch import nn

from ofaseg.models.ifseg import SegOFA, architecture_config
from ofaseg.models.ofa.bias_cache import BiasCache, weights_version
from ofaseg.models.ofa.decoder import Decoder
from ofaseg.models.ofa.encoder import Encoder


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
    assert {group: len(entries) for group, entries in cache.groups.items()} == {"b": 4} and cache.bytes == 80
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


SOURCE = torch.tensor([[0, 9, 4, 5, 2]])


def nano(**options) -> SegOFA:
    torch.manual_seed(0)
    return SegOFA(architecture_config("segofa_nano", **options), 60, [[4], [5]])


def photo():
    return torch.randint(0, 256, (1, 3, 96, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def scores(model):
    return model.predict(src_tokens=SOURCE, patch_images=photo()).class_logits


def fresh_scores(model):
    """Those of a new model with the same weights, which can know nothing of old ones."""
    fresh = SegOFA(model.config, 60, [[4], [5]]).eval()
    fresh.load_state_dict(model.state_dict())
    return scores(fresh)


def fused_step(model):
    """An update by torch_adamw, whose kernel changes weights without telling autograd."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = {"_name": "torch_adamw", "lr": [0.1], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": 0.0, "zero1": False}
    optimizer = build_optimizer(OmegaConf.create(options), trained)
    model(SOURCE, patch_images=photo()).class_logits.square().mean().backward()
    optimizer.step()


def plain_step(model):
    """An update as fairseq's own optimizers write it: past the version counters."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("update", [fused_step, plain_step])
@pytest.mark.parametrize("train_image_encoder", [False, True])
def test_validation_after_an_update_sees_the_new_weights(train_image_encoder, update):
    model = nano(train_image_encoder=train_image_encoder, frozen_batch_norm=True).eval()
    before = scores(model)
    model.train()
    update(model)
    model.eval()
    assert not torch.allclose(scores(model), before, atol=1e-2)
    torch.testing.assert_close(scores(model), fresh_scores(model))


def test_an_update_in_evaluation_mode_is_seen_too():
    model = nano(train_image_encoder=True, frozen_batch_norm=True).eval()
    before = scores(model)
    fused_step(model)
    assert not torch.allclose(scores(model), before, atol=1e-2)
    torch.testing.assert_close(scores(model), fresh_scores(model))


def test_batches_of_one_validation_share_their_biases(monkeypatch):
    """fairseq calls `eval` before every batch."""
    made = []
    for cls, name in ((Encoder, "_bias"), (Decoder, "_grid_bias")):
        real = getattr(cls, name)

        def counted(self, layer, *args, real=real):
            made.append((type(self).__name__, layer))
            return real(self, layer, *args)

        monkeypatch.setattr(cls, name, counted)
    model = nano()
    for _ in range(3):
        model.eval()
        with torch.no_grad():
            model(SOURCE, patch_images=photo())
    assert made == [("Encoder", 0), ("Encoder", 1), ("Decoder", 0), ("Decoder", 1)]
    model.train()
    model.eval()
    scores(model)
    assert len(made) == 8


def test_a_frozen_image_encoder_keeps_its_folded_weights_over_training_steps():
    model = nano()
    model.train()
    model(SOURCE, patch_images=photo())
    images = model.encoder.embed_images
    kept = images.folded.folded
    assert kept and not images.training
    model.eval()
    model.train()
    assert images.folded.folded is kept and not images.training
