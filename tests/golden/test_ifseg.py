"""IFSeg against the published implementation: every `ifseg_*.npz` of --golden-dir, all arrays of each file.

The files hold what the official code computed in fp32 from rule-made weights (see golden_weights.py); tolerances are
those it meets itself across library versions.
"""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ofaseg.losses import upsampled_cross_entropy
from ofaseg.models.ifseg import ARCHITECTURES, SegOFA, architecture_config
from tests.golden.golden_weights import golden_state_dict, load_golden

GOLDEN_KIND = "ifseg"


def flags_of(spec: dict) -> dict[str, str]:
    """The command line of the official run: --some-flag=value -> {"some_flag": "value"}."""
    pairs = (flag[2:].partition("=") for flag in spec["flags"] if flag.startswith("--"))
    return {name.replace("-", "_"): value for name, _, value in pairs}


def build_model(spec: dict, flags: dict, class_token_ids: list[list[int]]) -> SegOFA:
    """Our model for the official flags, loaded through the ordinary path, with text-initialised classes."""

    def on(name, default="false"):
        return flags.get(name, default) in ("true", "")

    config = architecture_config(
        spec["model"],
        patch_image_size=int(flags.get("patch_image_size", 512)),
        orig_patch_image_size=int(flags.get("orig_patch_image_size", 512)),
        num_bins=int(flags.get("num_bins", 1000)),
        decoder_input_type=flags.get("decoder_input_type", "encoder_input"),
        full_context_alignment=on("full_context_alignment"),
        untie_seg_projection=not on("tie_seg_projection"),
        train_image_encoder=not on("freeze_entire_resnet"),
        frozen_batch_norm=on("freeze_resnet"),
        train_token_embedding=not (on("freeze_encoder_embedding") or on("freeze_decoder_embedding")),
        train_class_embedding=not on("freeze_seg_embedding"),
        direct_small_grids=True,
    )
    vocab_rows = spec["dictionary"]["len"] - len(spec["classes"])
    model = SegOFA(config, vocab_rows, class_token_ids, spec["dictionary"]["<pad>"], spec["dictionary"]["<s>"])
    model.load_state_dict(golden_state_dict(spec["state_dict"]))
    if on("init_seg_with_text"):
        model.init_class_embeddings()
    return model.eval()


def class_maps_of(arrays: dict, class_token_ids: list[list[int]]) -> torch.Tensor:
    """(B, h, w) class ids of the artificial samples, read back from the bags of word pieces."""
    bags, ends = arrays["artificial/class_token_bag"], arrays["artificial/bag_offsets"]
    ends = ends.reshape(len(bags), -1)
    class_of = {tuple(tokens): k for k, tokens in enumerate(class_token_ids)}
    maps = [[class_of[tuple(int(t) for t in piece)] for piece in np.split(bag[: end[-1]], end[:-1])] for bag, end in zip(bags, ends)]
    side = round(ends.shape[1] ** 0.5)
    return torch.tensor(maps).view(len(bags), side, side)


def decode_row(row) -> tuple[torch.Tensor, torch.Tensor]:
    """Base64 image and label map of a row -> uint8 (1, 3, H, W) and class ids (H, W) with -1 for no label."""
    image, label = (Image.open(io.BytesIO(base64.b64decode(text))) for text in row[:2])
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).unsqueeze(0)
    return pixels, torch.from_numpy(np.array(label).astype(np.int64)) - 1


def parse_rows(value: np.ndarray) -> list[list[str]]:
    """Rows of a stored table: one string per row, cells separated by tabs (or one array row per cell list)."""
    return [str(row).split("\t") if value.ndim == 1 else [str(cell) for cell in row] for row in value]


@pytest.fixture(scope="module")
def case(golden_file):
    spec, arrays = load_golden(str(golden_file))
    flags = flags_of(spec)
    names = range(len(spec["classes"]))
    class_token_ids = [[int(t) for t in arrays[f"tokens/class_{k}"]] for k in names]
    torch.manual_seed(0)
    model = build_model(spec, flags, class_token_ids)
    return SimpleNamespace(
        spec=spec, arrays=arrays, flags=flags, class_token_ids=class_token_ids, model=model,
        source=torch.from_numpy(arrays["tokens/source"]).long(), class_maps=class_maps_of(arrays, class_token_ids),
    )  # fmt: skip


