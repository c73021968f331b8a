"""SimSeg against the published implementation: every `simseg_*.npz` of --golden-dir (the dense CRF calls are in test_simseg_crf).

Tolerances are those the official code meets across library versions. Gradient norms are taken in float32, as the stored
ones were: over a few million entries that is 1e-4 away from the norm in float64.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ofaseg.evaluation.candidates import CLOSING_KERNEL, candidate_classes, foreground_maps, paint, segment_by_candidates
from ofaseg.evaluation.dense_crf import binary_crf
from ofaseg.evaluation.refine import REFINEMENTS, close_holes, nearest_resize
from ofaseg.evaluation.semantic import bin_counts, matrix_from_bins
from ofaseg.evaluation.zero_shot_settings import load_settings
from ofaseg.losses import contrastive_loss
from ofaseg.models.layers.subclass_fusion import SubclassPrompts, subclass_maps
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


# -- the whole chain on the stored photo: digest 8.2 -------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(case):
    """Our output for the stored photo, its candidates and their maps; the stored CRF calls and label map beside them."""
    arrays = case.arrays
    photo = torch.from_numpy(arrays["seg/image_uint8"]).permute(2, 0, 1)[None]
    with torch.no_grad():
        output = case.model(photo)
    calls = sum(name.endswith("_probability") for name in arrays)
    chosen = candidate_classes(output.image_scores[0], load_settings("pascal_voc"))
    maps = foreground_maps(output.class_logits[0, [k for k, _ in chosen]], tuple(photo.shape[2:]))
    masks = torch.from_numpy(np.stack([arrays[f"seg/crf_{m}_mask"] for m in range(calls)])).bool()
    label_map = torch.from_numpy(arrays["seg/label_map"].astype(np.int64))
    return SimpleNamespace(
        arrays=arrays, output=output, images=case.model.pixels(photo), calls=calls, chosen=chosen, maps=maps, masks=masks,
        label_map=label_map, size=tuple(label_map.shape),
    )  # fmt: skip


def naive_candidates(scores: np.ndarray, top_m: int = 10) -> list[int]:
    """Steps 4 and 7 of the digest in numpy."""
    order = np.argsort(-scores, kind="stable")[:top_m]
    threshold = scores[order].mean(dtype=np.float64) + scores[order].std(dtype=np.float64, ddof=1)
    chosen = []
    for k in order[:5]:
        if k != 0:
            if scores[k] < threshold:
                break
            chosen.append(int(k))
    return chosen


def test_candidates(chain):
    """As many CRF calls as candidates, and every class of the stored label map is one of them."""
    ids = [k for k, _ in chain.chosen]
    assert ids == naive_candidates(chain.output.image_scores[0].numpy()) and len(ids) == chain.calls
    assert set(chain.label_map.unique().tolist()) - {0} <= set(ids)


def test_foreground_maps(chain):
    for m in range(chain.calls):
        assert_close(chain.maps[m], chain.arrays[f"seg/crf_{m}_probability"])


def painted(chain, masks) -> torch.Tensor:
    return paint(nearest_resize(close_holes(masks, CLOSING_KERNEL), chain.size), chain.chosen)


def assert_stored_areas(chain, label_map) -> None:
    truth = torch.from_numpy(chain.arrays["seg/ground_truth"].astype(np.int64))
    truth[truth == 255] = -1
    classes = len(chain.arrays["seg/intersect"])
    matrix = matrix_from_bins(bin_counts(label_map, truth, classes), classes).double()
    assert np.array_equal(matrix.diagonal().numpy(), chain.arrays["seg/intersect"])
    assert np.array_equal((matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).numpy(), chain.arrays["seg/union"])


def test_label_map_and_areas_with_the_stored_masks(chain, monkeypatch):
    label_map = painted(chain, chain.masks)
    assert torch.equal(label_map, chain.label_map)
    assert_stored_areas(chain, label_map)
    monkeypatch.setitem(REFINEMENTS, "stored", lambda image, maps, threshold: chain.masks)
    whole = segment_by_candidates(chain.output, chain.images, [chain.size], load_settings("pascal_voc"), "stored")[0].label_map
    assert torch.equal(whole, chain.label_map)


def test_label_map_with_our_crf(chain):
    for m in range(chain.calls):
        image, probability = chain.arrays[f"seg/crf_{m}_image"], torch.from_numpy(chain.arrays[f"seg/crf_{m}_probability"])
        mask = binary_crf(image, probability[None])[0]
        assert float((mask == chain.masks[m]).double().mean()) >= 0.99, m
    found = segment_by_candidates(chain.output, chain.images, [chain.size], load_settings("pascal_voc"))[0].label_map
    assert float((found == chain.label_map).double().mean()) >= 0.99


@torch.no_grad()
def test_maps_of_subclasses(case):
    """LLM supervision's rule: each class map is that of its subclasses, weighted by how well they go with the photo."""
    if "llm/subclass_embedding" not in case.arrays:
        pytest.skip("not in this file")
    subclasses = torch.from_numpy(case.arrays["llm/subclass_embedding"])
    golden = case.arrays["llm/maps"]
    _, projected = case.model.patches(case.image[:1])
    image, classes = torch.from_numpy(case.arrays["image_embedding"])[:1], torch.from_numpy(case.arrays["class_embedding"])
    mask = torch.ones(subclasses.shape[:2], dtype=torch.bool)
    maps = subclass_maps(torch.nn.functional.normalize(projected, dim=-1), image, subclasses, mask, classes)
    assert_close(maps[0].T.reshape(golden.shape), golden)


