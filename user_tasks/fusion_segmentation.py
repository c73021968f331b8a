"""Task of models that fuse frozen towers: binary segmentation of (photo, class) pairs, base classes in training, novel ones in tests."""

from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from fairseq.tasks import register_task
from torch import Tensor

from ofaseg.data.class_pairs import PAIR_SOURCES, TEST_SUBSETS, PairChoice, choose_pairs
from ofaseg.data.few_shot_transforms import FewShotEvaluation, FewShotTraining
from ofaseg.data.folds import BACKGROUND_NAMES, BENCHMARKS, ClassSplit, FoldError, fold_split, own_split
from ofaseg.data.pair_lists import PUBLISHED
from ofaseg.data.pair_view_dataset import PairViewDataset
from ofaseg.data.present_classes import present_classes
from ofaseg.evaluation.corner_windows import corner_windows, published_stride
from ofaseg.evaluation.few_shot import NUM_COUNTS, PROTOCOLS, classes_with_pairs, few_shot_scores, pair_counts
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.models.layers.subclass_fusion import NAME_RULES
from ofaseg.models.text_encoders.text_table import NameTokenizer, TextTable
from ofaseg.structures import DenseOutput, unwrap
from ofaseg.vocabulary import ClassVocabulary, parse_class_names
from user_tasks.base_tasks import in_order
from user_tasks.dense_segmentation import DenseSegmentationConfig, DenseSegmentationTask
from user_tasks.feature_cache import FeatureCache

NO_BENCHMARK = "none"
SCORES = ("mIoU", "FB_IoU")
OFFICIAL_CROP_SCALE = 0.5


@dataclass
class FusionSegmentationConfig(DenseSegmentationConfig):
    patch_image_size: int = field(default=224, metadata={"help": "side in pixels of training crops, of test photos and of windows"})
    text_tokenizer: ChoiceEnum(["wordpiece", "clip_bpe", "table"]) = field(
        default="clip_bpe", metadata={"help": "how texts are cut: clip_bpe (CLIP), wordpiece (BERT), table (with --text-embeddings)"}
    )
    text_embeddings: str = field(default="", metadata={"help": "names and their text vectors, for the text tower 'table'"})
    text_length: int = field(default=77, metadata={"help": "longest prompt in tokens, with both ends"})
    templates: str = field(
        default="fusioner32", metadata={"help": "sentences around class names: fusioner32, imagenet80, name, or a text file"}
    )
    fusion: ChoiceEnum(NAME_RULES) = field(
        default="superclass_mean", metadata={"help": "how finer names make a class vector: superclass_mean (with the class name) or mean"}
    )
    benchmark: ChoiceEnum([NO_BENCHMARK, *BENCHMARKS]) = field(
        default=NO_BENCHMARK, metadata={"help": "whose folds say which classes are held out; none: --novel-classes, or those of the shards"}
    )
    fold: int = field(default=0, metadata={"help": "fold of the benchmark, 0..3"})
    novel_classes: str = field(default="", metadata={"help": "names of the classes held out: a file or a comma-separated list"})
    base_classes: str = field(default="", metadata={"help": "names of the classes trained on (default: all that are not held out)"})
    pairs: ChoiceEnum(PAIR_SOURCES) = field(
        default="masks", metadata={"help": "which (photo, class) pairs: masks (all that the label maps show), official, hsnet, list"}
    )
    pair_lists: str = field(default="", metadata={"help": "folder of the published lists, or the file of one's own list"})
    test_subset: ChoiceEnum(TEST_SUBSETS) = field(
        default="all", metadata={"help": "which test pairs count: all, first1000 (published on COCO-20i), hsnet1000, lseg1000"}
    )
    protocol: ChoiceEnum(PROTOCOLS) = field(default="fusioner", metadata={"help": "what mIoU and FB-IoU leave out: fusioner or hsnet"})
    test_with_org_resolution: bool = field(
        default=False, metadata={"help": "test at the photos' own size, by sliding windows, instead of squares"}
    )
    num_present: int = field(default=1, metadata={"help": "classes of a training sample that its photo shows (published: 1)"})
    num_absent: int = field(default=0, metadata={"help": "classes of a training sample that its photo does not show (published: 0)"})
    aug_prob: float = field(default=0.5, metadata={"help": "probability of augmentation (published: 0.5)"})
    smallest_crop: float = field(default=OFFICIAL_CROP_SCALE, metadata={"help": "least share of a photo's area in a training crop"})
    cache_features: int = field(
        default=0, metadata={"help": "photos whose image features are kept in memory: in validation, and in training without augmentation"}
    )
    ignore_borders: bool = field(default=False, metadata={"help": "borders that warping uncovers have no label (published: not the class)"})


