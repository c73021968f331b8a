"""`ofaseg evaluate --tasks`: class maps, segments and objects from one pass, alone and on two processes; the report about them."""

import json
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

pytest.importorskip("open_clip")
pytest.importorskip("pycocotools")

from ofaseg.cli import main  # noqa: E402
from ofaseg.commands.evaluate import evaluators_for  # noqa: E402
from ofaseg.data.segmentation_dataset import SegmentationDataset  # noqa: E402
from ofaseg.data.shards import ShardReader  # noqa: E402
from ofaseg.evaluation.evaluator import JointEvaluator, evaluate_batches  # noqa: E402
from ofaseg.evaluation.mask_geometry import boxes_of_masks  # noqa: E402
from ofaseg.models.freeseg import FreeSeg  # noqa: E402
from ofaseg.structures import InstanceSegmentation, PanopticSegmentation, SegmentationOutput  # noqa: E402
from tests.commands.segment_model import LOOSE, export_nano  # noqa: E402
from tests.toy import write_toy_shards  # noqa: E402
from tests.toy_freeseg import vocabulary_of, write_segment_shards  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = "semantic,instance,panoptic"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    vocabulary = write_segment_shards(
        root / "shards", "val", 5, sizes=((72, 96), (64, 64)), seed=5, vocabulary=vocabulary_of(novel=(False, True, False))
    )
    return root / "shards", export_nano(root, root / "shards", vocabulary)


def evaluate(files, out, tasks, *more):
    shards, model = files
    more = (*LOOSE, "--examples", "1", *more)
    assert main(["evaluate", str(model), str(shards), "--device", "cpu", "--out", str(out), "--tasks", tasks, *more]) == 0
    return json.loads((out / "scores.json").read_text())


def numbers_of(values):
    """A score or list of scores as numbers; what is undefined is -1."""
    return np.array([-1.0 if value is None else value for value in (values if isinstance(values, list) else [values])])


@pytest.fixture(scope="module")
def together(files, tmp_path_factory):
    out, calls = tmp_path_factory.mktemp("together") / "run", []
    encode = FreeSeg.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FreeSeg, "encode", lambda self, image, sizes=None: calls.append(len(image)) or encode(self, image, sizes))
        scores = evaluate(files, out, ALL, "--examples", "0")
    assert sum(calls) == 5, "each photo is encoded once for all tasks"
    return out, scores


def test_one_pass_scores_what_single_tasks_score(files, together, tmp_path):
    scores = together[1]
    firsts = {"semantic": "IoU_per_class", "panoptic": "PQ_per_class", "instance": "AP_per_class"}
    for task, key in firsts.items():
        alone = evaluate(files, tmp_path / task, task, "--batch-size", "3")
        assert numbers_of(alone[key]) == pytest.approx(numbers_of(scores[key]), abs=1e-6) and alone["images"] == scores["images"] == 5
        assert all((other in alone) == (other == key) for other in firsts.values())
    assert sum(scores["matched"]) + sum(scores["wrong"]) > 5, "random masks made segments"
    assert {"PQ", "thing_SQ", "stuff_RQ", "base_PQ", "novel_PQ", "harmonic_PQ", "AP50", "base_AP", "novel_AP", "mIoU"} <= scores.keys()
    assert scores["mask_rules"]["score_threshold"] == 0 and scores["mask_rules"]["suppression"] == "off" and scores["tasks"] == ALL


def test_tables(together, capsys):
    out, scores = together
    text = (out / "scores.md").read_text()
    assert "| PQ | SQ | RQ | objects PQ |" in text and "| AP | AP50 | AP75 |" in text and "| mIoU | objects |" in text
    assert "| class | IoU | accuracy | share of pixels | PQ | SQ | RQ | AP |" in text
    assert text.count("best constant prediction") == 1  # it has a class map alone


def test_segments_are_drawn_and_the_report_shows_them(files, tmp_path):
    evaluate(files, tmp_path / "run", "panoptic")
    names = [path.parent.name for path in (tmp_path / "run" / "examples").glob("*/panoptic.jpg")]
    assert len(names) == 1 and (tmp_path / "run" / "overlays" / f"{names[0]}_panoptic.png").is_file()
    assert (tmp_path / "run" / "examples" / names[0] / "segments.jpg").is_file() and not (tmp_path / "run" / "confusion.npy").exists()
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "PQ in %" in page and "PQ per class" in page and "predicted segments" in page and "IoU per class" not in page
    assert (tmp_path / "pq_per_class.svg").is_file() and not (tmp_path / "iou_per_class.svg").exists()
    assert "objects PQ" in (tmp_path / "results.md").read_text()


def _rank(rank, files, out, port):
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    evaluate(files, out, ALL)


def test_two_processes_equal_one(files, together, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_rank, args=(files, tmp_path / "two", port), nprocs=2, start_method="fork")
    two, one = json.loads((tmp_path / "two" / "scores.json").read_text()), together[1]
    numbers = [key for key, value in one.items() if isinstance(value, float) and key != "seconds"]
    assert {"mIoU", "PQ", "AP"} <= set(numbers) and two["images"] == 5
    for key in (*numbers, "IoU_per_class", "PQ_per_class", "AP_per_class", "matched", "wrong", "missed"):
        assert numbers_of(two[key]) == pytest.approx(numbers_of(one[key]), rel=1e-12)


