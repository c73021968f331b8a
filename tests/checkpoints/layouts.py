"""Small state dicts in the official key layouts, with rule-made weights."""

import torch

from ofaseg.models.ifseg import SegOFA, architecture_config
from tests.golden.golden_weights import golden_tensor

VOCABULARY = 60
CLASS_TOKENS = [[4, 5], [6], [7, 8, 9]]


def nano(class_token_ids=CLASS_TOKENS, rows: int = VOCABULARY, **options) -> SegOFA:
    """A small model in evaluation mode."""
    torch.manual_seed(1)
    return SegOFA(architecture_config("segofa_nano", **options), rows, class_token_ids).eval()


def ifseg_state(model: SegOFA) -> dict[str, torch.Tensor]:
    """What the published IFSeg code would save for a model of this size, aliases and integer buffers included."""
    state = {key: torch.from_numpy(golden_tensor(key, tuple(value.shape)).copy()) for key, value in model.state_dict().items()}
    words, classes = state["encoder.embed_tokens.weight"], state["encoder.seg_embed_tokens.weight"]
    state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens_bag.weight"] = words
    state["decoder.seg_embed_tokens.weight"] = state["decoder.seg_projection.weight"] = classes
    for part in ("encoder", "decoder"):
        state[f"{part}.version"] = torch.tensor([3.0])
        state[f"{part}.token_rp_bucket"] = torch.zeros(4, 4, dtype=torch.long)
        state[f"{part}.image_rp_bucket"] = torch.zeros(4, 4, dtype=torch.long)
    state["decoder.seg_rp_bucket"] = torch.zeros(4, 4, dtype=torch.long)
    state["decoder.image_position_idx"] = torch.zeros(4, dtype=torch.long)
    for name, value in (("bin_id_offset", [50]), ("seg_id_offset", [59]), ("region_prefix", [9, 7])):
        state[f"decoder.{name}"] = torch.tensor(value)
    return state


def ofa_state(model: SegOFA) -> dict[str, torch.Tensor]:
    """What upstream OFA would save: one vocabulary row less, an output projection, batch counters, nothing of segmentation."""
    state = {key: value for key, value in ifseg_state(model).items() if ".seg_" not in key and "embed_seg" not in key and "_bag" not in key}
    for key in ("decoder.bin_id_offset", "decoder.region_prefix"):
        del state[key]
    words = state["encoder.embed_tokens.weight"][:-1].clone()
    state["encoder.embed_tokens.weight"] = state["decoder.embed_tokens.weight"] = state["decoder.output_projection.weight"] = words
    for key in [key for key in state if key.endswith("running_var")]:
        state[key.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    return state
