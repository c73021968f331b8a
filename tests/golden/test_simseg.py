"""SimSeg against the published implementation: every `simseg_*.npz` of --golden-dir (the dense CRF calls are in test_simseg_crf).

Tolerances are those the official code meets across library versions. Gradient norms are taken in float32, as the stored
ones were: over a few million entries that is 1e-4 away from the norm in float64.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ofaseg.losses import contrastive_loss
from ofaseg.models.simseg import SimSeg, architecture_config
from ofaseg.models.simseg_state import to_official, to_ours
from tests.golden.golden_weights import golden_state_dict, load_golden

GOLDEN_KIND = "simseg"
pytestmark = pytest.mark.slow  # 131 million rule-made weights


def assert_close(ours: torch.Tensor, golden: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the golden array's largest value."""
    golden = torch.from_numpy(np.asarray(golden))
    assert ours.shape == golden.shape
    error = float((ours.detach() - golden).abs().max() / golden.abs().max())
    assert error <= tolerance, f"largest error {error:.2e} of the largest value"


def class_prompts(arrays: dict) -> list[list[list[int]]]:
    """Class -> prompt -> token ids without padding."""
    ids, mask = arrays["input/class_ids"], arrays["input/class_mask"]
    return [[text[: int(length)].tolist() for text, length in zip(*of_class)] for of_class in zip(ids, mask.sum(-1))]


@pytest.fixture(scope="module")
def case(golden_file):
    spec, arrays = load_golden(str(golden_file))
    name = spec["model"].replace("-", "_")
    official = golden_state_dict(spec["state_dict"])
    words = official["text_encoder.model.model.embeddings.word_embeddings.weight"]
    model = SimSeg(architecture_config(name, image_size=spec["input_size"]), len(words), class_prompts(arrays))
    state = dict(official)
    report = model.upgrade_state(state)
    model.load_state_dict(state, strict=True)
    return SimpleNamespace(
        spec=spec, arrays=arrays, model=model.eval(), official=official, report=report,
        image=torch.from_numpy(arrays["input/image"]), ids=torch.from_numpy(arrays["input/input_ids"]),
        mask=torch.from_numpy(arrays["input/attention_mask"]),
    )  # fmt: skip


def test_layout_and_the_way_back(case):
    """Nothing but the position table changes on loading, and what is exported has the official keys and values."""
    assert case.report.filled == [] and set(case.report.resized) <= {"image_encoder.vit.pos_embed"}
    exported = to_official(case.model.state_dict())
    assert set(exported) == set(case.official)
    for key, value in case.official.items():
        if not key.endswith("pos_embed"):
            assert torch.equal(exported[key], value), key
    assert set(to_ours(exported)) == set(case.model.state_dict())


def test_positions(case):
    positions = case.model.state_dict()["image_encoder.vit.pos_embed"]
    key = next(key for key in case.arrays if key.startswith("pos_embed_") and key.endswith("_every_9th"))
    assert_close(positions[:, ::9], case.arrays[key], 1e-6)


@torch.no_grad()
def test_image_tower(case):
    tokens, projected = case.model.patches(case.image)
    assert_close(tokens[: len(case.arrays["patch_features_every_9th"]), ::9], case.arrays["patch_features_every_9th"])
    assert_close(projected[: len(case.arrays["patch_projection_every_9th"]), ::9], case.arrays["patch_projection_every_9th"])
    assert_close(case.model.embed_image(case.image), case.arrays["image_embedding"])


@torch.no_grad()
def test_text_tower(case):
    features = case.model.text_encoder(case.ids, case.mask)
    assert_close(features[:, ::6], case.arrays["text_features_every_6th"])
    assert_close(case.model.embed_text(case.ids, case.mask), case.arrays["text_embedding"])


@torch.no_grad()
def test_classes_maps_and_scores(case):
    output = case.model(case.image)
    assert_close(case.model.class_embeddings(), case.arrays["class_embedding"])
    assert_close(output.class_logits[: len(case.arrays["similarity_maps"])], case.arrays["similarity_maps"])
    assert_close(output.image_scores, case.arrays["image_scores"])


def test_loss_and_gradients(case):
    model, arrays = case.model, case.arrays
    model.zero_grad()
    output = model(case.image, case.ids, case.mask)
    image, text = output.image_embedding, output.text_embedding
    loss = contrastive_loss(image, text, image, text, output.temperature)[0] / len(image)
    loss.backward()
    assert abs(loss.item() / float(arrays["loss"]) - 1) < 1e-5
    golden = dict(zip(arrays["grad/names"].tolist(), arrays["grad/norms"].tolist()))
    parameters = to_official(dict(model.named_parameters()))
    assert set(golden) == set(parameters)
    for name, norm in golden.items():
        if norm >= 1e-6 * max(golden.values()):
            assert abs(float(parameters[name].grad.norm()) / norm - 1) < 1e-4, name
    assert_close(model.temperature.grad, arrays["grad/loss.temperature"])
    model.zero_grad()


def test_pixels_for_the_crf(case):
    photo = torch.from_numpy(case.arrays["seg/image_uint8"]).permute(2, 0, 1)[None]
    assert np.array_equal(case.model.pixels(photo)[0].numpy(), case.arrays["seg/crf_0_image"])
