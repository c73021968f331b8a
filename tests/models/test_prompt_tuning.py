"""Test-time prompt tuning: the loss by hand, what changes and what does not, scopes, batches, and when nothing is tuned."""

import logging
import math

import pytest
import torch

pytest.importorskip("open_clip")

from ofaseg.models.prompt_tuning import PromptTuner, entropy_loss, novel_entropies  # noqa: E402
from tests.models.test_freeseg import PROMPTS, build  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
NOVEL, SCALE = [0, 2], 100.0


@pytest.fixture(scope="module")
def nano():
    return build()


@pytest.fixture(scope="module")
def photos():
    return torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def tuner(steps=2, learning_rate=1e-3, threshold=0.8, scope="image"):
    return PromptTuner(steps, learning_rate, threshold, scope)


def logits(tuned, model, image, classes=NOVEL, tasks=("semantic",), **options):
    return tuned.predict(model, classes, image, tasks, regions=False, **options)[tasks[-1]].class_logits[-1]


def kept_queries(model, image, task="semantic", threshold=0.8):
    """Vectors of the queries of one photo that are sure of a novel class, and their texts."""
    with torch.no_grad():
        text = model.text_features(task)
        vectors = model.query_vectors(model.encode(image).pixels, text)[0]
        return vectors[novel_entropies(vectors, text[NOVEL], SCALE) < threshold * math.log(len(NOVEL))], text[NOVEL]


# ---- loss ----


def test_loss_by_hand():
    """Two queries, three novel classes, the formula written out."""
    vectors, texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    entropies = []
    for x, y in vectors.tolist():
        weights = [math.exp(2 * (x * a + y * b)) for a, b in texts.tolist()]
        scores = [weight / sum(weights) for weight in weights]
        entropies.append(-sum(s * math.log(s) for s in scores))
    assert novel_entropies(vectors, texts, 2.0).tolist() == pytest.approx(entropies)
    assert entropy_loss(vectors, texts, 2.0).item() == pytest.approx(sum(entropies) / (3 * 2))
    same = torch.tensor([[1.0, 0.0]] * 3)
    assert novel_entropies(vectors, same, 2.0).tolist() == pytest.approx([math.log(3)] * 2)
    assert novel_entropies(vectors, texts, 1e4).isfinite().all()


def test_the_entropy_of_the_kept_queries_falls(nano, photos):
    """Those below the threshold before tuning; the rest of the queries has no say."""
    kept, texts = kept_queries(nano, photos[:1])
    assert 0 < len(kept) < nano.config.num_queries
    before, tuned = entropy_loss(kept, texts, SCALE), tuner(steps=5)
    logits(tuned, nano, photos[:1])
    with torch.no_grad():
        after = entropy_loss(kept, nano.prompted_embeddings("semantic", tuned.prompt, torch.tensor(NOVEL)), SCALE)
    assert after < before * 0.999


def test_the_first_step_goes_against_the_gradient_of_the_kept_queries(nano, photos):
    """Adam's first step has the length of the rate in every coordinate; its signs are those of a gradient made by hand."""
    kept, _ = kept_queries(nano, photos[:1])
    prompt = nano.prompt.class_prompt.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_loss(kept, nano.text_features("semantic", prompt)[NOVEL], SCALE), prompt)
    tuned = tuner(steps=1, learning_rate=0.01)
    logits(tuned, nano, photos[:1])
    step = tuned.prompt.detach() - nano.prompt.class_prompt.detach()
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(step[clear], -0.01 * gradient.sign()[clear], atol=1e-4, rtol=0)


# ---- what changes ----


@torch.no_grad()
def test_scores_change_and_the_model_does_not(nano, photos):
    before, state = nano.predict(photos, regions=False)["semantic"], {key: value.clone() for key, value in nano.state_dict().items()}
    trained = [name for name, parameter in nano.named_parameters() if parameter.requires_grad]
    tuned = logits(tuner(learning_rate=0.01), nano, photos)
    assert not torch.allclose(tuned, before.class_logits[-1], atol=1e-3)
    assert all(torch.equal(value, state[key]) for key, value in nano.state_dict().items())
    assert [name for name, parameter in nano.named_parameters() if parameter.requires_grad] == trained
    assert all(parameter.grad is None for parameter in nano.parameters())
    assert torch.equal(nano.predict(photos, regions=False)["semantic"].class_logits[-1], before.class_logits[-1])


