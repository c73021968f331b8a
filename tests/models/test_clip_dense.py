"""Dense CLIP: its vectors against open_clip's own, every reading of the last block against a loop, any photo size, the class list."""

import math

import pytest
import torch
import torch.nn.functional as F
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

from ofaseg.models.clip_dense import ARCHITECTURES, ClipDense, architecture_config
from ofaseg.models.layers.dense_attention import LAST_BLOCKS, VARIANTS, DenseAttention, neighbourhood_prior
from ofaseg.models.state import CheckpointError

END = 59
PROMPTS = [[[58, 3, 4, END], [58, 4, END]], [[58, 7, END]], [[58, 9, 10, 11, END]]]


def build(**options) -> ClipDense:
    """The nano model with every weight at random, biases and norms too."""
    torch.manual_seed(4)
    model = ClipDense(architecture_config("clip_nano", vocab_size=END + 1, context_length=9, **options), PROMPTS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def nano():
    return build()


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def reread(model: ClipDense, **options) -> ClipDense:
    """The same weights with another reading of the last block."""
    other = build(**options)
    other.load_state_dict(model.state_dict())
    return other


# ---- open_clip's own vectors ----


@pytest.mark.parametrize("plain_gelu", [False, True])
@torch.no_grad()
def test_vectors_are_those_of_open_clip(plain_gelu, photos):
    """With a model of open_clip built on its own, from the same state dict."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    model = build(plain_gelu=plain_gelu)
    image = CLIPVisionCfg(layers=3, width=64, head_width=16, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=9, vocab_size=END + 1, width=48, heads=3, layers=2)
    theirs = CLIP(40, image, text, quick_gelu=not plain_gelu).eval()
    theirs.load_state_dict({key.removeprefix("clip."): value for key, value in model.state_dict().items()})
    normalised = (photos / 255 - model.pixel_mean) / model.pixel_std
    expected = theirs.encode_image(normalised, normalize=True)
    for variant in VARIANTS:
        other = reread(model, dense_attention=variant, plain_gelu=plain_gelu)
        torch.testing.assert_close(other.embed_image(photos), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(other.dense(photos)[2], expected, atol=1e-6, rtol=0)
    assert torch.equal(model.embed_image(photos), model.embed_image(normalised))
    ids = torch.tensor([[58, 3, END, 0, 0, 0, 0, 0, 0], [58, 8, 9, 10, 11, 12, 13, 14, END]])
    expected = theirs.encode_text(ids, normalize=True)
    mask = torch.tensor([[1] * 3 + [0] * 6, [1] * 9])
    torch.testing.assert_close(model.embed_text(ids, mask), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.embed_text(ids[:1, :3], mask[:1, :3]), expected[:1], atol=1e-6, rtol=0)  # padding says nothing
    assert abs(float(model.clamped_temperature() * theirs.logit_scale.exp()) - 1) < 1e-6


@torch.no_grad()
def test_cls_of_the_plain_variant_is_the_photo_vector(nano, photos):
    tokens, grid = nano._before_last_block(photos)
    cls = nano.clip.visual.ln_post(nano.attention(nano._last_block, tokens, grid)[:, 0]) @ nano.clip.visual.proj
    torch.testing.assert_close(F.normalize(cls, dim=-1), nano.embed_image(photos), atol=1e-6, rtol=0)


def test_the_temperature_is_bounded(nano):
    model = reread(nano)
    torch.nn.init.constant_(model.clip.logit_scale, 9.0)
    assert abs(model.clamped_temperature().item() - 0.01) < 1e-8


# ---- the last block ----


def naive(block, tokens, grid, variant, reduced, temperature, sigma):
    """One photo, one head, one token at a time."""
    normed, heads = block.ln_1(tokens), block.attn.num_heads
    wide = normed.shape[-1]
    d = wide // heads
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    q, k, v = (normed @ weight[i * wide : (i + 1) * wide].T + bias[i * wide : (i + 1) * wide] for i in range(3))
    result = torch.zeros_like(tokens)
    places = [None] + [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for b in range(len(tokens)):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(tokens.shape[1]):

                def softmax(of, other, i=i, b=b, part=part, prior=None):
                    logits = [float(of[b, i, part] @ other[b, j, part]) / (temperature * math.sqrt(d)) for j in range(tokens.shape[1])]
                    if prior:
                        logits = [logit + prior(i, j) for j, logit in enumerate(logits)]
                    return torch.tensor(logits).softmax(0)

                def prior(i, j):
                    if not i or not j:
                        return 0.0
                    distance = (places[i][0] - places[j][0]) ** 2 + (places[i][1] - places[j][1]) ** 2
                    return math.exp(-distance / (2 * sigma**2))

                if variant == "maskclip":
                    result[b, i, part] = v[b, i, part]
                    continue
                if variant == "sclip":
                    weights = softmax(q, q) + softmax(k, k)
                elif variant == "clearclip":
                    weights = softmax(q, q)
                elif variant == "naclip":
                    weights = softmax(k, k, prior=prior)
                else:
                    weights = softmax(q, k)
                result[b, i, part] = weights @ v[b, :, part]
    result = result @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    if reduced:
        return result
    result = tokens + result
    return result + block.mlp(block.ln_2(result))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_variants_are_those_of_a_loop(nano, variant):
    grid = (2, 3)
    tokens = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(3))
    papers = {"clip": False, "maskclip": True, "sclip": False, "clearclip": True, "naclip": True}
    for last_block, reduced in (("paper", papers[variant]), ("full", False), ("reduced", True)):
        ours = DenseAttention(variant, last_block, temperature=0.7, sigma=1.3)(nano._last_block, tokens, grid)
        torch.testing.assert_close(ours, naive(nano._last_block, tokens, grid, variant, reduced, 0.7, 1.3), atol=2e-5, rtol=1e-4)


def test_the_prior_knows_rows_from_columns():
    prior = neighbourhood_prior((2, 3), 2.0)
    assert prior.shape == (7, 7) and not prior[0].any() and not prior[:, 0].any()
    assert torch.equal(prior.diagonal()[1:], torch.ones(6))
    assert prior[1, 4] == pytest.approx(math.exp(-1 / 8))  # the patch below
    assert prior[1, 3] == pytest.approx(math.exp(-4 / 8))  # two to the right


@torch.no_grad()
def test_every_variant_says_something_else(nano, photos):
    maps = [reread(nano, dense_attention=variant)(photos).class_logits for variant in VARIANTS]
    assert all(not torch.allclose(a, b, atol=1e-3) for k, a in enumerate(maps) for b in maps[:k])


def test_unknown_choices():
    with pytest.raises(ValueError, match="unknown dense_attention 'gem'; known: clip, maskclip"):
        build(dense_attention="gem")
    with pytest.raises(ValueError, match=f"known: {', '.join(LAST_BLOCKS)}"):
        DenseAttention("clip", "half")
    with pytest.raises(ValueError, match="above 0"):
        DenseAttention("naclip", sigma=0.0)
    with pytest.raises(ValueError, match="clip_vit_b_16"):
        architecture_config("clip_vit_h_14")


# ---- the contract ----


@torch.no_grad()
def test_output(nano):
    """Cosines on the grid of a photo that is no square, and rows stay rows."""
    photos = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    output = nano.predict(image=photos)
    assert output.class_logits.shape == (2, 3, 3, 5) and output.features.shape == (2, 64, 3, 5) and output.image_scores.shape == (2, 3)
    projected = nano.patches(photos)[1]
    cosine = F.cosine_similarity(projected[1, 1 * 5 + 3], nano.class_embeddings()[2], dim=0)
    assert output.class_logits[1, 2, 1, 3] == pytest.approx(float(cosine), abs=1e-6)
    torch.testing.assert_close(output.image_scores, nano.embed_image(photos) @ nano.class_embeddings().T)
    torch.testing.assert_close(nano.predict(image=photos[1:]).class_logits, output.class_logits[1:], atol=1e-6, rtol=0)
    for given in (photos, nano.normalised(photos)):
        assert torch.equal(nano.pixels(given), photos.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="24x41 pixels .* multiples of 8"):
        nano.predict(image=torch.zeros(1, 3, 24, 41, dtype=torch.uint8))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_mixed_precision(nano, photos, variant):
    model = reread(nano, dense_attention=variant)
    exact = model.predict(image=photos)
    model.set_classes(PROMPTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.predict(image=photos)
    assert output.class_logits.dtype == torch.float32
    torch.testing.assert_close(output.class_logits, exact.class_logits, atol=0.05, rtol=0)


@torch.no_grad()
def test_positions_of_another_size_are_interpolated(nano):
    """As the position table of a model made for that size would be."""
    photos = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    other = build(image_size=48)
    state = dict(nano.state_dict())
    report = other.upgrade_state(state)
    other.load_state_dict(state)
    assert report.resized == ["clip.visual.positional_embedding"]
    torch.testing.assert_close(other(photos).class_logits, nano(photos).class_logits, atol=1e-6, rtol=0)


@torch.no_grad()
def test_permuted_classes_permute_the_outputs(nano, photos):
    before = nano.predict(image=photos)
    order = [2, 0, 1]
    nano.set_classes([PROMPTS[k] for k in order])
    after = nano.predict(image=photos)
    nano.set_classes(PROMPTS)
    torch.testing.assert_close(after.class_logits, before.class_logits[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(after.image_scores, before.image_scores[:, order], atol=1e-6, rtol=0)


def test_pairs_have_a_gradient(photos):
    model = build(dense_attention="sclip").train()
    output = model(photos, torch.tensor([[58, 3, END], [58, END, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    loss = -(output.image_embedding * output.text_embedding).sum() / output.temperature
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_too_long_a_text(nano):
    with pytest.raises(ValueError, match="texts of 10 tokens; this CLIP reads 9"):
        nano.embed_text(torch.zeros(1, 10, dtype=torch.long), torch.ones(1, 10))


def test_architectures_are_registered():
    assert MODEL_REGISTRY["clip_dense"] is ClipDense
    assert all(ARCH_MODEL_REGISTRY[name] is ClipDense for name in ARCHITECTURES)


def test_foreign_entries_are_one_error(nano):
    state = dict(nano.state_dict())
    state["clip.visual.extra"] = state.pop("clip.visual.proj")
    with pytest.raises(CheckpointError, match=r"clip\.visual\.proj: missing; clip\.visual\.extra: unknown"):
        nano.upgrade_state(state)
