"""Learned prompts around class names, for a frozen CLIP text tower (FreeSeg, section 3.4: adaptive class and task prompts).

A class is read as `[task words] [task prompt] <start> [class prompt] [name] "." <end>`, and its vector at the end. All classes of a
task begin alike: as a token sees only what stands before it, that beginning is computed once for all classes.
"""

from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.layers.clip_block import after_attention, heads

TASK_TEXTS = {"semantic": "semantic segmentation.", "instance": "instance segmentation.", "panoptic": "panoptic segmentation."}
"""Tasks, and the words that stand for them."""
TASK_TOKENS = {
    "semantic": (29119, 1550, 10551, 9512, 269),
    "instance": (34572, 10551, 9512, 269),
    "panoptic": (1072, 24755, 10551, 9512, 269),
}
"""Ids of `TASK_TEXTS` in CLIP's vocabulary."""
SIGNALS = {"start": 49406, "dot": 269, "end": 49407, "pad": 0}
"""Ids of the fixed tokens: start of text, full stop, end of text, padding."""


class LearnedPrompt(nn.Module):
    """The vectors around a name. `pad_signal` is part of published files only: nothing after the end is ever read.

    Args:
        width: of the text tower.
        class_length, task_length: vectors of the class prompt and of the task prompt; no task prompt, and no task words, with 0.
    """

    def __init__(self, width: int, class_length: int = 16, task_length: int = 8):
        super().__init__()
        self.class_prompt = nn.Parameter(0.02 * torch.randn(class_length, width))
        self.task_prompt = nn.Parameter((2 / 5 / width) ** 0.5 * torch.randn(task_length, width)) if task_length else None
        for name in SIGNALS:
            self.register_buffer(f"{name}_signal", torch.zeros(1, width))

    @torch.no_grad()
    def take_signals(self, token_embedding: Tensor) -> None:
        """Copies the vectors of the fixed tokens from a word embedding (V, width)."""
        for name, token in SIGNALS.items():
            getattr(self, f"{name}_signal").copy_(token_embedding[token : token + 1])

    def beginning(self, task_words: Tensor, class_prompt: Optional[Tensor] = None) -> Tensor:
        """Word vectors of the task (n, width) -> what all its classes begin with, (P, width); with another class prompt where given."""
        task = [] if self.task_prompt is None else [task_words, self.task_prompt]
        return torch.cat([*task, self.start_signal, self.class_prompt if class_prompt is None else class_prompt])

    def endings(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Word vectors of K names (K, S, width), of `lengths` (K,) words each, S at least 2 more -> names, full stop and end."""
        place = torch.arange(words.shape[1], device=words.device)[None, :, None] - lengths[:, None, None]
        return torch.where(place == 0, self.dot_signal, torch.where(place == 1, self.end_signal, words))

    def version(self) -> tuple:
        """Changes when the prompts change."""
        tensors = [self.class_prompt, *([] if self.task_prompt is None else [self.task_prompt])]
        return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


def encode_with_beginning(clip, beginning: Tensor, endings: Tensor, ends: Tensor) -> Tensor:
    """Unit vectors (K, D) of K texts of word vectors that begin alike, read where they end.

    Args:
        clip: `open_clip.model.CLIP`.
        beginning: (P, width), the same for all texts.
        endings: (K, S, width), ends: (K,) where in its ending each text ends.

    Raises:
        ValueError: P + S tokens are more than the tower reads.
    """
    first, total = len(beginning), len(beginning) + endings.shape[1]
    if total > len(clip.positional_embedding):
        raise ValueError(f"texts of {total} tokens; this CLIP reads {len(clip.positional_embedding)}")
    positions = clip.positional_embedding
    x = (beginning + positions[:first]).unsqueeze(0)
    y = endings + positions[first:total]
    seen = torch.ones(endings.shape[1], total, dtype=torch.bool, device=y.device).tril(first)
    for block in clip.transformer.resblocks:
        x, y = _block(block, x, y, seen)
    y = y[torch.arange(len(y), device=y.device), ends]
    return F.normalize(clip.ln_final(y) @ clip.text_projection, dim=-1)


def _block(block, x: Tensor, y: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """One block of CLIP's text tower over beginnings x (1, P, width) and endings y (K, S, width) that follow them."""
    x_query, x_keys, x_values = heads(block.attn, block.ln_1(x))
    query, keys, values = heads(block.attn, block.ln_1(y))
    before = (len(y), -1, -1, -1)
    keys = torch.cat([x_keys.expand(before), keys], 2)
    values = torch.cat([x_values.expand(before), values], 2)
    x_found = F.scaled_dot_product_attention(x_query, x_keys, x_values, is_causal=True)
    found = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
    return after_attention(block, x, x_found), after_attention(block, y, found)


def pack_names(
    names: Sequence[Sequence[int]], beginning: int, context: int, classes: Optional[Sequence[int]] = None
) -> tuple[Tensor, Tensor]:
    """Token ids of n names -> (n, S) with room for full stop and end behind the longest, and (n,) their lengths.

    `classes` are the ids of the classes that the names belong to, for messages; None where each class has one name.

    Raises:
        ValueError: a name is empty, or does not fit behind `beginning` tokens into `context`.
    """
    budget = context - beginning - 2
    for k, name in zip(range(len(names)) if classes is None else classes, names, strict=True):
        if not name:
            raise ValueError(f"class {k} has an empty name; give it one")
        if len(name) > budget:
            raise ValueError(f"the name of class {k} (from 0) has {len(name)} tokens; at most {budget} fit beside the prompts: shorten it")
    lengths = [len(name) for name in names]
    ids = torch.zeros(len(names), max(lengths, default=0) + 2, dtype=torch.long)
    for row, name in zip(ids, names):
        row[: len(name)] = torch.tensor(name)
    return ids, torch.tensor(lengths, dtype=torch.long)
