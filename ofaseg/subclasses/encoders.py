"""Text encoders of local transformers folders for the filters: CLIP-like ones, and sentence encoders by the mean over words."""

from pathlib import Path
from typing import Sequence

from ofaseg.subclasses.local_models import open_model

BATCH = 256


class TransformersTextEncoder:
    """Names -> unit vectors, by a model in a local folder; nothing is downloaded.

    A model with `get_text_features` (CLIP, SigLIP) gives these; any other encoder gives the mean of its last states over the
    tokens, as sentence encoders such as all-mpnet-base-v2 do.

    Args:
        folder: as written by `save_pretrained`, with the tokenizer.
        device: where the model runs.

    Raises:
        ValueError: there is no such model folder, or its files cannot be used.
    """

    def __init__(self, folder, device="cpu"):
        self.folder = Path(folder)
        self._tokenizer, self._model = open_model(self.folder, "AutoModel", "text encoder", device)

    def __call__(self, names: Sequence[str]):
        """(n, D) float32 unit vectors on the CPU."""
        import torch

        with torch.no_grad():
            parts = [self._encode(list(names[start : start + BATCH])) for start in range(0, len(names), BATCH)]
        vectors = torch.cat(parts).float().cpu()
        return vectors / vectors.norm(dim=1, keepdim=True)

    def _encode(self, names: list[str]):
        tokens = self._tokenizer(names, padding=True, truncation=True, return_tensors="pt").to(self._model.device)
        if hasattr(self._model, "get_text_features"):
            features = self._model.get_text_features(**tokens)
            return getattr(features, "pooler_output", features)  # a tensor in transformers 4
        states = self._model(**tokens).last_hidden_state
        mask = tokens.attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(dim=1) / mask.sum(dim=1)
