"""From mask proposals to class maps, panoptic segments and scored objects: the part of a task that models of masks share."""

from dataclasses import dataclass, field, replace
from typing import Optional, Sequence

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from ofaseg.data.mask_target_dataset import INSTANCE, PANOPTIC, SEMANTIC
from ofaseg.evaluation import mask_postprocess, tiling
from ofaseg.evaluation.class_refinement import refine_classes
from ofaseg.evaluation.mask_postprocess import MaskRules
from ofaseg.evaluation.mask_proposals import Proposals, class_map, classify_masks, counted_scores, upsample_masks
from ofaseg.evaluation.mask_views import SizedPhoto, View, averaged_class_map, averaged_scores
from ofaseg.evaluation.postprocess import PostProcess, argmax_at_size, resize_scores
from ofaseg.structures import MaskOutput, SegmentationOutput
from ofaseg.vocabulary import ClassVocabulary, VocabularyError, parse_class_names, share_a_word
from user_tasks.learned_prompts import TASKS, parse_tasks

NOTHING = "none"
"""In the place of names of countable classes."""


@dataclass
class MaskOutputOptions(FairseqDataclass):
    """How mask proposals become results."""

    without_regions: bool = field(default=False, metadata={"help": "predict without CLIP's opinion of the masked regions: quicker"})
    valid_without_regions: bool = field(
        default=False, metadata={"help": "leave CLIP's opinion out of validation during training, but not out of what follows"}
    )
    ensemble_weight: float = field(
        default=0.8, metadata={"help": "0..1, how much of a base class's score is the query's, and of a novel one's CLIP's"}
    )
    all_novel: bool = field(
        default=False,
        metadata={"help": "without base/novel marks all classes count as novel, also those trained on by their names (published: so)"},
    )
    things: str = field(
        default="",
        metadata={
            "help": "countable classes, a file or list of their names, or none "
            "(default: as marked; free words: all but the checkpoint's own stuff)"
        },
    )
    overlap_threshold: float = field(default=0.5, metadata={"help": "least share of a mask that lies on pixels of its own class, 0..1"})
    score_threshold: float = field(default=0.5, metadata={"help": "least score 0..1 of an object, or of a segment of a countable class"})
    suppression: ChoiceEnum(mask_postprocess.SUPPRESSIONS) = field(
        default="per_class",
        metadata={
            "help": "the largest object is dropped where others cover most of it: per_class (others of its class), off, or official "
            "(as published: the largest of all, wherever the others lie; two large objects lose one)"
        },
    )
    drop_last_class: bool = field(default=False, metadata={"help": "no object of the last class, as in the published code"})
    stuff_instances: bool = field(default=False, metadata={"help": "objects of uncountable classes too"})


