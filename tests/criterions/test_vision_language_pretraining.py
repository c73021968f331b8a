"""The alignment losses against hand-made cases, and what several processes need of every batch."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics

from criterions.vision_language_pretraining import (
    INPUTS,
    VisionLanguagePretraining,
    caption_membership,
    contrast_loss,
    presence_loss,
    word_scores,
)

WORDS = torch.eye(4)
CONTENT = torch.tensor([1, 2, 3])


def test_a_word_scores_the_mean_of_its_best_three_patches():
    patches = torch.zeros(1, 5, 4)
    patches[0, :, 0] = 1.0
    patches[0, :2] = torch.tensor([0.0, 7.0, 0.0, 0.0])  # two patches of word 1, whatever their length
    scores = word_scores(patches, WORDS)
    assert torch.allclose(scores, torch.tensor([[1.0, 2 / 3, 0.0, 0.0]]))


def test_membership_ignores_padding_and_other_words():
    ids = torch.tensor([[2, 0, 1], [3, 3, 0]])
    assert caption_membership(ids, CONTENT).tolist() == [[True, True, False], [False, False, True]]


def test_contrast_is_least_for_matching_pairs():
    patches = torch.stack([WORDS[[1, 1, 1]], WORDS[[2, 2, 2]]])
    matching, swapped = torch.tensor([[1], [2]]), torch.tensor([[2], [1]])
    scale = torch.tensor(10.0)
    good = contrast_loss(patches, WORDS, matching, CONTENT, scale)
    assert good < 0.01 < 5 < contrast_loss(patches, WORDS, swapped, CONTENT, scale)


def test_presence_rewards_words_of_the_caption():
    patches = WORDS[[1, 1, 1]][None]
    scale = torch.tensor(10.0)
    good = presence_loss(patches, WORDS, torch.tensor([[1]]), CONTENT, scale)
    assert good < 0.1 < presence_loss(patches, WORDS, torch.tensor([[2]]), CONTENT, scale)


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens, self.image_proj = torch.nn.Embedding(4, 4), torch.nn.Linear(3, 4)


class Model(torch.nn.Module):
    """Reads tokens, and patches when there are any."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, src_tokens, prev_output_tokens, patch_images=None):
        hidden = self.encoder.embed_tokens(prev_output_tokens)
        if patch_images is not None:
            hidden = hidden + self.encoder.image_proj(patch_images).mean(1, keepdim=True)
        return hidden @ self.encoder.embed_tokens.weight.T


class Wrapper(torch.nn.Module):
    """Stands in for DDP; counts forward passes."""

    def __init__(self, module):
        super().__init__()
        self.module, self.forwards = module, 0

    def forward(self, **inputs):
        self.forwards += 1
        return self.module(**inputs)


def test_a_search_for_unused_parameters_is_refused():
    """DDP would take what the first part leaves out for ready, and fail on the gradients of the others."""
    wrapped = Wrapper(torch.nn.Linear(1, 1))
    wrapped.module.find_unused_parameters = True
    with pytest.raises(ValueError, match="leave it out"):
        make_criterion().token_logits(wrapped, {}, [])


def make_criterion(contrast=0.0, presence=0.0, captions=True):
    task = SimpleNamespace(cfg=SimpleNamespace(alignment_captions=captions), task_names=("a", "b"), content_word_ids=CONTENT.numpy())
    task.source_dictionary = task.target_dictionary = SimpleNamespace(pad=lambda: 0)
    return VisionLanguagePretraining(task, contrast, presence)


def make_batch(*parts):
    """Two samples of two tokens for each of `parts`."""
    tokens = torch.tensor([[1, 2], [3, 0]])
    batch = {part: {"src_tokens": tokens, "prev_output_tokens": tokens} if part in parts else None for part in INPUTS}
    for part in set(parts) - {"text_input"}:
        batch[part]["patch_images"] = torch.rand(2, 5, 3)
    if "net_input" in parts:
        batch["caption_ids"] = torch.tensor([[1], [2]])
    target = torch.cat([tokens] * len(parts)) if parts else torch.zeros(0, 0, dtype=torch.long)
    tasks = torch.zeros(len(target), dtype=torch.long)
    return batch | {"target": target, "tasks": tasks, "nsentences": len(target), "ntokens": 3 * len(parts)}


