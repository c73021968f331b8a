"""SimSeg's dense-CRF calls against the published pipeline: every `simseg_*.npz` of --golden-dir that holds any.

The files keep image, foreground probability and resulting mask of every call of one evaluated photo.
"""

import re

import numpy as np
import pytest
import torch

from ofaseg.evaluation import dense_crf
from ofaseg.evaluation.dense_crf import PairwiseKernels, binary_crf
from tests.golden.golden_weights import load_golden

GOLDEN_KIND = "simseg"
AGREEMENT = 0.995


@pytest.fixture(scope="module")
def calls(golden_file):
    """Image (H, W, 3), probability (H, W) and mask (H, W) of every call, in order."""
    _, arrays = load_golden(str(golden_file))
    numbers = sorted(int(match[1]) for match in (re.fullmatch(r"seg/crf_(\d+)_mask", key) for key in arrays) if match)
    if not numbers:
        pytest.skip("no dense-CRF call in this file")
    return [tuple(arrays[f"seg/crf_{n}_{part}"] for part in ("image", "probability", "mask")) for n in numbers]


@pytest.mark.parametrize("lattice", ["loops", "tensors"])
def test_masks_of_single_calls(calls, lattice, monkeypatch):
    if lattice == "tensors":  # as on a GPU
        monkeypatch.setattr(dense_crf, "compiled_lattice", lambda: None)
    for image, probability, mask in calls:
        found = binary_crf(image, torch.from_numpy(probability)[None])[0].numpy()
        assert (found == mask.astype(bool)).mean() >= AGREEMENT
        majority = max(mask.mean(), 1 - mask.mean())
        assert majority > AGREEMENT or ((probability > 0.5) == mask.astype(bool)).mean() < AGREEMENT  # the CRF did something


def test_masks_of_one_image_together(calls):
    images = {image.tobytes(): image for image, _, _ in calls}
    for content, image in images.items():
        own = [call for call in calls if call[0].tobytes() == content]
        probabilities = torch.from_numpy(np.stack([probability for _, probability, _ in own]))
        found = binary_crf(image, probabilities, kernels=PairwiseKernels(image))
        for ours, (_, _, mask) in zip(found.numpy(), own):
            assert (ours == mask.astype(bool)).mean() >= AGREEMENT