def assert_close(ours: torch.Tensor, golden: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the golden array's largest value."""
    golden = torch.from_numpy(np.asarray(golden)).to(ours.dtype)
    assert ours.shape == golden.shape
    error = float((ours - golden).abs().max() / golden.abs().max())
    assert error <= tolerance, f"largest error {error:.2e} of the largest value"


def run(case, full_context: bool = False, **inputs):
    """Encoder output and all logits (B, P+1, C) of our model."""
    model = case.model
    batch = len(next(iter(inputs.values())))
    before = model.decoder.full_context
    model.decoder.full_context = full_context
    try:
        with torch.no_grad():
            encoded = model.encode(case.source.expand(batch, -1), **inputs)
            return encoded, model.decoder.seg_projection(model.decoder.segment(encoded, all_positions=True))
    finally:
        model.decoder.full_context = before


def strided(array: torch.Tensor, golden: np.ndarray, axis: int) -> torch.Tensor:
    """Every 16th entry along `axis`, as the golden arrays are sampled."""
    return array[(slice(None),) * axis + (slice(None, None, 16),)]


@pytest.fixture(scope="module")
def photo(case):
    pixels, labels = decode_row(parse_rows(case.arrays["rows/valid"])[0])
    encoded, logits = run(case, full_context=case.model.decoder.full_context, patch_images=pixels)
    return SimpleNamespace(pixels=pixels, labels=labels, encoded=encoded, logits=logits)


def test_architecture_is_named(case):
    assert case.spec["model"] in ARCHITECTURES


def test_tokens(case, real_data):
    from ofaseg import tokenizers
    from ofaseg.prompts import source_token_ids

    folder = str(real_data / "bpe")
    tokenizer = tokenizers.build_tokenizer(folder, "gpt2")
    dictionary = tokenizers.build_dictionary(
        folder, tokenizer, case.model.config.code_dict_size, case.model.config.num_bins, len(case.spec["classes"])
    )
    for symbol, index in case.spec["dictionary"].items():
        assert (len(dictionary) if symbol == "len" else dictionary.index(symbol)) == index

    def encode(text):
        return tokenizers.encode_text(text, tokenizer, dictionary)

    names = [*case.spec["classes"], "unknown"]
    for k, name in enumerate(names):
        assert encode(name) == case.arrays[f"tokens/class_{k}"].tolist(), name
    prompt = encode(case.spec["prompt"])
    assert prompt == case.arrays["tokens/prompt"].tolist()
    source = source_token_ids(
        prompt,
        case.class_token_ids,
        encode("unknown"),
        dictionary.bos(),
        dictionary.eos(),
        case.model.config.max_source_positions,
        names[:-1],
    )
    assert source == case.source[0].tolist()


def test_state_dict_layout(case):
    """Every official float entry is one of ours or a declared alias; shapes agree (loading was strict)."""
    own = case.model.state_dict()
    missing = [
        entry["key"] for entry in case.spec["state_dict"]
        if entry["dtype"].startswith("float") and entry["key"] not in own
    ]  # fmt: skip
    assert all(re.search(r"version$|embed_tokens_bag\.weight$|num_batches_tracked$", key) for key in missing), missing


def test_class_embeddings(case):
    if "seg_embed_after_text_init" not in case.arrays:
        pytest.skip("not in this file")
    assert_close(case.model.class_embeddings().detach(), case.arrays["seg_embed_after_text_init"], 1e-6)


def test_photo(case, photo):
    grid = case.arrays["eval_real/grid"].tolist()
    assert list(photo.encoded.grid) == grid
    features = photo.encoded.features.flatten(2).transpose(1, 2)
    assert_close(strided(features, None, 1), case.arrays["eval_real/resnet_features_every_16th"])
    assert_close(strided(photo.encoded.tokens.transpose(0, 1), None, 0), case.arrays["eval_real/encoder_out_every_16th"])
    assert_close(photo.logits, case.arrays["eval_real/logits"])


def test_forward_is_the_grid_of_those_logits(case, photo):
    output = case.model.predict(src_tokens=case.source, patch_images=photo.pixels)
    h, w = photo.encoded.grid
    expected = case.arrays["eval_real/logits"][:, : h * w].transpose(0, 2, 1).reshape(1, -1, h, w)
    assert_close(output.class_logits, expected)
    assert output.features.shape[2:] == (h, w)


def test_photo_full_context(case, photo):
    _, logits = run(case, full_context=True, patch_images=photo.pixels)
    assert_close(logits, case.arrays["eval_real_full_context/logits"])


def test_artificial(case):
    """The published code keeps its artificial pass causal, whatever the option says."""
    encoded, logits = run(case, class_maps=case.class_maps)
    assert_close(strided(encoded.tokens.transpose(0, 1), None, 0), case.arrays["eval_artificial/encoder_out_every_16th"])
    assert_close(logits, case.arrays["eval_artificial/logits"])


def test_image_free_loss_and_gradients(case):
    model, arrays = case.model, case.arrays
    target = torch.from_numpy(arrays["artificial/target_seg_ids"][:, :-1].astype(np.int64)) - case.spec["dictionary"]["<seg_0>"]
    side = round(target.shape[1] ** 0.5)
    target = target.view(-1, side, side)
    target[target == model.num_classes] = -1
    model.zero_grad()
    model.decoder.full_context, before = False, model.decoder.full_context
    logits = model(case.source.expand(len(target), -1), class_maps=case.class_maps).class_logits
    model.decoder.full_context = before
    loss = upsampled_cross_entropy(logits, target, float(case.flags.get("label_smoothing", 0.0)))
    loss.backward()
    assert abs(loss.item() / float(arrays["image_free_loss"]) - 1) < 1e-5
    parameters = dict(model.named_parameters())
    golden = dict(zip(arrays["grad/names"].tolist(), arrays["grad/norms"].tolist()))
    largest, total = max(golden.values()), 0.0
    for name, norm in golden.items():
        ours = float(parameters[name].grad.double().norm())
        total += ours**2
        if norm >= 1e-6 * largest:
            assert abs(ours / norm - 1) < 1e-4, f"{name}: {ours} against {norm}"
    assert abs(total**0.5 / float(arrays["grad/total_norm"]) - 1) < 1e-4
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad and parameter.grad is not None}
    assert set(golden) <= trained
    model.zero_grad()


