"""Masked regions cut out of a photo and resized, as CLIP reads them (FreeSeg, section 3.5).

Two forms of the same resize, bicubic with aligned corners and taps clamped to the box: one region after the other, whose work is that
of its box alone, on a CPU; on a GPU, all regions of a photo together. One matrix per side and box does it, but for large boxes on a CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.clip_towers import image_vectors

CUBIC = -0.75
"""Of torch's bicubic kernel."""
CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**28}
"""Blended pixels that exist at a time, per device type."""
READ_BYTES = 20 * 2**20
"""Widest activations of CLIP at a time on a CPU, where larger ones cost a tenth more: each is new memory."""


def boxes_of(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (Q, H, W) bool -> boxes (Q, 4) long: left, top, right, bottom, the latter two exclusive; and (Q,) whether there is a pixel.

    The box of an empty mask is the pixel at the top left.
    """
    sides = []
    for dim in (1, 2):
        present = masks.view(torch.uint8).amax(dim).bool()  # `any` takes thirty times as long on a CPU
        places = torch.arange(present.shape[1], device=masks.device)
        first = torch.where(present, places, present.shape[1]).amin(1)
        last = torch.where(present, places, -1).amax(1)
        sides.append((first, last + 1))
    valid = present.any(1)
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], 1)
    return torch.where(valid[:, None], boxes, torch.tensor([0, 0, 1, 1], device=masks.device)), valid


def cubic_matrix(first: Tensor, end: Tensor, source: int, size: int) -> Tensor:
    """(Q, size, source) matrices that resize samples first .. end - 1 (each (Q,) long) of `source` ones to `size`."""
    length = (end - first)[:, None]
    places = torch.arange(size, device=first.device, dtype=torch.float32)
    where = (length - 1).float() / max(size - 1, 1) * places
    whole = where.floor().long().minimum(length - 1)
    share = (where - whole).clamp(0, 1)
    matrix = torch.zeros(len(first), size, source, device=first.device)
    for step, distance in ((-1, share + 1), (0, share), (1, 1 - share), (2, 2 - share)):
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        column = (whole + step).clamp(min=0).minimum(length - 1) + first[:, None]
        matrix.scatter_add_(2, column[..., None], (near if step in (0, 1) else far)[..., None])
    return matrix


def region_crops(photo: Tensor, masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Regions of a photo, zero outside their mask, in the form that suits the device.

    Args:
        photo: (3, H, W) normalised so that 0 is what surroundings are filled with.
        masks: (Q, H, W) bool.
        boxes: (Q, 4) as `boxes_of`.

    Returns: (Q, 3, size, size).
    """
    form = crops_in_turn if photo.device.type == "cpu" else crops_together
    with torch.autocast(photo.device.type, enabled=False):  # a resize in bfloat16 would lose colours, which a tower in bfloat16 does not
        return form(photo, masks, boxes, size)


def crops_in_turn(photo: Tensor, masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """As `region_crops`, one region after the other: matrix products for those that are not much larger than `size`, else interpolation."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = int(sides.max()) if len(sides) else 0
    columns, rows = (cubic_matrix(torch.zeros_like(side), side, longest, size) for side in sides.T)
    crops = photo.new_empty(len(masks), 3, size, size)
    for crop, mask, box, by_row, by_column in zip(crops, masks, boxes.tolist(), rows.to(photo.dtype), columns.to(photo.dtype)):
        left, top, right, bottom = box
        height, width = bottom - top, right - left
        region = photo[:, top:bottom, left:right] * mask[top:bottom, left:right].to(photo.dtype)
        by_row, by_column = by_row[:, :height], by_column[:, :width].T
        if height * width + size * min(height, width) > 2 * size**2:
            crop.copy_(F.interpolate(region[None], size=(size, size), mode="bicubic", align_corners=True)[0])
        elif height < width:
            torch.matmul(by_row, region @ by_column, out=crop)
        else:
            torch.matmul(by_row @ region, by_column, out=crop)
    return crops


def crops_together(photo: Tensor, masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """As `region_crops`, by matrix products that resize several photos at once, one blended with each mask."""
    height, width = photo.shape[1:]
    step = max(1, CHUNK_ELEMENTS.get(photo.device.type, 2**24) // photo.numel())
    crops = []
    for part, box in zip(masks.split(step), boxes.split(step)):
        rows = cubic_matrix(box[:, 1], box[:, 3], height, size)
        columns = cubic_matrix(box[:, 0], box[:, 2], width, size)
        blended = photo * part[:, None]
        crops.append(rows[:, None] @ blended @ columns[:, None].transpose(2, 3))
    return torch.cat(crops) if crops else photo.new_zeros(0, 3, size, size)


def full_masks(mask_logits: Tensor, stride: int, size: tuple[int, int], threshold: float) -> Tensor:
    """Mask logits (Q, h, w) of a padded photo, each for `stride` pixels -> (Q, H, W) bool, whether probabilities exceed `threshold`.

    `size` is (H, W) without padding. Masks are stretched over the padded photo corner to corner, as in the published code.
    """
    padded = [stride * side for side in mask_logits.shape[1:]]
    step = max(1, CHUNK_ELEMENTS.get(mask_logits.device.type, 2**24) // (padded[0] * padded[1]))
    least = torch.tensor(threshold, dtype=torch.float64).logit().item()
    masks = []
    for part in mask_logits.split(step):
        wide = F.interpolate(part[None].float(), size=padded, mode="bilinear", align_corners=True)[0]
        masks.append(wide[:, : size[0], : size[1]] > least)
    return torch.cat(masks)


def region_vectors(clip, photo: Tensor, masks: Tensor, size: int, batch: int) -> tuple[Tensor, Tensor]:
    """CLIP's unit vectors (Q, D) of the masked regions of one photo, zeros where there is none, and (Q,) whether there is one.

    Args:
        clip: `open_clip.model.CLIP`.
        photo: (3, H, W) normalised as CLIP reads photos: surroundings are filled with its mean colour.
        masks: (Q, H, W) bool.
        size: side of what CLIP reads in pixels; batch: how many regions it reads at a time at most.
    """
    boxes, valid = boxes_of(masks)
    present = valid.nonzero().flatten()
    vectors = photo.new_zeros(len(masks), clip.text_projection.shape[1])
    for chosen in present.split(_at_a_time(clip.visual, size, batch, photo.device)) if len(present) else ():
        crops = region_crops(photo, masks[chosen], boxes[chosen], size)
        vectors[chosen] = image_vectors(clip, crops).to(vectors.dtype)
    return vectors, valid


def _at_a_time(visual, size: int, batch: int, device: torch.device) -> int:
    """Regions that a tower reads at a time: `batch`, or fewer on a CPU."""
    if device.type != "cpu":
        return batch
    tokens = (size // visual.patch_size[0]) ** 2 + 1
    hidden = visual.transformer.resblocks[0].mlp[0].out_features
    width = 2 if torch.is_autocast_enabled(device.type) else 4
    return max(1, min(batch, READ_BYTES // (tokens * hidden * width)))
