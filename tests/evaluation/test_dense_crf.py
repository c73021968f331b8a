"""The dense CRF against sums over all pairs of pixels, against its own general path, and against the compiled package pydensecrf.

`data/pydensecrf_labels.npz` holds label maps (bit-packed, see `unpack`) that pydensecrf 1.0rc3 made of the cases below.
Where that package is installed, ``python -m tests.evaluation.test_dense_crf`` writes the file anew.
"""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ofaseg.evaluation import dense_crf as dense_crf_module
from ofaseg.evaluation.dense_crf import DenseCRFParams, PairwiseKernels, binary_crf, dense_crf, pydensecrf_binary
from ofaseg.evaluation.postprocess import PostProcess
from ofaseg.evaluation.zero_shot_settings import load_settings

REFERENCES = Path(__file__).parent / "data" / "pydensecrf_labels.npz"
SCRIBBLE_PARAMS = DenseCRFParams(bilateral_sxy=80, iterations=5)
"""The published example's parameters for images 1 to 3."""


@pytest.fixture(params=["loops", "tensors"], autouse=True)
def lattice(request, monkeypatch):
    """Every test runs with the compiled loops of a CPU, and with the tensor operations that a GPU uses."""
    if request.param == "tensors":
        monkeypatch.setattr(dense_crf_module, "compiled_lattice", lambda: None)
    return request.param


def test_the_lattice_of_a_device(lattice):
    expected = {"loops": "CompiledLattice", "tensors": "Lattice"}[lattice]
    assert dense_crf_module.lattice_for(torch.device("cpu")).__name__ == expected
    assert dense_crf_module.lattice_for(torch.device("cuda")).__name__ == "Lattice"


def damaged(features):
    raise EOFError("Ran out of input")  # from a file of compiled code that was cut short


