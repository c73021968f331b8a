"""FreeSeg against the published implementation: every `freeseg_*.npz` of --golden-dir that has a model, all arrays of each file.

Tolerances are those the official code meets across library versions. Backbone, CLIP, vocabularies and sizes are read from the file.

The files' texts begin with task words that no entry of the state dict holds: see `tests/golden/task_words.py`.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("open_clip")

from ofaseg.checkpoints.freeseg import infer_architecture  # noqa: E402
from ofaseg.clip_bpe import ClipTokenizer, find_merges  # noqa: E402
from ofaseg.evaluation.mask_postprocess import MaskRules, panoptic_segments  # noqa: E402
from ofaseg.evaluation.mask_proposals import class_map, classify_masks, semantic_maps, upsample_masks  # noqa: E402
from ofaseg.mask_losses import mask_set_losses, supervised_layers  # noqa: E402
from ofaseg.mask_matching import Match, match_masks  # noqa: E402
from ofaseg.models.freeseg import TASKS, FreeSeg, architecture_config  # noqa: E402
from ofaseg.models.freeseg_state import CONSTANTS, to_official, to_ours  # noqa: E402
from ofaseg.structures import MaskTargets  # noqa: E402
from tests.golden.golden_weights import golden_state_dict, load_golden  # noqa: E402
from tests.golden.gradient_norms import assert_norms  # noqa: E402
from tests.golden.task_words import first_task_words  # noqa: E402

GOLDEN_KIND = "freeseg"
pytestmark = pytest.mark.slow  # 50 million rule-made weights and three backward passes
STEP = {"backbone": 16, "mask_features": 16, "maps": 8}
"""Every how many-th channel is stored, see the notes of the files."""
SHORT = {"semantic": "sem", "instance": "ins", "panoptic": "pan"}


def assert_close(ours: torch.Tensor, golden: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the golden array's largest value."""
    golden = torch.from_numpy(np.asarray(golden))
    assert ours.shape == golden.shape
    error = float((ours.detach() - golden).abs().max() / golden.abs().max())
    assert error <= tolerance, f"largest error {error:.2e} of the largest value"


def prompts_of(names) -> list[list[list[int]]]:
    ids, mask = ClipTokenizer(find_merges(""))([name.strip() for name in names], 77)
    return [[row[: int(length)]] for row, length in zip(ids.tolist(), mask.sum(1).tolist())]


