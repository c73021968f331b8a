"""The word vectors that stand for tasks in the golden files of FreeSeg.

The published code looks up its task words when it is built. The files were computed with rule-made weights that were loaded afterwards,
so their texts begin with words of the CLIP as it was at first: made by OpenAI's constructor, right after `torch.manual_seed(1234)`.
Here its random numbers are drawn again, in the constructor's order.
"""

import torch
from torch import nn

from ofaseg.models.text_encoders.learned_prompt import TASK_TOKENS

SEED = 1234
WORD_DEVIATION = 0.02
HEAD_WIDTH = 64
"""Of CLIP's image tower."""


def _draw_blocks(layers: int, width: int, heads: int) -> None:
    for _ in range(layers):
        nn.MultiheadAttention(width, heads)
        nn.Linear(width, 4 * width)
        nn.Linear(4 * width, width)


def first_task_words(sizes: dict) -> dict[str, torch.Tensor]:
    """Task -> word vectors (n, width); `sizes` as the entry `clip` of a golden file's spec. The random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        width, patch = sizes["vision_width"], sizes["patch_size"]
        nn.Conv2d(3, width, patch, patch, bias=False)
        torch.randn(width)
        torch.randn((sizes["image_resolution"] // patch) ** 2 + 1, width)
        _draw_blocks(sizes["vision_layers"], width, width // HEAD_WIDTH)
        torch.randn(width, sizes["embed_dim"])
        _draw_blocks(sizes["text_layers"], sizes["text_width"], sizes["text_heads"])
        words = nn.Embedding(sizes["vocab_size"], sizes["text_width"]).weight.data
        nn.init.normal_(words, std=WORD_DEVIATION)
    return {task: words[list(tokens)].clone() for task, tokens in TASK_TOKENS.items()}
