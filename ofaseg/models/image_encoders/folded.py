"""Convolution and fixed batch normalisation as one operation, for evaluation, and the encoders made of such pairs.

On CPU in float32 the activation, and the residual sum before it, join the same oneDNN operation.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FoldedConvolutions:
    """Keeps the folded weights of convolution + batch-norm pairs, in channels-last order, while the originals stay as they are.

    A change is known by storage and version counter of the originals; whoever writes past the counter has to `clear`.
    Copies of a model and pickles start empty.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.folded: dict[int, tuple[tuple, Tensor, Tensor]] = {}

    def __deepcopy__(self, memo) -> "FoldedConvolutions":
        return FoldedConvolutions()

    def __reduce__(self):
        return FoldedConvolutions, ()

    def _weights(self, conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
        sources = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in sources)
        known = self.folded.get(id(conv))
        if known is None or known[0] != version:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = (conv.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
            known = self.folded[id(conv)] = (version, weight, norm.bias - norm.running_mean * scale)
        return known[1:]

    def __call__(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module, relu: bool = True, residual: Optional[Tensor] = None) -> Tensor:
        """norm(conv(x)), plus `residual` (which may be overwritten), then ReLU if asked for."""
        weight, bias = self._weights(conv, norm)
        if _fusable(x, weight):
            shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
            if residual is not None and relu:
                return torch.ops.mkldnn._convolution_pointwise_.binary(residual, x, weight, bias, *shape, "add", 1.0, "relu", [], "")
            if residual is None:
                return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *shape, "relu" if relu else "none", [], "")
        y = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), conv.stride, conv.padding, conv.dilation, conv.groups)
        if residual is not None:
            y = y + residual
        return y.relu_() if relu else y


def _fusable(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's joined operations can be used."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    )


def may_fold(module: nn.Module) -> bool:
    """Whether `module` runs without gradient, batch statistics or a compiler, so that folded weights may stand in."""
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


class FoldingEncoder(nn.Module):
    """Base of the convolutional image encoders: start values, and folded weights in evaluation.

    A sub-class declares `out_feature`, calls `_finish` at the end of its constructor, and computes its feature map from
    normalised photos (B, 3, H, W) in `_features` and, without gradient and equal up to rounding, in `_folded_features`.
    """

    out_feature: str

    def _finish(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.folded = FoldedConvolutions()

    def train(self, mode: bool = True) -> "FoldingEncoder":
        """As `nn.Module.train`; training may write weights past autograd's knowledge, so a change of mode drops what was kept."""
        if mode != self.training:
            self.folded.clear()
        return super().train(mode)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised photos (B, 3, H, W) -> {out_feature: (B, C, ceil(H/stride), ceil(W/stride))}."""
        return {self.out_feature: self._folded_features(images) if may_fold(self) else self._features(images)}

    def _features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def _folded_features(self, images: Tensor) -> Tensor:
        raise NotImplementedError