@register_task("fusion_segmentation", dataclass=FusionSegmentationConfig)
class FusionSegmentationTask(DenseSegmentationTask):
    """Trains and tests on pairs (Fusioner, sections 3 and 4); evaluates and predicts several classes at once, too.

    A class called background has no text: where the others' probabilities stay at or below one half, it wins.
    """

    def __init__(self, cfg: FusionSegmentationConfig, vocabulary: ClassVocabulary):
        super().__init__(cfg, vocabulary)
        self.features = FeatureCache(cfg.cache_features)

    def build_text_tokenizer(self, cfg):
        """The one that `text_tokenizer` names; a table has the names alone, so templates, which are read afterwards, are put aside.

        Raises:
            CheckpointError: the table cannot be read.
        """
        if str(cfg.text_tokenizer) == "table":
            cfg.templates, cfg.text_length = "name", 1
            return NameTokenizer(TextTable.read(cfg.text_embeddings))
        return super().build_text_tokenizer(cfg)

    def prompts_of(self, names, templates=()) -> list:
        """As `PromptedClasses.prompts_of`; background has a prompt too, which nothing reads: with a table that of the first other name."""
        if str(self.cfg.text_tokenizer) == "table":
            real = [name for name in names if name.lower() not in BACKGROUND_NAMES]
            names = [real[0] if real and name.lower() in BACKGROUND_NAMES else name for name in names]
        return super().prompts_of(names, templates)

    def _settings(self) -> None:
        """Classes are never chosen by whole photos."""
        return None

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model and reads its towers' files, unless a checkpoint brings them.

        Raises:
            CheckpointError: a tower without a file, or one that does not fit.
        """
        model = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint:
            from ofaseg.checkpoints.fusioner import load_towers  # checkpoints know tasks, so tasks import them late

            load_towers(model)
        return model

    # ---- data ----

    @cached_property
    def split(self) -> ClassSplit:
        """Base and novel classes; without any held out, all classes are both.

        Raises:
            FoldError: the fold or a name does not exist, no class is left to train on, or the vocabulary is not the benchmark's.
        """
        found = self._whole_split()
        if not self.cfg.base_classes:
            return found
        names = parse_class_names(self.cfg.base_classes)
        chosen = [k for k in found.base if self.vocabulary.names[k] in names]
        if len(chosen) < len(names):
            known = {self.vocabulary.names[k] for k in found.base}
            wrong = ", ".join(name for name in names if name not in known)
            raise FoldError(f"--base-classes {wrong}: held out, or no class of {self.vocabulary.source}; correct the list")
        return ClassSplit(tuple(chosen), found.novel)

    def _whole_split(self) -> ClassSplit:
        cfg = self.cfg
        if str(cfg.benchmark) == NO_BENCHMARK and cfg.fold:
            raise FoldError(f"--fold {cfg.fold} of no benchmark; give --benchmark {' or '.join(BENCHMARKS)}, or --novel-classes alone")
        if str(cfg.benchmark) != NO_BENCHMARK and cfg.novel_classes:
            raise FoldError(f"--novel-classes beside --benchmark {cfg.benchmark}, whose folds hold classes out; give one of the two")
        if str(cfg.benchmark) != NO_BENCHMARK:
            return fold_split(self.vocabulary, str(cfg.benchmark), cfg.fold)
        if cfg.novel_classes or any(self.vocabulary.novel):
            return own_split(self.vocabulary, parse_class_names(cfg.novel_classes) if cfg.novel_classes else ())
        everything = tuple(self.objects)
        return ClassSplit(everything, everything)

    @property
    def objects(self) -> list[int]:
        """Ids of the classes that have a text: all but background."""
        return [k for k, name in enumerate(self.vocabulary.names) if name.lower() not in BACKGROUND_NAMES]

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        self.datasets[split] = self.pair_dataset(split, training=split == "train")

    def pair_dataset(self, split: str, training: bool, base: bool = False) -> PairViewDataset:
        """Pairs of base classes for training (augmented, shuffled), or of novel ones for tests (in order), or of `base` ones.

        Published lists name base classes in photos of train alone; in other splits the `base` pairs are those of the label maps.

        Raises:
            FoldError, ShardError: see `choose_pairs`.
            ValueError: an option of evaluation that pairs are not tested with.
        """
        cfg, reader = self.cfg, self.reader(split)
        self._check_test_options()
        source = "masks" if base and split != "train" and str(cfg.pairs) in PUBLISHED else str(cfg.pairs)
        benchmark = "" if str(cfg.benchmark) == NO_BENCHMARK else str(cfg.benchmark)
        subset = "all" if training else str(cfg.test_subset)
        choice = PairChoice(source, benchmark, cfg.fold, cfg.pair_lists, subset, skip_bad=str(cfg.on_bad_sample) == "skip")
        present = present_classes(reader, self.vocabulary)
        pairs = choose_pairs(present, self.vocabulary, self.split, choice, training or base)
        testing = FewShotEvaluation(None if cfg.test_with_org_resolution else cfg.patch_image_size)
        crops = dict(size=cfg.patch_image_size, scale=(cfg.smallest_crop, 1.0), ignore_borders=cfg.ignore_borders)
        if training and not cfg.no_photo_augmentation:
            transform = FewShotTraining.of_benchmark(benchmark, probability=cfg.aug_prob, **crops)
        else:
            transform = FewShotEvaluation(cfg.patch_image_size) if training else testing
        return PairViewDataset(
            reader,
            self.vocabulary,
            pairs,
            transform,
            training,
            seed=cfg.seed,
            on_bad_sample=str(cfg.on_bad_sample),
            batch_size_key=testing.output_size,
            num_present=cfg.num_present if training else 1,
            num_absent=cfg.num_absent if training else 0,
            classes=self.split.base,
            present=present,
        )

    def _check_test_options(self) -> None:
        """Raises ValueError for options of whole photos that pairs are not tested with."""
        cfg = self.cfg
        if cfg.scales:
            raise ValueError(f"scales={cfg.scales}: pairs are tested at one scale; leave scales out")
        if str(cfg.resize) != "square":
            raise ValueError(f"resize={cfg.resize}: pairs are tested as squares, or at the photos' own size (test_with_org_resolution)")
        if (cfg.window or cfg.window_stride) and not cfg.test_with_org_resolution:
            raise ValueError("window and window_stride are of tests at the photos' own size; add test_with_org_resolution")

    # ---- steps ----

    def with_features(self, model, sample: dict) -> dict:
        """The batch with what the image tower says of its photos, from memory where it was asked before."""

        def encode(images: Tensor) -> Tensor:
            with self.autocast(device):
                return model.image_tokens(images.to(device))[0]

        model, device = unwrap(model), next(model.parameters()).device
        tokens = self.features.tokens(sample["net_input"]["image"].cpu(), encode)
        return sample | {"net_input": sample["net_input"] | {"tokens": tokens.to(device)}}

    def training_inputs(self, model, sample: dict) -> dict:
        """The batch of a training step, with kept features where photos do not change."""
        keep = self.cfg.cache_features and self.cfg.no_photo_augmentation
        return self.with_features(model, sample) if keep else sample

    def train_step(self, sample, model, *args, **kwargs):
        if kwargs.get("ignore_grad") and "target" not in sample:
            sample = self.first_training_batch(sample["id"].device)  # see SegmentationTask.train_step
        return super().train_step(self.training_inputs(model, sample), model, *args, **kwargs)

    def valid_step(self, sample, model, criterion, ema_model=None):
        model = unwrap(ema_model if ema_model is not None else model)
        model.eval()
        device = next(model.parameters()).device
        if not sample["nsentences"]:
            # as the criterion's log: fairseq sums numbers and tensors of all ranks apart
            none = torch.zeros((), dtype=torch.long, device=device)
            log = {"loss": none.float(), "sample_size": none, "ntokens": 0, "nsentences": 0}
            return log["loss"], none, in_order(log | {"_pairs": self._no_counts(device), "_bad_rows": len(sample.get("bad_rows", ()))})
        logits = self.pair_logits(model, sample)
        loss, sample_size, log = criterion.loss(logits, sample["target"])
        log["_pairs"] = self.counts_of_pairs(logits, sample).flatten()
        log["_bad_rows"] = len(sample.get("bad_rows", ()))
        return loss, sample_size, in_order(log)

    def _no_counts(self, device) -> Tensor:
        return torch.zeros(NUM_COUNTS * len(self.vocabulary), dtype=torch.long, device=device)

    @torch.no_grad()
    def pair_logits(self, model, sample: dict) -> Tensor:
        """(B, K, h, w) float32 at the size of the batch's photos: above 0 is the class; photos of their own size go through in windows."""
        device = next(model.parameters()).device
        windows = self.cfg.test_with_org_resolution
        if self.cfg.cache_features and not windows:
            sample = self.with_features(model, sample)
        inputs = {key: value.to(device, non_blocking=True) for key, value in sample["net_input"].items()}
        image, class_ids = inputs["image"], inputs["class_ids"]
        with self.autocast(device):
            if not windows:
                return model.predict(**inputs).class_logits
            texts, post = model.class_embeddings()[class_ids], self.post_process()
            return torch.stack([self._windows(model, photo, text, post) for photo, text in zip(model.normalised(image), texts)])

    def counts_of_pairs(self, logits: Tensor, sample: dict) -> Tensor:
        """(6, C) counts of `few_shot.pair_counts` from logits at the size of the targets."""
        target, class_ids = (sample[key] if key == "target" else sample["net_input"][key] for key in ("target", "class_ids"))
        return pair_counts(logits > 0, target.to(logits.device), class_ids.to(logits.device), len(self.vocabulary), str(self.cfg.protocol))

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        super().reduce_metrics(logging_outputs, criterion)
        sums = [log["_pairs"] for log in logging_outputs if "_pairs" in log]
        if sums:
            metrics.log_scalar_sum("_pairs", sum(sums).to("cpu", torch.double))
            for name in SCORES:
                metrics.log_derived(name, partial(self._score, name))

    def _score(self, name: str, meters) -> float:
        """A score over all pairs of a validation, from the counts that fairseq sums."""
        counts = torch.as_tensor(meters["_pairs"].sum).reshape(NUM_COUNTS, -1).long()
        tested = self.tested_classes(self.split.novel, classes_with_pairs(counts))
        return round(few_shot_scores(counts, tested, str(self.cfg.protocol))[name], 6)

    def tested_classes(self, side, shown) -> list[int]:
        """The classes of `side` that a score is the mean of: all of a benchmark's fold, else those among `shown`, which pairs are of."""
        return [k for k in side if str(self.cfg.benchmark) != NO_BENCHMARK or k in shown]

    # ---- several classes at once ----

    def evaluation_transform(self, sample: dict, rng=None) -> dict:
        if self.cfg.test_with_org_resolution:
            return {"image": sample["image"]}
        return super().evaluation_transform(sample, rng)

    def evaluation_size(self, height: int, width: int) -> tuple[int, int]:
        return (height, width) if self.cfg.test_with_org_resolution else super().evaluation_size(height, width)

    def post_process(self, **changes) -> PostProcess:
        windows = dict(window=self.cfg.patch_image_size) if self.cfg.test_with_org_resolution and not self.cfg.window else {}
        return super().post_process(**(windows | changes))

    def _output(self, model, net_input: dict, post: PostProcess) -> DenseOutput:
        """Class logits (B, C, H, W) of photos; that of background is 0, a probability of one half.

        Raises:
            ValueError: more than one scale, which windows of fixed size do not know.
        """
        if post.scales != (1.0,):
            raise ValueError("fusion_segmentation reads photos at one scale; leave scales out")
        text = model.class_embeddings()[self.objects]
        if post.window:
            photos = model.normalised(net_input[self.image_key])
            output = DenseOutput(torch.stack([self._windows(model, photo, text, post) for photo in photos]))
        else:
            output = model.predict(**net_input, text=text)
        if len(self.objects) == len(self.vocabulary):
            return output
        logits = output.class_logits
        whole = logits.new_zeros(len(logits), len(self.vocabulary), *logits.shape[2:])
        whole[:, self.objects] = logits
        return output._replace(class_logits=whole)

    def _windows(self, model, photo: Tensor, text: Tensor, post: PostProcess) -> Tensor:
        """(K, H, W) logits of one normalised photo (3, H, W) by the windows of `post`, with the published stride unless it has one."""
        stride = post.window_stride or published_stride(post.window)
        return corner_windows(lambda parts: model.predict(image=parts, text=text).class_logits, photo, post.window, stride)
