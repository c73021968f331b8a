import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from criterions.seg_token_cross_entropy import SegTokenCrossEntropy
from ofaseg.evaluation import semantic
from ofaseg.models.ifseg import architecture_config
from ofaseg.structures import DenseOutput, unwrap
from ofaseg.vocabulary import ClassVocabulary, VocabularyError
from tests.toy import CLASS_COLOURS, NAMES, PROMPT_WORDS, write_toy_shards, write_words
from user_tasks.seq2seq_segmentation import Seq2SeqSegmentationConfig, Seq2SeqSegmentationTask


class ColourModel(torch.nn.Module):
    """Knows the toy world: scores each 4x4 patch by how near its mean colour is to each class colour."""

    grid_stride = 4

    def __init__(self):
        super().__init__()
        self.colours = torch.nn.Parameter(torch.from_numpy(CLASS_COLOURS).float() / 255)

    def forward(self, src_tokens, patch_images):
        patches = torch.nn.functional.avg_pool2d(patch_images.float() / 255, 4)
        distance = (patches[:, None] - self.colours[None, :, :, None, None]).abs().sum(2)
        return DenseOutput(-20 * distance, patches)

    predict = forward


def make_task(tmp_path, **options):
    words = [*NAMES, *PROMPT_WORDS, "puppy"]
    defaults = dict(data=str(tmp_path), bpe_dir=write_words(tmp_path / "bpe", words), patch_image_size=32, seed=1)
    config = Seq2SeqSegmentationConfig(code_dict_size=0, num_bins=0)
    for key, value in (defaults | options).items():
        setattr(config, key, value)
    task = Seq2SeqSegmentationTask.setup_task(OmegaConf.structured(config))
    task.grid_stride = 4
    return task


def test_validation_scores_equal_a_direct_count(tmp_path):
    """Summed over batches of unlike sizes; a remapped label, swapped axes or a shuffled class order would show."""
    write_toy_shards(tmp_path, "val", 5, sizes=((64, 96), (96, 64), (64, 64)))
    task = make_task(tmp_path, resnet_iters=2, resnet_topk=1)
    task.load_dataset("val")
    dataset, model = task.dataset("val"), ColourModel()
    criterion = SegTokenCrossEntropy(task, 0.0)
    logs, expected = [], 0
    for indices in dataset.batch_by_size(dataset.ordered_indices(), max_sentences=2):
        batch = dataset.collater([dataset[i] for i in indices])
        logs.append(task.valid_step(batch, model, criterion)[2])
        results = task.predict_batch(model, batch["net_input"], batch["native_sizes"])
        for result, label in zip(results, batch["native_label_maps"]):
            assert result.label_map.shape == label.shape
            expected = expected + semantic.confusion_matrix(result.label_map, label, 3)
    matrix = semantic.matrix_from_bins(sum(log["_confusion"] for log in logs), 3)
    scores = semantic.semantic_scores(matrix)
    assert scores["mIoU"] > 0.9 and scores["pixels"] == sum(int((m >= 0).sum()) for m in label_maps(dataset))
    propagated = semantic.matrix_from_bins(sum(log["_confusion_propagated"] for log in logs), 3)
    assert torch.equal(propagated, expected), "prediction and validation are one code path"
    shuffled = semantic.semantic_scores(matrix.roll(1, dims=1))
    assert shuffled["mIoU"] < 0.1


def label_maps(dataset):
    return [dataset[i]["native_label_map"] for i in range(len(dataset))]


def test_metrics_come_from_the_sums(tmp_path):
    from fairseq.logging import metrics

    write_toy_shards(tmp_path, "val", 1)
    task = make_task(tmp_path)
    counts = torch.zeros(11, dtype=torch.long)
    counts[0], counts[1], counts[4] = 6, 2, 2  # class 0: 6 right, 2 taken for class 1; class 1: 2 right
    criterion = SegTokenCrossEntropy(task, 0.0)
    log = {"_confusion": counts, "_bad_rows": 1, "loss": 2.0, "sample_size": 4, "ntokens": 4, "nsentences": 4}
    with metrics.aggregate() as aggregator:
        task.reduce_metrics([log, log], criterion)
    values = aggregator.get_smoothed_values()
    assert values["mIoU"] == pytest.approx((6 / 8 + 2 / 4) / 2) and values["aAcc"] == pytest.approx(0.8)
    assert values["loss"] == 0.5 and values["bad_rows"] == 2


