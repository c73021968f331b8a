"""SimSeg at nano size: towers, pooling, classes, and the official layout."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ofaseg.models.layers.subclass_fusion import RULES, SubclassPrompts
from ofaseg.models.simseg import SimSeg, architecture_config
from ofaseg.models.simseg_state import to_official, to_ours, upgrade_official_state
from ofaseg.models.state import CheckpointError
from tests.models.one_layer import one_layer

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = 60
PROMPTS = [[[2, 9, 3], [2, 10, 11, 9, 3]], [[2, 20, 21, 22, 3], [2, 20, 3]], [[2, 30, 31, 3]]]


def nano(image_size=32, **options) -> SimSeg:
    torch.manual_seed(1)
    with one_layer():
        return SimSeg(architecture_config("simseg_nano", image_size=image_size, projection_dim=16, **options), WORDS, PROMPTS)


@pytest.fixture(scope="module")
def model():
    return nano().eval()


@pytest.fixture(autouse=True)
def as_it_was(request):
    yield
    if "model" in request.fixturenames:
        model = request.getfixturevalue("model").eval()
        model.zero_grad()
        model.set_classes(PROMPTS)


def photos(batch, height=32, width=32):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def texts(lengths, width):
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(5, WORDS, (length,))
    return ids, (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()


# -- segmentation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_maps_and_scores_are_cosines(model):
    """Every patch, class and photo by numpy, from tokens and class vectors; rows and columns are not mixed up."""
    image = photos(2, 24, 56)
    output = model(image)
    tokens = model.image_encoder(model.normalised(image))[:, 1:].numpy().astype(np.float64)
    projection, classes = model.image_projection.weight.numpy().astype(np.float64), model.class_embeddings().numpy()
    assert output.class_logits.shape == (2, 3, 3, 7) and output.features.shape == (2, 128, 3, 7)
    for b in range(2):
        patches = tokens[b] @ projection.T
        for k in range(3):
            maps = [[patch @ classes[k] / np.linalg.norm(patch) for patch in row] for row in patches.reshape(3, 7, -1)]
            np.testing.assert_allclose(output.class_logits[b, k], maps, atol=2e-6)
        vector = np.sort(patches, axis=0)[-5:].mean(0)
        np.testing.assert_allclose(output.image_scores[b], classes @ vector / np.linalg.norm(vector), atol=2e-6)
        np.testing.assert_allclose(model.embed_image(image)[b], vector / np.linalg.norm(vector), atol=2e-6)
        np.testing.assert_allclose(output.features[b].flatten(1).T, tokens[b], atol=2e-5)


@torch.no_grad()
def test_photos_do_not_depend_on_their_batch(model):
    image = photos(3)
    together, alone = model(image), model(image[1:2])
    for ours, theirs in zip(together, alone):
        torch.testing.assert_close(ours[1:2], theirs, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_float_photos_are_taken_as_normalised(model):
    image = photos(1)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    normalised = ((image.permute(0, 2, 3, 1) / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(normalised).class_logits, model(image).class_logits, atol=1e-5, rtol=1e-5)
    pixels = model.pixels(image)
    assert pixels.shape == (1, 32, 32, 3) and pixels.dtype == torch.uint8
    below = image.permute(0, 2, 3, 1).int() - pixels.int()
    assert set(below.unique().tolist()) <= {0, 1}, "cut off, never rounded up"


# -- texts -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_texts_hide_padding_in_evaluation_only():
    model = nano(dropout=0.0)
    ids, mask = texts((8, 3), 8)
    features = model.text_projection(model.text_encoder(ids, mask))
    everything = F.normalize(features.amax(1), dim=-1)
    words = F.normalize(torch.stack([features[0].amax(0), features[1, :3].amax(0)]), dim=-1)
    assert (everything[1] - words[1]).abs().max() > 1e-3
    torch.testing.assert_close(model.eval().embed_text(ids, mask), words, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(model.train().embed_text(ids, mask), everything, atol=2e-6, rtol=1e-5)
    model.config.mask_padding_in_training = True
    torch.testing.assert_close(model.embed_text(ids, mask), words, atol=2e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient_from_pairs():
    model = nano()
    ids, mask = texts((6, 4), 6)
    output = model(photos(2), ids, mask)
    ((output.image_embedding * output.text_embedding).sum() / output.temperature).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("value, clamped", [(0.02, 0.02), (3.0, 0.5), (-1.0, 0.001)])
def test_temperature_is_clamped(value, clamped):
    model = nano(temperature=value, fixed_temperature=True)
    assert float(model.clamped_temperature()) == pytest.approx(clamped) and not model.temperature.requires_grad


# -- classes -----------------------------------------------------------------------------------------------------------


def test_class_embeddings_in_training_mode_are_those_of_evaluation():
    model = nano(dropout=0.5).train()
    vectors = model.class_embeddings()
    assert model.training and all(part.training for part in model.modules())
    assert torch.equal(vectors, model.eval().class_embeddings())


def test_training_and_new_classes_forget_class_vectors(model):
    first = model.class_embeddings()
    assert model.class_embeddings() is first, "made once"
    with torch.no_grad():
        model.text_projection.weight.mul_(torch.linspace(0.5, 2, 16)[:, None])
    assert model.class_embeddings() is first
    changed = model.train().eval().class_embeddings()
    assert not torch.allclose(changed, first, atol=1e-3)
    model.set_classes(PROMPTS[::-1])
    torch.testing.assert_close(model.class_embeddings(), changed.flip(0))


def test_kept_class_vectors_are_used_until_weights_are_loaded(model):
    kept = F.normalize(torch.randn(5, 16), dim=-1)
    model.keep_class_embeddings(kept)
    assert torch.equal(model.class_embeddings(), kept) and model(photos(1)).class_logits.shape[1] == 5
    state = model.state_dict()
    model.upgrade_state(state)
    model.load_state_dict(state)
    assert len(model.class_embeddings()) == 3


def test_class_vectors_follow_the_model_to_another_device(model):
    model.class_embeddings()
    moved = nano().eval()
    moved.keep_class_embeddings(model.class_embeddings())
    assert moved.to("meta").class_embeddings().device.type == "meta"


SUBCLASSES = [[[[2, 12, 3], [2, 13, 12, 3]], [[2, 14, 3]]], [[[2, 25, 3]]], [[[2, 35, 36, 3]], [[2, 37, 3]], [[2, 31, 37, 3]]]]


@torch.no_grad()
def test_subclasses_make_the_maps_but_not_the_scores(model):
    """By numpy: a class vector is the mean of its subclasses weighted by softmax(cosine with the photo)."""
    image = photos(2, 24, 56)
    plain = model(image)
    model.set_subclasses(SubclassPrompts(SUBCLASSES, "softmax", 0.5))
    output = model(image)
    model.set_classes([prompts for names in SUBCLASSES for prompts in names])
    vectors, photo_vectors = model.class_embeddings().double().numpy(), model.embed_image(image).double().numpy()
    patches = F.normalize(model.patches(image)[1], dim=-1).double().numpy()
    assert torch.equal(output.image_scores, plain.image_scores)
    for b in range(2):
        for k, (start, end) in enumerate([(0, 2), (2, 3), (3, 6)]):
            weights = np.exp(vectors[start:end] @ photo_vectors[b] / 0.5)
            vector = (weights / weights.sum()) @ vectors[start:end]
            np.testing.assert_allclose(output.class_logits[b, k].flatten(), patches[b] @ vector, atol=2e-6)


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES)
def test_a_class_that_is_its_only_subclass_changes_nothing(model, rule):
    image = photos(1)
    plain = model(image).class_logits
    model.set_subclasses(SubclassPrompts([[prompts] for prompts in PROMPTS], rule, 0.1))
    torch.testing.assert_close(model(image).class_logits, plain, atol=2e-6, rtol=0)


def test_subclasses_belong_to_a_class_list(model):
    with pytest.raises(ValueError, match="subclasses of 2 classes for a model of 3 classes"):
        model.set_subclasses(SubclassPrompts(SUBCLASSES[:2]))
    with pytest.raises(ValueError, match="class 1 has no subclass"):
        SubclassPrompts([SUBCLASSES[0], []])
    model.set_subclasses(SubclassPrompts(SUBCLASSES))
    first = model.subclass_embeddings()
    assert first.shape == (6, 16) and model.subclass_embeddings() is first
    model.train().eval()
    assert model.subclass_embeddings() is not first, "training changes the text tower"
    model.set_subclasses(SubclassPrompts(SUBCLASSES[::-1]))
    torch.testing.assert_close(model.subclass_embeddings(), first[[3, 4, 5, 2, 0, 1]])
    model.set_classes(PROMPTS)
    with pytest.raises(ValueError, match="no subclasses"):
        model.subclass_embeddings()


def test_a_model_without_classes_says_so(model):
    model.set_classes([])
    with pytest.raises(ValueError, match="no classes; call set_classes first"):
        model(photos(1))


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="unknown architecture 'simseg_vit_l'; known: simseg_vit_s, simseg_vit_b, simseg_nano"):
        architecture_config("simseg_vit_l")
    with pytest.raises(ValueError, match="unknown tower 'resnet'; known: vit_small_patch16"):
        SimSeg(architecture_config("simseg_nano", image_tower="resnet"), WORDS)


# -- the official layout -----------------------------------------------------------------------------------------------


def official_state(model, prefix=""):
    """As the published code would have saved it: a counter, a pooler and, perhaps, the wrapper's prefix."""
    state = to_official(model.state_dict()) | {
        "text_encoder.model.model.embeddings.position_ids": torch.arange(64)[None],
        "text_encoder.model.model.pooler.dense.weight": torch.zeros(128, 128),
        "text_encoder.model.model.pooler.dense.bias": torch.zeros(128),
    }
    return {prefix + key: value for key, value in state.items()}


