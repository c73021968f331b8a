"""Attention with a bias that is shared by the batch, forward and backward.

On CPU the flash kernel has no gradient for its mask, and the generic path keeps every (B, H, T, S) matrix. Here the
forward is the flash kernel, and the backward recomputes probabilities a piece at a time, so that the largest tensors are
one (H, T, S) bias and its gradient, whatever the batch.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ofaseg.models.ofa.relative import AttentionBias, add_terms

ROWS = 192
"""Query rows that are recomputed at a time: scores of one head then stay in the cache."""

BATCHED_SCORES = 2**16
"""Heads with fewer scores than this are recomputed many at a time."""

CHUNK_SCORES = 2**18
"""Scores recomputed at a time, for such small heads."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: AttentionBias, scale: float, key_padding: Optional[Tensor] = None, dropout: float = 0.0
) -> Tensor:
    """softmax(scale * q k^T + bias) v.

    Args:
        query: (B, H, T, d); key and value: (B, H, S, d).
        bias: (H, T, S), shared by the batch.
        key_padding: (B, S) bool, True for keys that nobody sees.
        dropout: of the probabilities.

    Returns: (B, H, T, d).
    """
    if query.device.type == "cpu" and dropout == 0.0 and not torch.compiler.is_compiling():
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad or bias.absolute.requires_grad):
            factors = [term.factor for term in bias.terms]
            return _SharedBiasAttention.apply(query, key, value, key_padding, bias.terms, bias.causal, scale, bias.absolute, *factors)
        return _flash(query, key, value, bias.dense(), bias.causal, scale, key_padding)[0]
    mask = bias.masked().unsqueeze(0).to(query.dtype)
    if key_padding is not None:
        mask = mask.masked_fill(key_padding[:, None, None, :], float("-inf"))
    if mask.device.type == "cuda" and mask.shape[-1] % 8:
        mask = F.pad(mask, (0, -mask.shape[-1] % 8))[..., : mask.shape[-1]]  # its kernels want aligned rows
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, causal: bool, scale: float, key_padding: Optional[Tensor]
) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, d) and log-sum-exp (B, H, T) of torch's CPU kernel; it skips what a causal mask hides."""
    mask = bias.unsqueeze(0)
    if key_padding is not None:
        mask = mask.masked_fill(key_padding[:, None, None, :], float("-inf"))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)


class _SharedBiasAttention(torch.autograd.Function):
    """Saves inputs, output and log-sum-exp; a bias larger than the output is rebuilt from its factors."""

    @staticmethod
    def forward(ctx, query, key, value, key_padding, terms, causal, scale, absolute, *factors):
        with torch.autocast("cpu", enabled=False):
            bias = add_terms(terms, absolute, factors) if terms else absolute
            output, log_sum = _flash(query, key, value, bias, causal, scale, key_padding)
        ctx.rebuilt = bool(terms) and bias.numel() > output.numel()
        saved = (absolute, *factors) if ctx.rebuilt else (bias,)
        ctx.save_for_backward(query, key, value, key_padding, output, log_sum, *saved)
        ctx.terms, ctx.causal, ctx.scale = terms, causal, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, key_padding, output, log_sum, bias, *factors = ctx.saved_tensors
        if ctx.rebuilt:
            bias = add_terms(ctx.terms, bias, factors)
        inputs = (query, key, value, key_padding, output, log_sum, gradient, bias, ctx.causal, ctx.scale)
        if bias.shape[1] * bias.shape[2] >= BATCHED_SCORES:
            grads = _backward_by_rows(*inputs, reuse_bias=ctx.rebuilt)
        else:
            grads = _backward_by_samples(*inputs)
        grad_factors = [
            term.reduce(grads[3]) if needed else None for term, needed in zip(ctx.terms, ctx.needs_input_grad[8:])
        ]  # fmt: skip
        return (*grads[:3], None, None, None, None, grads[3], *grad_factors)


def _empty_like_tokens(x: Tensor) -> Tensor:
    """(B, H, T, d) like `x`, with the memory order (B, T, H, d) that projections read."""
    batch, heads, length, width = x.shape
    return torch.empty(batch, length, heads, width, dtype=x.dtype, device=x.device).transpose(1, 2)


# Both functions below hide keys after the exponential, by zeros: exp takes twenty times longer for -inf than for a number.
# All large intermediate results go to buffers that are used again, so that they stay in the cache and cost no fresh pages.