@torch.no_grad()
def test_label_map_of_subclasses(case, chain):
    """The whole method on the stored photo: class names choose, subclasses say where (digest of LLM supervision, section 5).

    Written out class by class here, as the published loop does; a stored label map is compared as well where the file has one.
    """
    if "llm/subclass_embedding" not in case.arrays:
        pytest.skip("not in this file")
    vectors, model = torch.from_numpy(case.arrays["llm/subclass_embedding"]), case.model
    photo = torch.from_numpy(case.arrays["seg/image_uint8"]).permute(2, 0, 1)[None]
    model.set_subclasses(SubclassPrompts([[[[0]]] * vectors.shape[1]] * len(vectors)))
    model.keep_subclass_embeddings(vectors.flatten(0, 1))
    try:
        output = model(photo)
    finally:
        model.set_subclasses(None)
    assert torch.equal(output.image_scores, chain.output.image_scores)
    found = segment_by_candidates(output, chain.images, [chain.size], load_settings("pascal_voc"))[0].label_map

    patches = torch.nn.functional.normalize(model.patches(photo)[1][0], dim=-1)
    weights = torch.stack([(of_class @ model.embed_image(photo)[0]).softmax(0) for of_class in vectors])
    scores, painted_map = chain.output.image_scores[0].numpy(), np.zeros((len(vectors), *chain.size))
    for k in naive_candidates(scores):
        grid = (patches @ (weights[k] @ vectors[k])).view(photo.shape[2] // 16, -1)
        shown = ((grid - grid.min()) / (grid.max() - grid.min())).repeat_interleave(16, 0).repeat_interleave(16, 1)
        mask = nearest_resize(close_holes(binary_crf(case.arrays["seg/crf_0_image"], shown[None]), CLOSING_KERNEL), chain.size)
        painted_map[k] = mask[0].numpy() * scores[k]
    naive = torch.from_numpy(painted_map.argmax(0))
    assert float((found == naive).double().mean()) >= 0.999
    assert not torch.equal(found, chain.label_map), "subclasses change the picture"
    if "llm/label_map" in case.arrays:
        assert float((found == torch.from_numpy(case.arrays["llm/label_map"].astype(np.int64))).double().mean()) >= 0.99
