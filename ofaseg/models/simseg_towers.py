"""The two towers of a trained SimSeg, each alone, as frozen towers of another method: the toolkit's own stand-in for CLIP's."""

import torch.nn.functional as F
from torch import Tensor, nn

from ofaseg.models.clip_towers import grid_of
from ofaseg.models.image_encoders.vit import PatchTransformer
from ofaseg.models.layers.pooling import topk_mean
from ofaseg.models.simseg import SimSegConfig
from ofaseg.models.text_encoders.bert import BertTokens


class SimSegPatches(nn.Module):
    """Projected patches; see `ofaseg.models.image_encoders.frozen`.

    Args:
        config: sizes of the SimSeg.
    """

    def __init__(self, config: SimSegConfig):
        super().__init__()
        self.image_encoder = PatchTransformer(config.image_tower, config.image_size)
        self.image_projection = nn.Linear(self.image_encoder.dim, config.projection_dim, bias=False)
        self.dim, self.stride = config.projection_dim, self.image_encoder.patch

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised photos (B, 3, H, W) -> (B, h * w, dim) float32 unit vectors, and (h, w).

        Raises:
            ValueError: a side is no multiple of the patch.
        """
        grid = grid_of(image, self.stride)
        patches = self.image_projection(self.image_encoder(image)[:, 1:])
        return F.normalize(patches.float(), dim=-1, eps=1e-12), grid


class SimSegTexts(nn.Module):
    """The largest value per channel over a text's tokens; see `ofaseg.models.text_encoders.frozen`.

    Args:
        config: sizes of the SimSeg.
        vocab_size: rows of the word embedding, 0 for the named size.
    """

    def __init__(self, config: SimSegConfig, vocab_size: int = 0):
        super().__init__()
        self.text_encoder = BertTokens(config.text_tower, vocab_size, dropout=0.0)
        self.text_projection = nn.Linear(self.text_encoder.dim, config.projection_dim, bias=False)
        self.dim, self.vocab_size = config.projection_dim, self.text_encoder.vocab_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (n, L) -> (n, dim) float32 unit vectors."""
        tokens = self.text_projection(self.text_encoder(input_ids, attention_mask))
        return F.normalize(topk_mean(tokens, 1, attention_mask).float(), dim=-1, eps=1e-12)