def test_official_names(model):
    names = set(to_official(model.state_dict()))
    assert {
        "image_encoder.model.model.cls_token", "image_encoder.model.model.blocks.0.attn.qkv.bias",
        "text_encoder.model.model.encoder.layer.0.attention.self.query.weight", "image_projection.linear.weight",
        "text_projection.linear.weight", "loss.temperature",
    } <= names  # fmt: skip
    assert to_ours(to_official(model.state_dict())).keys() == model.state_dict().keys()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_official_state_loads_strictly(model, prefix):
    state, other = official_state(model, prefix), nano()
    torch.nn.init.zeros_(other.image_projection.weight)
    report = other.upgrade_state(state)
    other.load_state_dict(state, strict=True)
    assert len(report.dropped) == 3 and report.resized == report.filled == []
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_positions_of_a_smaller_photo_are_interpolated(model):
    state, larger = official_state(model), nano(image_size=48).eval()
    report = larger.upgrade_state(state)
    larger.load_state_dict(state, strict=True)
    assert report.resized == ["image_encoder.vit.pos_embed"] and larger.image_encoder.vit.pos_embed.shape == (1, 37, 128)
    image = photos(1, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(larger.embed_image(image), model.embed_image(image), atol=2e-6, rtol=1e-5)


def without(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    "change, message",
    [
        (without("loss.temperature"), "temperature: missing"),
        (without("image_encoder.model.model.pos_embed"), "image_encoder.vit.pos_embed: missing"),
        (lambda state: state.update(classifier=torch.zeros(1)), "classifier: unknown"),
        (
            lambda state: state.update({"text_encoder.model.model.embeddings.word_embeddings.weight": torch.zeros(70, 128)}),
            r"word_embeddings.weight: shape \(70, 128\), expected \(60, 128\).*give the checkpoint's own vocab.txt",
        ),
        (
            lambda state: state.update({"image_encoder.model.model.pos_embed": torch.zeros(1, 13, 128)}),
            "pos_embed: 13 position rows are not one for CLS and a square grid",
        ),
        (
            lambda state: state.update({"image_encoder.model.model.pos_embed": torch.zeros(1, 10, 99)}),
            r"pos_embed: shape \(1, 17, 99\), expected \(1, 17, 128\)",
        ),
    ],
)
def test_states_that_do_not_fit(model, change, message):
    state = official_state(model)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        upgrade_official_state(state, model.state_dict())
