"""The second half of a feed-forward layer, which keeps little for the backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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
