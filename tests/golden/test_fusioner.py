"""Fusioner against the published implementation: every `fusioner_*.npz` of --golden-dir.

Sizes come from the file. Weights go the way of any published checkpoint: recognised, renamed, loaded strictly.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ofaseg.clip_bpe import ClipTokenizer, find_merges
from ofaseg.evaluation.corner_windows import corner_windows
from ofaseg.evaluation.few_shot import few_shot_scores, pair_counts
from ofaseg.losses import masked_bce
from ofaseg.models.fusioner import Fusioner, FusionerConfig
from ofaseg.models.fusioner_state import is_fusioner
from ofaseg.models.layers.upsampled_cosines import cosine_maps
from ofaseg.optim.fusioner import schedule
from ofaseg.prompts import load_templates
from ofaseg.vocabulary import IGNORE_INDEX
from tests.golden.golden_weights import golden_state_dict, load_golden
from tests.golden.gradient_norms import assert_norms

GOLDEN_KIND = "fusioner"


def assert_close(ours: torch.Tensor, golden: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the golden array's largest value."""
    golden = torch.from_numpy(np.asarray(golden))
    assert ours.shape == golden.shape
    error = float((ours.detach() - golden).abs().max() / golden.abs().max())
    assert error <= tolerance, f"largest error {error:.2e} of the largest value"