def test_image_free_training_data_needs_only_class_names(tmp_path):
    (tmp_path / "empty").mkdir()
    task = make_task(tmp_path, data=str(tmp_path / "empty"), class_names="red, puppy", epoch_size=6)
    task.load_dataset("train")
    batch = task.dataset("train").collater([task.dataset("train")[i] for i in range(3)])
    assert batch["net_input"]["class_maps"].shape == (3, 8, 8) and batch["target"].shape == (3, 32, 32)
    assert int(batch["target"].max()) <= 1
    assert "patch_images" not in batch["net_input"]
    low = make_task(tmp_path, data=str(tmp_path / "empty"), class_names="red, puppy", low_resolution_loss=True)
    low.load_dataset("train")
    sample = low.dataset("train")[0]
    assert torch.equal(sample["class_map"], sample["target"])


def test_source_text_holds_every_class_in_order(tmp_path):
    write_toy_shards(tmp_path, "val", 1)
    task = make_task(tmp_path)
    words = [task.dictionary[i] for i in task.source_tokens.tolist()]
    assert words == "<s> what is the segmentation map of the image? object: red green blue unknown </s>".split()
    task.set_class_names(ClassVocabulary(("puppy",)))
    assert [task.dictionary[i] for i in task.source_tokens.tolist()][-3:] == ["puppy", "unknown", "</s>"]


def test_official_tsv_without_vocabulary_uses_label_offset_one(tmp_path):
    task = make_task(tmp_path, class_names="red, green")
    assert (task.vocabulary.label_offset, task.vocabulary.ignore_label) == (1, 0)
    zero = make_task(tmp_path, class_names="red, green", label_offset=0)
    assert (zero.vocabulary.label_offset, zero.vocabulary.ignore_label) == (0, 255)


def test_resuming_with_other_classes_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    task = make_task(tmp_path, data=str(tmp_path / "d"), class_names="red, green")
    other = make_task(tmp_path, data=str(tmp_path / "d"), class_names="red, blue")
    task.load_state_dict(task.state_dict())
    with pytest.raises(VocabularyError, match="other classes .class 1 is 'green' there, 'blue' here"):
        other.load_state_dict(task.state_dict())


def test_pretrained_class_embeddings_go_on_for_the_same_names(tmp_path):
    (tmp_path / "d").mkdir()
    config = architecture_config("segofa_nano", num_bins=0, patch_image_size=32, orig_patch_image_size=32)
    config._name = "segofa_nano"
    start = make_task(tmp_path, data=str(tmp_path / "d"), class_names="red, green")
    model = start.build_model(config)
    with torch.no_grad():
        model.class_embeddings().add_(1)
    path = tmp_path / "start.pt"
    torch.save({"model": model.state_dict(), "task_state": start.state_dict()}, path)
    same = make_task(tmp_path, data=str(tmp_path / "d"), class_names="red, green", pretrained=str(path)).build_model(config)
    other = make_task(tmp_path, data=str(tmp_path / "d"), class_names="green, red", pretrained=str(path)).build_model(config)
    assert torch.equal(same.class_embeddings(), model.class_embeddings())
    assert torch.equal(other.class_embeddings(), other.class_words())


def test_a_photo_of_any_shape_becomes_a_batch_of_one(tmp_path):
    write_toy_shards(tmp_path, "val", 1)
    task = make_task(tmp_path)
    batch = task.encode_image_for_predict(np.zeros((100, 50, 3), np.uint8))
    assert batch["net_input"]["patch_images"].shape == (1, 3, 64, 32)
    assert batch["native_sizes"] == [(100, 50)] and batch["net_input"]["src_tokens"].shape[0] == 1
    wide = task.encode_image_for_predict(np.zeros((10, 100, 3), np.uint8))
    assert wide["net_input"]["patch_images"].shape == (1, 3, 13, 128), "the long side is at most four times the short one"


class Wrapper(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_unwrap_reaches_through_every_wrapper():
    """fairseq wraps DDP in a proxy of its own."""
    model = ColourModel()
    assert unwrap(Wrapper(Wrapper(model))) is model and unwrap(model) is model
