"""FreeSeg as published, plainly: the computation that `tools/benchmark_freeseg.py` compares ours with, over the weights of our model.

Written from the method's description: deformable attention by `grid_sample`, attention weights held whole, masks of all queries at
every layer, matching photo by photo and output by output, losses of all upsampled masks of eleven outputs one of which is thrown away,
texts at full padding encoded twice per task, the pixel decoder run once per task, regions cut out and resized one by one, and loops over
queries in the post-processing.
"""

from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ofaseg.models.freeseg import FreeSeg
from ofaseg.models.image_encoders.feature_pyramid import LEVELS
from ofaseg.models.layers.pixel_decoder import READ_LEVELS, pixel_centres, sine_positions
from ofaseg.structures import MaskTargets

ALPHA, NO_OBJECT, MASK_WEIGHT, DICE_WEIGHT = 0.25, 0.1, 20.0, 5.0
TEMPERATURE, OBJECT_SCORE, OVERLAP, SUPPRESSION = 0.01, 0.5, 0.5, 0.8
ENSEMBLE = 0.8


# ---- texts ----


def text_features(model: FreeSeg, task: str) -> Tensor:
    """(K + 1, D) unit vectors: every class at full length, and no object."""
    clip, prompt = model.clip, model.prompt
    context = len(clip.positional_embedding)
    beginning = [model.task_words(task), prompt.task_prompt, prompt.start_signal, prompt.class_prompt]
    rows, ends = [], []
    for name in model.names:
        parts = [*beginning, clip.token_embedding(torch.tensor(name)), prompt.dot_signal, prompt.end_signal]
        length = sum(map(len, parts))
        rows.append(torch.cat([*parts, prompt.pad_signal.expand(context - length, -1)]))
        ends.append(length - 1)
    x = torch.stack(rows) + clip.positional_embedding
    for block in clip.transformer.resblocks:
        x = block(x, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)[torch.arange(len(x)), ends] @ clip.text_projection
    return torch.cat([F.normalize(x, dim=-1), F.normalize(model.no_object, dim=-1)])


# ---- mask network ----


def dropped(layer, x: Tensor) -> Tensor:
    return F.dropout(x, layer.dropout.p, layer.training)


def backbone(model: FreeSeg, image: Tensor) -> dict[str, Tensor]:
    """Photos (B, 3, H, W) in 0..255 -> res2 .. res5, convolution and norm apart."""
    encoder, features = model.image_encoder, {}
    x = (image.float() - model.pixel_mean) / model.pixel_std
    for n in range(1, encoder.stem_convolutions + 1):
        x = F.relu(getattr(encoder, f"bn{n}")(getattr(encoder, f"conv{n}")(x)))
    x = F.max_pool2d(x, 3, 2, 1)
    for n, level in enumerate(LEVELS, 1):
        x = features[level] = getattr(encoder, f"layer{n}")(x)
    return features


def deformable(layer, query: Tensor, memory: Tensor, reference: Tensor, shapes) -> Tensor:
    """Deformable attention by `grid_sample`: all samples of all levels are stacked before they are weighted."""
    batch, count, dim = query.shape
    split = (layer.heads, layer.levels, layer.points)
    value = layer.value_proj(memory).view(batch, -1, layer.heads, dim // layer.heads)
    offsets = layer.sampling_offsets(query).view(batch, count, *split, 2)
    weights = layer.attention_weights(query).view(batch, count, layer.heads, -1).softmax(-1).view(batch, count, *split)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float32)
    grids = 2 * (reference[None, :, None, None, None] + offsets / sizes[:, None]) - 1
    sampled = []
    for level, ((height, width), part) in enumerate(zip(shapes, value.split([height * width for height, width in shapes], 1))):
        part = part.flatten(2).transpose(1, 2).reshape(batch * layer.heads, -1, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * layer.heads, 1, count, -1)
    found = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1).view(batch, dim, count)
    return layer.output_proj(found.transpose(1, 2))