def model_config(spec: dict) -> FusionerConfig:
    """The configuration that a golden file describes; heads cannot be read from weights."""
    image, text, run = spec["clip"]["img"], spec["clip"]["text"], spec["config"]
    return FusionerConfig(
        patch_size=image["patch_size"], image_size=image["input_resolution"], image_width=image["width"], image_layers=image["layers"],
        image_heads=image["heads"], text_width=text["transformer_width"], text_layers=text["transformer_layers"],
        text_heads=text["transformer_heads"], projection_dim=text["embed_dim"], context_length=text["context_length"],
        vocab_size=text["vocab_size"], fusion_width=run["transformer_width"], fusion_layers=run["transformer_layers"],
        fusion_heads=run["transformer_heads"], fusion_dropout=run["transformer_dropout"], fusion_drop_path=run["drop_path_rate"],
        cosine_temperature=run["temperature"], pixel_statistics=run["dataset_name"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def case(golden_file):
    spec, arrays = load_golden(str(golden_file))
    official = golden_state_dict(spec["state_dict"])
    assert is_fusioner(official)
    model = Fusioner(model_config(spec))
    state = dict(official)
    report = model.upgrade_state(state)
    model.load_state_dict(state, strict=True)
    image = torch.from_numpy(arrays["input/image"]).float()
    target = torch.from_numpy(arrays["input/ground_truth"]).long()
    target = target.masked_fill(torch.from_numpy(arrays["input/ignore"])[:, None], IGNORE_INDEX)
    return SimpleNamespace(
        spec=spec, arrays=arrays, model=model.eval(), official=official, report=report, image=image, target=target,
        tokenizer=ClipTokenizer(find_merges("")), templates=load_templates("fusioner32"),
    )  # fmt: skip


def text(case, names) -> torch.Tensor:
    """(K, D) class vectors, by the model's own way from names to vectors."""
    length = case.spec["clip"]["text"]["context_length"]
    prompts = []
    for name in names:
        ids, mask = case.tokenizer([template.replace("{}", name) for template in case.templates], length)
        prompts.append([row[:count] for row, count in zip(ids.tolist(), mask.sum(1).tolist())])
    case.model.set_classes(prompts)
    return case.model.class_embeddings()


def test_layout_and_the_way_back(case):
    """Every entry is used as it is, and what is exported has the official keys and values."""
    assert case.report.filled == case.report.resized == case.report.dropped == []
    exported = case.model.official_state()
    assert set(exported) == set(case.official) == {entry["key"] for entry in case.spec["state_dict"]}
    assert all(torch.equal(exported[key], value) for key, value in case.official.items())


def test_prompts(case):
    for key, golden in case.arrays.items():
        if key.startswith("tokens/"):
            name = key.removeprefix("tokens/")
            ids, _ = case.tokenizer([template.replace("{}", name) for template in case.templates], golden.shape[1])
            assert np.array_equal(ids.numpy(), golden)


@torch.no_grad()
def test_one_class(case):
    """Every stage of a sample with its one class."""
    for i, name in enumerate(case.spec["names"]):
        golden = {key.removeprefix(f"single_{i}/"): value for key, value in case.arrays.items() if key.startswith(f"single_{i}/")}
        vectors = text(case, [name])
        assert_close(vectors[None], golden["text"])
        image = case.image[i : i + 1]
        tokens, grid = case.model.towers.image_tokens(image)
        assert_close(as_stored(case, tokens, golden["patch_tokens"]), golden["patch_tokens"])
        patches, classes = case.model.fusion(tokens, vectors)
        assert_close(as_stored(case, patches, golden["fused_patches"]), golden["fused_patches"])
        assert_close(classes, golden["fused_class"])
        assert_close(case.model(image).class_logits[:, :, ::4, ::4], golden["logits_every_4th"])
        plain = cosine_maps(case.model.decoder(patches, grid), classes, tuple(image.shape[2:])) / case.model.config.cosine_temperature
        assert_close(plain[:, :, ::4, ::4], golden["logits_every_4th"])


def as_stored(case, tokens: torch.Tensor, golden: np.ndarray) -> torch.Tensor:
    """(B, N, C) tokens as the file holds them: all or every so manieth, with the channels that its notes name."""
    channels = re.search(r"channels ::(\d+)", case.spec["notes"])
    return tokens[:, :: -(-tokens.shape[1] // golden.shape[1]), :: int(channels.group(1)) if channels else 1]


@torch.no_grad()
def test_classes_are_judged_together(case):
    vectors = text(case, case.spec["multi_names"])
    golden = case.arrays["multi/logits_every_4th"]
    assert_close(case.model(case.image, vectors).class_logits[:, :, ::4, ::4], golden)
    alone = case.model(case.image, vectors[:1]).class_logits[:, 0, ::4, ::4]
    assert float((alone - torch.from_numpy(golden)[:, 0]).abs().max()) > 1e-4, "the other classes have a say"


@torch.no_grad()
def test_each_photo_with_its_own_classes(case):
    vectors = torch.stack([text(case, names) for names in case.spec["batched_names"]])
    assert_close(case.model(case.image, vectors).class_logits[:, :, ::4, ::4], case.arrays["batched_text/logits_every_4th"])


@torch.no_grad()
@pytest.mark.parametrize("photo", ["window", "window_small"])
def test_sliding_window(case, photo):
    """Windows one by one and all at once; the photo's sides lie on different sides of the window's."""
    image = torch.from_numpy(case.arrays[f"{photo}/image"]).float()
    vectors = text(case, [case.spec["window_name"]])
    window = case.spec["config"]["target_size"][0]
    for batch in (1, 64):
        scores = corner_windows(lambda part: case.model(part, vectors).class_logits, image, window, batch=batch)
        assert_close(scores[None, :, ::4, ::4], case.arrays[f"{photo}/scores_every_4th"])


def test_loss_and_gradients(case):
    model, arrays = case.model, case.arrays
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def step():
        model.zero_grad()
        vectors = torch.stack([text(case, [name]) for name in case.spec["names"]])
        losses, counted = masked_bce(model(case.image, vectors).class_logits, case.target)
        losses.mean().backward()
        norms = {name: float(parameter.grad.double().norm()) for name, parameter in parameters.items()}
        model.zero_grad()
        return losses, counted, norms

    losses, counted, norms = step()
    assert counted.all()
    assert_close(losses, arrays["loss/per_sample"])
    assert_close(losses.mean(), arrays["loss/total"])
    golden = dict(zip(arrays["grad/names"].tolist(), arrays["grad/norms"].tolist()))
    assert_norms(norms, golden, lambda: step()[-1])


def test_schedules(case):
    run, steps = case.spec["config"], case.spec["steps_per_epoch"]
    rates, decays = case.arrays["schedule/fusion"], case.arrays["schedule/wd"]
    ours = [
        schedule(
            i, run["warmup_epochs"] * steps, run["epochs"] * steps, (run["fusion_lr"], run["fusion_min_lr"]), (run["wd"], run["wd_end"])
        )
        for i in range(len(rates))
    ]
    np.testing.assert_allclose([rate for rate, _ in ours], rates, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose([decay for _, decay in ours], decays, rtol=1e-5)


@torch.no_grad()
def test_counts(case):
    """Intersections and unions of background and foreground by class, from our own logits."""
    names = sorted(set(case.spec["names"]))
    ids = torch.tensor([[names.index(name)] for name in case.spec["names"]])
    vectors = torch.stack([text(case, [name]) for name in case.spec["names"]])
    counts = pair_counts(case.model(case.image, vectors).class_logits > 0, case.target, ids, len(names))
    stored = np.concatenate([case.arrays["metric/intersection"], case.arrays["metric/union"]])  # by the data set's class ids
    stored = stored[:, stored[2:].any(0)]
    assert sorted(counts[:4].T.tolist()) == sorted(stored.T.tolist())
    scores = few_shot_scores(counts, range(len(names)))
    assert abs(scores["mIoU"] - float(case.arrays["metric/miou"])) < 1e-6
    assert abs(scores["FB_IoU"] - float(case.arrays["metric/fbiou"])) < 1e-6
