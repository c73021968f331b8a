"""Dense CRF: mean-field inference with Gaussian edges between all pairs of pixels (Kraehenbuehl & Koltun 2011).

It needs no compiler to be installed. It computes what the usual implementation (pydensecrf) does with a diagonal kernel, symmetric
normalisation and Potts compatibility, on the CPU or a GPU and for all masks of an image together:

    Q_0 = softmax(-U),    Q_t = softmax(-U + sum_k w_k D_k^-1/2 K_k D_k^-1/2 Q_(t-1)),    D_k = K_k 1

with a spatial kernel on (x, y) and a bilateral one on (x, y, r, g, b), both on the permutohedral lattice, pixels with
themselves included. On a CPU numba's compiled loops filter (`compiled_lattice`), elsewhere tensor operations (`permutohedral`).
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ofaseg.evaluation.permutohedral import Lattice

logger = logging.getLogger(__name__)

PROBABILITY_FLOOR = 1e-8
"""Added to probabilities before the logarithm."""


@dataclass(frozen=True)
class DenseCRFParams:
    """Parameters under the names pydensecrf gives them; the defaults are SimSeg's.

    Attributes:
        gaussian_sxy: standard deviation of the spatial kernel, in pixels.
        gaussian_compat: its weight w; 0 leaves the kernel out.
        bilateral_sxy: standard deviation of the bilateral kernel in space, in pixels.
        bilateral_srgb: and in colour, in units of the 8-bit channels.
        bilateral_compat: its weight; 0 leaves the kernel out.
        iterations: mean-field updates; 0 returns the input's distribution.
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 40.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 3

    def __post_init__(self):
        if min(self.gaussian_sxy, self.bilateral_sxy, self.bilateral_srgb) <= 0 or self.iterations < 0:
            raise ValueError(f"{self}: standard deviations must be above 0, iterations at least 0")


class PairwiseKernels:
    """Both normalised kernels of one image; built once, it serves every call for this image and these parameters.

    Args:
        image: (H, W, 3) uint8, an array or a tensor.
        params: None for the defaults.
        device: where to work; None for the image's device.
        lattice: the class of its lattices; None for the quickest of the device.

    Raises:
        ValueError: the image is not (H, W, 3) uint8.
    """

    @torch.no_grad()
    def __init__(self, image: Tensor | np.ndarray, params: Optional[DenseCRFParams] = None, device=None, lattice: Optional[type] = None):
        image = torch.as_tensor(image, device=device)
        if image.dim() != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
            raise ValueError(f"image {tuple(image.shape)} {image.dtype}: the dense CRF needs (H, W, 3) uint8")
        self.params = params = params or DenseCRFParams()
        self.size = height, width = tuple(image.shape[:2])
        lattice = lattice or lattice_for(image.device)
        self.order, self.place, positions = _pixel_order(height, width, lattice.interleaved, image.device)
        self._weighted = []
        if params.gaussian_compat:
            self._weighted.append((_spatial_lattice(lattice, height, width, params.gaussian_sxy, image.device), params.gaussian_compat))
        if params.bilateral_compat:
            features = torch.empty(5, height * width, device=image.device)
            torch.div(positions, params.bilateral_sxy, out=features[:2])
            torch.div(image.flatten(0, 1).index_select(0, self.order).T, params.bilateral_srgb, out=features[2:])
            self._weighted.append((_normalised(lattice(features)), params.bilateral_compat))

    def message(self, values: Tensor) -> Tensor:
        """sum_k w_k D_k^-1/2 K_k D_k^-1/2 applied to each of (C, H*W) channels of pixels in `order`."""
        total = torch.zeros_like(values)
        for lattice, weight in self._weighted:
            total.add_(lattice.filter(values), alpha=weight)
        return total


@lru_cache(maxsize=1)
def compiled_lattice() -> Optional[type]:
    """The lattice for CPUs, or None, with a warning, where numba is absent or does not work. All of it is compiled here, or read."""
    logger.info("preparing the dense CRF; where it was never used, numba compiles it now (5 to 10 s)")
    try:
        from ofaseg.evaluation.compiled_lattice import CompiledLattice

        CompiledLattice(torch.zeros(2, 1)).filter(torch.zeros(1, 1))
    except Exception as error:  # whatever a damaged package, a full disk or a truncated file of compiled code raises
        logger.warning(
            "the dense CRF takes twice as long: numba cannot be used (%s: %s); install it anew, or set NUMBA_CACHE_DIR to an empty folder "
            "that can be written",
            type(error).__name__,
            error,
        )
        return None
    return CompiledLattice


def lattice_for(device: torch.device) -> type:
    """The quickest class of lattices for a device."""
    return (compiled_lattice() if device.type == "cpu" else None) or Lattice


