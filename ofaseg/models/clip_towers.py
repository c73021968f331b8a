"""open_clip's image and text tower, which also take OpenAI's weights: sizes, building, and the two passes that dense methods share."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from torch import Tensor, nn

from ofaseg.models.image_encoders.vit import interpolate_positions
from ofaseg.models.layers.clip_block import run_block, run_block_for_first


@dataclass
class ClipSizes(FairseqDataclass):
    """Sizes of CLIP; the defaults are ViT-B/16."""

    plain_gelu: bool = field(default=False, metadata={"help": "GELU, as most models of open_clip, instead of OpenAI's QuickGELU"})
    patch_size: int = field(default=16, metadata={"help": "side of a patch in pixels"})
    image_size: int = field(default=224, metadata={"help": "photo side in pixels that the position table is made for"})
    image_width: int = field(default=768, metadata={"help": "width of the image tower"})
    image_layers: int = field(default=12, metadata={"help": "blocks of the image tower"})
    image_heads: int = field(default=12, metadata={"help": "attention heads of the image tower"})
    text_width: int = field(default=512, metadata={"help": "width of the text tower"})
    text_layers: int = field(default=12, metadata={"help": "blocks of the text tower"})
    text_heads: int = field(default=8, metadata={"help": "attention heads of the text tower"})
    projection_dim: int = field(default=512, metadata={"help": "dimension of image and text vectors"})
    context_length: int = field(default=77, metadata={"help": "longest text in tokens, with start and end"})
    vocab_size: int = field(default=49408, metadata={"help": "rows of the word embedding"})


VIT_L_14 = dict(patch_size=14, image_width=1024, image_layers=24, image_heads=16, text_width=768, text_heads=12, projection_dim=768)
NANO = dict(
    patch_size=8, image_size=32, image_width=64, image_layers=3, image_heads=4,
    text_width=48, text_layers=2, text_heads=3, projection_dim=40,
)  # fmt: skip
CLIP_SIZES = {"vit_b_16": dict(), "vit_b_32": dict(patch_size=32), "vit_l_14": VIT_L_14, "nano": NANO}
"""Name of a size -> what differs from the defaults of ClipSizes; the nano one is for tests and drawn scenes."""


def build_towers(config: ClipSizes):
    """open_clip's CLIP of these sizes, with weights at random.

    Raises:
        ValueError: the package open_clip_torch is missing.
    """
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg  # takes seconds, and is optional: only for those who build one
    except ImportError as error:
        raise ValueError("CLIP needs the package open_clip_torch: pip install 'ofaseg[clip]'") from error
    image = CLIPVisionCfg(
        layers=config.image_layers,
        width=config.image_width,
        head_width=config.image_width // config.image_heads,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
    )
    return CLIP(config.projection_dim, image, text, quick_gelu=not config.plain_gelu)


def grid_of(image: Tensor, stride: int) -> tuple[int, int]:
    """(h, w) patches of photos (B, 3, H, W). Raises ValueError when a side is no multiple of the patch above 0."""
    grid = (image.shape[2] // stride, image.shape[3] // stride)
    if (grid[0] * stride, grid[1] * stride) != tuple(image.shape[2:]) or 0 in grid:
        size = f"{image.shape[2]}x{image.shape[3]}"
        raise ValueError(f"photos of {size} pixels (height x width): both sides must be multiples of {stride}")
    return grid


def before_last_block(visual: nn.Module, image: Tensor, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """Normalised photos (B, 3, H, W) -> input of the last block (B, 1 + h * w, F), CLS first, and (h, w).

    Raises:
        ValueError: a side is no multiple of the patch.
    """
    grid = grid_of(image, stride)
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(patches), 1, -1).to(patches.dtype), patches], 1)
    tokens = visual.ln_pre(tokens + interpolate_positions(visual.positional_embedding[None], *grid))
    for block in visual.transformer.resblocks[:-1]:
        tokens = run_block(block, tokens)
    return tokens, grid


def photo_vectors(visual: nn.Module, tokens: Tensor) -> Tensor:
    """Input of the last block (B, 1 + h * w, F) -> (B, D) unit vectors; only its CLS token is computed."""
    cls = run_block_for_first(visual.transformer.resblocks[-1], tokens)
    return F.normalize(visual.ln_post(cls[:, 0]) @ visual.proj, dim=-1)


def image_vectors(clip: nn.Module, image: Tensor) -> Tensor:
    """Normalised photos (B, 3, H, W), sides multiples of the patch -> (B, D) unit vectors, as `encode_image`."""
    return photo_vectors(clip.visual, before_last_block(clip.visual, image, clip.visual.patch_size[0])[0])


def text_vectors(clip: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Token ids and mask (B, L), L up to the context length -> (B, D) unit vectors, read at the end of the text.

    A token sees what stands before it, so that padding after the end changes nothing and need not be there.

    Raises:
        ValueError: L is larger than the context length.
    """
    length = input_ids.shape[1]
    if length > len(clip.positional_embedding):
        raise ValueError(f"texts of {length} tokens; this CLIP reads {len(clip.positional_embedding)}: set text_length to that")
    tokens = clip.token_embedding(input_ids) + clip.positional_embedding[:length]
    unseen = clip.attn_mask[:length, :length]
    for block in clip.transformer.resblocks:
        tokens = run_block(block, tokens, unseen)
    ends = tokens[torch.arange(len(tokens), device=tokens.device), attention_mask.sum(1) - 1]
    return F.normalize(clip.ln_final(ends) @ clip.text_projection, dim=-1)
