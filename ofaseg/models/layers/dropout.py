"""Dropout that is quick on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, rate: float) -> Tensor:
    """Dropout of a tensor of any shape, as `F.dropout` while training.

    On CPU, torch draws a double per element and keeps a float mask; here 16 random bits decide (the rate is exact to
    2^-17) and one byte is kept.
    """
    if rate == 0.0:
        return x
    return _Dropout.apply(x, rate) if _is_quicker(x, rate) else F.dropout(x, rate)


def relu_dropout(x: Tensor, rate: float) -> Tensor:
    """`dropout` of ``x.relu()``, x finite, with the same random numbers; only the result is kept for the backward pass."""
    return _ReluDropout.apply(x, rate) if _is_quicker(x, rate) else dropout(x.relu(), rate)


def _is_quicker(x: Tensor, rate: float) -> bool:
    return x.device.type == "cpu" and 0 < rate < 1 and not torch.compiler.is_compiling()


def _draw(x: Tensor, rate: float) -> Tensor:
    """1 for kept elements, 0 for others. A comparison that writes numbers, to be multiplied by, is several times faster than a choice."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    words = words.view(torch.int16)[: x.numel()].view(x.shape)
    return torch.ge(words, round(rate * 2**16) - 2**15, out=torch.empty(x.shape, dtype=x.dtype))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        factors = _draw(x, rate)
        ctx.scale = 1 / (1 - rate)
        ctx.save_for_backward(factors.bool())
        return factors.mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return kept.to(grad.dtype).mul_(grad).mul_(ctx.scale), None


class _ShareDropout(torch.autograd.Function):
    """Of numbers from 0 on: what is above 0 in the result was kept."""

    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        ctx.scale = 1 / (1 - rate)
        result = _draw(x, rate).mul_(x).mul_(ctx.scale)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor):
        (result,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, result, 0).mul_(ctx.scale), None


class _ReluDropout(_ShareDropout):
    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        ctx.scale = 1 / (1 - rate)
        result = _draw(x, rate).mul_(x).clamp_(min=0).mul_(ctx.scale)
        ctx.save_for_backward(result)
        return result


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


class ShareDropout(nn.Dropout):
    """`Dropout` of attention weights, all from 0 on; only the result is kept for the backward pass.

    A weight of exactly 0 gets no gradient, which its softmax would multiply by 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and _is_quicker(x, self.p):
            return _ShareDropout.apply(x, self.p)
        return dropout(x, self.p) if self.training else x