def test_frozen_parameters(case):
    ours = {name for name, parameter in case.model.named_parameters() if not parameter.requires_grad}
    names = set(dict(case.model.named_parameters(remove_duplicate=False)))
    assert {name for name in case.spec.get("frozen_parameters", []) if name in names} <= ours


def areas(scores: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, torch.Tensor]:
    """Intersection, prediction, label and union areas per class of scores (K, H, W), over labelled pixels."""
    keep = labels >= 0
    prediction, label = scores.argmax(0)[keep], labels[keep]
    intersect = torch.bincount(label[prediction == label], minlength=classes)
    pred, lab = torch.bincount(prediction, minlength=classes), torch.bincount(label, minlength=classes)
    return {"intersect": intersect, "pred_label": pred, "label": lab, "union": pred + lab - intersect}


def assert_same_areas(case, scores, labels, suffix="") -> None:
    """Exact areas, but for pixels whose two best scores nearly tie (within 1e-5)."""
    best = scores.topk(2, dim=0).values
    ties = int(((best[0] - best[1]) < 1e-5)[labels >= 0].sum())
    for name, value in areas(scores, labels, case.model.num_classes).items():
        golden = case.arrays[f"valid/area_{name}{suffix}"]
        assert np.abs(value.numpy() - golden).max() <= ties, name


def test_validation(case, photo):
    h, w = photo.encoded.grid
    size, labels = tuple(photo.labels.shape), photo.labels.clone()
    labels[labels >= case.model.num_classes] = -1
    grid_logits = photo.logits[:, : h * w].transpose(1, 2).unflatten(2, (h, w))
    scores = F.interpolate(grid_logits, size=size, mode="bilinear", align_corners=False)
    loss = upsampled_cross_entropy(grid_logits, labels[None], float(case.flags.get("label_smoothing", 0.0)))
    assert abs(float(loss) / float(case.arrays["valid/loss"]) - 1) < 1e-5
    assert_same_areas(case, scores[0], labels)
    postprocess = pytest.importorskip("ofaseg.evaluation.postprocess")
    probabilities = grid_logits.softmax(1)
    propagated = postprocess.feature_propagation(
        probabilities, photo.encoded.features, int(case.flags.get("resnet_topk", 3)), int(case.flags.get("resnet_iters", 25))
    )
    assert_same_areas(case, F.interpolate(propagated, size=size, mode="bilinear", align_corners=False)[0], labels, "_resnet_postprocess")