def pixel_decoder(model: FreeSeg, features: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """res2 .. res5 -> maps at strides 32, 16, 8, and mask features."""
    decoder = model.pixel_decoder
    projected = [project(features[level]) for project, level in zip(decoder.inputs, READ_LEVELS)]
    shapes = [tuple(x.shape[2:]) for x in projected]
    positions = torch.cat([sine_positions(*shape, decoder.dim) + row for shape, row in zip(shapes, decoder.level_embedding)])
    reference = torch.cat([pixel_centres(*shape) for shape in shapes])
    x = torch.cat([part.flatten(2).transpose(1, 2) for part in projected], 1)
    for layer in decoder.layers:
        x = layer.attention_norm(x + dropped(layer, deformable(layer.attention, x + positions, x, reference, shapes)))
        x = layer.norm(x + dropped(layer, layer.contract(dropped(layer, F.relu(layer.expand(x))))))
    parts = x.split([height * width for height, width in shapes], 1)
    maps = [part.transpose(1, 2).reshape(len(x), -1, *shape) for part, shape in zip(parts, shapes)]
    lateral = decoder.lateral(features["res2"])
    fine = lateral + F.interpolate(maps[-1], size=lateral.shape[2:], mode="bilinear", align_corners=False)
    return maps, decoder.mask_features(F.relu(decoder.fuse(fine)))


def interaction(model: FreeSeg, maps: Sequence[Tensor], text: Tensor) -> list[Tensor]:
    """Cross-attention to the texts with wide queries and all weights of all heads at once."""
    layer, results = model.interaction, []
    text = text.expand(len(maps[0]), -1, -1)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    for feature_map in maps:
        text = layer.text_norm(text)
        pixels = layer.pixel_norm(feature_map.flatten(2).transpose(1, 2))
        queries, keys, values = heads(layer.q_proj(pixels) * layer.scale), heads(layer.k_proj(text)), heads(layer.v_proj(text))
        weights = dropped(layer, (queries @ keys.transpose(2, 3)).softmax(-1))
        pixels = pixels + layer.gamma * layer.out_proj((weights @ values).transpose(1, 2).flatten(2))
        results.append(pixels.transpose(1, 2).reshape(feature_map.shape))
    return results


def _attend(layer, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, blocked=None) -> Tensor:
    found = F.multi_head_attention_forward(
        (x + position).transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), x.shape[-1], layer.heads, layer.in_proj_weight,
        layer.in_proj_bias, None, None, False, 0.0, layer.out_proj.weight, layer.out_proj.bias, attn_mask=blocked,
    )[0]  # fmt: skip
    return layer.norm(x + found.transpose(0, 1))