def test_the_result_is_what_the_tuned_prompt_decodes_to(photos):
    """Masks, scores and regions are those of a model whose class prompt is the tuned one."""
    model, tuned = build(), tuner(learning_rate=0.05)
    output = tuned.predict(model, NOVEL, photos[:1], ("instance",))["instance"]
    with torch.no_grad():
        model.prompt.class_prompt.copy_(tuned.prompt)
    expected = model.predict(photos[:1], ("instance",))["instance"]
    torch.testing.assert_close(output.class_logits[-1], expected.class_logits[-1], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(output.mask_logits, expected.mask_logits, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(output.region_logits, expected.region_logits, atol=1e-3, rtol=1e-4)
    assert torch.equal(output.region_valid, expected.region_valid)


@torch.no_grad()
def test_each_photo_starts_anew(nano, photos):
    """Bit by bit, whatever photos and tasks came between."""
    tuned = tuner(learning_rate=0.01)
    first, second = logits(tuned, nano, photos[:1]), logits(tuned, nano, photos[1:2])
    assert torch.equal(logits(tuned, nano, photos[:1]), first)
    assert torch.equal(logits(tuned, nano, photos[1:2], tasks=("panoptic", "semantic")), second)


@torch.no_grad()
def test_batches_are_photos_after_one_another(nano, photos):
    together, sizes = logits(tuner(), nano, photos), [(50, 70), (64, 96), (64, 96)]
    alone = torch.cat([logits(tuner(), nano, photo[None]) for photo in photos])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=1e-3)
    padded = logits(tuner(), nano, photos, sizes=sizes)
    torch.testing.assert_close(padded[:1], logits(tuner(), nano, photos[:1, :, :50, :70]), atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_a_set_goes_on_from_photo_to_photo(photos):
    model, tuned = build(), tuner(learning_rate=0.01, scope="set")
    first = logits(tuned, model, photos[:1])
    torch.testing.assert_close(first, logits(tuner(learning_rate=0.01), model, photos[:1]))
    prompt = tuned.prompt.detach().clone()
    again = logits(tuned, model, photos[:1])
    assert not torch.allclose(again, first, atol=1e-3) and not torch.equal(tuned.prompt, prompt)
    other = tuner(learning_rate=0.01, scope="set")
    torch.testing.assert_close(logits(other, model, photos[[0, 0]])[1:], again)
    model.set_classes(PROMPTS[:2])
    logits(tuned, model, photos[:1], classes=[0, 1])
    fresh = tuner(learning_rate=0.01, scope="set")
    logits(fresh, model, photos[:1], classes=[0, 1])
    assert torch.equal(tuned.prompt, fresh.prompt), "other classes begin anew"
    model.prompt.class_prompt.mul_(1.5)
    logits(tuned, model, photos[:1], classes=[0, 1])
    assert (tuned.prompt - model.prompt.class_prompt).abs().max() < 0.021, "so does another prompt"


@torch.no_grad()
def test_photos_are_encoded_once(photos, monkeypatch):
    model, calls = build(dropout=0.3).train(), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *args: calls.append(1) or encode(*args))
    outputs = tuner(steps=3).predict(model, NOVEL, photos, ("semantic", "panoptic"))
    assert calls == [1] and model.training and list(outputs) == ["semantic", "panoptic"]
    assert outputs["panoptic"].region_logits.shape == (3, 20, 4) and outputs["panoptic"].mask_logits.shape == (3, 20, 16, 24)


@torch.no_grad()
def test_mixed_precision(nano, photos):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits(tuner(), nano, photos[:1])
    error = (found.float() - logits(tuner(), nano, photos[:1])).abs()
    assert found.isfinite().all() and error.median() < 1, "a query whose mask flips in half precision may differ by more"


# ---- nothing to tune ----


@torch.no_grad()
@pytest.mark.parametrize("classes", [[], [1]])
def test_fewer_than_two_novel_classes(nano, photos, caplog, classes):
    tuned = tuner()
    with caplog.at_level(logging.WARNING):
        found = [logits(tuned, nano, photos, classes=classes) for _ in range(2)]
    assert all(torch.equal(one, nano.predict(photos, regions=False)["semantic"].class_logits[-1]) for one in found)
    assert len(caplog.records) == 1 and f"{len(classes)} novel classes" in caplog.text and "tuning_classes=all" in caplog.text


@torch.no_grad()
def test_no_query_is_sure_enough(nano, photos):
    tuned = tuner(threshold=1e-9)
    assert torch.equal(logits(tuned, nano, photos[:1]), nano.predict(photos[:1], regions=False)["semantic"].class_logits[-1])
    assert tuned.prompt is None


def test_settings_that_cannot_be(photos):
    for settings in [(0,), (1, 0.0), (1, float("nan")), (1, 1e-3, 0.0), (1, 1e-3, 1.1), (1, 1e-3, 0.5, "batch")]:
        with pytest.raises(ValueError, match="give at least 1 step"):
            PromptTuner(*settings)
    for classes in (NOVEL, NOVEL[:1]):  # whether there is something to tune or not
        with pytest.raises(ValueError, match="use one of the two"):
            tuner().predict(build(frozen_prompts=True, first_task_text=True), classes, photos, ("semantic",))
