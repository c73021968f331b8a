"""What `tools/benchmark.py` measures: models, inputs, and one iteration of every path of every case."""

from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from fairseq.optim.adam import Adam  # what published runs name `--optimizer adam`
from torch import Tensor

from ofaseg.data.synthetic import ArtificialImageSampler
from ofaseg.data.transforms import short_side_size
from ofaseg.evaluation import postprocess, semantic
from ofaseg.losses import upsampled_cross_entropy
from ofaseg.models.ifseg import SegOFA, architecture_config
from tools.benchmark_reference import EagerReference, bag_inputs

NATIVE_SIZE = (512, 683)
"""Height and width of the evaluated photo."""

TOPK, ITERATIONS = 3, 25
"""Feature propagation of the published evaluation."""

TOLERANCE = 1e-4
"""Largest difference between the two paths, relative to the largest value."""

PROMPT_TOKENS = 12
MULTI_PIECE_NAMES = {15: (4, 1), 150: (26, 12)}
"""Classes -> how many of their names have two and three word pieces (COCO's 15 unseen classes, ADE20K)."""


@dataclass(frozen=True)
class Setup:
    """A model and its batch: architecture, image side in pixels, batch size, classes, rows of the word embedding."""

    arch: str
    side: int
    batch: int
    classes: int
    words: int


SETUPS = {
    "nano": Setup("segofa_nano", 96, 16, 15, 256),
    "tiny": Setup("segofa_tiny", 512, 2, 15, 59458),
    "base": Setup("segofa_base", 512, 2, 150, 59458),
}

CASES = {
    "step": ("ours", "reference", "reference with display pass"),
    "supervised": ("ours", "reference"),
    "evaluate": ("ours", "ours, new size", "reference"),
    "predict": ("ours", "ours, new size", "reference"),
}
"""Case -> the paths it compares, ours first. Ours keeps biases between photos of one size; "new size" is without them."""


