"""SegOFA in its smallest variant: shapes, gradients, batch independence, both passes, class lists."""

import copy

import pytest
import torch

from ofaseg.models.ifseg import ARCHITECTURES, SegOFA, architecture_config
from ofaseg.models.ofa.attention import MosaicTokens

CLASSES = [[4, 5], [6], [7, 8, 9]]
SOURCE = torch.tensor([[0, 20, 21, 4, 5, 6, 7, 8, 9, 22, 2]])


def nano(class_token_ids=CLASSES, **options) -> SegOFA:
    torch.manual_seed(3)
    model = SegOFA(architecture_config("segofa_nano", **options), 60, class_token_ids)
    for parameter in model.parameters():  # rule out tables that are too small to matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def photos(batch=2, height=96, width=96):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


@pytest.fixture(scope="module")
def model():
    return nano().eval()


@pytest.mark.parametrize("size, grid", [((96, 96), (12, 12)), ((96, 136), (12, 17)), ((60, 33), (8, 5)), ((200, 96), (25, 12))])
@pytest.mark.parametrize("input_type", ["encoder_output", "encoder_input", "query"])
def test_shapes(size, grid, input_type):
    model = nano(decoder_input_type=input_type)
    output = model.predict(src_tokens=SOURCE, patch_images=photos(1, *size))
    assert output.class_logits.shape == (1, 3, *grid) and output.features.shape == (1, 128, *grid)
    assert output.class_logits.dtype == torch.float32 and model.training


def test_stride_4():
    output = nano(conv_stem_stride=4).predict(src_tokens=SOURCE, patch_images=photos(1, 48, 96))
    assert output.class_logits.shape == (1, 3, 12, 24)


def test_float_images_are_taken_as_normalised(model):
    images = photos()
    ours = model.predict(src_tokens=SOURCE.expand(2, -1), patch_images=images).class_logits
    theirs = model.predict(src_tokens=SOURCE.expand(2, -1), patch_images=(images.float() / 255 - 0.5) / 0.5).class_logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("full_context", [False, True])
@pytest.mark.parametrize("input_type", ["encoder_output", "encoder_input", "query"])
def test_one_backward(input_type, full_context):
    """Everything that is trained gets a gradient in the image-free step, so no wrapper has to look for unused parameters."""
    model = nano(decoder_input_type=input_type, full_context_alignment=full_context)
    output = model(SOURCE.expand(2, -1), class_maps=torch.randint(0, 3, (2, 12, 12)))
    assert output.class_logits.shape == (2, 3, 12, 12) and output.features is None
    output.class_logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        missing = parameter.grad is None or not parameter.grad.any()
        assert parameter.requires_grad != missing or name.endswith("k_proj.bias") or name.endswith("k_linear.bias"), name


def test_supervised_backward_reaches_the_image_encoder():
    model = nano(train_image_encoder=True)
    model(SOURCE.expand(2, -1), patch_images=photos()).class_logits.square().mean().backward()
    assert model.encoder.embed_images.conv1.weight.grad.any()


@pytest.mark.parametrize("inputs", ["photo", "mosaic"])
def test_batch_size_independence(model, inputs):
    torch.manual_seed(0)
    given = {"patch_images": photos(3)} if inputs == "photo" else {"class_maps": torch.randint(0, 3, (3, 12, 12))}
    together = model.predict(src_tokens=SOURCE.expand(3, -1), **given).class_logits
    for i in range(3):
        alone = model.predict(src_tokens=SOURCE, **{key: value[i : i + 1] for key, value in given.items()}).class_logits
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_causal_decoder_does_not_look_ahead():
    """With an encoder that passes patches through unmixed, position i depends on patches before i only."""
    model = nano(decoder_input_type="encoder_input").eval()
    maps = torch.zeros(1, 12, 12, dtype=torch.long)
    with torch.no_grad():
        encoded = model.encode(SOURCE, class_maps=maps)
        changed = encoded._replace(patches=encoded.patches.clone())
        changed.patches[:, 77:] += 1
        first, second = model.decoder.segment(encoded), model.decoder.segment(changed)
        torch.testing.assert_close(first[:, :78], second[:, :78])
        assert not torch.allclose(first[:, 78:], second[:, 78:])
        model.decoder.full_context = True
        assert not torch.allclose(model.decoder.segment(encoded)[:, :78], model.decoder.segment(changed)[:, :78])


def test_causal_shortcut_drops_only_the_unread_position(model):
    with torch.no_grad():
        encoded = model.encode(SOURCE, class_maps=torch.randint(0, 3, (1, 12, 12)))
        torch.testing.assert_close(model.decoder.segment(encoded), model.decoder.segment(encoded, all_positions=True)[:, :-1])


