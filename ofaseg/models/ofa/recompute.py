"""Building blocks that keep little for the backward pass: dropout with a bit mask, and the second half of a feed-forward layer."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def dropout(x: Tensor, rate: float) -> Tensor:
    """Dropout of a tensor of any shape, as `F.dropout` while training.

    On CPU, torch draws a double per element and keeps a float mask; here 16 random bits decide (the rate is exact to
    2^-17) and one byte is kept.
    """
    if rate == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = words.view(torch.int16)[: x.numel()].view(x.shape) < round(rate * 2**16) - 2**15
    return x.masked_fill(dropped, 0.0) * (1 / (1 - rate))


def gelu_norm_linear(hidden: Tensor, norm: torch.nn.LayerNorm, linear: torch.nn.Linear) -> Tensor:
    """linear(norm(gelu(hidden))): (..., F) -> (..., D). Keeps only `hidden`; the activations are computed again backward."""
    recompute = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.is_autocast_enabled(hidden.device.type)
    if not recompute:
        return linear(norm(F.gelu(hidden)))
    return _GeluNormLinear.apply(hidden, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps)


class _GeluNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, scale, shift, weight, bias, eps):
        ctx.save_for_backward(hidden, scale, shift, weight)
        ctx.eps = eps
        return F.linear(F.layer_norm(F.gelu(hidden), scale.shape, scale, shift, eps), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, scale, shift, weight = ctx.saved_tensors
        inputs = [tensor.detach().requires_grad_() for tensor in (hidden, scale, shift)]
        with torch.enable_grad():
            normed = F.layer_norm(F.gelu(inputs[0]), scale.shape, inputs[1], inputs[2], ctx.eps)
        rows = gradient.flatten(0, -2)
        grad_weight = rows.T @ normed.detach().flatten(0, -2)
        grad_hidden, grad_scale, grad_shift = torch.autograd.grad(normed, inputs, gradient @ weight)
        return grad_hidden, grad_scale, grad_shift, grad_weight, rows.sum(0), None