def _backward_by_rows(query, key, value, key_padding, output, log_sum, gradient, bias, causal, scale, reuse_bias=False):
    """Gradients of q, k, v and the bias, for long sequences: one sample, one head and some query rows at a time.

    With `reuse_bias` the gradient of the bias takes its place in memory.
    """
    (_, heads, length, _), total = query.shape, key.shape[2]
    grads = [_empty_like_tokens(x) for x in (query, key, value)]
    grad_bias = bias if reuse_bias else torch.empty_like(bias)
    delta = (gradient * output).sum(-1, keepdim=True).float()
    log_sum = log_sum.unsqueeze(-1)
    scratch = torch.empty(3, ROWS * total, dtype=torch.float32, device=bias.device)
    for head in range(heads):
        q, k, v, g = (x[:, head].float().contiguous() for x in (query, key, value, gradient))
        q = q * scale
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        row_parts = zip(*(x.split(ROWS, dim=1) for x in (q, g, log_sum[:, head], delta[:, head], grad_q)))
        for first, part in zip(range(0, length, ROWS), row_parts):
            rows = slice(first, min(first + ROWS, length))
            count, keys = rows.stop - first, (rows.stop if causal else total)
            shared = bias[head, rows, :keys]
            probs, scores, sum_scores = scratch[:, : count * keys].unflatten(1, (count, keys))
            samples = zip(*(x.unbind(0) for x in (*part, *(x[:, :keys] for x in (k, v, grad_k, grad_v)))))
            for b, (q_b, g_b, log_sum_b, delta_b, grad_q_b, k_b, v_b, grad_k_b, grad_v_b) in enumerate(samples):
                torch.addmm(shared, q_b, k_b.T, out=probs)
                probs.sub_(log_sum_b).exp_()
                if key_padding is not None:
                    probs.masked_fill_(key_padding[b, :keys], 0.0)
                if causal:
                    probs[:, first:].tril_()
                grad_v_b.addmm_(probs.T, g_b)
                target = scores if b else sum_scores
                torch.mm(g_b, v_b.T, out=target)
                target.sub_(delta_b).mul_(probs)
                torch.mm(target, k_b, out=grad_q_b)
                grad_k_b.addmm_(target.T, q_b)
                if b:
                    sum_scores.add_(scores)
            grad_bias[head, rows, :keys] = sum_scores
            grad_bias[head, rows, keys:] = 0.0
        for grad, values in zip(grads, (grad_q.mul_(scale), grad_k, grad_v)):
            grad[:, head] = values
    return (*grads, grad_bias)


def _backward_by_samples(query, key, value, key_padding, output, log_sum, gradient, bias, causal, scale):
    """Gradients of q, k, v and the bias, for short sequences: all heads of some samples at a time."""
    batch, heads = query.shape[:2]
    samples = min(batch, max(1, CHUNK_SCORES // bias.numel()))
    query, key, value, gradient = (x.float().contiguous() for x in (query, key, value, gradient))
    grads = [torch.empty_like(x) for x in (query, key, value)]
    grad_bias = torch.zeros_like(bias)
    delta = (gradient * output).sum(-1, keepdim=True)
    log_sum = log_sum.unsqueeze(-1)
    scratch = bias.new_empty(2, samples, *bias.shape)
    flat_scratch = scratch.flatten(1, 2)
    by_head = (query, key, value, gradient, *grads)  # batched products see (samples * H, length, width)
    parts = zip(*(x.flatten(0, 1).split(samples * heads) for x in by_head), log_sum.split(samples), delta.split(samples))
    for first, (q, k, v, g, grad_q, grad_k, grad_v, log_sum_part, delta_part) in zip(range(0, batch, samples), parts):
        probs, scores = scratch[:, : len(delta_part)]
        flat_probs, flat_scores = flat_scratch[:, : len(q)]
        torch.bmm(q, k.transpose(1, 2), out=flat_probs)
        torch.add(bias, probs, alpha=scale, out=probs)
        probs.sub_(log_sum_part).exp_()
        if key_padding is not None:
            probs.masked_fill_(key_padding[first : first + samples, None, None, :], 0.0)
        if causal:
            probs.tril_()
        torch.bmm(flat_probs.transpose(1, 2), g, out=grad_v)
        torch.bmm(g, v.transpose(1, 2), out=flat_scores)
        scores.sub_(delta_part).mul_(probs)
        for sample in scores:
            grad_bias += sample
        torch.bmm(flat_scores, k, out=grad_q)
        torch.bmm(flat_scores.transpose(1, 2), q, out=grad_k)
    return grads[0].mul_(scale), grads[1].mul_(scale), grads[2], grad_bias