BATCHES = [("net_input", "region_input", "text_input"), ("region_input",), ("text_input",), ()]


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5)])
def test_every_batch_logs_the_same_keys_in_the_same_order(weights):
    """Processes add their logs up key by key."""
    logs = [make_criterion(*weights)(Model(), make_batch(*parts))[2] for parts in BATCHES]
    kinds = [[(key, torch.is_tensor(value)) for key, value in log.items()] for log in logs]
    assert all(kind == kinds[0] for kind in kinds)
    assert {"_token_counts", *(f"_{name}" for name, weight in zip(("contrast", "presence"), weights) if weight)} <= set(logs[0])


def test_a_step_never_waits_for_the_device(monkeypatch):
    """The sample size is the number that the collater counted; nothing else leaves the device before the logs are reduced."""

    def refuse(tensor):
        raise AssertionError("a number was read from the device")

    criterion, model, batch = make_criterion(1.0, 0.5), Model(), make_batch("net_input", "text_input")
    for name in ("__int__", "__float__", "__bool__", "__index__", "item", "tolist", "cpu", "numpy", "nonzero", "unique", "masked_select"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    loss, sample_size, log = criterion(model, batch)
    loss.backward()
    monkeypatch.undo()
    assert type(sample_size) is int and sample_size == 6 == log["_token_counts"][0, 1]


def test_a_batch_of_bad_rows_adds_nothing():
    loss, sample_size, log = make_criterion()(Model(), make_batch())
    assert loss == 0 and sample_size == 0 and not log["_token_counts"].any()


@pytest.mark.parametrize("parts", BATCHES[:3])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.5)])
def test_every_parameter_has_a_gradient_in_every_process(weights, parts):
    criterion, model = make_criterion(*weights), Wrapper(Model())
    loss, _, _ = criterion(model, make_batch(*parts))
    loss.backward()
    assert all(parameter.grad is not None for parameter in [*model.parameters(), *criterion.parameters()])
    assert model.forwards == 1, "DDP expects one forward pass per backward pass"


def test_a_missing_part_leaves_the_loss_of_a_single_process_alone():
    criterion, model, batch = make_criterion(1.0), Model(), make_batch("text_input")
    loss, _, _ = criterion(model, batch)
    loss.backward()
    assert model.encoder.image_proj.weight.grad is None and criterion.contrast_scale.grad is None
    assert torch.equal(loss, criterion(Wrapper(model), batch)[0])


def test_contrast_is_averaged_over_the_batches_with_images():
    criterion, model = make_criterion(1.0), Model()
    logs = [criterion(model, make_batch(*parts))[2] for parts in (("net_input",), ("text_input",))]
    with metrics.aggregate() as aggregator:
        criterion.reduce_metrics(logs)
    assert aggregator.get_smoothed_values()["contrast"] == pytest.approx(float(logs[0]["_contrast"]) / 3, abs=1e-4)


def test_alignment_losses_need_captions():
    with pytest.raises(ValueError, match="--contrast-weight and --presence-weight read captions: add --alignment-captions"):
        make_criterion(1.0, 1.0, captions=False)
    assert not list(make_criterion(captions=False).parameters()), "fairseq wraps a criterion with parameters in DDP, which wants a gradient"


def test_scales_follow_the_losses_that_a_stage_switches_on():
    both, one = make_criterion(1.0, 1.0), make_criterion(1.0)
    torch.nn.init.constant_(both.contrast_scale, 5.0)
    one.load_state_dict(both.state_dict())
    assert one.contrast_scale == 5
    one.load_state_dict(None)  # what fairseq stores for a criterion without parameters
    assert one.contrast_scale == 5
