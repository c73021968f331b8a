"""The last block of CLIP's vision transformer, read so that a patch says what it shows itself.

In CLIP only the CLS token of the last block was trained to speak; patches attend to a few global tokens, and their own vectors
hardly say where things are. Each variant changes what the patches of the last block mix, with the trained weights as they are.
With q, k, v (N tokens, d per head) of the block's normalised input, one head gives W v for

========= ================================================= =========== ====================================================
name      W                                                 last block  paper
========= ================================================= =========== ====================================================
clip      softmax(q k^T / (t sqrt d))                       full        CLIP (Radford et al., ICML 2021)
maskclip  identity                                          reduced     MaskCLIP (Zhou et al., ECCV 2022), section 3.2
sclip     softmax(q q^T / (t sqrt d))                       full        SCLIP (Wang et al., ECCV 2024), correlative
          + softmax(k k^T / (t sqrt d))                                 self-attention
clearclip softmax(q q^T / (t sqrt d))                       reduced     ClearCLIP (Lan et al., ECCV 2024), section 3
naclip    softmax(k k^T / (t sqrt d) + G)                   reduced     NACLIP (Hajimiri et al., WACV 2025), section 3
========= ================================================= =========== ====================================================

full: residual connections and feed-forward network stay, x' = x + out(W v), x'' = x' + FFN(LN x'); reduced: out(W v) alone. t is a
temperature, 1 in the papers. G_ij = exp(-|p_i - p_j|^2 / (2 s^2)) for patches at grid places p, 0 for CLS; s = 5 patches in the paper.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.layers.clip_block import feed_forward, heads

VARIANTS = ("clip", "maskclip", "sclip", "clearclip", "naclip")
REDUCED = ("maskclip", "clearclip", "naclip")
"""Variants whose paper leaves residual and feed-forward network out of the last block (MaskCLIP on its ResNets)."""

LAST_BLOCKS = ("full", "reduced", "paper")


@dataclass(frozen=True)
class DenseAttention:
    """Reads the last block of a vision transformer of open_clip in one of the ways above.

    Attributes:
        variant: one of `VARIANTS`.
        last_block: paper (as in the table), full or reduced.
        temperature: t, above 0; similarities are divided by it.
        sigma: s of `naclip` in patches, above 0.

    Raises:
        ValueError: an unknown name, or a number that is not above 0.
    """

    variant: str = "clip"
    last_block: str = "paper"
    temperature: float = 1.0
    sigma: float = 5.0

    def __post_init__(self):
        for name, value, known in (("dense_attention", self.variant, VARIANTS), ("last_block", self.last_block, LAST_BLOCKS)):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if not (self.temperature > 0 and self.sigma > 0):
            raise ValueError(f"attention temperature {self.temperature} and sigma {self.sigma}: both must be above 0")

    @property
    def is_reduced(self) -> bool:
        """Whether residual and feed-forward network are left out."""
        return self.variant in REDUCED if self.last_block == "paper" else self.last_block == "reduced"

    def __call__(self, block: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The output of the last `block`.

        Args:
            block: open_clip's ResidualAttentionBlock.
            tokens: (B, 1 + h * w, F) its input, CLS first, then patches row by row.
            grid: (h, w).

        Returns: (B, 1 + h * w, F).
        """
        mixed = block.ls_1(self._mix(block.attn, block.ln_1(tokens), grid))
        if self.is_reduced:
            return mixed
        tokens = tokens + mixed
        return tokens + block.ls_2(feed_forward(block.mlp, block.ln_2(tokens)))

    def _mix(self, attention: nn.MultiheadAttention, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """out(W v) over all heads for normalised tokens (B, N, F)."""
        q, k, v = heads(attention, tokens)
        scale = q.shape[-1] ** -0.5 / self.temperature
        if self.variant == "maskclip":
            mixed = v
        elif self.variant == "sclip":
            mixed = F.scaled_dot_product_attention(q, q, v, scale=scale) + F.scaled_dot_product_attention(k, k, v, scale=scale)
        elif self.variant == "clearclip":
            mixed = F.scaled_dot_product_attention(q, q, v, scale=scale)
        elif self.variant == "naclip":
            prior = neighbourhood_prior(grid, self.sigma, k.device).to(k.dtype)
            mixed = F.scaled_dot_product_attention(k, k, v, attn_mask=prior, scale=scale)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def neighbourhood_prior(grid: tuple[int, int], sigma: float, device=None) -> Tensor:
    """G of NACLIP, (1 + h * w, 1 + h * w): 1 on the diagonal of the patches, falling with their distance; 0 to and from CLS."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in grid)
    near = [torch.exp(-((places[:, None] - places[None]) ** 2) / (2 * sigma**2)) for places in (rows, columns)]
    # the exponential of a sum of squares is a product, one factor per axis
    return F.pad(torch.kron(near[0], near[1]), (1, 0, 1, 0))
