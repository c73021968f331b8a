"""What a frozen image tower said of photos that come again: in every validation, and in training without augmentation."""

import hashlib
from typing import Callable

import torch
from torch import Tensor


class FeatureCache:
    """Vectors of photos, found by the photos' pixels: never of another photo, size or data set, and exact (float32).

    Args:
        limit: photos that are kept, in main memory; those that come later are computed each time.

    Attributes:
        computed: photos that went through the tower so far.
    """

    def __init__(self, limit: int):
        self.limit, self.computed = limit, 0
        self._kept: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def tokens(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, N, D) vectors of photos (B, 3, H, W) uint8 on the CPU; `encode` makes those of the photos that are not kept.

        `encode` takes photos (b, 3, H, W) to (b, N, D); the result is on its device.
        """
        keys = [hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest() for image in images]
        first = {key: b for b, key in reversed(list(enumerate(keys)))}
        missing = [key for key in first if key not in self._kept]
        fresh = {}
        if missing:
            vectors = encode(images[[first[key] for key in missing]])
            self.computed += len(missing)
            fresh = dict(zip(missing, vectors))
        for key in missing[: self.limit - len(self._kept)] if len(self._kept) < self.limit else ():
            self._kept[key] = fresh[key].detach().float().cpu()
        device = next(iter(fresh.values())).device if fresh else None
        rows = [fresh[key] if key in fresh else self._kept[key] for key in keys]
        return torch.stack([row if device is None else row.to(device) for row in rows])