@pytest.mark.parametrize("module", [None, types.SimpleNamespace(CompiledLattice=damaged)])
@pytest.mark.parametrize("lattice", ["loops"], indirect=True)
def test_numba_absent_or_damaged(module, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ofaseg.evaluation.compiled_lattice", module)
    dense_crf_module.compiled_lattice.cache_clear()
    try:
        masks = [binary_crf(drawn_image(30, 40), torch.full((1, 30, 40), 0.9)) for _ in range(2)]
        assert all(mask.all() for mask in masks)
        assert caplog.text.count("numba cannot be used (" + ("EOFError" if module else "ModuleNotFoundError")) == 1  # said once
    finally:
        dense_crf_module.compiled_lattice.cache_clear()


def drawn_image(height, width, seed=0):
    """(H, W, 3) uint8: two coloured areas with a slanted border, shading and some noise."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    right = (xs + 0.4 * ys > 0.6 * width)[..., None]
    shading = 30 * np.sin(xs / 9 + seed)[..., None] + 15 * np.cos(ys / 5)[..., None]
    return np.clip(np.where(right, [190, 90, 60], [60, 120, 150]) + shading + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def random_probs(labels, height, width, seed=0):
    """(K, H, W) float32 probabilities in blocks of pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((labels, -(-height // 4), -(-width // 4))).repeat(4, 1).repeat(4, 2)[:, :height, :width]
    return (coarse / coarse.sum(0)).astype(np.float32)


def scribble_probs(annotation):
    """(H, W, 3) colours of rough labels -> (K, H, W): 0.7 for the label given, all alike where black says unknown."""
    colours = annotation.astype(np.int64) @ [1, 256, 65536]
    labels = sorted(set(colours.flatten().tolist()) - {0})
    probs = np.full((len(labels), *colours.shape), 0.3 / (len(labels) - 1), np.float32)
    for k, colour in enumerate(labels):
        probs[k][colours == colour] = 0.7
    probs[:, colours == 0] = 1 / len(labels)
    return probs


def drawn_cases():
    """Name -> image, (K, H, W) probabilities and parameters; odd sizes, so that rows and columns cannot be swapped."""
    strong = DenseCRFParams(gaussian_sxy=2, gaussian_compat=5, bilateral_sxy=20, bilateral_srgb=6, bilateral_compat=4, iterations=5)
    return {
        "two_labels": (drawn_image(52, 77, 1), random_probs(2, 52, 77, 1), DenseCRFParams()),
        "five_labels": (drawn_image(61, 48, 2), random_probs(5, 61, 48, 2), strong),
        "spatial_alone": (drawn_image(40, 50, 3), random_probs(3, 40, 50, 3), DenseCRFParams(bilateral_compat=0)),
    }


def scribble_cases(folder):
    for n in (1, 2, 3):
        image, annotation = (np.array(Image.open(folder / f"{name}{n}.png").convert("RGB")) for name in ("im", "anno"))
        yield f"scribbles_{n}", (image, scribble_probs(annotation), SCRIBBLE_PARAMS)


def pack(labels):
    """(H, W) labels 0..7 -> three packed bit planes, their size first."""
    planes = np.packbits(np.stack([labels >> bit & 1 for bit in range(3)]).astype(bool))
    return np.concatenate([np.array(labels.shape, "<u2").view(np.uint8), planes])


def unpack(packed):
    height, width = packed[:4].view("<u2").tolist()
    planes = np.unpackbits(packed[4:], count=3 * height * width).reshape(3, height, width)
    return planes[0] + 2 * planes[1] + 4 * planes[2]


def agreement(name, image, probs, params):
    """Share of the pixels whose best label is the compiled package's."""
    with np.load(REFERENCES) as references:
        expected = unpack(references[name])
    found = dense_crf(image, torch.from_numpy(probs), params).argmax(0).numpy()
    assert found.shape == expected.shape and (probs.argmax(0) != expected).mean() > 0.03  # it changes something
    return (found == expected).mean()


@pytest.mark.parametrize("name", drawn_cases())
def test_labels_are_the_compiled_package_s(name):
    assert agreement(name, *drawn_cases()[name]) >= 0.999


def test_labels_of_photos_with_scribbles_are_the_compiled_package_s(real_data):
    for name, case in scribble_cases(real_data / "crf_samples"):
        assert agreement(name, *case) >= 0.995, name


def exact_mean_field(image, probs, params):
    """Marginals with full N x N kernels in float64."""
    height, width = image.shape[:2]
    ys, xs = np.mgrid[:height, :width]
    places = np.stack([xs, ys], -1).reshape(-1, 2).astype(np.float64)
    colours = image.reshape(-1, 3).astype(np.float64)
    total = 0
    for features, weight in (
        (places / params.gaussian_sxy, params.gaussian_compat),
        (np.concatenate([places / params.bilateral_sxy, colours / params.bilateral_srgb], 1), params.bilateral_compat),
    ):
        kernel = np.exp(-0.5 * np.square(features[:, None] - features[None]).sum(-1))
        norm = 1 / np.sqrt(kernel.sum(1))
        total = total + weight * norm[:, None] * kernel * norm
    logits = np.log(probs.reshape(len(probs), -1).astype(np.float64) + 1e-8)
    softmax = lambda x: np.exp(x - x.max(0)) / np.exp(x - x.max(0)).sum(0)  # noqa: E731
    marginals = softmax(logits)
    for _ in range(params.iterations):
        marginals = softmax(logits + marginals @ total)
    return marginals.reshape(probs.shape)


@pytest.mark.parametrize("labels", [2, 4])
def test_approaches_the_exact_mean_field(labels):
    image, probs = drawn_image(24, 20), random_probs(labels, 24, 20)
    params = DenseCRFParams(bilateral_sxy=12, bilateral_srgb=30, bilateral_compat=3, gaussian_compat=1)
    expected = exact_mean_field(image, probs, params)
    found = dense_crf(image, torch.from_numpy(probs), params).numpy()
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert np.abs(found - expected).mean() < 0.03
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.97
    assert (probs.argmax(0) == expected.argmax(0)).mean() < 0.9
    if labels == 2:
        masks = binary_crf(image, torch.from_numpy(probs[1:]), params)[0].numpy()
        assert (masks == (expected.argmax(0) == 1)).mean() > 0.97


def test_two_labels_are_the_general_path():
    image = drawn_image(33, 46)
    maps = torch.from_numpy(np.stack([random_probs(2, 33, 46, seed)[1] for seed in range(3)]))
    marginals = dense_crf(image, torch.stack([1 - maps, maps], 1))
    margin = marginals[:, 1] - marginals[:, 0]
    assert 0.1 < (margin > 0).float().mean() < 0.9
    sure = margin.abs() > 1e-4
    assert sure.float().mean() > 0.99 and torch.equal(binary_crf(image, maps)[sure], (margin > 0)[sure])


def test_masks_of_a_batch_are_those_one_by_one_and_kernels_are_reused():
    image = torch.from_numpy(drawn_image(31, 37))
    maps = torch.from_numpy(np.stack([random_probs(2, 31, 37, seed)[1] for seed in range(4)]))
    kernels = PairwiseKernels(image)
    together = binary_crf(image, maps, kernels=kernels)
    for i in range(4):
        assert torch.equal(binary_crf(image, maps[i : i + 1])[0], together[i])
    probs = torch.stack([torch.from_numpy(random_probs(3, 31, 37, seed)) for seed in range(2)])
    batched = dense_crf(image, probs, kernels=kernels)
    assert batched.shape == probs.shape and batched.dtype == torch.float32
    for i in range(2):
        torch.testing.assert_close(dense_crf(image, probs[i]), batched[i])


def test_constant_images_and_certain_maps_stay_finite():
    for image in (np.zeros((9, 14, 3), np.uint8), np.full((9, 14, 3), 255, np.uint8)):
        for maps in (torch.zeros(1, 9, 14), torch.ones(1, 9, 14), torch.eye(14)[None, :9]):
            marginals = dense_crf(image, torch.cat([1 - maps, maps]))
            assert torch.isfinite(marginals).all()
        assert not binary_crf(image, torch.zeros(1, 9, 14)).any() and binary_crf(image, torch.ones(1, 9, 14)).all()


def test_ties_are_background():
    assert not binary_crf(drawn_image(12, 10), torch.full((2, 12, 10), 0.5)).any()


def test_no_iterations_and_no_kernels_keep_the_input():
    probs = torch.from_numpy(random_probs(3, 11, 17))
    for params in (DenseCRFParams(iterations=0), DenseCRFParams(gaussian_compat=0, bilateral_compat=0)):
        torch.testing.assert_close(dense_crf(drawn_image(11, 17), probs, params), probs, atol=1e-6, rtol=0)


def test_no_masks_at_all():
    assert binary_crf(drawn_image(11, 17), torch.zeros(0, 11, 17)).shape == (0, 11, 17)


def test_wrong_inputs_are_named():
    image, probs = drawn_image(8, 10), torch.rand(2, 8, 10)
    with pytest.raises(ValueError, match="uint8"):
        dense_crf(image.astype(np.float32), probs)
    with pytest.raises(ValueError, match=r"\(8, 10\).*\(10, 8\)"):
        dense_crf(image, probs.transpose(1, 2))
    with pytest.raises(ValueError, match="need"):
        binary_crf(image, probs[0])
    with pytest.raises(ValueError, match="kernels were built for"):
        binary_crf(image, probs, DenseCRFParams(iterations=1), PairwiseKernels(image))
    with pytest.raises(ValueError, match="above 0"):
        DenseCRFParams(bilateral_srgb=0)


def test_pydensecrf_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match="needs the package pydensecrf"):  # before any photo
        PostProcess(candidates=load_settings("pascal_voc"), refine="pydensecrf")
    with pytest.raises(ImportError, match='"dense_crf" needs neither'):
        pydensecrf_binary(drawn_image(8, 10), torch.rand(1, 8, 10))


class Recorder:
    """Takes pydensecrf's calls and answers with the softmax of the unary."""

    calls: list = []

    def __init__(self, width, height, labels):
        self.calls.append(("size", width, height, labels))

    def setUnaryEnergy(self, unary):
        self.unary = unary
        assert unary.dtype == np.float32 and unary.flags.c_contiguous

    def addPairwiseGaussian(self, sxy, compat):
        self.calls.append(("gaussian", sxy, compat))

    def addPairwiseBilateral(self, sxy, srgb, rgbim, compat):
        self.calls.append(("bilateral", sxy, srgb, rgbim.shape, compat))

    def inference(self, iterations):
        self.calls.append(("inference", iterations))
        return torch.from_numpy(-self.unary).softmax(0).numpy()


def test_pydensecrf_gets_width_first_and_all_parameters(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", types.ModuleType("pydensecrf"))
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", types.SimpleNamespace(DenseCRF2D=Recorder))
    monkeypatch.setattr(Recorder, "calls", [])
    maps = torch.rand(2, 8, 10)
    masks = pydensecrf_binary(drawn_image(8, 10), maps, DenseCRFParams(bilateral_srgb=7))
    assert torch.equal(masks, maps > 0.5)
    one = [("size", 10, 8, 2), ("gaussian", 3.0, 3.0), ("bilateral", 40.0, 7, (8, 10, 3), 10.0), ("inference", 3)]
    assert Recorder.calls == one * 2


def test_pydensecrf_where_it_is_installed():
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    image = drawn_image(60, 83)
    maps = torch.from_numpy(np.stack([random_probs(2, 60, 83, seed)[1] for seed in range(2)]))
    assert (pydensecrf_binary(image, maps) == binary_crf(image, maps)).float().mean() > 0.999


def write_references():
    """Label maps of all cases by pydensecrf; the photos are those of the real-data pack."""
    from pydensecrf.densecrf import DenseCRF2D

    from ofaseg.atomic import atomic_write
    from tools.data_pack import data_pack

    packed = {}
    for name, (image, probs, params) in (drawn_cases() | dict(scribble_cases(data_pack() / "crf_samples"))).items():
        crf = DenseCRF2D(probs.shape[2], probs.shape[1], len(probs))
        crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probs + np.float32(1e-8)).reshape(len(probs), -1)))
        crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
        if params.bilateral_compat:
            crf.addPairwiseBilateral(sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=image, compat=params.bilateral_compat)
        labels = np.array(crf.inference(params.iterations)).argmax(0).reshape(probs.shape[1:])
        packed[name] = pack(labels)
    with atomic_write(REFERENCES) as file:
        np.savez_compressed(file, **packed)


if __name__ == "__main__":
    write_references()