@lru_cache(maxsize=4)
def _pixel_order(height: int, width: int, interleaved: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The order in which pixels are kept: one of each of the `interleaved` parts, the next of each, ...

    Returns:
        (H*W,) pixel numbers in order, (H*W,) the place of every pixel in it, and (2, H*W) float32 x and y in order.
    """
    pixels = height * width
    order = torch.arange(-(-pixels // interleaved) * interleaved, device=device).view(interleaved, -1).T.flatten()
    order = order[order < pixels]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(pixels, device=device))
    return order, place, torch.stack([order % width, order // width]).float()


def _normalised(lattice):
    """The lattice, its filter from now on D^-1/2 K D^-1/2."""
    lattice.scale_symmetrically((lattice.filter(torch.ones_like(lattice.weights[:1]))[0] + 1e-20).rsqrt())
    return lattice


@lru_cache(maxsize=4)
def _spatial_lattice(lattice: type, height: int, width: int, deviation: float, device: torch.device):
    """The normalised spatial kernel knows the size of an image alone; evaluation at one size builds it once."""
    return _normalised(lattice(_pixel_order(height, width, lattice.interleaved, device)[2] / deviation))


@torch.no_grad()
def dense_crf(
    image: Tensor | np.ndarray, probs: Tensor, params: Optional[DenseCRFParams] = None, kernels: Optional[PairwiseKernels] = None
) -> Tensor:
    """Marginals of K labels per pixel after mean-field inference; for two labels `binary_crf` takes half the time.

    Args:
        image: (H, W, 3) uint8.
        probs: (K, H, W), or (M, K, H, W) for M label fields of the one image; non-negative, the unary is -log(probs + 1e-8).
        params: None for the defaults.
        kernels: those of this image and these params, to share them between calls.

    Returns:
        Float32 probabilities in the shape of `probs`; over K they sum to 1.

    Raises:
        ValueError: image and probabilities differ in size, or kernels belong to another size or other params.
    """
    if probs.dim() not in (3, 4):
        raise ValueError(f"probs {tuple(probs.shape)}: need (K, H, W) or (M, K, H, W)")
    kernels = _kernels_for(image, probs, params, kernels)
    log_probs = (probs.float().flatten(-2).index_select(-1, kernels.order) + PROBABILITY_FLOOR).log()  # (..., K, N)
    marginals = log_probs.softmax(-2)
    for _ in range(kernels.params.iterations):
        message = kernels.message(marginals.reshape(-1, marginals.shape[-1])).view_as(log_probs)
        marginals = message.add_(log_probs).softmax(-2)
    return marginals.index_select(-1, kernels.place).view(probs.shape)


@torch.no_grad()
def binary_crf(
    image: Tensor | np.ndarray,
    foreground_probs: Tensor,
    params: Optional[DenseCRFParams] = None,
    kernels: Optional[PairwiseKernels] = None,
) -> Tensor:
    """Binary masks from foreground probabilities m: the best of two labels with probabilities [1 - m, m].

    As the two marginals sum to 1, one channel per mask is enough: the log odds follow from the filtered Q_1 - Q_0.

    Args:
        image: (H, W, 3) uint8.
        foreground_probs: (M, H, W) in 0..1, M masks of the one image.
        params: None for the defaults.
        kernels: those of this image and these params, to share them between calls.

    Returns:
        (M, H, W) bool; pixels whose labels tie are background.

    Raises:
        ValueError: as `dense_crf`.
    """
    if foreground_probs.dim() != 3:
        raise ValueError(f"foreground_probs {tuple(foreground_probs.shape)}: need (M, H, W)")
    return _log_odds(_kernels_for(image, foreground_probs, params, kernels), foreground_probs) > 0


def _log_odds(kernels: PairwiseKernels, foreground_probs: Tensor) -> Tensor:
    """(M, H, W) log(Q_1 / Q_0) after the last iteration."""
    probs = foreground_probs.float().flatten(1).index_select(1, kernels.order)
    start = (probs + PROBABILITY_FLOOR).log() - (1 - probs + PROBABILITY_FLOOR).log()
    odds = start
    for _ in range(kernels.params.iterations):
        odds = kernels.message(odds.sigmoid().mul_(2).sub_(1)).add_(start)  # 2 Q_1 - 1 = Q_1 - Q_0
    return odds.index_select(1, kernels.place).view(foreground_probs.shape)


def _kernels_for(image, probs: Tensor, params: Optional[DenseCRFParams], kernels: Optional[PairwiseKernels]) -> PairwiseKernels:
    if kernels is None:
        kernels = PairwiseKernels(image, params, probs.device)
    elif params is not None and params != kernels.params:
        raise ValueError(f"kernels were built for {kernels.params}, not for {params}")
    if not tuple(image.shape[:2]) == kernels.size == tuple(probs.shape[-2:]):
        raise ValueError(f"an image of {tuple(image.shape[:2])}, probabilities of {tuple(probs.shape[-2:])}, kernels of {kernels.size}")
    return kernels


def compiled_crf() -> type:
    """pydensecrf's class. Raises ImportError when the package is not installed."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise ImportError(
            'the refinement "pydensecrf" needs the package pydensecrf (a compiler and Cython build it); "dense_crf" needs neither'
        ) from error
    return DenseCRF2D


def pydensecrf_binary(image: Tensor | np.ndarray, foreground_probs: Tensor, params: Optional[DenseCRFParams] = None) -> Tensor:
    """`binary_crf` by the compiled package pydensecrf, for parity to the bit; arguments and result as there.

    Raises:
        ImportError: pydensecrf is not installed.
    """
    DenseCRF2D = compiled_crf()
    params = params or DenseCRFParams()
    pixels = np.ascontiguousarray(torch.as_tensor(image).cpu().numpy())
    masks = []
    for probs in foreground_probs.float().cpu().numpy():
        crf = DenseCRF2D(probs.shape[1], probs.shape[0], 2)
        unary = -np.log(np.stack([1 - probs, probs]) + np.float32(PROBABILITY_FLOOR))
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(2, -1), dtype=np.float32))
        if params.gaussian_compat:
            crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
        if params.bilateral_compat:
            crf.addPairwiseBilateral(
                sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=pixels, compat=params.bilateral_compat
            )  # fmt: skip
        marginals = np.asarray(crf.inference(params.iterations)).reshape(2, *probs.shape)
        masks.append(torch.from_numpy(marginals.argmax(0) == 1))
    return torch.stack(masks).to(foreground_probs.device) if masks else torch.zeros(foreground_probs.shape, dtype=torch.bool)
