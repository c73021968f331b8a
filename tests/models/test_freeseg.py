"""FreeSeg: masks and scores of the nano model, padding and photo sizes, text vectors per task, regions, classes, gradients."""

import pytest
import torch
import torch.nn.functional as F
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY

pytest.importorskip("open_clip")

from ofaseg.mask_losses import mask_set_losses, supervised_layers  # noqa: E402
from ofaseg.mask_matching import match_masks  # noqa: E402
from ofaseg.models.freeseg import ARCHITECTURES, TASKS, FreeSeg, architecture_config  # noqa: E402
from ofaseg.models.layers.region_crops import boxes_of  # noqa: E402
from ofaseg.models.state import CheckpointError  # noqa: E402
from ofaseg.structures import MaskTargets  # noqa: E402

START, END = 49406, 49407
PROMPTS = [[[START, 320, 321, END]], [[START, 1237, END]], [[START, 999, 17, 18, END]]]

pytestmark = pytest.mark.usefixtures("one_thread")


def build(**options) -> FreeSeg:
    """The nano model with every trained weight at random, norms and offsets too."""
    torch.manual_seed(4)
    model = FreeSeg(architecture_config("freeseg_nano", **options), PROMPTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "token_embedding" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def nano():
    return build(dropout=0.0)


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# ---- masks and scores ----


@torch.no_grad()
def test_output(nano, photos):
    output = nano(photos)
    assert output.mask_logits.shape == (2, 20, 16, 24) and [logits.shape for logits in output.class_logits] == [(2, 20, 4)]
    nano.train()
    every = nano(photos)
    nano.eval()
    assert len(every.class_logits) == len(every.mask_embeddings) == 4  # before and after each of 3 layers
    torch.testing.assert_close(every.mask_logits, output.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(every.class_logits[-1], output.class_logits[-1], atol=1e-3, rtol=1e-4)
    assert output.class_logits[-1].abs().max() <= 100.01  # cosines times 100


def test_without_interaction_masks_do_not_depend_on_texts(photos):
    """With it they do; without it its weights are not trained either."""
    for without in (False, True):
        model = build(dropout=0.0, without_interaction=without)
        assert {p.requires_grad for p in model.interaction.parameters()} == {not without}
        with torch.no_grad():
            every, some = model(photos), model(photos, rows=torch.tensor([1, 3]))
        assert torch.equal(every.mask_logits, some.mask_logits) == without


@torch.no_grad()
def test_rows_stay_rows(nano, photos):
    both, one = nano(photos), nano(photos[1:])
    torch.testing.assert_close(one.mask_logits, both.mask_logits[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.class_logits[-1], both.class_logits[-1][1:], atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_any_size_is_padded_with_what_is_zero_after_normalisation(nano, photos):
    """A photo of 50 x 70 alone is the same as in a batch with a larger one, whatever the padding holds."""
    small = photos[0, :, :50, :70]
    padded = photos.clone()
    assert padded[0, :, 50:].any()
    alone = nano(small[None])
    assert alone.mask_logits.shape[2:] == (16, 24)
    together = nano(padded, sizes=[(50, 70), (64, 96)])
    torch.testing.assert_close(together.mask_logits[:1], alone.mask_logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(nano(padded).mask_logits[:1], alone.mask_logits, atol=1e-2)
    mean = nano.pixel_mean.expand(1, 3, 64, 96).clone()  # 0 after normalisation
    mean[0, :, :50, :70] = small.float()
    torch.testing.assert_close(nano(mean).mask_logits, alone.mask_logits, atol=1e-4, rtol=1e-4)


def test_training_reaches_every_weight(photos):
    model = build().train()
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, :20, :30], masks[1, 30:, 50:], masks[2, 5:60, 40:60] = True, True, True
    targets = MaskTargets(masks, torch.tensor([0, 2, 1]), (2, 1))
    output, layers = model(photos, "panoptic"), supervised_layers(4, all_auxiliary=True)
    losses = mask_set_losses(output, targets, match_masks(output, targets, layers=list(layers)), torch.tensor(3.0), layers=layers)
    sum(losses.values()).backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("clip.") for name in trained)
    without = [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


@pytest.mark.slow  # tracing takes many times longer than running
@torch.no_grad()
def test_compiled_without_a_break(nano, photos):
    """Interaction and predictor are one graph, and so are the photos' maps."""
    text, pixels = nano.text_features(), nano.encode(photos).pixels

    def decode(pixels, text):
        return nano.decode(pixels, text, last_only=True).mask_logits

    for function, arguments in ((decode, (pixels, text)), (nano.pixel_decoder, (nano.image_encoder(photos.float() / 255),))):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        ours, expected = compiled(*arguments), function(*arguments)
        for one, other in zip(torch.utils._pytree.tree_leaves(ours), torch.utils._pytree.tree_leaves(expected)):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_mixed_precision(nano, photos):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = nano(photos)
    assert output.mask_logits.isfinite().all() and output.mask_features.shape == (2, 64, 16, 24)


# ---- texts ----


@torch.no_grad()
def test_text_vectors_of_tasks(nano):
    vectors = {task: nano.text_features(task) for task in TASKS}
    for one in vectors.values():
        assert one.shape == (4, 40)
        torch.testing.assert_close(one.norm(dim=1), torch.ones(4))
    assert not torch.allclose(vectors["semantic"][:3], vectors["panoptic"][:3], atol=1e-3)
    assert torch.equal(vectors["semantic"][3], vectors["instance"][3])  # no object
    with pytest.raises(ValueError, match="unknown task 'pan'; known: semantic, instance, panoptic"):
        nano.text_features("pan")


def encodings(model, monkeypatch) -> list:
    """The tasks that texts are encoded for from now on."""
    calls, encode = [], model._encode
    monkeypatch.setattr(model, "_encode", lambda task, rows=None: calls.append(task) or encode(task, rows))
    return calls


def test_text_vectors_are_kept_until_something_changes(monkeypatch):
    model = build()
    calls = encodings(model, monkeypatch)
    with torch.no_grad():
        before = model.class_embeddings("semantic")
        assert model.class_embeddings("semantic") is before and calls == ["semantic"]
        model.class_embeddings("panoptic")
        model.prompt.class_prompt.mul_(-1)
        assert not torch.allclose(model.class_embeddings("semantic"), before, atol=1e-3)
        model.set_classes(PROMPTS[:2])
        assert model.class_embeddings("semantic").shape == (2, 40)
    assert calls == ["semantic", "panoptic", "semantic", "semantic"]
    assert model.class_embeddings("semantic").requires_grad  # trained with the rest: made anew, with gradient
    model.load_state_dict(build().state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model.class_embeddings("semantic"), before[:2], atol=1e-6, rtol=0)


def test_frozen_prompts_keep_their_texts_in_training(monkeypatch):
    model = build(frozen_prompts=True).train()
    calls = encodings(model, monkeypatch)
    vectors = [model.class_embeddings(task) for task in ("panoptic", "semantic", "panoptic")]
    assert calls == ["panoptic", "semantic"] and not torch.allclose(vectors[0], vectors[1], atol=1e-3)
    assert model.text_features("semantic").requires_grad  # of no object


def test_the_first_tasks_texts_as_published(monkeypatch):
    """With frozen prompts one option brings back the published cache, which knows no tasks."""
    model = build(frozen_prompts=True, first_task_text=True)
    model.first_task = "panoptic"  # whatever is asked for first: so a run that is resumed goes on with the same texts
    calls = encodings(model, monkeypatch)
    assert model.class_embeddings("semantic") is model.class_embeddings("instance") and calls == ["panoptic"]
    trained = build(first_task_text=True)
    calls = encodings(trained, monkeypatch)
    with torch.no_grad():
        trained.class_embeddings("panoptic"), trained.class_embeddings("semantic")
    assert calls == ["panoptic", "semantic"]


@torch.no_grad()
def test_scores_are_float32_under_autocast(photos):
    """And so are kept texts: whoever asks first, in whatever precision, leaves the same ones."""
    model, clean = build(frozen_prompts=True).eval(), build(frozen_prompts=True).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model.predict(photos[:1])["semantic"]
    assert output.class_logits[-1].dtype == output.region_logits.dtype == torch.float32
    assert torch.equal(model.class_embeddings(), clean.class_embeddings())
    expected = clean.predict(photos[:1])["semantic"].class_logits[-1]
    assert torch.equal(model.predict(photos[:1])["semantic"].class_logits[-1], expected)


def test_half_precision_is_refused(nano):
    for convert in (nano.half, nano.bfloat16):
        with pytest.raises(ValueError, match="use --autocast bf16"):
            convert()


@torch.no_grad()
def test_permuted_classes_permute_the_scores(nano, photos):
    before = nano(photos[:1]).class_logits[-1]
    order = [2, 0, 1]
    nano.set_classes([PROMPTS[k] for k in order])
    after = nano(photos[:1]).class_logits[-1]
    nano.set_classes(PROMPTS)
    torch.testing.assert_close(after, before[..., [*order, 3]], atol=1e-3, rtol=1e-4)


def test_classes_that_cannot_be():
    model = FreeSeg(architecture_config("freeseg_nano"))
    with pytest.raises(ValueError, match="no classes"):
        model.text_features()
    with pytest.raises(ValueError, match="class 0 has 2 texts; .* templates=name"):
        model.set_classes([[[START, 5, END], [START, 6, END]]])
    with pytest.raises(ValueError, match="the name of class 1 .from 0. has 60 tokens; at most 45"):
        model.set_classes([[[START, 5, END]], [[START, *[6] * 60, END]]])
    with pytest.raises(ValueError, match="freeseg_r101c"):
        architecture_config("freeseg_r152")
    assert MODEL_REGISTRY["freeseg"] is FreeSeg and all(ARCH_MODEL_REGISTRY[name] is FreeSeg for name in ARCHITECTURES)


# ---- prediction ----


@torch.no_grad()
def test_predict_of_several_tasks(photos, monkeypatch):
    """The photos are encoded once; every task is what the model says of it alone; the training mode comes back."""
    model = build(dropout=0.3).train()
    calls, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda *args: calls.append(1) or encode(*args))
    outputs = model.predict(photos, ("panoptic", "instance"))
    assert model.training and len(calls) == 1 and list(outputs) == ["panoptic", "instance"]
    for task, output in outputs.items():
        alone = model.eval()(photos, task)
        torch.testing.assert_close(output.mask_logits, alone.mask_logits)
        assert torch.equal(output.class_logits[-1], alone.class_logits[-1])
    assert model.predict(photos, regions=False)["semantic"].region_logits is None


@torch.no_grad()
def test_regions(nano, photos):
    """CLIP reads each masked region, cut out and resized, as if it were a photo of its own; where there is none it says nothing."""
    sizes = [(64, 96), (50, 70)]
    image = photos.clone()
    image[1, :, 50:], image[1, :, :, 70:] = 0, 0
    threshold = 0.6
    nano.config.mask_threshold = threshold
    output = nano.predict(image, ("instance",), sizes)["instance"]
    nano.config.mask_threshold = 0.5
    assert output.region_logits.shape == (2, 20, 4) and output.region_valid.any()
    assert not output.region_logits[~output.region_valid].any()
    text, (height, width) = nano.text_features("instance"), sizes[1]
    wide = F.interpolate(output.mask_logits[1:], size=(64, 96), mode="bilinear", align_corners=True)[0, :, :height, :width]
    masks = wide.sigmoid() > threshold
    assert torch.equal(masks.flatten(1).any(1), output.region_valid[1])
    for query in output.region_valid[1].nonzero().flatten().tolist()[:3]:
        left, top, right, bottom = boxes_of(masks[query : query + 1])[0][0].tolist()
        colours = torch.where(masks[query], image[1, :, :height, :width].float(), nano.clip_mean)[:, top:bottom, left:right]
        region = F.interpolate(((colours - nano.clip_mean) / nano.clip_std)[None], (32, 32), mode="bicubic", align_corners=True)
        expected = 100 * nano.clip.encode_image(region, normalize=True) @ text.T
        torch.testing.assert_close(output.region_logits[1, query], expected[0], atol=2e-3, rtol=0)


@torch.no_grad()
def test_no_region_at_all(nano, photos):
    nano.config.mask_threshold = 1.1
    output = nano.predict(photos)["semantic"]
    nano.config.mask_threshold = 0.5
    assert not output.region_valid.any() and not output.region_logits.any()


def test_foreign_entries_are_one_error(nano):
    state = dict(nano.state_dict())
    state["predictor.extra"] = state.pop("predictor.query_features")
    with pytest.raises(CheckpointError, match=r"predictor\.query_features: missing; predictor\.extra: unknown"):
        nano.upgrade_state(state)


def test_regions_are_read_at_least_one_at_a_time():
    with pytest.raises(ValueError, match="region_batch 0"):
        FreeSeg(architecture_config("freeseg_nano", region_batch=0))
