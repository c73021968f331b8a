"""Test-time prompt tuning: the class prompt is fitted to photos without labels (FreeSeg, CVPR 2023; its published code lacks it).

For N novel classes, s_ij is the score of novel class j for query i: the softmax, over the novel classes alone, of the model's scaled
cosines. The queries i whose entropy -sum_j s_ij log s_ij is below a threshold are kept, K of them, and
L = -1/(N K) sum_i sum_j s_ij log s_ij is made smaller with respect to the class prompt.

Queries are read with the texts as they were before the photo and then held fixed: a step costs a pass of the novel names through the
text tower, and nothing of the image network. The result is decoded once more, with the tuned texts.
"""

import logging
import math
from typing import Optional, Sequence

import torch
from torch import Tensor

from ofaseg.structures import MaskOutput

logger = logging.getLogger(__name__)

SCOPES = ("image", "set")
"""image: every photo, and every task of it, starts from the model's own prompt. set: the prompt goes on from photo to photo."""


def novel_entropies(vectors: Tensor, texts: Tensor, scale: float) -> Tensor:
    """(Q,) entropies in nats, 0..log N, of queries over N novel classes.

    Args:
        vectors: (Q, D) unit vectors of queries.
        texts: (N, D) unit vectors of the novel classes.
        scale: what cosines are multiplied by before the softmax.
    """
    log_scores = (scale * (vectors @ texts.T)).log_softmax(-1)
    return -(log_scores.exp() * log_scores).sum(-1)


def entropy_loss(vectors: Tensor, texts: Tensor, scale: float) -> Tensor:
    """L of this module's head for the queries kept, at least one; arguments as `novel_entropies`."""
    return novel_entropies(vectors, texts, scale).mean() / len(texts)


class PromptTuner:
    """Predicts with a FreeSeg whose class prompt is tuned to the photos. The model itself is never changed.

    Args:
        steps: of Adam per photo and task, at least 1.
        learning_rate: above 0 (the one published value is 0.001).
        threshold: queries are kept whose entropy is below this share, above 0 to 1, of log N, the entropy of knowing nothing.
        scope: one of `SCOPES`. With "set" every process goes on with the photos that it sees; a model with another prompt or other
            classes begins anew.

    Attributes:
        prompt: the class prompt as last tuned; None for the model's own.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, steps: int, learning_rate: float = 1e-3, threshold: float = 0.5, scope: str = "image"):
        if steps < 1 or not 0 < learning_rate < math.inf or not 0 < threshold <= 1 or scope not in SCOPES:
            raise ValueError(
                f"tuning_steps {steps}, tuning_lr {learning_rate}, tuning_threshold {threshold}, tuning_scope {scope!r}: give at least "
                f"1 step, a rate above 0, a threshold above 0 and at most 1, and {' or '.join(SCOPES)}"
            )
        self.steps, self.learning_rate, self.threshold, self.scope = steps, learning_rate, threshold, scope
        self.prompt: Optional[Tensor] = None
        self._optimizer: Optional[torch.optim.Optimizer] = None
        self._texts: dict[str, Tensor] = {}
        self._begun_with: Optional[tuple] = None
        self._has_warned = False

    @torch.no_grad()
    def predict(
        self,
        model,
        classes: Sequence[int],
        image: Tensor,
        tasks: Sequence[str],
        sizes: Optional[Sequence[tuple[int, int]]] = None,
        regions: bool = True,
    ) -> dict[str, MaskOutput]:
        """As `FreeSeg.predict` of `model`, each photo with texts of its own. Photos are encoded as one batch, once for all tasks.

        Args:
            classes: ids of the novel classes. With fewer than two there is no entropy: nothing is tuned, and a warning says so once.

        Raises:
            ValueError: the model keeps the texts of its first task for all of them.
        """
        if model.config.first_task_text:
            raise ValueError("tuned texts are those of their task, first_task_text keeps those of the first one: use one of the two")
        if len(classes) < 2:
            self._warn(len(classes))
            return model.predict(image, tasks, sizes, regions)
        was_training = model.training
        model.eval()
        try:
            photos = model.encode(image, sizes)
            parts = [self._photo(model, sorted(classes), photos.one(b), tasks, regions) for b in range(len(image))]
        finally:
            model.train(was_training)
        return {task: _joined([part[task] for part in parts]) for task in tasks}

    def _photo(self, model, classes: list[int], photo, tasks: Sequence[str], regions: bool) -> dict[str, MaskOutput]:
        """Task -> masks of one photo."""
        outputs = {}
        for task in tasks:
            self._begin(model)
            vectors = model.query_vectors(photo.pixels, self._text(model, task))[0]
            self._tune(model, task, classes, vectors)
            text = self._text(model, task)
            output = model.decode(photo.pixels, text, last_only=True)
            outputs[task] = model.with_regions(output, photo, text) if regions else output
        return outputs

    def _begin(self, model) -> None:
        """Back to the model's own prompt, unless the prompt of its photos so far goes on."""
        state = (model.prompt.version(), model.words)
        if self.scope == "image" or state != self._begun_with:
            self.prompt, self._optimizer, self._texts, self._begun_with = None, None, {}, state

    def _text(self, model, task: str) -> Tensor:
        """(K + 1, D) texts of the prompt as it is."""
        if self.prompt is None:
            return model.text_features(task)
        if task not in self._texts:
            self._texts[task] = model.text_features(task, self.prompt.detach())
        return self._texts[task]

    def _tune(self, model, task: str, classes: list[int], vectors: Tensor) -> None:
        """The steps of one photo, on the queries (Q, D) that are kept; none where none is."""
        scale, device = model.config.cosine_scale, vectors.device.type
        vectors = vectors.float()
        sure = novel_entropies(vectors, self._text(model, task)[classes].float(), scale) < self.threshold * math.log(len(classes))
        kept = vectors[sure]
        if not len(kept):
            return
        if self.prompt is None:
            self.prompt = model.prompt.class_prompt.detach().clone().requires_grad_()
            self._optimizer = torch.optim.Adam([self.prompt], lr=self.learning_rate)
        self._texts, rows = {}, torch.tensor(classes, device=vectors.device)
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            for _ in range(self.steps):
                loss = entropy_loss(kept, model.prompted_embeddings(task, self.prompt, rows), scale)
                (self.prompt.grad,) = torch.autograd.grad(loss, self.prompt)
                self._optimizer.step()

    def _warn(self, count: int) -> None:
        if not self._has_warned:
            logger.warning(
                "prompts are not tuned: %d novel classes, and entropy needs two; mark novel classes in vocabulary.json, or tune on all "
                "classes by tuning_classes=all",
                count,
            )
            self._has_warned = True


def _joined(parts: Sequence[MaskOutput]) -> MaskOutput:
    """The outputs of single photos, of one prediction each, as that of a batch."""
    return MaskOutput(
        (torch.cat([part.class_logits[0] for part in parts]),),
        (torch.cat([part.mask_embeddings[0] for part in parts]),),
        torch.cat([part.mask_features for part in parts]),
        None if parts[0].region_logits is None else torch.cat([part.region_logits for part in parts]),
        None if parts[0].region_valid is None else torch.cat([part.region_valid for part in parts]),
    )
