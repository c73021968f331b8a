"""Retrieval scores of a data set that is embedded batch by batch, on one process or several."""

import torch
from torch import Tensor

from ofaseg.evaluation.evaluator import sum_over_ranks
from ofaseg.evaluation.retrieval import gather_embeddings, retrieval_scores


class RetrievalEvaluator:
    """Keeps the vectors of photos and captions: `reset`, `update` per batch, `compute` once."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._images: list[Tensor] = []
        self._texts: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._places: list[Tensor] = []
        self._image_ids: list = []
        self._text_ids: list = []

    def update(self, images: Tensor, texts: Tensor, batch: dict) -> None:
        """Adds the vectors (B, D) of a batch's photos and those (T, D) of all its captions (batch: `ImageTextDataset.collater`)."""
        self._images.append(images)
        self._texts.append(texts)
        self._rows.append(batch["id"])
        self._places.append(batch["caption_order"])
        self._image_ids += batch["image_id"]
        self._text_ids += batch["caption_image_id"]

    def compute(self, device="cpu") -> dict[str, float]:
        """`retrieval_scores` of everything added on all ranks, {} when there is nothing. Every rank calls it with its device."""
        size = sum_over_ranks(torch.tensor([sum(len(part) for part in self._images)], device=device))
        if not int(size):
            return {}
        dims = sum_over_ranks(torch.tensor([self._images[0].shape[1], 1] if self._images else [0, 0], device=device))
        dim = int(dims[0]) // int(dims[1])

        def joined(parts: list[Tensor], *shape: int, dtype=torch.float32) -> Tensor:
            return torch.cat(parts).to(device) if parts else torch.zeros(0, *shape, dtype=dtype, device=device)

        images, image_ids, _ = gather_embeddings(joined(self._images, dim), self._image_ids, joined(self._rows, dtype=torch.long))
        texts, text_ids, _ = gather_embeddings(joined(self._texts, dim), self._text_ids, joined(self._places, dtype=torch.long))
        return retrieval_scores(images, image_ids, texts, text_ids)
