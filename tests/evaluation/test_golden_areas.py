"""Areas that the official IFSeg code counted for its own logits of a real photo, at the photo's size (tests/golden)."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from ofaseg.evaluation.postprocess import argmax_at_size
from ofaseg.evaluation.semantic import confusion_matrix
from ofaseg.vocabulary import IGNORE_INDEX

GOLDEN_KIND = "ifseg"


def test_areas_equal_the_official_ones(golden_file):
    golden = np.load(golden_file)
    stored = base64.urlsafe_b64decode(str(golden["rows/valid"][0]).split("\t")[1])
    with Image.open(io.BytesIO(stored)) as picture:
        label_map = torch.from_numpy(np.asarray(picture).astype(np.int64)) - 1  # the official files store 0 for no label
    assert IGNORE_INDEX == -1
    height, width = golden["eval_real/grid"].tolist()
    logits = torch.from_numpy(golden["eval_real/logits"])[0, : height * width]  # the last position is the unused end token
    num_classes = logits.shape[1]
    prediction = argmax_at_size(logits.T.reshape(num_classes, height, width), label_map.shape)
    matrix = confusion_matrix(prediction, label_map, num_classes)
    best_two = torch.topk(logits, 2, dim=1).values
    tolerance = 0 if (best_two[:, 0] - best_two[:, 1]).min() > 1e-5 else 3  # pixels whose two best scores are equal up to rounding
    for name, areas in (("intersect", matrix.diagonal()), ("pred_label", matrix.sum(0)), ("label", matrix.sum(1))):
        assert np.abs(areas.numpy() - golden[f"valid/area_{name}"]).max() <= tolerance, name