def test_grid_axes_are_not_swapped(model):
    """Patch (row, column) of a wide photo is token row * width + column, on the way in and on the way out."""
    images = photos(1, 96, 136)
    with torch.no_grad():
        encoded = model.encode(SOURCE, patch_images=images)
        hidden = model.decoder.segment(encoded)
        scores = model.predict(src_tokens=SOURCE, patch_images=images).class_logits
        projected = model.encoder.image_proj(encoded.features[0, :, 3, 15])
    assert encoded.grid == (12, 17)
    torch.testing.assert_close(encoded.patches[0, 3 * 17 + 15], projected)
    torch.testing.assert_close(scores[0, :, 3, 15], model.decoder.seg_projection(hidden[0, 3 * 17 + 15]))


def test_text_decoder_is_causal_and_ignores_padding(model):
    source = torch.tensor([[0, 20, 21, 2, 1, 1], [0, 20, 21, 22, 23, 2]])
    target = torch.tensor([[2, 30, 31, 1], [2, 30, 31, 32]])
    images = photos()
    with torch.no_grad():
        both = model(source, patch_images=images, prev_output_tokens=target)
        assert both.shape == (2, 4, 60)
        alone = model(source[:1, :4], patch_images=images[:1], prev_output_tokens=target[:1, :3])
        torch.testing.assert_close(both[:1, :3], alone, rtol=1e-4, atol=1e-5)
        later = target.clone()
        later[:, 2:] = 40
        torch.testing.assert_close(model(source, patch_images=images, prev_output_tokens=later)[:, :2], both[:, :2])


def test_hidden_images_do_not_matter(model):
    source, target = SOURCE.expand(2, -1), torch.tensor([[2, 30], [2, 30]])
    masks = torch.tensor([True, False])
    first, second = photos(), photos()
    with torch.no_grad():
        a = model(source, patch_images=first, prev_output_tokens=target, patch_masks=masks)
        b = model(source, patch_images=second, prev_output_tokens=target, patch_masks=masks)
    assert not torch.allclose(a[0], b[0])
    torch.testing.assert_close(a[1], b[1])


def test_text_alone(model):
    with torch.no_grad():
        assert model(SOURCE, prev_output_tokens=torch.tensor([[2, 30, 31]])).shape == (1, 3, 60)
    with pytest.raises(ValueError, match="needs patch_images or class_maps"):
        model(SOURCE)
    with pytest.raises(ValueError, match="either"):
        model(SOURCE, patch_images=photos(1), class_maps=torch.zeros(1, 12, 12, dtype=torch.long))


def test_caption_training_reaches_the_text_parameters():
    model = nano(train_text_decoder=True, train_token_embedding=True, train_image_encoder=True)
    model(SOURCE.expand(2, -1), patch_images=photos(), prev_output_tokens=torch.tensor([[2, 30], [2, 31]])).square().mean().backward()
    unread = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert all("seg_" in name for name in unread), unread


def test_set_classes(model):
    model = copy.deepcopy(model)
    before = model.predict(src_tokens=SOURCE, patch_images=photos(1)).class_logits.shape
    new = [[10], [11, 12], [13], [4, 5]]
    model.set_classes(new)
    words = model.encoder.embed_tokens.weight
    assert model.num_classes == 4 and torch.equal(model.class_embeddings(), model.class_words())
    torch.testing.assert_close(model.class_embeddings()[1], words[[11, 12]].mean(0))
    assert model.decoder.seg_projection.weight is model.encoder.seg_embed_tokens.weight is model.decoder.seg_embed_tokens.weight
    assert not model.class_embeddings().requires_grad
    after = model.predict(src_tokens=SOURCE, patch_images=photos(1)).class_logits.shape
    assert before[1] == 3 and after[1] == 4
    with pytest.raises(ValueError, match="vocabulary has ids 0..59"):
        model.set_classes([[70]])
    with pytest.raises(ValueError, match="class 1 has no token"):
        model.set_classes([[5], []])


def test_class_words_of_several_names(model):
    """A class with several names is the mean of their means, in artificial images and in the scores."""
    model = copy.deepcopy(model)
    names = [[[10], [11, 12]], [[13]], [[4, 5], [6], [7, 8, 9]]]
    model.set_class_words(names)
    words = model.encoder.embed_tokens.weight
    expected = torch.stack([torch.stack([words[ids].mean(0) for ids in of_class]).mean(0) for of_class in names])
    torch.testing.assert_close(model.class_words(), expected)
    torch.testing.assert_close(model.class_embeddings(), expected)
    assert model.num_classes == 3
    logits = model.predict(src_tokens=SOURCE, patch_images=photos(1)).class_logits
    assert logits.shape[1] == 3
    maps = model.predict(src_tokens=SOURCE, class_maps=torch.zeros(1, 12, 12, dtype=torch.long)).class_logits
    model.set_class_words([names[1], names[0], names[2]])
    swapped = model.predict(src_tokens=SOURCE, class_maps=torch.ones(1, 12, 12, dtype=torch.long)).class_logits
    torch.testing.assert_close(swapped, maps[:, [1, 0, 2]])
    state = model.state_dict()
    assert "name_shares" not in state
    model.set_classes(CLASSES)
    torch.testing.assert_close(model.class_words()[0], words[CLASSES[0]].mean(0))
    with pytest.raises(ValueError, match="for a model of 3 classes"):
        model.set_class_words(names[:2])
    with pytest.raises(ValueError, match="each needs a name"):
        model.set_class_words([[[4]], [], [[5]]])


