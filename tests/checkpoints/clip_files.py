"""CLIP files of nano size in the layouts that users bring, with the real tokenizer's vocabulary."""

import torch


def nano_state(plain_gelu: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of a model of open_clip with the sizes of `clip_nano`, every weight at random."""
    from ofaseg.models.clip_dense import architecture_config, build_towers

    torch.manual_seed(5)
    towers = build_towers(architecture_config("clip_nano", plain_gelu=plain_gelu))
    return {key: value + 0.05 * torch.randn_like(value) if value.ndim else value for key, value in towers.state_dict().items()}


def openai_state(state: dict) -> dict[str, torch.Tensor]:
    """As OpenAI's archives hold them: counters beside the weights, matrices in half precision."""
    half = {key: value.half() if value.ndim > 1 and "embedding" not in key else value for key, value in state.items()}
    counters = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return half | {key: torch.tensor(value) for key, value in counters.items()}


def text_apart(state: dict) -> dict[str, torch.Tensor]:
    """As open_clip's models with a text tower of their own hold them, written by a run on several GPUs."""
    return {"module." + (key if key.startswith(("visual.", "logit_scale")) else f"text.{key}"): value for key, value in state.items()}
