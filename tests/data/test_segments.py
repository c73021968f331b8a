"""Segments and objects of rows: from converter to scores, and damaged rows."""

import numpy as np
import pytest
import torch

from data_prep import prepare
from ofaseg.data import codec
from ofaseg.data.segmentation_dataset import BadRow, SegmentationDataset
from ofaseg.data.segments import checked_instances, decode_segments
from ofaseg.data.shards import ShardReader, ShardWriter, load_vocabulary
from ofaseg.evaluation.evaluator import evaluate_batches
from ofaseg.evaluation.instance import InstanceEvaluator
from ofaseg.evaluation.mask_geometry import boxes_of_masks
from ofaseg.evaluation.panoptic import PanopticEvaluator
from ofaseg.structures import InstanceSegmentation, PanopticSegmentation, SegmentationOutput
from ofaseg.utils.run_lengths import mask_of_text
from ofaseg.vocabulary import ClassVocabulary
from tests.data_prep.raw_segments import H, W, segment_map, write_coco_format

VOCABULARY = ClassVocabulary(names=("sky", "cat"))


def where(column=""):
    return f"val.tsv, row 3, column {column}"


@pytest.fixture
def dataset(tmp_path):
    write_coco_format(tmp_path, "val")
    assert prepare.main(["coco_format", "--root", str(tmp_path), "--out", str(tmp_path / "shards"), "--workers", "1"]) == 0
    return open_dataset(tmp_path / "shards", with_segments=True)


def open_dataset(root, **options):
    reader, vocabulary = ShardReader.for_split(root, "val"), load_vocabulary(root)
    return SegmentationDataset(reader, vocabulary, lambda sample, rng: sample, training=False, **options)


def as_predicted(batch):
    """The truth of a batch in the form of predictions."""
    for drawn, segments, objects in zip(batch["native_segment_maps"], batch["native_segments"], batch["native_instances"]):
        objects = [entry for entry in objects if not entry["is_crowd"]]
        masks = torch.from_numpy(np.stack([mask_of_text(entry["mask"], *drawn.shape) for entry in objects]))
        classes = torch.tensor([entry["class_id"] for entry in objects])
        yield SegmentationOutput(
            torch.zeros(drawn.shape, dtype=torch.long),
            panoptic=PanopticSegmentation(drawn, segments),
            instances=InstanceSegmentation(masks, classes, torch.ones(len(objects)), boxes_of_masks(masks)),
        )


def test_the_truth_scores_full_marks(dataset):
    pytest.importorskip("pycocotools")
    batch = dataset.collater([dataset[0], dataset[1]])
    np.testing.assert_array_equal(batch["native_segment_maps"][1].numpy(), segment_map(1))
    panoptic = evaluate_batches([batch], lambda b: list(as_predicted(b)), PanopticEvaluator(dataset.vocabulary)).scores
    assert panoptic["PQ"] == panoptic["thing_PQ"] == panoptic["stuff_PQ"] == 1 and panoptic["classes_scored"] == 3  # the dogs are a crowd
    instance = evaluate_batches([batch], lambda b: list(as_predicted(b)), InstanceEvaluator(dataset.vocabulary)).scores
    assert instance["AP"] == pytest.approx(1) and instance["images"] == 2


def test_swapped_photos_do_not(dataset):
    batch = dataset.collater([dataset[0], dataset[1]])
    outputs = list(as_predicted(batch))[::-1]
    scores = evaluate_batches([batch], lambda b: outputs, PanopticEvaluator(dataset.vocabulary)).scores
    assert scores["PQ"] < 0.9


def test_nothing_is_carried_unless_asked(dataset, tmp_path):
    plain = open_dataset(tmp_path / "shards")
    assert not {key for key in plain.collater([plain[0]]) if "segment" in key or "instance" in key}


def row(drawn=((1, 1, 2),), ids=(1, 2), class_ids=(0, 1), **changes):
    segments = [{"id": i, "class_id": k, "is_crowd": False, "area": 1, "box": [0, 0, 1, 1]} for i, k in zip(ids, class_ids)]
    return {"segment_map": codec.encode_segment_map(np.array(drawn)), "segments": segments} | changes


def test_segments_without_a_class_are_no_segments():
    drawn, segments = decode_segments(row(class_ids=(None, 1)), VOCABULARY, (1, 3), where)
    assert drawn.tolist() == [[0, 0, 2]] and [entry["id"] for entry in segments] == [2]


@pytest.mark.parametrize(
    "damaged, message",
    [
        (row(ids=(1,)), r"column segments: segment ids .*drawn only: \[2\]"),
        (row(ids=(1, 2, 3), class_ids=(0, 1, 1)), r"listed only or twice: \[3\]"),
        (row(ids=(1, 2, 2), class_ids=(0, 1, 1)), r"listed only or twice: \[2\]"),
        (row(class_ids=(0, 2)), r"segment 2 has class_id 2, classes are 0..1; map"),
        (row(drawn=((1, 2),)), "column segment_map: the segment map is 1x2 .*the image 1x3"),
        (row(segment_map=None), "the row has no segment map"),
        (row(segment_map=b"no png"), "column segment_map: not an image"),
    ],
)
def test_damaged_segments(damaged, message):
    with pytest.raises(codec.CodecError, match=f"val.tsv, row 3, .*{message}"):
        decode_segments(damaged, VOCABULARY, (1, 3), where)


@pytest.mark.parametrize(
    "mask, class_id, message",
    [("1", 0, "mask 0 has 1 pixels, the image 1x3"), ("2P", 0, "mask 0: .*ends in the middle"), ("12", 5, "object 4 has class_id 5")],
)
def test_damaged_instances(mask, class_id, message):
    entry = {"id": 4, "class_id": class_id, "is_crowd": False, "area": 1.0, "box": [0, 0, 1, 1], "mask": mask}
    with pytest.raises(codec.CodecError, match=f"column instances: {message}"):
        checked_instances({"instances": [entry]}, VOCABULARY, (1, 3), where)
    unclassified = entry | {"mask": "12", "class_id": None}
    assert checked_instances({"instances": [unclassified]}, VOCABULARY, (1, 3), where) == []


def test_a_damaged_row_costs_only_itself(dataset, tmp_path):
    """A row whose list lost an entry is reported with its place; the other one is scored."""
    rows = [dict(r) for r in ShardReader.for_split(tmp_path / "shards", "val")]
    rows[0]["segments"] = rows[0]["segments"][1:]
    with ShardWriter(tmp_path / "damaged", "val", dataset.vocabulary, list(rows[0]), "tsv") as writer:
        for each in rows:
            writer.write(each)
    damaged = open_dataset(tmp_path / "damaged", with_segments=True)
    samples = [damaged[0], damaged[1]]
    assert isinstance(samples[0], BadRow) and "row 0, column segments: segment ids of map and list differ" in samples[0].message
    batch = damaged.collater(samples)
    assert batch["nsentences"] == len(batch["native_segment_maps"]) == 1 and batch["native_segment_maps"][0].shape == (H, W)
    run = evaluate_batches([batch], lambda b: list(as_predicted(b)), PanopticEvaluator(damaged.vocabulary))
    assert run.scores["PQ"] == 1 and len(run.bad_rows) == 1