def stacked(images) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Photos of different sizes as a batch, and their sizes."""
    sizes = [tuple(image.shape[1:]) for image in images]
    batch = torch.zeros(len(images), 3, max(h for h, _ in sizes), max(w for _, w in sizes), dtype=torch.uint8)
    for row, image in zip(batch, images):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


@pytest.fixture(scope="module")
def case(golden_file):
    spec, arrays = load_golden(str(golden_file))
    if "state_dict" not in spec:
        pytest.skip("post-processing alone, without a model")
    official = golden_state_dict(spec["state_dict"])
    state = to_ours(official)
    name, options = infer_architecture({key: value for key, value in state.items() if key not in CONSTANTS}, str(golden_file))
    model = FreeSeg(architecture_config(name, **options, dropout=0.0), prompts_of(spec["train_classes"]))
    loaded = dict(official)
    report = model.upgrade_state(loaded)
    model.load_state_dict(loaded, strict=True)
    model.eval().task_words = first_task_words(spec["clip"]).__getitem__
    images = [torch.from_numpy(arrays[f"input/image_{n}"]) for n in range(sum(key.startswith("input/image_") for key in arrays))]
    batch, sizes = stacked(images)
    return SimpleNamespace(
        spec=spec, arrays=arrays, model=model, official=official, report=report, images=images, batch=batch, sizes=sizes,
        tasks=[task for task in TASKS if f"stage/text/{task}" in arrays],
    )  # fmt: skip


def test_layout_and_the_way_back(case):
    """Nothing changes on loading but entries without weights, and what is exported is the official file to the bit."""
    assert case.report.filled == case.report.resized == [] and case.report.dropped == list(CONSTANTS)
    exported = to_official(case.model.state_dict(), classes=len(case.spec["train_classes"]))
    assert set(exported) == set(case.official)
    for key, value in case.official.items():
        assert torch.equal(exported[key], value) and exported[key].dtype == value.dtype, key


@torch.no_grad()
def test_text_features(case):
    for task in case.tasks:
        assert_close(case.model.text_features(task)[::4], case.arrays[f"stage/text/{task}"])


@pytest.fixture(scope="module")
def stages(case):
    """Every stage of the training batch in evaluation mode, with the texts of the first task."""
    model = case.model.eval()
    with torch.no_grad():
        padded = []
        hook = model.image_encoder.register_forward_pre_hook(lambda module, args: padded.append(args[0]))
        maps = []
        other = model.image_encoder.register_forward_hook(lambda module, args, result: maps.append(result))
        pixels = model.encode(case.batch, case.sizes).pixels
        hook.remove(), other.remove()
        text = model.text_features(case.tasks[0])
        mixed = model.interaction([*pixels.maps, pixels.mask_features], text)
        predictions = model.predictor(mixed[:3], mixed[3], last_only=True)
        output = model(case.batch, case.tasks[0], case.sizes)
    return SimpleNamespace(padded=padded[0], maps=maps[0], pixels=pixels, mixed=mixed, predictions=predictions, output=output)


def test_backbone_and_pixel_decoder(case, stages):
    assert_close(stages.padded[:, :, ::8, ::8], case.arrays["stage/padded_every_8th"])
    for level, found in stages.maps.items():
        step = STEP["backbone"]
        # positions are sampled where there are many
        golden = case.arrays[f"stage/{level}_sampled"]
        places = 2 if golden.shape[2] < found.shape[2] else 1
        assert_close(found[:, ::step, ::places, ::places], golden)
    assert_close(stages.pixels.mask_features[:, :: STEP["mask_features"], ::2, ::2], case.arrays["stage/mask_features_sampled"])
    for number, found in enumerate(stages.pixels.maps):
        assert_close(found[:, :: STEP["maps"]], case.arrays[f"stage/multi_scale_{number}_sampled"])


def test_interaction(case, stages):
    for number, found in enumerate(stages.mixed[:3]):
        assert_close(found[:, :: STEP["maps"]], case.arrays[f"stage/interaction_multi_scale_{number}_sampled"])
    mask_features = stages.mixed[3][:, :: STEP["mask_features"], ::2, ::2]
    assert_close(mask_features, case.arrays["stage/interaction_mask_features_sampled"])


def test_queries(case, stages):
    embeddings = stages.predictions.embeddings[-1][:, ::4]
    golden = case.arrays["stage/query_embedding"]
    if abs(np.linalg.norm(golden[0, 0]) - 1) < 1e-4:
        embeddings = F.normalize(embeddings, dim=-1)
    assert_close(embeddings, golden, 1e-4)
    assert_close(stages.output.mask_logits[:, ::4], case.arrays["stage/mask_logits"], 1e-4)
    assert_close(stages.output.class_logits[-1][:, ::4], case.arrays["stage/class_logits"], 1e-4)


def targets_of(case, task: str) -> MaskTargets:
    """The stored masks at the size of the padded batch."""
    height, width = (-(-side // 32) * 32 for side in case.batch.shape[2:])
    masks, classes = [], []
    for n in range(len(case.images)):
        own = torch.from_numpy(case.arrays[f"input/gt_{n}_{SHORT[task]}_masks"])
        masks.append(F.pad(own, (0, width - own.shape[2], 0, height - own.shape[1])))
        classes.append(torch.from_numpy(case.arrays[f"input/gt_{n}_{SHORT[task]}_classes"]))
    return MaskTargets(torch.cat(masks), torch.cat(classes), tuple(map(len, masks)))


@torch.no_grad()
def cost_of(output, targets: MaskTargets, photo: int, pairs: torch.Tensor) -> float:
    """What the assignment of queries to targets, `pairs` (2, N), costs by the last prediction, in double precision."""
    start = targets.starts[photo]
    logits, masks = output.mask_logits[photo, pairs[0]].double(), targets.masks[start + pairs[1]].double()
    masks, classes = F.interpolate(masks[None], logits.shape[1:], mode="nearest")[0], targets.classes[start + pairs[1]]
    probs, signs = logits.sigmoid(), 2 * masks - 1
    focal = (0.25 + 0.5 * (1 - masks)) * (-signs * logits).sigmoid().square() * F.softplus(-signs * logits)
    dice = 1 - (2 * (probs * masks).sum((1, 2)) + 1) / ((probs + masks).sum((1, 2)) + 1)
    own = output.class_logits[-1][photo].double().softmax(-1)[pairs[0], classes]
    return float((20 * focal.mean((1, 2)) + 5 * dice - own).sum())


def as_stored(output, targets: MaskTargets, photo: int, match: Match, pairs: torch.Tensor) -> Match:
    """The match of a photo, whose first row must be the stored assignment; or a tie with it, that the stored one then replaces.

    Rule-made weights saturate logits: which of two assignments is cheaper may hang on the last bit of a sum, and so on the number of
    threads. A tie is what differs by less than 1e-5 of the cost.
    """
    found = torch.stack([match.queries[0], match.targets[0]])
    if not torch.equal(found, pairs):
        costs = [cost_of(output, targets, photo, assignment) for assignment in (found, pairs)]
        assert abs(costs[0] - costs[1]) < 1e-5 * costs[1], f"photo {photo}: {found.tolist()} costs {costs[0]}, the stored one {costs[1]}"
    return Match(*(torch.cat([row[None], rows[1:]]) for row, rows in zip(pairs, match)))


def gradient_norms(model, losses) -> dict[str, float]:
    """Official name -> Euclidean norm of the gradient of the losses' sum; the gradients are gone afterwards."""
    model.zero_grad()
    sum(losses.values()).backward()
    trained = to_official({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
    norms = {name: float(parameter.grad.norm()) for name, parameter in trained.items()}
    model.zero_grad()
    return norms


@pytest.mark.parametrize("task", TASKS)
def test_matching_losses_and_gradients(case, task):
    if f"loss/{task}/names" not in case.arrays:
        pytest.skip("not in this file")
    model, arrays, targets = case.model.train(), case.arrays, targets_of(case, task)
    model.zero_grad()
    output = model(case.batch, task, case.sizes)
    layers = supervised_layers(len(output.class_logits))
    matches = match_masks(output, targets, layers=list(layers))
    stored = [torch.from_numpy(arrays[f"match/{task}/{n}"]) for n in range(len(case.images))]
    if task == case.tasks[0]:
        matches = [as_stored(output, targets, n, match, pairs) for n, (match, pairs) in enumerate(zip(matches, stored))]
    else:  # the stored assignments are those of the prediction for the first task, whatever the targets
        with torch.no_grad():
            first = model(case.batch, case.tasks[0], case.sizes)
        for n, (match, pairs) in enumerate(zip(match_masks(first, targets, layers=[-1]), stored)):
            as_stored(first, targets, n, match, pairs)

    def losses_of(output):
        return mask_set_losses(output, targets, matches, torch.tensor(float(len(targets.classes))), layers=layers)

    losses = losses_of(output)
    golden = dict(zip(arrays[f"loss/{task}/names"].tolist(), arrays[f"loss/{task}/values"].tolist()))
    assert set(golden) == set(losses)
    errors = {name: abs(float(losses[name].detach()) / value - 1) for name, value in golden.items()}
    assert max(errors.values()) < 1e-5, errors
    golden = dict(zip(arrays[f"grad/{task}/names"].tolist(), arrays[f"grad/{task}/norms"].tolist()))
    assert_norms(gradient_norms(model, losses), golden, lambda: gradient_norms(model, losses_of(model(case.batch, task, case.sizes))))
    model.eval()


# ---- inference ----

ENSEMBLE_WEIGHT = {"voc": {"R50": 0.7, "R101c": 0.8}, "coco": 0.8, "ade": 0.8}
"""CLIP_ENSEMBLE_WEIGHT of the official configurations."""


def ensemble_weight(configuration: str) -> float:
    """Of an official configuration, such as coco-stuff-164k-156/mask2former_R50_alltask_bs32_60k.yaml."""
    weight = next(value for start, value in ENSEMBLE_WEIGHT.items() if configuration.startswith(start))
    return weight if isinstance(weight, float) else next(value for size, value in weight.items() if size in configuration)


@pytest.fixture(scope="module")
def inference(case):
    """(number, task) -> proposals of a photo of the batch at its own size, over the vocabulary of the test."""
    spec, model = case.spec, case.model.eval()
    seen, weight = torch.tensor(spec["seen_flag"]).bool(), ensemble_weight(spec["official_config"])
    model.set_classes(prompts_of(spec["test_classes"]))
    try:
        outputs = model.predict(case.batch, case.tasks, case.sizes)
    finally:
        model.set_classes(prompts_of(spec["train_classes"]))
    found = {}
    for task, output in outputs.items():
        padded = tuple(model.grid_stride * side for side in output.mask_logits.shape[2:])
        for n, size in enumerate(case.sizes):
            masks = upsample_masks(output.mask_logits[n], padded, size)
            regions = (output.region_logits[n], output.region_valid[n])
            found[n, task] = classify_masks(masks, output.class_logits[-1][n], *regions, seen, weight)
    return found


def near_ties(proposals, size) -> torch.Tensor:
    """(H, W) bool: pixels whose two best classes are equal up to rounding."""
    scores = F.interpolate(semantic_maps(proposals)[None], size=size, mode="bilinear", align_corners=False)[0]
    best = scores.topk(2, 0).values
    return best[0] - best[1] < 1e-5


def test_semantic_scores(case, inference):
    for n in range(len(case.images)):
        golden = torch.from_numpy(case.arrays[f"inference/{n}/semantic_argmax"].astype(np.int64))
        proposals = inference[n, case.tasks[0]]
        scores = F.interpolate(semantic_maps(proposals)[None], golden.shape, mode="bilinear", align_corners=False)[0]
        assert_close(scores[:, ::16, ::16], case.arrays[f"inference/{n}/semantic_scores_every_16th"], 1e-4)
        ties = near_ties(proposals, golden.shape)
        assert torch.equal(class_map(proposals, golden.shape)[~ties], golden[~ties]) and ties.double().mean() < 0.01


def test_panoptic_maps(case, inference):
    thing = torch.tensor([name in case.spec["thing_classes"] for name in case.spec["test_classes"]])
    stored = [n for n in range(len(case.images)) if f"inference/{n}/panoptic" in case.arrays and (n, "panoptic") in inference]
    if not stored:
        pytest.skip("not in this file")
    for n in stored:
        golden = torch.from_numpy(case.arrays[f"inference/{n}/panoptic"])
        proposals = inference[n, "panoptic"]
        found = panoptic_segments(proposals, thing, tuple(golden.shape), MaskRules(overlap_threshold=0.5)).segment_map
        ties = near_ties(proposals, golden.shape)
        # a mask that ends within rounding of a pixel may take it or not
        assert float((found == golden)[~ties].double().mean()) > 0.9999
