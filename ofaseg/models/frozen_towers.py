"""An image and a text tower that no training changes, under one roof: never saved with a model, but known by their sha256."""

import hashlib
import json
from typing import Optional

import torch
from torch import Tensor, nn

from ofaseg.models.clip_towers import build_towers
from ofaseg.models.image_encoders.frozen import ClipPatches, build_image_tower
from ofaseg.models.simseg import ARCHITECTURES as SIMSEG
from ofaseg.models.simseg import architecture_config as simseg_config
from ofaseg.models.simseg_towers import SimSegPatches, SimSegTexts
from ofaseg.models.state import CheckpointError
from ofaseg.models.text_encoders.bert import BERT_SIZES
from ofaseg.models.text_encoders.frozen import BertTexts, ClipTexts, TableTexts
from ofaseg.models.text_encoders.text_table import TextTable

CLIP, TABLE = "clip", "table"
KINDS = ("image", "text")
TEXT_TOWERS = (CLIP, TABLE, *BERT_SIZES, *SIMSEG)
"""What a text tower may be; the last ones are architectures of SimSeg."""
NOT_CHECKED = bytes(32)
"""In place of a sha256: a table of text vectors, which changes with the class list."""
START_SEED = 20210


class FrozenTowers(nn.Module):
    """The two towers: always in evaluation mode, without gradients, and absent from the state dict, which holds their sha256.

    Args:
        image_tower: clip, an architecture of SimSeg, or one that `build_image_tower` knows.
        text_tower: one of `TEXT_TOWERS`.
        sizes: of CLIP, where one of the towers is CLIP's (`ofaseg.models.clip_towers.ClipSizes`).
        text_embeddings: file of a table.
        bert_vocab_size: rows of BERT's word embedding (SimSeg has one, too), 0 for the named size.
        bf16: compute in bfloat16 (autocast); unit vectors come out in float32 all the same.

    Attributes:
        image, text: see `ofaseg.models.image_encoders.frozen` and `ofaseg.models.text_encoders.frozen`.
        digests: sha256 of the weights of each tower that has its weights.

    Raises:
        ValueError: an unknown tower. CheckpointError: the table cannot be read.
    """

    def __init__(self, image_tower: str, text_tower: str, sizes, text_embeddings: str = "", bert_vocab_size: int = 0, bf16: bool = False):
        super().__init__()
        if text_tower not in TEXT_TOWERS:
            raise ValueError(f"unknown text tower {text_tower!r}; known: {', '.join(TEXT_TOWERS)}")
        self.bf16 = bf16
        self.table: Optional[TextTable] = TextTable.read(text_embeddings) if text_tower == TABLE else None
        with torch.random.fork_rng(devices=[]):  # the same start in every process, and the run's random numbers stay what they are
            torch.manual_seed(START_SEED)
            clip = build_towers(sizes) if CLIP in (image_tower, text_tower) else None
            self.image = _image_tower(image_tower, clip)
            self.text = _text_tower(text_tower, clip, self.table, bert_vocab_size)
        self.digests: dict[str, bytes] = {} if self.table is None else {"text": NOT_CHECKED}
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenTowers":
        """Stays in evaluation mode."""
        return super().train(False)

    # -- passes ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def image_tokens(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised photos (B, 3, H, W) -> (B, h * w, Dv) float32 unit vectors, and (h, w).

        Raises:
            ValueError: the tower has no weights yet, or a side is no multiple of its stride.
        """
        self._check_filled("image")
        with self._precision(image.device):
            return self.image(image)

    @torch.no_grad()
    def text_vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (n, L) -> (n, Dt) float32 unit vectors. Raises ValueError when the tower has no weights yet."""
        self._check_filled("text")
        with self._precision(input_ids.device):
            return self.text(input_ids, attention_mask)

    def _precision(self, device: torch.device):
        """The towers' own precision, whatever the one around them."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def _check_filled(self, kind: str) -> None:
        if kind in self.missing:
            raise ValueError(f"the {kind} tower has no weights yet; load its file first (ofaseg.checkpoints.fusioner.load_towers)")

    # -- weights ---------------------------------------------------------------------------------------------------

    def fill(self, kind: str, weights: dict[str, Tensor]) -> None:
        """Loads the weights of one tower ("image" or "text"), strictly, under the names of its own state dict."""
        getattr(self, kind).load_state_dict(weights, strict=True)
        self.filled(kind)

    def filled(self, kind: str) -> None:
        """To be told when a tower has got the weights it is used with; their sha256 is taken now, before anything casts them."""
        digest = hashlib.sha256()
        for key, value in sorted(getattr(self, kind).state_dict().items()):
            digest.update(json.dumps([key, list(value.shape)]).encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().data)
        self.digests[kind] = digest.digest()

    @property
    def missing(self) -> set[str]:
        """Towers whose weights still are to be loaded, of `KINDS`."""
        return set(KINDS) - set(self.digests)

    def sha256(self, kind: str) -> Tensor:
        """(32,) uint8: of names, shapes and float32 values of a tower's weights; `NOT_CHECKED` for a table, and without weights."""
        return torch.frombuffer(bytearray(self.digests.get(kind, NOT_CHECKED)), dtype=torch.uint8)

    def check(self, kind: str, expected: Tensor, where: str) -> None:
        """Raises CheckpointError unless `expected`, a sha256 from a checkpoint, is this tower's; `where` says what the tower is made of."""
        trained, own = bytes(expected.tolist()), self.digests.get(kind, NOT_CHECKED)
        if trained != own and NOT_CHECKED not in (trained, own):
            raise CheckpointError(
                f"trained with another {kind} tower: its weights have sha256 {trained.hex()}, those of {where} have {own.hex()}; "
                "give the file it was trained with"
            )

    def state_dict(self, *args, destination=None, prefix: str = "", keep_vars: bool = False):
        """The sha256 of both towers instead of their weights."""
        destination = {} if destination is None else destination
        for kind in KINDS:
            destination[f"{prefix}{kind}_sha256"] = self.sha256(kind)
        return destination

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs) -> None:
        """The sha256 are compared before loading (`Fusioner.upgrade_state`); there is nothing to load."""


def _image_tower(name: str, clip: Optional[nn.Module]) -> nn.Module:
    if name == CLIP:
        return ClipPatches(clip.visual)
    return SimSegPatches(simseg_config(name)) if name in SIMSEG else build_image_tower(name)


def _text_tower(name: str, clip: Optional[nn.Module], table: Optional[TextTable], vocab_size: int) -> nn.Module:
    if name == CLIP:
        return ClipTexts(clip)
    if name in SIMSEG:
        return SimSegTexts(simseg_config(name), vocab_size)
    return BertTexts(name, vocab_size) if table is None else TableTexts(table)


def ignore_missing_towers(prefix: str):
    """A hook for `register_load_state_dict_post_hook`: weights of towers, which no state dict holds, are not missing."""

    def hook(module: nn.Module, incompatible) -> None:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(prefix)]

    return hook