def class_tokens(classes: int) -> list[list[int]]:
    """Made-up dictionary ids of `classes` names; as many have several pieces as in the published class list."""
    twos, threes = MULTI_PIECE_NAMES.get(classes, (classes // 4, 0))
    lengths = [3] * threes + [2] * twos + [1] * (classes - twos - threes)
    first = 4 + PROMPT_TOKENS
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [[first + start + k for k in range(length)] for start, length in zip(starts, lengths)]


def source_text(token_lists: list[list[int]]) -> Tensor:
    """(L,) bos, prompt, names, "unknown", eos."""
    names = [token for tokens in token_lists for token in tokens]
    return torch.tensor([0, *range(4, 4 + PROMPT_TOKENS), *names, 3, 2])


@torch.no_grad()
def spread_weights(model: SegOFA) -> None:
    """Fills the weights with numbers of a trained model's size, so that every bias and every table shows in the output."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.startswith("encoder.embed_images."):
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if "rel_pos_table" in name:
            weight.copy_(0.5 * noise)
        elif weight.ndim > 1:
            weight.copy_(noise * weight[0].numel() ** -0.5)
        else:
            weight.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
    model.init_class_embeddings()


def drawn_photo(height: int, width: int, seed: int = 0) -> Tensor:
    """(3, height, width) uint8: soft colour patches with a little grain, as compressible as a photo."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.rand(1, 3, height // 32 + 2, width // 32 + 2, generator=generator)
    soft = F.interpolate(patches, size=(height, width), mode="bicubic")[0] * 255
    return (soft + 6 * torch.randn(3, height, width, generator=generator)).clamp(0, 255).byte()


class Bench:
    """Both paths over one set of weights, with the inputs of every case; nothing is built before it is asked for.

    Args:
        setup: which model and batch.
        device: where to run.
        replace: configuration options on top of the architecture's.
    """

    def __init__(self, setup: Setup, device: str = "cpu", **replace):
        torch.manual_seed(0)
        self.setup, self.device = setup, torch.device(device)
        self.tokens = class_tokens(setup.classes)
        self.model = SegOFA(architecture_config(setup.arch, **replace), setup.words, self.tokens)
        spread_weights(self.model)
        self.model.to(self.device)
        self.source = source_text(self.tokens).to(self.device).expand(setup.batch, -1)

    @cached_property
    def reference(self) -> EagerReference:
        return EagerReference(self.model)

    # -- inputs ----------------------------------------------------------------------------------------------------

    @cached_property
    def mosaics(self) -> tuple[Tensor, Tensor]:
        """Class maps (B, h, w) and targets (B, H, W) of image-free training."""
        setup, grid = self.setup, self.setup.side // self.model.grid_stride
        sampler = ArtificialImageSampler(setup.classes, (grid, grid), (setup.side, setup.side), 1, grid, seed=1)
        maps, targets = zip(*(sampler(1, index) for index in range(setup.batch)))
        return tuple(torch.stack([torch.from_numpy(part) for part in parts]).to(self.device) for parts in (maps, targets))

    @cached_property
    def bags(self) -> tuple[Tensor, Tensor]:
        """The class maps as the reference reads them."""
        return bag_inputs(self.mosaics[0], self.tokens)

    @cached_property
    def photos(self) -> Tensor:
        """(B, 3, side, side) uint8."""
        return torch.stack([drawn_photo(self.setup.side, self.setup.side, k) for k in range(self.setup.batch)]).to(self.device)

    @cached_property
    def photo_targets(self) -> Tensor:
        """(B, side, side) class ids, a tenth without label."""
        targets = self.mosaics[1].flip(0).clone()
        targets[:, : self.setup.side // 10] = -1
        return targets

    @cached_property
    def single_photo(self) -> Tensor:
        """(1, 3, H, W) uint8, the evaluated photo at the size the model reads."""
        height, width = short_side_size(*NATIVE_SIZE, self.setup.side, 4 * self.setup.side)
        return drawn_photo(height, width, 99)[None].to(self.device)

    @cached_property
    def label_map(self) -> Tensor:
        """(H, W) class ids at the photo's native size, a tenth without label."""
        label_map = torch.randint(self.setup.classes, (1, 1, 16, 16), generator=torch.Generator().manual_seed(2)).float()
        label_map = F.interpolate(label_map, size=NATIVE_SIZE)[0, 0].long()
        label_map[: NATIVE_SIZE[0] // 10] = -1
        return label_map.to(self.device)

    def normalised(self, photos: Tensor) -> Tensor:
        """Float photos in -1..1: what the published data pipeline hands to the model."""
        return photos.float() / 127.5 - 1

    def with_unknown(self, target: Tensor) -> Tensor:
        """Pixels without label as the class after the last one: what the published data pipeline hands to the loss."""
        return torch.where(target < 0, self.setup.classes, target)

    # -- one iteration of each path ----------------------------------------------------------------------------------

    def runner(self, case: str, path: str):
        """A function without arguments that runs one iteration; inputs and optimizer are made here."""
        make = {
            "step": self._training_step, "supervised": self._training_step, "evaluate": self._evaluation, "predict": self._prediction
        }  # fmt: skip
        return make[case](case, path)

    def _losses(self, case: str, path: str):
        """A function without arguments returning the training loss."""
        if path == "ours":
            key, inputs, target = ("class_maps", *self.mosaics) if case == "step" else ("patch_images", self.photos, self.photo_targets)
            return lambda: upsampled_cross_entropy(self.model(self.source, **{key: inputs}).class_logits, target)
        if case == "step":
            target, bags = self.with_unknown(self.mosaics[1]), self.bags
            return lambda: self.reference.loss(self.source, target, bags=bags)
        target, photos = self.with_unknown(self.photo_targets), self.normalised(self.photos)
        return lambda: self.reference.loss(self.source, target, photos=photos)

    def _training_step(self, case: str, path: str):
        loss = self._losses(case, path)
        module = (self.model if path == "ours" else self.reference).train()
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        fused = partial(torch.optim.AdamW, fused=True)
        optimizer = (fused if path == "ours" else Adam)(weights, lr=1e-5, weight_decay=0.1)
        photos = target = None
        if path == "reference with display pass":
            photos, target = self.normalised(self.photos), self.with_unknown(self.photo_targets)

        def run() -> None:
            if photos is not None:
                self.reference.display(self.source, photos, target)
            loss().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def evaluate(self) -> dict[str, Tensor]:
        """What validation makes of one photo: loss, raw and propagated label map, and their confusion counts."""
        output = self.model.predict(src_tokens=self.source[:1], patch_images=self.single_photo)
        sizes, label_map, classes = [NATIVE_SIZE], self.label_map, self.setup.classes
        result = {"logits": output.class_logits, "loss": upsampled_cross_entropy(output.class_logits, label_map[None])}
        post = postprocess.PostProcess(resnet_topk=TOPK, resnet_iters=ITERATIONS)
        for name, how in (("raw", None), ("propagated", post)):
            result[name] = postprocess.segmentations(output, sizes, how)[0].label_map
            result[f"counts_{name}"] = semantic.bin_counts(result[name], label_map, classes)
        return result

    def _evaluation(self, case: str, path: str):
        if path == "reference":
            label_map, photo = self.with_unknown(self.label_map), self.normalised(self.single_photo)
            return lambda: self.reference.train(False).validate(self.source[:1], photo, label_map, TOPK, ITERATIONS)
        return self._without_gradient(path, self.evaluate)

    def _prediction(self, case: str, path: str):
        if path == "reference":
            photo = self.normalised(self.single_photo)
            return lambda: self.reference.train(False).predict(self.source[:1], photo, NATIVE_SIZE, TOPK, ITERATIONS)
        post = postprocess.PostProcess(resnet_topk=TOPK, resnet_iters=ITERATIONS)

        def predict() -> Tensor:
            output = self.model.predict(src_tokens=self.source[:1], patch_images=self.single_photo)
            return postprocess.segmentations(output, [NATIVE_SIZE], post)[0].label_map

        return self._without_gradient(path, predict)

    def _without_gradient(self, path: str, run):
        """`run` of our model in evaluation mode; the path "new size" leaves that mode in between, which forgets kept biases."""
        self.model.eval()

        @torch.no_grad()
        def evaluation():
            if path == "ours, new size":
                self.model.train().eval()
            return run()

        return evaluation

    # -- are they the same? ------------------------------------------------------------------------------------------

    def check(self, case: str) -> dict[str, float]:
        """Differences between the paths of a case, relative to the largest value, dropout off. Raises AssertionError above 1e-4."""
        self.model.eval()
        self.reference.train(False)
        errors = self._training_errors(case) if case in ("step", "supervised") else self._evaluation_errors(case)
        for name, error in errors.items():
            limit = 1e-3 if name.endswith("pixels") else TOLERANCE  # pixels: where two scores tie up to rounding
            assert error <= limit, f"{self.setup.arch}, {case}: the paths differ in {name} by {error:.2e}, allowed are {limit:.0e}"
        return errors

    def _training_errors(self, case: str) -> dict[str, float]:
        losses = {}
        for path in ("ours", "reference"):
            loss = self._losses(case, path)()
            loss.backward()
            losses[path] = loss.detach()
        ours = {name: weight.grad.norm() for name, weight in self.model.named_parameters() if weight.grad is not None}
        theirs = {name: weight.grad.norm() for name, weight in self.reference.weights.items() if weight.grad is not None}
        assert ours.keys() == theirs.keys(), f"trained by one path only: {sorted(ours.keys() ^ theirs.keys())}"
        largest = max(theirs.values())
        gradients = max(abs(ours[name] - theirs[name]) / torch.maximum(theirs[name], 1e-4 * largest) for name in ours)
        self.model.zero_grad()
        for weight in self.reference.parameters():
            weight.grad = None
        with torch.no_grad():
            inputs = ({"class_maps": self.mosaics[0]}, {"bags": self.bags})
            if case == "supervised":
                inputs = ({"patch_images": self.photos}, {"photos": self.normalised(self.photos)})
            logits = self.model(self.source, **inputs[0]).class_logits.flatten(2).transpose(1, 2)
            expected = self.reference.decode(self.reference.encode(self.source, **inputs[1]))[:, :-1]
        return {
            "logits": relative_error(logits, expected),
            "loss": float(abs(losses["ours"] / losses["reference"] - 1)),
            "gradient norms": float(gradients),
        }

    def _evaluation_errors(self, case: str) -> dict[str, float]:
        ours, theirs = self.runner(case, "ours")(), self.runner(case, "reference")()
        if case == "predict":
            return {"pixels": float((ours != theirs).float().mean())}
        return {
            "logits": relative_error(ours["logits"].flatten(2).transpose(1, 2), theirs["logits"][:, :-1]),
            "loss": float(abs(ours["loss"] / theirs["loss"] - 1)),
            "raw pixels": float((ours["raw"] != theirs["raw"]).float().mean()),
            "propagated pixels": float((ours["propagated"] != theirs["propagated"]).float().mean()),
        }


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    return float((value - expected).abs().max() / expected.abs().max())
