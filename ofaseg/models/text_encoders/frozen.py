"""Text towers that are read as they are: token ids to unit vectors, behind one interface.

A text tower has `dim` (width of its vectors) and `vocab_size` (ids it knows); its `forward` takes token ids and mask (n, L), 1 for
tokens and 0 for padding, to (n, dim) float32 unit vectors.
"""

import torch
from torch import Tensor, nn

from ofaseg.models.clip_towers import text_vectors
from ofaseg.models.image_encoders.frozen import unit_vectors
from ofaseg.models.text_encoders.bert import BertTokens
from ofaseg.models.text_encoders.text_table import TextTable


class ClipTexts(nn.Module):
    """CLIP's text tower, read at the end of the text.

    Args:
        clip: open_clip's CLIP; its image tower is left out.
    """

    def __init__(self, clip: nn.Module):
        super().__init__()
        clip.visual = None
        self.clip = clip
        self.dim, self.vocab_size = clip.text_projection.shape[1], len(clip.token_embedding.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors as the module docstring says. Raises ValueError for texts longer than the tower reads."""
        return text_vectors(self.clip, input_ids, attention_mask).float()


class BertTexts(nn.Module):
    """BERT, the mean over its tokens.

    Args:
        name: one of `ofaseg.models.text_encoders.bert.BERT_SIZES`.
        vocab_size: rows of the word embedding, 0 for the named size.
    """

    def __init__(self, name: str, vocab_size: int = 0):
        super().__init__()
        self.tokens = BertTokens(name, vocab_size, dropout=0.0)
        self.dim, self.vocab_size = self.tokens.dim, self.tokens.vocab_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors as the module docstring says."""
        words = attention_mask.unsqueeze(-1)
        return unit_vectors((self.tokens(input_ids, attention_mask).float() * words).sum(1) / words.sum(1))


class TableTexts(nn.Module):
    """Vectors of names from a file; the "token" of a name is its row.

    Args:
        table: names and their vectors.
    """

    def __init__(self, table: TextTable):
        super().__init__()
        self.register_buffer("vectors", unit_vectors(torch.from_numpy(table.vectors)))
        self.dim, self.vocab_size = self.vectors.shape[1], len(self.vectors)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors as the module docstring says; only the first id of a text is read."""
        return self.vectors[input_ids[:, 0]]
