"""What the tasks of FreeSeg's two stages share: their names, and classes whose texts are learned prompts around bare names."""

from dataclasses import dataclass, field

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from ofaseg.clip_bpe import ClipTokenizer, find_merges
from ofaseg.data.mask_target_dataset import INSTANCE, PANOPTIC, SEMANTIC
from ofaseg.vocabulary import ClassVocabulary
from user_tasks.dense_segmentation import PromptedClasses

TASKS = (SEMANTIC, INSTANCE, PANOPTIC)


@dataclass
class LearnedPromptOptions(FairseqDataclass):
    """The options of `LearnedPromptClasses`."""

    text_tokenizer: ChoiceEnum(["clip_bpe"]) = field(default="clip_bpe", metadata={"help": "how texts are cut: clip_bpe (CLIP)"})
    clip_bpe: str = field(
        default="", metadata={"help": "bpe_simple_vocab_16e6.txt.gz of CLIP, or its folder (default: the one inside open_clip_torch)"}
    )
    text_length: int = field(default=77, metadata={"help": "longest class name in tokens, with both ends"})
    templates: str = field(default="name", metadata={"help": "sentences around class names; prompts are learned, so: name"})
    clip_checkpoint: str = field(default="", metadata={"help": "CLIP file that texts and regions are read with, OpenAI's or open_clip's"})
    random_towers: bool = field(default=False, metadata={"help": "without --clip-checkpoint: CLIP of random weights, for tests"})


class LearnedPromptClasses(PromptedClasses):
    """Mix-in of tasks whose model is a `PromptedClip`; the task has a `vocabulary` and a `cfg` with `LearnedPromptOptions`.

    Classes that the vocabulary marks as novel are kept from training.

    Attributes:
        trained_classes: ids of the classes that training knows.
    """

    def build_text_tokenizer(self, cfg):
        """CLIP's. Raises TokenizerError without its merges."""
        return ClipTokenizer(find_merges(cfg.clip_bpe))

    def load_towers(self, model) -> None:
        """Reads the frozen CLIP of a new model.

        Raises:
            CheckpointError: no CLIP is named, or the file does not fit.
        """
        from ofaseg.checkpoints import CheckpointError, freeseg  # checkpoints know tasks, so tasks import them late

        if not (self.cfg.clip_checkpoint or self.cfg.pretrained or self.cfg.random_towers):
            raise CheckpointError("the frozen CLIP needs its weights: give --clip-checkpoint (a local file), or --pretrained")
        if self.cfg.clip_checkpoint:
            freeseg.load_clip(model, self.cfg.clip_checkpoint)

    @property
    def trained_classes(self) -> list[int]:
        novel = self.vocabulary.novel or (False,) * len(self.vocabulary)
        return [k for k, held_out in enumerate(novel) if not held_out]

    def set_class_names(self, vocabulary: ClassVocabulary) -> None:
        """Replaces the class vocabulary; the model needs `give_classes(model)` afterwards."""
        self.vocabulary = vocabulary
        self.class_prompts = self.prompts_of(vocabulary.names)

    def give_classes(self, model) -> None:
        """Tells a model the task's classes."""
        model.set_classes(self.class_prompts)


def parse_tasks(text: str) -> tuple[str, ...]:
    """'semantic,panoptic' -> its parts, each of `TASKS`, in their order there. Raises ValueError for others, and for none."""
    given = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in given if part not in TASKS]
    if unknown or not given:
        raise ValueError(f"--tasks {text!r}: give one or more of {','.join(TASKS)}")
    return tuple(task for task in TASKS if task in given)
