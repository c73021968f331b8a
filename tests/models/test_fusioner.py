"""Fusioner: joint classes, batches, photo sizes, frozen towers of every kind, the class list; values are in tests/golden."""

import json

import numpy as np
import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

from ofaseg.checkpoints.fusioner import load_towers
from ofaseg.models.fusioner import ARCHITECTURES, PIXEL_STATISTICS, Fusioner, architecture_config
from ofaseg.models.layers.subclass_fusion import SubclassPrompts
from ofaseg.models.state import CheckpointError

END = 59
PROMPTS = [[[58, 3, 4, END], [58, 4, END]], [[58, 7, END]], [[58, 9, 10, 11, END]]]
SMALL = dict(vocab_size=END + 1, context_length=9, random_towers=True)


def build(prompts=PROMPTS, **options) -> Fusioner:
    torch.manual_seed(4)
    model = Fusioner(architecture_config("fusioner_nano", **(SMALL | options)), prompts)
    load_towers(model)
    return model.eval()


@pytest.fixture(scope="module")
def nano():
    return build()


def photos(*size, count=2):
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# ---- outputs ----


@torch.no_grad()
def test_output(nano):
    """Photos that are no squares, any size of the scores, and rows stay rows."""
    image = photos(24, 40)
    output = nano.predict(image=image)
    assert output.class_logits.shape == (2, 3, 24, 40) and output.features.shape == (2, 40, 3, 5) and output.image_scores is None
    assert output.class_logits.abs().max() <= 1 / 0.07 + 1e-4
    torch.testing.assert_close(output.features.norm(dim=1), torch.ones(2, 3, 5))
    tokens, grid = nano.towers.image_tokens(nano.normalised(image))
    assert grid == (3, 5) and torch.equal(output.features[1, :, 2, 3], tokens[1, 2 * 5 + 3])
    assert torch.equal(nano.from_tokens(tokens, grid, None, (24, 40)).class_logits, output.class_logits)
    assert nano(image, size=(31, 17)).class_logits.shape == (2, 3, 31, 17)
    with pytest.raises(ValueError, match="24x41 pixels .* multiples of 8"):
        nano.predict(image=photos(24, 41))


@pytest.mark.parametrize("size", [None, (24, 40), (50, 33), (9, 11)])
@torch.no_grad()
def test_few_maps_are_as_good_as_wide_features(nano, size):
    plain = build(plain_cosine=True)
    plain.load_state_dict(nano.state_dict())
    ours, published = (model(photos(24, 40), size=size).class_logits for model in (nano, plain))
    torch.testing.assert_close(ours, published, atol=1e-5 / 0.07, rtol=0)