class MaskOutputs:
    """Mix-in of segmentation tasks with `MaskOutputOptions` whose `proposals` gives a `MaskOutput` for each of `TASKS`.

    Attributes:
        rules: which proposals become segments and objects.
        size_multiple: photos are padded to multiples of so many pixels; the model sets it when it is built.
    """

    output_kinds = TASKS

    def set_up_outputs(self, cfg: MaskOutputOptions) -> None:
        """Raises ValueError for options out of range."""
        for option in ("ensemble_weight", "overlap_threshold", "score_threshold"):
            if not 0 <= getattr(cfg, option) <= 1:
                raise ValueError(f"{option} {getattr(cfg, option)}: give a number from 0 to 1")
        self.rules = MaskRules(
            overlap_threshold=cfg.overlap_threshold,
            score_threshold=cfg.score_threshold,
            suppression=str(cfg.suppression),
            drop_last_class=cfg.drop_last_class,
        )
        self.size_multiple = 1

    # ---- classes ----

    @property
    def thing_marks(self) -> tuple[bool, ...]:
        """K booleans, True for countable classes: the vocabulary's marks; else all but those that the checkpoint knows as stuff."""
        vocabulary, trained = self.vocabulary, self.trained_vocabulary
        if vocabulary.thing:
            return vocabulary.thing
        stuff = [name for name, thing in zip(trained.names, trained.thing) if not thing] if trained is not None else []
        return tuple(not known for known in share_a_word(vocabulary.names, stuff))

    @property
    def base_marks(self) -> Optional[tuple[bool, ...]]:
        """K booleans, True for classes of the training, which CLIP's opinion counts less for; None: all count as novel.

        They are those that the vocabulary does not mark as novel, or lists under ``counted_as_base``. Without marks they are the
        classes that the checkpoint was trained on, by their names.
        """
        vocabulary, trained = self.vocabulary, self.trained_vocabulary
        if any(vocabulary.novel):
            exempt = vocabulary.extra.get("counted_as_base") or []
            return tuple(not novel or name in exempt for name, novel in zip(vocabulary.names, vocabulary.novel))
        if self.cfg.all_novel or trained is None:
            return None
        held_out = trained.novel or (False,) * len(trained)
        return share_a_word(vocabulary.names, [name for name, novel in zip(trained.names, held_out) if not novel])

    # ---- results ----

    def predict_batch(
        self, model, net_input: dict, native_sizes, post: Optional[PostProcess] = None, tasks: Sequence[str] = (SEMANTIC,)
    ) -> list[SegmentationOutput]:
        """Segments a batch at native sizes.

        Args:
            net_input: as collated; moved to the model's device here.
            native_sizes: B pairs (H, W).
            post: flip, windows, scales, refinement and scores, for class maps alone; None for what the configuration asks for.
            tasks: of `TASKS`, what to make; all from one encoding of the photos. The class map is that of the semantic task, without
                it that of the first one.

        Raises:
            ValueError: an unknown task, or options of `post` that do not go with it.
        """
        post, tasks = post or self.post_process(), parse_tasks(",".join(tasks))
        averaging = post.flip_average or post.window or post.scales != (1.0,)
        if post.resnet_iters:
            raise ValueError("resnet_iters spreads the classes of patches, and a model of mask proposals has none; set it to 0")
        if tasks != (SEMANTIC,) and (averaging or post.refine != "none" or post.return_scores):
            raise ValueError(
                f"flip, window, scales, refine and class scores are for class maps: every view has masks of its own, and those of "
                f"segments and objects cannot be averaged; leave them out, or ask for {SEMANTIC} alone instead of {','.join(tasks)}"
            )
        if averaging or post.refine != "none" or post.return_scores:
            return self._averaged(model, net_input[self.image_key], native_sizes, post)
        outputs, size = self.proposals(model, net_input, tasks), tuple(net_input[self.image_key].shape[2:])
        return [self._segmentation(outputs, photo, size, native) for photo, native in enumerate(native_sizes)]

    def class_maps(self, output: MaskOutput, size: Sequence[int], native_sizes) -> list[SegmentationOutput]:
        """The best class of every pixel at native size (FreeSeg, section 3.4), from proposals for photos of `size` (H, W)."""
        return [self._segmentation({SEMANTIC: output}, photo, tuple(size), native) for photo, native in enumerate(native_sizes)]

    def _segmentation(self, outputs: dict[str, MaskOutput], photo: int, size: tuple[int, int], native) -> SegmentationOutput:
        """The results of one photo for each task of `outputs`."""
        result, native = None, (int(native[0]), int(native[1]))
        for task, output in outputs.items():
            found = self._classified(output, photo)
            found = found._replace(mask_logits=upsample_masks(found.mask_logits, self._padded(size), size))
            result = result or SegmentationOutput(class_map(found, native))
            thing = torch.tensor(self.thing_marks, device=found.class_scores.device)
            if task == PANOPTIC:
                result.panoptic = mask_postprocess.panoptic_segments(found, thing, native, self.rules)
            elif task == INSTANCE:
                countable = None if self.cfg.stuff_instances else thing
                result.instances = mask_postprocess.instances(found, native, countable, self.rules)
        return result

    def _classified(self, output: MaskOutput, photo: int) -> Proposals:
        """The proposals of one photo of a batch, masks on the model's grid."""
        logits = output.mask_logits[photo]
        regions = (None, None) if output.region_logits is None else (output.region_logits[photo], output.region_valid[photo])
        marks = self.base_marks
        base = None if marks is None else torch.tensor(marks, device=logits.device)
        return classify_masks(logits, output.class_logits[-1][photo], *regions, base, self.cfg.ensemble_weight)

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        """(H, W) of the model's input for photos of `size`."""
        height, width = (-(-side // self.size_multiple) * self.size_multiple for side in size)
        return height, width

    # ---- several views ----

    def _averaged(self, model, image: Tensor, native_sizes, post: PostProcess) -> list[SegmentationOutput]:
        """Class maps from scores averaged over the views that `post` asks for, refined where it says so."""
        results = []
        for b, (photo, native) in enumerate(zip(self._views(model, image, post), native_sizes)):
            native = (int(native[0]), int(native[1]))
            if post.refine == "none":
                scores = _probabilities(averaged_scores(photo, native)) if post.return_scores else None
                results.append(SegmentationOutput(averaged_class_map(photo, native) if scores is None else scores.argmax(0), scores))
                continue
            probs = _probabilities(averaged_scores(photo, image.shape[2:]))
            ids, refined = refine_classes(post.refine, model.pixels(image)[b].to(probs.device), probs)
            scores = None
            if post.return_scores:
                scores = probs.new_zeros(len(probs), *native).index_copy_(0, ids, resize_scores(refined, native))
            results.append(SegmentationOutput(ids[argmax_at_size(refined, native)], scores))
        return results

    def _views(self, model, image: Tensor, post: PostProcess) -> list[list[SizedPhoto]]:
        """For each photo (B, 3, H, W) its views at every scale of `post`."""
        if post.window:
            stride = post.window_stride or max(1, post.window // 2)
            tiling.check_window(post.window, stride, 1)
        photos: list[list[SizedPhoto]] = [[] for _ in image]
        for scale in post.scales:
            size = tuple(max(1, int(side * scale + 0.5)) for side in image.shape[2:])
            scaled = tiling.resized(image, size)
            corners = [(0, 0)]
            if post.window:
                tops, lefts = (tiling.window_starts(side, post.window, stride) for side in size)
                corners = [(top, left) for top in tops for left in lefts]
            views: list[list[View]] = [[] for _ in image]
            for top, left in corners:
                part = scaled[:, :, top : top + post.window, left : left + post.window] if post.window else scaled
                for mirrored in (False, True) if post.flip_average else (False,):
                    output = self.proposals(model, {self.image_key: part.flip(-1) if mirrored else part})[SEMANTIC]
                    about = (self._padded(part.shape[2:]), tuple(part.shape[2:]), (top, left), mirrored)
                    for b in range(len(image)):
                        found = self._classified(output, b)
                        views[b].append(View(found.mask_logits, counted_scores(found), *about))
            for b in range(len(image)):
                photos[b].append(SizedPhoto(size, views[b]))
        return photos


def _probabilities(scores: Tensor) -> Tensor:
    """Scores (K, H, W) as shares of their sum over classes."""
    return scores / scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)


def with_things(vocabulary: ClassVocabulary, things: str) -> ClassVocabulary:
    """The vocabulary with the classes named by `things` (a file or list) as countable and all others not; as it is for an empty text.

    "none", where no class is called so, makes no class countable.

    Raises:
        VocabularyError: a name that is no class.
    """
    if not things:
        return vocabulary
    names = () if things == NOTHING and NOTHING not in vocabulary.names else parse_class_names(things)
    unknown = [name for name in names if name not in vocabulary.names]
    if unknown:
        raise VocabularyError(f"things: {unknown[0]!r} is no class; name some of {', '.join(vocabulary.names[:20])}")
    return replace(vocabulary, thing=tuple(name in names for name in vocabulary.names))
