"""Finer names of the classes, as an option of tasks whose models read texts (LLM supervision, arXiv 2404.00701)."""

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Callable, Optional, Sequence

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from ofaseg.evaluation.zero_shot_settings import ZeroShotSettings
from ofaseg.models.layers.subclass_fusion import NAME_RULES, RULES, SubclassPrompts, check_rule
from ofaseg.subclasses.label_set import MAX_SHOWN, LabelSet, LabelSetError, load_label_set
from ofaseg.tokenizers import TokenizerError

logger = logging.getLogger(__name__)


@dataclass
class SubclassOptions(FairseqDataclass):
    """Options of models that compare patches with texts."""

    subclasses: str = field(default="", metadata={"help": "label set, JSON {class: [finer names]}: class maps come from these names"})
    fusion: ChoiceEnum(RULES) = field(
        default="softmax", metadata={"help": f"how the maps of a class's finer names become one: {', '.join(RULES)} (published: softmax)"}
    )
    subclass_temperature: float = field(
        default=1.0, metadata={"help": "temperature of softmax and logsumexp over finer names (published: 1)"}
    )
    exact_subclasses: bool = field(
        default=False, metadata={"help": "finer names exactly as the file has them, repetitions too, for equality with published numbers"}
    )
    top_m: int = field(
        default=0, metadata={"help": "scores that the threshold of present classes is taken over (0: the dataset's setting)"}
    )


@dataclass
class SubclassNameOptions(FairseqDataclass):
    """Options of models that make one vector per class from words."""

    subclasses: str = field(
        default="", metadata={"help": "label set, JSON {class: [finer names]}: class words are the mean over these names"}
    )
    fusion: ChoiceEnum(NAME_RULES) = field(
        default="superclass_mean", metadata={"help": "superclass_mean (the class name counts as one more name) or mean"}
    )


def load_subclasses(cfg, class_names: Sequence[str]) -> Optional[LabelSet]:
    """The label set that `cfg.subclasses` names, in the order of `class_names`; None where none is named.

    Raises:
        LabelSetError: the file cannot be used, or is of other classes.
    """
    if not cfg.subclasses:
        return None
    exact = getattr(cfg, "exact_subclasses", False)
    found = load_label_set(cfg.subclasses, class_names, clean=not exact)
    if found.changes:
        logger.info(
            "%s: %d names were cleaned or are repetitions; `ofaseg subclasses check` lists them", cfg.subclasses, len(found.changes)
        )
    return found


def subclass_prompts(cfg, label_set: LabelSet, prompts_of: Callable[[Sequence[str]], list]) -> SubclassPrompts:
    """What a dual encoder takes; `prompts_of` makes the prompts of a list of names.

    Raises:
        ValueError: an unknown fusion rule, or a temperature not above 0.
    """
    check_rule(str(cfg.fusion), cfg.subclass_temperature)
    prompts = prompts_of(label_set.flat[0])
    parts, start = [], 0
    for names in label_set.values():
        parts.append(prompts[start : start + len(names)])
        start += len(names)
    return SubclassPrompts(parts, str(cfg.fusion), cfg.subclass_temperature)


def with_top_m(settings: ZeroShotSettings, top_m: int) -> ZeroShotSettings:
    """`settings` with another number of scores under the threshold; 0 leaves them.

    Raises:
        ValueError: fewer than 2, or fewer than may become candidates.
    """
    if not top_m:
        return settings
    if top_m < max(2, settings.candidates):
        raise ValueError(f"top_m {top_m}: the threshold needs at least {max(2, settings.candidates)} scores")
    return dataclasses.replace(settings, top_m=top_m)


def class_words(cfg, label_set: LabelSet, encode: Callable[[str], list[int]]) -> list[list[list[int]]]:
    """Class -> name -> token ids, by the rules of `NAME_RULES`.

    Names with a word that the dictionary lacks are left out, and told; a class left without any keeps its own name.

    Raises:
        LabelSetError: a rule that needs the photo.
    """
    if str(cfg.fusion) not in NAME_RULES:
        raise LabelSetError(f"fusion {cfg.fusion}: this model makes class words without a photo; use {' or '.join(NAME_RULES)}")
    result, unknown = [], []
    for class_name, names in label_set.items():
        ids = [encode(class_name)] if str(cfg.fusion) == "superclass_mean" else []
        for name in names:
            try:
                ids.append(encode(name))
            except TokenizerError:
                unknown.append(name)
        result.append(ids or [encode(class_name)])
    if unknown:
        shown = ", ".join(unknown[:MAX_SHOWN]) + (", ..." if len(unknown) > MAX_SHOWN else "")
        logger.warning("%s: %d names have words that the dictionary lacks and are left out: %s", cfg.subclasses, len(unknown), shown)
    return result