def test_what_cannot_be_scored_is_one_line(files, toy, tmp_path, capsys):
    def error(*arguments):
        assert main(["evaluate", *map(str, arguments), "--device", "cpu"]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "this model makes class maps, semantic, alone" in error("model.pt", toy, "--tasks", "panoptic")
    with pytest.raises(ValueError, match="no columns segment_map and segments; convert"):
        evaluators_for(("panoptic",), vocabulary_of(), ("image", "label_map"))
    with pytest.raises(ValueError, match="no objects"):
        evaluators_for(("semantic", "instance"), vocabulary_of(), ("image", "label_map"))


def test_errors_of_a_model_of_masks(files, tmp_path, capsys):
    shards, model = files
    write_toy_shards(tmp_path / "plain", "val", 2)
    for folder, more, message in (
        (shards, ("--tasks", "panoptic,boxes"), "give one or more of semantic,instance,panoptic"),
        (tmp_path / "plain", ("--tasks", "semantic,panoptic"), "no columns segment_map and segments"),
        (shards, ("--tasks", ALL, "--flip"), "ask for semantic alone instead of semantic,instance,panoptic"),
        (shards, ("--tasks", "panoptic", "--robustness", "plain"), "--robustness compares class maps"),
        (shards, ("--override", "things=cat"), "'cat' is no class"),
        (shards, ("--override", "overlap_threshold=2"), "give a number from 0 to 1"),
    ):
        assert main(["evaluate", str(model), str(folder), "--device", "cpu", *more]) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


# ---- real photos ----


@pytest.fixture(scope="module")
def panoptic_shards(real_data, tmp_path_factory):
    """Shards of the four panoptic photos of the pack."""
    from data_prep import prepare
    from tests.data_prep.test_coco_format import link_panoptic_sample

    root = tmp_path_factory.mktemp("panoptic")
    link_panoptic_sample(real_data, root)
    command = ["coco_panoptic", "--root", str(root), "--splits", "val", "--out", str(root / "shards"), "--workers", "1"]
    assert prepare.main(command) == 0
    return root / "shards"


def perfect_output(batch, thing):
    """The truth of a batch of one as a prediction, with segments numbered anew."""
    ids, entries = batch["native_segment_maps"][0], batch["native_segments"][0]
    segment_map = torch.zeros_like(ids)
    for number, entry in enumerate(entries, start=1):
        segment_map[ids == entry["id"]] = number
    panoptic = PanopticSegmentation(segment_map, [{"id": n, "class_id": e["class_id"]} for n, e in enumerate(entries, start=1)])
    shown = [entry for entry in entries if thing[entry["class_id"]] and not entry["is_crowd"]]
    masks = torch.stack([ids == entry["id"] for entry in shown])
    class_ids = torch.tensor([entry["class_id"] for entry in shown])
    found = InstanceSegmentation(masks, class_ids, torch.ones(len(shown)), boxes_of_masks(masks))
    return SegmentationOutput(batch["native_label_maps"][0].long().clamp(min=0), panoptic=panoptic, instances=found)


def test_perfect_predictions_of_real_photos(panoptic_shards):
    from ofaseg.data.shards import load_vocabulary

    vocabulary = load_vocabulary(panoptic_shards)
    reader = ShardReader.for_split(panoptic_shards, "val")
    data = SegmentationDataset(reader, vocabulary, lambda sample, rng: sample, training=False, with_segments=True)
    parts = evaluators_for(("semantic", "instance", "panoptic"), vocabulary, reader.columns)
    batches = (data.collater([data[k]]) for k in range(len(data)))
    run = evaluate_batches(batches, lambda batch: [perfect_output(batch, vocabulary.thing)], JointEvaluator(parts.values()))
    for key in ("mIoU", "PQ", "SQ", "RQ", "thing_PQ", "stuff_PQ", "AP", "AP50", "AP75"):
        assert run.scores[key] == pytest.approx(1.0, abs=1e-6), key
    assert run.images == 4 and sum(run.scores["matched"]) > 80 and not sum(run.scores["wrong"]) + sum(run.scores["missed"])


def test_real_photos_from_conversion_to_scores(panoptic_shards, tmp_path):
    from ofaseg.data.shards import load_vocabulary

    vocabulary = load_vocabulary(panoptic_shards)
    model = export_nano(tmp_path, panoptic_shards, vocabulary, patch_image_size=96)
    scores = evaluate((panoptic_shards, model), tmp_path / "out", ALL)
    assert scores["images"] == 4 and not scores["bad_rows"] and len(scores["PQ_per_class"]) == 133
    assert scores["PQ"] < 0.2 and np.isfinite([scores[key] for key in ("mIoU", "PQ", "AP", "base_PQ")]).all()
    assert sum(scores["matched"]) + sum(scores["missed"]) > 80  # all 90 segments but the crowds were compared
