"""A cache of attention biases for evaluation: they depend on the weights, the patch grid and the text length only.

Autograd's version counters tell most changes of weights: loading a state dict, plain in-place operations, `torch_adamw`
(which counts its fused steps itself). Writes through `.data`, as fairseq's own optimizers make them, go past the counters;
they happen in training mode, and encoder and decoder drop their caches whenever the mode changes. Only code that writes
through `.data` in evaluation mode has to call `BiasCache.clear`.
"""

from collections import OrderedDict
from typing import Callable, Hashable

import torch
from torch import Tensor, nn

CACHE_BYTES = 2**29
"""What one cache holds at most."""


class BiasCache:
    """Tensors by (group, item), for one version of the weights; the least recently used groups go first.

    Copies of a model and pickles start with an empty cache.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        self.weights: tuple = ()
        self.groups: OrderedDict[Hashable, dict[Hashable, Tensor]] = OrderedDict()
        self.bytes = 0

    def __deepcopy__(self, memo) -> "BiasCache":
        return BiasCache(self.limit)

    def __reduce__(self):
        return BiasCache, (self.limit,)

    def get(self, weights: tuple, group: Hashable, item: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of an item, made at most once while `weights` (see `weights_version`) stay and room is left.

        When the cache is full, older groups make room; a group that alone exceeds the limit is kept in part.
        """
        if weights != self.weights:
            self.clear()
            self.weights = weights
        entries = self.groups.setdefault(group, {})
        self.groups.move_to_end(group)
        if item in entries:
            return entries[item]
        value = make()
        size = value.numel() * value.element_size()
        while self.bytes + size > self.limit and len(self.groups) > 1:
            _, dropped = self.groups.popitem(last=False)
            self.bytes -= sum(tensor.numel() * tensor.element_size() for tensor in dropped.values())
        if self.bytes + size <= self.limit:
            entries[item] = value
            self.bytes += size
        return value


def weights_version(modules: list[nn.Module]) -> tuple:
    """Changes when a weight of `modules` is changed in place, moved or replaced."""
    return tuple((p.data_ptr(), p._version) for module in modules for p in module.parameters())


def may_cache() -> bool:
    """Whether results may be kept: gradients are off, and no compiler is tracing."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()
