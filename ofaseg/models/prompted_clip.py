"""What both stages of FreeSeg share: a frozen CLIP whose texts are class names between learned prompts."""

from dataclasses import dataclass, field
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.models.clip_dense import PIXEL_MEAN, PIXEL_STD
from ofaseg.models.clip_towers import ClipSizes, build_towers
from ofaseg.models.text_encoders.learned_prompt import TASK_TOKENS, LearnedPrompt, encode_with_beginning, pack_names

TASKS = tuple(TASK_TOKENS)
ANY_TASK = "any"
"""Key of text vectors that are the same for every task."""


@dataclass
class PromptedClipConfig(ClipSizes):
    """Sizes of CLIP and of the prompts; the defaults are the published ones."""

    class_prompt_length: int = field(default=16, metadata={"help": "vectors of the learned class prompt"})
    task_prompt_length: int = field(default=8, metadata={"help": "vectors of the learned task prompt; 0: texts do not tell tasks apart"})
    cosine_scale: float = field(default=100.0, metadata={"help": "what cosines are multiplied by"})


def check_tokenizer(cfg: PromptedClipConfig, task) -> None:
    """Raises ValueError when the `text_tokenizer` of a task is not CLIP's."""
    if len(task.text_tokenizer) != cfg.vocab_size:
        raise ValueError(
            f"the text tokenizer has {len(task.text_tokenizer)} entries, CLIP's word embedding {cfg.vocab_size} rows; "
            "FreeSeg needs --text-tokenizer clip_bpe"
        )


