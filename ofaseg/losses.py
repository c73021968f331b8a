"""Pure tensor losses."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ofaseg.utils.resize import resize_matrix
from ofaseg.vocabulary import IGNORE_INDEX

CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Upsampled scores that exist at a time, per device type; on CPU for each thread, whose part of them stays in its cache."""


def upsampled_cross_entropy(class_logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of patch logits, upsampled bilinearly to the label map (IFSeg, eq. 4).

    Equal to ``F.cross_entropy(F.interpolate(class_logits, (H, W), mode="bilinear"), target)`` with ignored pixels left
    out, computed in float32 a few image rows at a time: neither the upsampled scores nor their gradient ever exist whole.

    Args:
        class_logits: (B, K, h, w) on the patch grid, any float type.
        target: (B, H, W) integers of any width, class ids 0..K-1 or IGNORE_INDEX.
        label_smoothing: epsilon in 0..1, torch's semantics.

    Returns: float32 scalar, 0 when no pixel is labelled.
    """
    if class_logits.ndim != 4 or target.ndim != 3 or len(class_logits) != len(target):
        raise ValueError(f"need logits (B, K, h, w) and a target (B, H, W), not {tuple(class_logits.shape)} and {tuple(target.shape)}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing lies in 0..1, not {label_smoothing}")
    return _UpsampledCrossEntropy.apply(class_logits, target, label_smoothing)


def _row_chunks(height: int, source: int, rows: int) -> list[tuple[int, int, int, int]]:
    """Cuts `height` output rows into chunks: (first, end) and the (first, end) of the source rows they read."""
    chunks = []
    for first in range(0, height, rows):
        end = min(first + rows, height)
        low = (first + 0.5) * source / height - 0.5
        high = (end - 0.5) * source / height - 0.5
        chunks.append((first, end, max(0, int(low) - 1), min(source, int(high) + 3)))
    return chunks


class _UpsampledCrossEntropy(torch.autograd.Function):
    """The gradient with respect to the patch logits is computed together with the loss."""

    @staticmethod
    def forward(ctx, class_logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
        with torch.autocast(class_logits.device.type, enabled=False):
            loss, gradient = _loss_and_gradient(class_logits.float(), target, label_smoothing, ctx.needs_input_grad[0])
        ctx.dtype = class_logits.dtype
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor):
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.dtype), None, None


def _loss_and_gradient(class_logits: Tensor, target: Tensor, smoothing: float, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Mean loss and its gradient (B, K, h, w) (None unless needed); arguments as in `upsampled_cross_entropy`, float32."""
    classes, h, w = class_logits.shape[1:]
    height, width = target.shape[1:]
    device = class_logits.device
    down, across = resize_matrix(height, h, device), resize_matrix(width, w, device)
    labelled = target != IGNORE_INDEX
    weight = 1.0 / labelled.sum().clamp(min=1).float()
    labelled = labelled.float()
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    limit = threads * CHUNK_ELEMENTS.get(device.type, 2**22) // (classes * width)
    rows = min(height, max(1, limit))
    chunks = _row_chunks(height, h, rows)
    count = min(len(target), max(1, limit // height))  # of small label maps several at a time
    buffer = class_logits.new_empty(count, rows, classes * width)  # one for all chunks, so that it stays in the cache
    losses, gradients = [], []
    for logits, truth, known in zip(class_logits.split(count), target.split(count), labelled.split(count)):
        wide = (logits.transpose(1, 2) @ across.T).flatten(2)  # (n, h, K*W)
        wide_gradient = torch.zeros_like(wide) if need_gradient else None
        for first, end, low, high in chunks:
            part = down[first:end, low:high].expand(len(wide), -1, -1)
            scores = torch.bmm(part, wide[:, low:high], out=buffer[: len(wide), : end - first]).unflatten(2, (classes, width))
            loss, gradient = _pixel_loss(scores, truth[:, first:end], known[:, first:end], smoothing, need_gradient)
            losses.append(loss)
            if need_gradient:
                wide_gradient[:, low:high].baddbmm_(part.transpose(1, 2), gradient.flatten(2))
        if need_gradient:
            gradients.append((wide_gradient.unflatten(2, (classes, width)) @ across).transpose(1, 2) * weight)
    return torch.stack(losses).sum() * weight, torch.cat(gradients) if need_gradient else None


def _pixel_loss(scores: Tensor, target: Tensor, labelled: Tensor, smoothing: float, need_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Summed loss of scores (n, R, K, W) against target (n, R, W), and its gradient; both are computed in place of the scores.

    `labelled` is (n, R, W) float32, 0 where the target does not count, else 1.
    """
    classes = scores.shape[2]
    index, labelled = target.clamp(min=0).long().unsqueeze(2), labelled.unsqueeze(2)
    scores -= scores.amax(2, keepdim=True)
    score = (1 - smoothing) * scores.gather(2, index)
    if smoothing:
        score += smoothing * scores.mean(2, keepdim=True)
    total = scores.exp_().sum(2, keepdim=True)
    loss = ((total.log() - score) * labelled).sum()
    if not need_gradient:
        return loss, None
    scores *= labelled / total
    scores.scatter_add_(2, index, (smoothing - 1) * labelled)
    if smoothing:
        scores -= smoothing / classes * labelled
    return loss, scores


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    temperature: Tensor,
    first: int = 0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE of pairs against the rows of all processes (SimSeg, eq. 5; CLIP), summed over the pairs.

    Args:
        image, text: (b, D) unit vectors, pair by pair; b may be 0.
        all_images, all_texts: (n, D), with `image` and `text` from row `first` on.
        temperature: scalar above 0.
        label_smoothing: epsilon in 0..1, torch's semantics (0: published).

    Returns: float32 scalar, half the sum of both directions' cross-entropies; and (2,) long, how many texts and images were
        found best by their partner.
    """
    target = first + torch.arange(len(image), device=image.device)
    losses, hits = [], []
    with torch.autocast(image.device.type, enabled=False):
        for query, gallery in ((image, all_texts), (text, all_images)):
            logits = query.float() @ gallery.float().T / temperature.float()
            losses.append(F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing))
            best = logits.detach().argmax(1) if len(target) else target  # a process may have run out of validation batches
            hits.append((best == target).sum())
        return 0.5 * (losses[0] + losses[1]), torch.stack(hits)


def masked_bce(
    class_logits: Tensor, target: Tensor, ignored_count: bool = False, foreground_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of each sample, averaged over its labelled pixels and classes (Fusioner, eq. 5).

    Args:
        class_logits: (B, K, H, W), any float type.
        target: (B, K, H, W) integers: 1 where the class is, 0 where it is not, IGNORE_INDEX where nobody knows; (B, H, W) for K = 1.
        ignored_count: a sample without any labelled pixel is judged as if nothing of its classes were there (as published).
        foreground_weight: factor of the losses of pixels where the class is, above 0; with w, a pixel is worth calling the class from a
            probability of 1 / (1 + w) on, instead of one half (w = 1, as published).

    Returns: (B,) float32 losses, and (B,) bool whether a sample counts; the loss of one that does not is 0.
    """
    target = target.unsqueeze(1) if target.ndim == 3 else target
    if class_logits.shape != target.shape:
        raise ValueError(f"need a target for each logit, not logits {tuple(class_logits.shape)} and a target {tuple(target.shape)}")
    with torch.autocast(class_logits.device.type, enabled=False):
        labelled = target != IGNORE_INDEX
        counts = labelled.any(dim=(1, 2, 3))
        if ignored_count:
            labelled = labelled | ~counts[:, None, None, None]
        there = (target == 1).float()
        pixels = F.binary_cross_entropy_with_logits(class_logits.float(), there, reduction="none")
        if foreground_weight != 1.0:
            pixels = pixels * (1 + (foreground_weight - 1) * there)
        losses = (pixels * labelled).sum((1, 2, 3)) / labelled.sum((1, 2, 3)).clamp(min=1)
        return losses, torch.ones_like(counts) if ignored_count else counts
