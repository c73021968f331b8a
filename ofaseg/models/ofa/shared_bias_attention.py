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

CHUNK_SCORES = 2**19
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
    """Saves inputs, output and log-sum-exp; the bias is rebuilt from its factors."""

    @staticmethod
    def forward(ctx, query, key, value, key_padding, terms, causal, scale, absolute, *factors):
        with torch.autocast("cpu", enabled=False):
            bias = add_terms(terms, absolute, factors) if terms else absolute
            output, log_sum = _flash(query, key, value, bias, causal, scale, key_padding)
        ctx.save_for_backward(query, key, value, key_padding, output, log_sum, absolute, *factors)
        ctx.terms, ctx.causal, ctx.scale = terms, causal, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, key_padding, output, log_sum, absolute, *factors = ctx.saved_tensors
        bias = add_terms(ctx.terms, absolute, factors) if ctx.terms else absolute
        run = _backward_by_rows if bias.shape[1] * bias.shape[2] >= BATCHED_SCORES else _backward_by_samples
        grads = run(query, key, value, key_padding, output, log_sum, gradient, bias, ctx.causal, ctx.scale)
        grad_factors = [
            term.reduce(grads[3]) if needed else None for term, needed in zip(ctx.terms, ctx.needs_input_grad[8:])
        ]  # fmt: skip
        return (*grads[:3], None, None, None, None, grads[3], *grad_factors)


def _empty_like_tokens(x: Tensor, zero: bool = False) -> Tensor:
    """(B, H, T, d) like `x`, with the memory order (B, T, H, d) that projections read."""
    batch, heads, length, width = x.shape
    make = torch.zeros if zero else torch.empty
    return make(batch, length, heads, width, dtype=x.dtype, device=x.device).transpose(1, 2)


def _backward_by_rows(query, key, value, key_padding, output, log_sum, gradient, bias, causal, scale):
    """Gradients of q, k, v and the bias, for long sequences: one sample, one head and some query rows at a time."""
    dtype, (_, heads, length, _), total = query.dtype, query.shape, key.shape[2]
    query, key, value, gradient = query.float(), key.float(), value.float(), gradient.float()
    grads = [_empty_like_tokens(query), _empty_like_tokens(key, zero=True), _empty_like_tokens(value, zero=True)]
    grad_bias = torch.zeros_like(bias) if causal else torch.empty_like(bias)
    delta = (gradient * output).sum(-1, keepdim=True)
    log_sum = log_sum.unsqueeze(-1)
    scratch = query.new_empty(2, ROWS * total)
    later = _later(ROWS, bias.device) if causal else None
    for head in range(heads):
        # tensors of one head, one per sample
        samples = list(zip(*(x[:, head].unbind(0) for x in (query, key, value, gradient, log_sum, delta, *grads))))
        for first in range(0, length, ROWS):
            end = min(first + ROWS, length)
            keys, rows = (end if causal else total), end - first
            part, grad_part = bias[head, first:end, :keys], grad_bias[head, first:end, :keys]
            probs, scores = scratch[:, : rows * keys].unflatten(1, (rows, keys))
            for b, (q, k, v, g, log_sums, deltas, grad_q, grad_k, grad_v) in enumerate(samples):
                q, k, v, g = q[first:end], k[:keys], v[:keys], g[first:end]
                torch.mm(q, k.T, out=probs)
                torch.add(part, probs, alpha=scale, out=probs)
                if key_padding is not None:
                    probs.masked_fill_(key_padding[b, :keys], float("-inf"))
                if causal:
                    probs[:, first:].masked_fill_(later[:rows, :rows], float("-inf"))
                probs.sub_(log_sums[first:end]).exp_()
                grad_v[:keys].addmm_(probs.T, g)
                torch.mm(g, v.T, out=scores)
                scores.sub_(deltas[first:end]).mul_(probs)
                grad_part.copy_(scores) if b == 0 else grad_part.add_(scores)
                torch.mm(scores, k, out=grad_q[first:end])
                grad_k[:keys].addmm_(scores.T, q)
    grad_query, grad_key, grad_value = grads
    return grad_query.mul_(scale).to(dtype), grad_key.mul_(scale).to(dtype), grad_value.to(dtype), grad_bias


def _later(rows: int, device: torch.device) -> Tensor:
    """(rows, rows) bool, True above the diagonal."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1)


def _backward_by_samples(query, key, value, key_padding, output, log_sum, gradient, bias, causal, scale):
    """Gradients of q, k, v and the bias, for short sequences: all heads of some samples at a time."""
    batch, heads = query.shape[:2]
    samples = max(1, CHUNK_SCORES // bias.numel())
    grads = [_empty_like_tokens(x) for x in (query, key, value)]
    grad_bias = torch.zeros_like(bias)
    delta = (gradient * output).sum(-1, keepdim=True).float()
    if causal:
        bias = bias.masked_fill(_later(bias.shape[1], bias.device), float("-inf"))
    for first in range(0, batch, samples):
        part = slice(first, first + samples)
        q, k, v, g = (x[part].flatten(0, 1) for x in (query, key, value, gradient))
        probs = torch.bmm(q.float(), k.float().transpose(1, 2)).unflatten(0, (-1, heads)).mul_(scale).add_(bias)
        if key_padding is not None:
            probs.masked_fill_(key_padding[part, None, None, :], float("-inf"))
        probs.sub_(log_sum[part].unsqueeze(-1)).exp_()
        scores = torch.bmm(g, v.transpose(1, 2)).float().unflatten(0, (-1, heads)).sub_(delta[part]).mul_(probs)
        grad_bias += scores.sum(0)
        scores, probs = scores.mul_(scale).to(q.dtype).flatten(0, 1), probs.to(g.dtype).flatten(0, 1)
        for target, value_ in zip(grads, (torch.bmm(scores, k), torch.bmm(scores.transpose(1, 2), q), torch.bmm(probs.transpose(1, 2), g))):
            target[part] = value_.unflatten(0, (-1, heads))
    return (*grads, grad_bias)