@torch.no_grad()
def test_a_batch_is_its_photos(nano):
    image = photos(32, 32, count=3)
    text = torch.nn.functional.normalize(torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(2)), dim=-1)
    whole = nano(image, text).class_logits
    for i in range(3):
        torch.testing.assert_close(nano(image[i : i + 1], text[i : i + 1]).class_logits, whole[i : i + 1], atol=1e-4, rtol=0)
        torch.testing.assert_close(nano(image[i : i + 1], text[i]).class_logits, whole[i : i + 1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_permuted_classes_permute_the_outputs_and_fewer_change_them(nano):
    image, vectors = photos(32, 32), nano.class_embeddings()
    before = nano(image).class_logits
    torch.testing.assert_close(nano(image, vectors[[2, 0, 1]]).class_logits, before[:, [2, 0, 1]], atol=1e-4, rtol=0)
    assert not torch.allclose(nano(image, vectors[:2]).class_logits, before[:, :2], atol=1e-3)


@torch.no_grad()
def test_float_photos_are_taken_as_normalised(nano):
    image = photos(32, 32)
    normalised = nano.normalised(image)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in PIXEL_STATISTICS["pascal"])
    torch.testing.assert_close(normalised, (image / 255 - mean) / std)
    assert torch.equal(nano(image).class_logits, nano(normalised).class_logits)
    assert torch.equal(nano.pixels(image), nano.pixels(normalised))
    other = build(pixel_statistics="clip")
    assert not torch.allclose(other.normalised(image), normalised, atol=0.1)
    with pytest.raises(ValueError, match="unknown pixel_statistics 'voc'; known: pascal, coco, clip"):
        build(pixel_statistics="voc")


@torch.no_grad()
def test_positions_are_those_of_a_model_of_that_size(nano):
    """A photo of another size is read as by towers whose position table was interpolated to it."""
    from ofaseg.models.image_encoders.vit import interpolate_positions

    other = build(image_size=48)
    state = nano.towers.image.state_dict()
    table = state["visual.positional_embedding"]
    state["visual.positional_embedding"] = interpolate_positions(table[None], 6, 6)[0]
    other.towers.image.load_state_dict(state)
    image = nano.normalised(photos(48, 48))
    torch.testing.assert_close(other.towers.image_tokens(image)[0], nano.towers.image_tokens(image)[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_each_photo_is_asked_about_its_own_classes(nano):
    """As a batch of pairs has it."""
    image, ids = photos(16, 24), torch.tensor([[2, 0], [1, 2]])
    found = nano(image=image, class_ids=ids).class_logits
    for i in range(2):
        expected = nano(image[i : i + 1], nano.class_embeddings()[ids[i]]).class_logits
        torch.testing.assert_close(found[i : i + 1], expected, atol=1e-4, rtol=0)


def test_compiles_without_graph_breaks(nano):
    vectors, ids = nano.class_embeddings(), torch.tensor([[2], [0]])
    compiled = torch.compile(nano.forward, backend="eager", fullgraph=True)
    image = photos(24, 32)
    torch.testing.assert_close(compiled(image, vectors).class_logits, nano(image, vectors).class_logits, atol=1e-4, rtol=0)
    found = compiled(image, class_ids=ids).class_logits
    torch.testing.assert_close(found, nano(image, class_ids=ids).class_logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_mixed_precision(nano):
    """The towers keep their own precision; the cosine is float32."""
    image, exact = photos(32, 32), nano(photos(32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        output = nano(image)
    assert output.class_logits.dtype == torch.float32 and torch.equal(output.features, exact.features)
    assert float((output.class_logits - exact.class_logits).abs().max()) < 1.0
    towers = build(tower_precision="bf16")
    towers.load_state_dict(nano.state_dict())
    found = towers(image)
    assert found.features.dtype == torch.float32 and not torch.equal(found.features, exact.features)
    torch.testing.assert_close(found.features, exact.features, atol=0.02, rtol=0)


# ---- what is frozen ----


def test_only_fusion_and_decoder_learn():
    model = build().train()
    assert model.training and model.fusion.training and not any(module.training for module in model.towers.modules())
    before = {key: value.clone() for key, value in model.towers.image.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    output = model(photos(16, 24))
    assert not output.features.requires_grad
    output.class_logits.square().mean().backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"fusion", "decoder"}
    assert all(parameter.grad is not None for part in (model.fusion, model.decoder) for parameter in part.parameters())
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.towers.image.state_dict().items())
    assert {parameter.param_group for parameter in model.decoder.parameters()} == {"decoder"}


def test_averaged_weights_are_of_what_learns():
    """fairseq's EMA copies the model and averages its state dict: towers and their sha256 stay what they are."""
    from fairseq.dataclass.configs import EMAConfig
    from fairseq.models.ema.ema import EMA

    model = build()
    average = EMA(model, EMAConfig(store_ema=True, ema_decay=0.5, ema_fp32=False))
    before = model.fusion.proj_patch.detach().clone()
    with torch.no_grad():
        model.fusion.proj_patch.add_(1.0)
    average.step(model)
    copy = average.get_model()
    torch.testing.assert_close(copy.fusion.proj_patch, before + 0.5)
    assert not any(module.training for module in copy.towers.modules())
    assert torch.equal(copy.state_dict()["towers.image_sha256"], model.state_dict()["towers.image_sha256"])
    build().load_state_dict(copy.state_dict(), strict=True)


def test_class_vectors_outlive_training(monkeypatch):
    model = build().train()
    vectors = model.class_embeddings()
    monkeypatch.setattr(model.towers, "text", None)
    assert model.class_embeddings() is vectors and model.train().class_embeddings() is vectors
    model.set_classes(PROMPTS[:1])
    with pytest.raises(TypeError):
        model.class_embeddings()


def test_prompts_are_averaged_and_cut(nano):
    ids = torch.tensor([[58, 3, 4, END, 0, 0, 0, 0, 0], [58, 4, END, 0, 0, 0, 0, 0, 0]])
    each = nano.embed_text(ids, (torch.arange(9) < torch.tensor([[4], [3]])).long())
    mean = each.mean(0)
    torch.testing.assert_close(nano.class_embeddings()[0], mean / mean.norm(), atol=1e-6, rtol=0)


def test_start_values():
    """Towers at random start the same in every process and leave the run's random numbers alone; the rest follows the seed."""
    first, second = build(), build()
    torch.manual_seed(5)
    third = Fusioner(architecture_config("fusioner_nano", **SMALL))
    assert torch.equal(first.towers.sha256("image"), second.towers.sha256("image"))
    assert torch.equal(first.towers.image.visual.proj, third.towers.image.visual.proj)
    assert torch.equal(first.fusion.cls_emb, second.fusion.cls_emb) and not torch.equal(first.fusion.cls_emb, third.fusion.cls_emb)


def test_towers_without_weights_say_so():
    model = Fusioner(architecture_config("fusioner_nano", vocab_size=END + 1), PROMPTS)
    with pytest.raises(ValueError, match="image tower has no weights yet"):
        model(photos(16, 16))
    with pytest.raises(CheckpointError, match="image tower 'clip' needs its weights: give --clip-checkpoint"):
        load_towers(model)


# ---- other towers ----


@pytest.mark.parametrize("name, dim, stride, tokens", [("resnet10t", 512, 32, 2), ("vit_tiny_patch16_224", 192, 16, 8)])
@torch.no_grad()
def test_towers_of_timm(name, dim, stride, tokens):
    import timm

    model = build(image_tower=name, pixel_statistics="imagenet")
    image = photos(32, 64)
    output = model(image)
    assert model.grid_stride == stride and output.features.shape == (2, dim, 32 // stride, 64 // stride)
    assert output.class_logits.shape == (2, 3, 32, 64)
    if name.startswith("vit"):
        theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
        theirs.load_state_dict(model.towers.image.backbone.state_dict())
        expected = theirs.forward_features(model.normalised(image))[:, 1:]
    else:
        theirs = timm.create_model(name, num_classes=0).eval()
        theirs.load_state_dict(model.towers.image.backbone.state_dict())
        expected = theirs.forward_features(model.normalised(image)).flatten(2).transpose(1, 2)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(output.features.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=0)
    assert expected.shape[1] == tokens


@torch.no_grad()
def test_a_bert_for_the_texts():
    model = build(text_tower="bert_nano", bert_vocab_size=60)
    assert model.text_dim == 128 and model(photos(16, 16)).class_logits.shape == (2, 3, 16, 16)
    ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    torch.testing.assert_close(model.embed_text(ids, mask), model.embed_text(ids[:, :3], mask[:, :3]), atol=1e-6, rtol=0)
    mean = model.towers.text.tokens(ids[:, :3], mask[:, :3])[0].mean(0)
    torch.testing.assert_close(model.embed_text(ids, mask)[0], mean / mean.norm(), atol=1e-6, rtol=0)


def test_a_table_for_the_texts(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((3, 7))
    np.savez(tmp_path / "table.npz", names=np.array(["traffic light", "cat", "sky"]), vectors=vectors)
    model = build([[[2]], [[0]]], text_tower="table", text_embeddings=str(tmp_path / "table.npz"))
    np.testing.assert_allclose(model.class_embeddings()[0], vectors[2] / np.linalg.norm(vectors[2]), atol=1e-6)
    assert model(photos(16, 16)).class_logits.shape == (2, 2, 16, 16)
    assert model.name_tokenizer()(["sky"])[0].tolist() == [[2]] and build().name_tokenizer() is None


# ---- registration ----


def test_architectures_are_registered():
    assert MODEL_REGISTRY["fusioner"] is Fusioner
    assert all(ARCH_MODEL_REGISTRY[name] is Fusioner for name in ARCHITECTURES)
    assert json.dumps(sorted(ARCHITECTURES)) == json.dumps(["fusioner_nano", "fusioner_vit_b16", "fusioner_vit_b32", "fusioner_vit_l14"])


def test_published_sizes():
    """Digest, section 3: values that are trained, for towers of 512 and of 768 dimensions."""
    for dim, values in ((512, 48_584_704), (768, 48_847_872)):
        with torch.device("meta"):
            from ofaseg.models.layers.joint_fusion import JointFusion
            from ofaseg.models.layers.upsampling_decoder import UpsamplingDecoder

            parts = (JointFusion(dim, dim), UpsamplingDecoder(512))
        assert sum(parameter.numel() for part in parts for parameter in part.parameters()) == values


def test_wrong_choices():
    with pytest.raises(ValueError, match="unknown architecture 'fusioner_h'; known: fusioner_vit_b16"):
        architecture_config("fusioner_h")
    with pytest.raises(ValueError, match="unknown text tower 'gpt'; known: clip, table, bert_base"):
        build(text_tower="gpt")
    with pytest.raises(ValueError, match="image tower 'resnet9999': neither clip, mobilenet_v2, .* nor a model of timm"):
        build(image_tower="resnet9999")
    with pytest.raises(ValueError, match="one vector per class; use mean or superclass_mean"):
        build().set_subclasses(SubclassPrompts([[[[1]]]], "max"))