class PromptedClip:
    """Mix-in for a `torch.nn.Module` with a `config` (`PromptedClipConfig`) that calls `set_up`, and later `set_classes`.

    Attributes:
        clip: `open_clip.model.CLIP`, never trained.
        prompt: `LearnedPrompt`.
        names: token ids of the K class names.
        words: for each class the token ids of the names that its vector is the mean of; the class name alone unless `set_class_words`
            was called.
        clip_mean, clip_std: (3, 1, 1) what CLIP normalises RGB in 0..255 with.
    """

    def set_up(self, config: PromptedClipConfig) -> None:
        """Builds CLIP and prompts. Raises ValueError when open_clip_torch is missing."""
        self.clip = build_towers(config)
        self.clip.requires_grad_(False)
        self.prompt = LearnedPrompt(config.text_width, config.class_prompt_length, config.task_prompt_length)
        self.prompt.take_signals(self.clip.token_embedding.weight)
        for name, values in (("clip_mean", PIXEL_MEAN), ("clip_std", PIXEL_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        self.names: list[list[int]] = []
        self.words: list[list[list[int]]] = []

    # -- classes ---------------------------------------------------------------------------------------------------

    def set_classes(self, prompts: Optional[Sequence[Sequence[Sequence[int]]]]) -> None:
        """Replaces the class list; class k is the name `prompts[k]`: one text, token ids with start and end.

        Raises:
            ValueError: several texts for a class, an empty name, or one too long beside the learned prompts.
        """
        for k, texts in enumerate(prompts or ()):
            if len(texts) != 1:
                raise ValueError(f"class {k} has {len(texts)} texts; FreeSeg learns its prompts: give the bare name, templates=name")
        self.names = [list(texts[0][1:-1]) for texts in prompts or ()]
        self.set_class_words([[name] for name in self.names])

    def set_class_words(self, words: Sequence[Sequence[Sequence[int]]]) -> None:
        """Gives each of the K classes one or several names: its vector is the mean of their unit vectors, made unit again (subclasses).

        Args:
            words: for each class at least one name, each its token ids without start and end.

        Raises:
            ValueError: another number of classes, a class without a name, an empty name, or one too long beside the learned prompts.
        """
        if len(words) != len(self.names) or not all(words):
            raise ValueError(f"words of {len(words)} classes for a model of {len(self.names)} classes; each needs a name")
        longest = max(map(len, TASK_TOKENS.values())) if self.config.task_prompt_length else 0
        beginning = longest + self.config.task_prompt_length + 1 + self.config.class_prompt_length
        names, classes = [name for own in words for name in own], [k for k, own in enumerate(words) for _ in own]
        ids, lengths = pack_names(names, beginning, self.config.context_length, classes)
        device = self.clip_mean.device
        self.register_buffer("_name_ids", ids.to(device), persistent=False)
        self.register_buffer("_name_lengths", lengths.to(device), persistent=False)
        self.register_buffer("_name_classes", torch.tensor(classes, dtype=torch.long, device=device), persistent=False)
        self.words = [[list(name) for name in own] for own in words]
        self.forget_text_vectors()

    def half(self):
        """Refused, as `bfloat16`: prompts and cosines need float32."""
        raise ValueError("FreeSeg keeps its weights in float32: instead of --fp16 or --bf16 use --autocast bf16")

    bfloat16 = half

    def forget_text_vectors(self) -> None:
        """Text vectors of classes are made anew; needed only when weights were written past autograd's knowledge."""
        self._text_vectors: dict[str, tuple[tuple, Tensor]] = {}

    def text_key(self, task: str) -> str:
        """Tasks of one key have the same text vectors."""
        return task if self.config.task_prompt_length else ANY_TASK

    def class_embeddings(self, task: str = TASKS[0], rows: Optional[Tensor] = None) -> Tensor:
        """(K, D) unit vectors of the classes for one of `TASKS`, kept as long as prompts and text tower stay as they are.

        With gradient where the prompts are trained. `rows` (n,) long: only these classes, (n, D).

        Raises:
            ValueError: no classes, or an unknown task.
        """
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
        if not self.names:
            raise ValueError("this model has no classes; call set_classes first")
        if self.prompt.class_prompt.requires_grad and torch.is_grad_enabled():
            return self._encode(task, rows)
        key = self.text_key(task)
        tensors = (self.clip.token_embedding.weight, self.clip.text_projection)
        version = (self.prompt.version(), *((tensor.data_ptr(), tensor._version) for tensor in tensors))
        known = self._text_vectors.get(key)
        if known is None or known[0] != version:
            with torch.no_grad(), torch.autocast(self.clip.text_projection.device.type, enabled=False):  # kept: the same for every caller
                known = self._text_vectors[key] = (version, self._encode(task))
        return known[1] if rows is None else known[1][rows]

    def prompted_embeddings(self, task: str, class_prompt: Tensor, rows: Optional[Tensor] = None) -> Tensor:
        """(K, D) unit vectors of the classes, or (n, D) of `rows`, made with another class prompt, to which their gradient flows."""
        return self._encode(task, rows, class_prompt)

    def _encode(self, task: str, rows: Optional[Tensor] = None, class_prompt: Optional[Tensor] = None) -> Tensor:
        """(K, D), or those of `rows`, from the text tower; with another class prompt where one is given."""
        ids, lengths, owners, one_each = self._name_ids, self._name_lengths, self._name_classes, len(self._name_ids) == len(self.words)
        if rows is not None and one_each:
            ids, lengths = ids[rows], lengths[rows]
        elif rows is not None:
            owners, chosen = (rows[:, None] == owners).nonzero(as_tuple=True)
            ids, lengths = ids[chosen], lengths[chosen]
        endings = self.prompt.endings(self.clip.token_embedding(ids), lengths)
        vectors = encode_with_beginning(self.clip, self.prompt.beginning(self.task_words(task), class_prompt), endings, lengths + 1)
        if one_each:
            return vectors
        sums = vectors.new_zeros(len(self.words) if rows is None else len(rows), vectors.shape[1])
        return F.normalize(sums.index_add(0, owners, vectors), dim=-1)

    def task_words(self, task: str) -> Tensor:
        """(n, width) word vectors of the words that stand for a task."""
        return torch.stack([self.clip.token_embedding.weight[token] for token in TASK_TOKENS[task]])