def predictor(model: FreeSeg, maps: Sequence[Tensor], mask_features: Tensor, text: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(class logits (B, Q, K + 1), mask logits (B, Q, h, w)) of the queries as learned and after every layer."""
    decoder, results = model.predictor, []
    memories = [part.flatten(2).transpose(1, 2) + row for part, row in zip(maps, decoder.level_embedding)]
    keys = [memory + sine_positions(*part.shape[2:], decoder.dim) for memory, part in zip(memories, maps)]
    x = decoder.query_features.expand(len(mask_features), -1, -1)

    def predict(x: Tensor, size) -> Tensor:
        state = decoder.norm(x)
        logits = model.config.cosine_scale * (F.normalize(decoder.class_embed(state), dim=-1) @ text.T)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(state), mask_features)
        results.append((logits, masks))
        small = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        blocked = small.sigmoid().flatten(2).unsqueeze(1).repeat(1, model.config.attention_heads, 1, 1).flatten(0, 1) < 0.5
        return blocked.detach()

    blocked = predict(x, maps[0].shape[2:])
    for n, layer in enumerate(decoder.layers):
        level = n % len(maps)
        blocked[blocked.sum(-1) == blocked.shape[-1]] = False
        x = _attend(layer.cross_attention, x, decoder.query_positions, keys[level], memories[level], blocked)
        x = _attend(layer.self_attention, x, decoder.query_positions, x + decoder.query_positions, x)
        x = layer.norm(x + layer.contract(F.relu(layer.expand(x))))
        blocked = predict(x, maps[(n + 1) % len(maps)].shape[2:])
    return results


def head(model: FreeSeg, features: dict[str, Tensor], text: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Feature maps -> predictions, see `predictor`."""
    maps, mask_features = pixel_decoder(model, features)
    *maps, mask_features = interaction(model, [*maps, mask_features], text)
    return predictor(model, maps, mask_features, text)


# ---- losses ----


def _match(logits: Tensor, masks: Tensor, targets: Tensor, classes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of one photo and output."""
    truth = F.interpolate(targets[:, None].float(), size=masks.shape[1:], mode="nearest").flatten(1)
    masks = masks.flatten(1)
    probs = masks.sigmoid()
    positive = ALPHA * (1 - probs) ** 2 * F.binary_cross_entropy_with_logits(masks, torch.ones_like(masks), reduction="none")
    negative = (1 - ALPHA) * probs**2 * F.binary_cross_entropy_with_logits(masks, torch.zeros_like(masks), reduction="none")
    focal = (torch.einsum("nc,mc->nm", positive, truth) + torch.einsum("nc,mc->nm", negative, 1 - truth)) / masks.shape[1]
    shared = 2 * torch.einsum("nc,mc->nm", probs, truth)
    dice = 1 - (shared + 1) / (probs.sum(-1)[:, None] + truth.sum(-1)[None] + 1)
    cost = MASK_WEIGHT * focal - logits.softmax(-1)[:, classes] + DICE_WEIGHT * dice
    return linear_sum_assignment(cost.cpu())


def losses_of(logits: Tensor, masks: Tensor, targets: MaskTargets) -> dict[str, Tensor]:
    """Weighted losses of one output: all matched masks at the size of the targets."""
    own = list(zip(targets.starts, targets.counts))
    with torch.no_grad():
        pairs = [
            _match(logits[b], masks[b], targets.masks[start : start + count], targets.classes[start : start + count])
            for b, (start, count) in enumerate(own)
        ]
    classes = torch.full(logits.shape[:2], logits.shape[-1] - 1)
    for b, ((queries, chosen), (start, _)) in enumerate(zip(pairs, own)):
        classes[b, queries] = targets.classes[start + chosen]
    weight = torch.ones(logits.shape[-1])
    weight[-1] = NO_OBJECT
    truth = torch.cat([targets.masks[start + chosen] for (_, chosen), (start, _) in zip(pairs, own)]).float()
    found = torch.cat([masks[b, queries] for b, (queries, _) in enumerate(pairs)])
    found = F.interpolate(found[:, None], size=truth.shape[1:], mode="bilinear", align_corners=False).flatten(1)
    truth, probs, count = truth.flatten(1), found.sigmoid(), len(truth)
    right = probs * truth + (1 - probs) * (1 - truth)
    entropy = F.binary_cross_entropy_with_logits(found, truth, reduction="none")
    focal = (ALPHA * truth + (1 - ALPHA) * (1 - truth)) * entropy * (1 - right) ** 2
    dice = 1 - (2 * (probs * truth).sum(-1) + 1) / (probs.sum(-1) + truth.sum(-1) + 1)
    return {
        "loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, weight),
        "loss_mask": MASK_WEIGHT * focal.mean(1).sum() / count,
        "loss_dice": DICE_WEIGHT * dice.sum() / count,
    }


def training_losses(model: FreeSeg, image: Tensor, task: str, targets: MaskTargets) -> dict[str, Tensor]:
    """The losses that are summed, by name; those of the output before the last are computed and left out."""
    outputs = head(model, backbone(model, image), text_features(model, task))
    losses = losses_of(*outputs[-1], targets)
    for n, output in enumerate(outputs[:-1]):
        of_output = losses_of(*output, targets)
        if n < len(outputs) - 2:
            losses |= {f"{name}_{n}": value for name, value in of_output.items()}
    return losses


# ---- inference ----


def region_logits(model: FreeSeg, image: Tensor, masks: Tensor, task: str) -> tuple[Tensor, Tensor]:
    """What CLIP says of the regions of a photo (3, H, W), masks (Q, H, W) probabilities: ((N, K + 1), (Q,) whether there is one)."""
    text, crops, valid = text_features(model, task), [], []
    for mask in masks > model.config.mask_threshold:
        valid.append(bool(mask.any()))
        if valid[-1]:
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            place = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
            region, alpha = image[:, place[0], place[1]].float(), mask[place].float()
            region = region * alpha + (1 - alpha) * model.clip_mean
            region = (region - model.clip_mean) / model.clip_std
            side = model.config.image_size
            crops.append(F.interpolate(region[None], size=(side, side), mode="bicubic", align_corners=True))
    vectors = model.clip.encode_image(torch.cat(crops), normalize=True) if crops else text[:0]
    return model.config.cosine_scale * vectors @ text.T, torch.tensor(valid)


def _semantic(probs: Tensor, masks: Tensor) -> Tensor:
    return torch.einsum("qk,qhw->khw", probs, masks.sigmoid())


def _panoptic(probs: Tensor, masks: Tensor, thing: Tensor, size) -> np.ndarray:
    labels_of_pixels = _semantic(probs, masks).argmax(0)
    scores, labels = (probs / TEMPERATURE).softmax(-1).max(-1)
    inside, result = masks.sigmoid() >= 0.5, torch.zeros(masks.shape[1:], dtype=torch.int32)
    stuff, current = {}, 0
    for k in range(len(masks)):
        label = labels[k].item()
        own = inside[k] & (labels_of_pixels == label)
        area, full = own.sum().item(), inside[k].sum().item()
        if not full or not area or area / full < OVERLAP or (thing[label] and scores[k].item() < OBJECT_SCORE):
            continue
        if not thing[label] and label in stuff:
            result[own] = stuff[label]
            continue
        current += 1
        result[own] = current
        if not thing[label]:
            stuff[label] = current
    return np.asarray(Image.fromarray(result.numpy().astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))


def _instances(probs: Tensor, masks: Tensor, thing: Tensor, size) -> tuple[np.ndarray, list[float]]:
    labels_of_pixels = _semantic(probs, masks).argmax(0)
    scores, labels = (probs / TEMPERATURE).softmax(-1)[:, :-1].max(-1)
    inside, kept = masks >= 0.5, []
    for k in range(len(masks)):
        area = inside[k].sum().item()
        own = (inside[k] & (labels_of_pixels == labels[k])).sum().item()
        if area and thing[labels[k]] and scores[k].item() > OBJECT_SCORE and own / area > OVERLAP:
            kept.append(k)
    if len(kept) > 1:
        areas = [inside[k].sum().item() for k in kept]
        largest = kept[int(np.argmax(areas))]
        others = torch.stack([inside[k] for k in kept if k != largest]).any(0)
        if others.sum().item() / max(areas) > SUPPRESSION:
            kept.remove(largest)
    found, final = [], []
    for k in kept:
        mask = masks[k] > 0
        final.append(scores[k].item() * ((masks[k].sigmoid() * mask).sum().item() / (mask.sum().item() + 1e-6)))
        found.append(np.asarray(Image.fromarray(mask.numpy().astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)))
    return np.stack(found).astype(bool) if found else np.zeros((0, *size), dtype=bool), final


@torch.no_grad()
def predict(model: FreeSeg, image: Tensor, tasks: Sequence[str], thing: Tensor, size: tuple[int, int]) -> dict:
    """Task -> its result for one photo (1, 3, H, W), sides multiples of 32, at (height, width) `size`; all classes count as novel."""
    features, results = backbone(model, image), {}
    for task in tasks:
        logits, masks = head(model, features, text_features(model, task))[-1]
        masks = F.interpolate(masks, size=image.shape[2:], mode="bilinear", align_corners=True)[0]
        own = logits[0].softmax(-1)[:, :-1]
        of_regions, valid = region_logits(model, image[0], masks.sigmoid(), task)
        clip = torch.ones_like(own)
        clip[valid] = of_regions[:, :-1].softmax(-1)
        probs = own ** (1 - ENSEMBLE) * clip**ENSEMBLE
        if task == "semantic":
            scores = F.interpolate(_semantic(probs, masks)[None], size=size, mode="bilinear", align_corners=False)[0]
            results[task] = scores.argmax(0).numpy()
        else:
            results[task] = (_panoptic if task == "panoptic" else _instances)(probs, masks, thing, size)
    return results
