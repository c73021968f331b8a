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
    if x.device.type != "cpu" or not 0 < rate < 1 or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return _Dropout.apply(x, rate)


class _Dropout(torch.autograd.Function):
    """Comparisons write numbers, and masks are multiplied: several times faster than filling or choosing by booleans."""

    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        words = words.view(torch.int16)[: x.numel()].view(x.shape)
        factors = torch.ge(words, round(rate * 2**16) - 2**15, out=torch.empty(x.shape, dtype=x.dtype))
        ctx.scale = 1 / (1 - rate)
        ctx.save_for_backward(factors.bool())
        return factors.mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (kept,) = ctx.saved_tensors
        return kept.to(grad.dtype).mul_(grad).mul_(ctx.scale), None


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