def test_too_many_classes_for_the_positions():
    model = nano()
    with pytest.raises(ValueError, match="600 tokens, the model holds 512 positions"):
        model.predict(src_tokens=torch.full((1, 600), 5), class_maps=torch.zeros(1, 12, 12, dtype=torch.long))


def test_noise_on_words_only_while_training():
    model = nano(artificial_noise=1.0)
    maps = torch.randint(0, 3, (1, 12, 12))
    assert not torch.equal(model._mosaic(maps)[0], model._mosaic(maps)[0])
    model.eval()
    words, cells = model._mosaic(maps)
    assert torch.equal(words, model.class_words()) and torch.equal(cells, maps.flatten(1))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}])
def test_repeated_words_are_the_tokens_they_stand_for(options):
    """Loss and gradients of a mosaic do not depend on whether words or cells are computed, and dropout hits every cell by itself."""
    model = nano(**options).train()
    maps = torch.randint(0, 3, (3, 12, 12), generator=torch.Generator().manual_seed(0))
    results = []
    for spelled_out in (False, True):
        torch.manual_seed(1)
        if spelled_out:
            model._mosaic = lambda maps: (torch.nn.functional.embedding(maps.flatten(1), model.class_words()), None)
        model.zero_grad()
        logits = model(SOURCE.expand(3, -1), class_maps=maps).class_logits
        logits.square().mean().backward()
        results.append((logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (logits, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-6, msg=name)


def test_repeated_words_under_autocast():
    """A word's many cells are not summed in half precision: with bfloat16 the gradients are those of cells computed one by one."""
    model = nano().train()
    maps = torch.randint(0, 3, (3, 12, 12), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = model.encoder._embed(SOURCE.expand(3, -1), *model._mosaic(maps), None)
    assert isinstance(tokens, torch.Tensor) and tokens.dtype == torch.float32
    assert isinstance(model.encoder._embed(SOURCE.expand(3, -1), *model._mosaic(maps), None), MosaicTokens)


def test_freezing():
    model = nano(freeze_encoder_layers=1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("encoder.embed_", "encoder.layers.0", "encoder.image_proj")) for name in trained)
    assert any(name.startswith("encoder.layers.1") for name in trained) and "encoder.layer_norm.weight" in trained
    assert "encoder.layer_norm.weight" not in {n for n, p in nano(freeze_encoder_layers=2).named_parameters() if p.requires_grad}


def test_frozen_image_encoder_stays_in_evaluation_mode():
    assert not nano().train().encoder.embed_images.training
    assert nano(train_image_encoder=True).train().encoder.embed_images.training


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes(name):
    """The table of sizes in the paper's code; the smallest one is ours."""
    config = architecture_config(name)
    sizes = (
        config.encoder_embed_dim,
        config.encoder_ffn_embed_dim,
        config.encoder_layers,
        config.decoder_layers,
        config.encoder_attention_heads,
    )
    assert (
        sizes
        == {
            "segofa_nano": (128, 256, 2, 2, 4),
            "segofa_tiny": (256, 1024, 4, 4, 4),
            "segofa_medium": (512, 2048, 4, 4, 8),
            "segofa_base": (768, 3072, 6, 6, 12),
            "segofa_large": (1024, 4096, 12, 12, 16),
            "segofa_huge": (1280, 5120, 24, 12, 16),
        }[name]
    )


def test_unknown_architecture():
    with pytest.raises(ValueError, match="segofa_giant.*segofa_nano"):
        architecture_config("segofa_giant")


def test_unknown_decoder_input():
    with pytest.raises(ValueError, match="encoder_output, encoder_input, query"):
        nano(decoder_input_type="pixels")


def test_compiles_without_graph_breaks(model):
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    images = photos(1)
    with torch.no_grad():
        for inputs in ({"patch_images": images}, {"class_maps": torch.randint(0, 3, (1, 12, 12))}):
            torch.testing.assert_close(compiled(SOURCE, **inputs).class_logits, model(SOURCE, **inputs).class_logits)
