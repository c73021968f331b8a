"""FreeSeg: ours against the plain published procedure in one process; run as `python -m tools.benchmark_freeseg '{"repeats": 3}'`.

The answer is one JSON line. The plain procedure is `tools/benchmark_freeseg_reference.py`. Both see the same weights, random ones of the
published sizes, with a small CLIP and with ViT-B/16; losses, gradients and predictions are compared before anything is timed. Panoptic
quality of 5,000 maps is measured as in `tools/benchmark_panoptic.py`.
"""

import json
import logging
import sys
from statistics import median

import numpy as np
import torch
from torch import Tensor

from ofaseg.evaluation.mask_postprocess import instances, panoptic_segments
from ofaseg.evaluation.mask_proposals import class_map, classify_masks, upsample_masks
from ofaseg.mask_losses import mask_set_losses, supervised_layers
from ofaseg.mask_matching import match_masks
from ofaseg.models.freeseg import TASKS, FreeSeg, architecture_config
from ofaseg.structures import MaskTargets
from tools import benchmark_freeseg_reference as reference
from tools.benchmark_measure import matrix_rate, memory, reset_peak, seconds
from tools.benchmark_panoptic import COUNTERS, DISTINCT, OURS, draw_pair
from tools.benchmark_panoptic import measure as count_maps

CPU = torch.device("cpu")
CLIPS = {"small CLIP": dict(image_width=128, image_layers=2, image_heads=2, text_layers=2), "CLIP ViT-B/16": {}}
"""Name -> sizes that differ from ViT-B/16."""
BATCH, SIDE, TRAINED, MASKS = 2, 320, 156, 8
"""Of a training step: photos, their side in pixels, classes, masks of a photo at most."""
PHOTO, TESTED = (640, 640), 133
"""Height and width of a photo that is predicted, and classes."""
MAPS, PLAIN_MAPS, MAP_SIZE, SEGMENTS = 5000, 1000, (480, 640), 20
CLIP_NORM = 0.01


class Bench:
    """One model with its inputs, and one iteration of both paths."""

    def __init__(self, arch: str, **options):
        torch.manual_seed(0)
        self.model = FreeSeg(architecture_config(arch, **options))
        # attention is restricted to pixels of at least 0.5: with seed 1 and ViT-B/16 one lies at that edge up to rounding
        self.generator = torch.Generator().manual_seed(2)
        for layer in self.model.pixel_decoder.layers:  # points between pixels: at them, a gradient depends on the side
            for part in (layer.attention.sampling_offsets, layer.attention.attention_weights):
                torch.nn.init.normal_(part.weight, std=0.05, generator=self.generator)
        self.image = torch.randint(256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=self.generator)
        self.photo = torch.randint(256, (1, 3, *PHOTO), dtype=torch.uint8, generator=self.generator)
        self.thing = torch.arange(TESTED) < 0.9 * TESTED
        self.regions = 0  # that CLIP read in the last prediction
        self.targets = self._targets()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = {
            "ours": torch.optim.AdamW(self.weights, lr=1e-5, fused=True),
            "plain": torch.optim.AdamW([{"params": [p]} for p in self.weights], lr=1e-5),
        }

    def _targets(self) -> MaskTargets:
        masks = []
        for seed in range(BATCH):
            ids = torch.from_numpy(draw_pair(seed, SIDE, SIDE, MASKS)[0])
            masks.append(torch.stack([ids == value for value in ids.unique() if value]))
        classes = torch.randint(TRAINED, (sum(map(len, masks)),), generator=self.generator)
        return MaskTargets(torch.cat(masks), classes, tuple(map(len, masks)))

    def set_classes(self, number: int) -> None:
        """Names of one to three words, drawn."""
        top = self.model.config.vocab_size
        lengths = torch.randint(1, 4, (number,), generator=self.generator).tolist()
        self.model.set_classes([[torch.randint(1, top, (n + 2,), generator=self.generator).tolist()] for n in lengths])

    # ---- training ----

    def losses(self, path: str) -> dict[str, Tensor]:
        """The weighted losses of a batch, by name."""
        if path == "plain":
            return reference.training_losses(self.model, self.image, TASKS[0], self.targets)
        output = self.model(self.image, TASKS[0])
        layers = supervised_layers(len(output.class_logits))
        matches = match_masks(output, self.targets, layers=list(layers))
        return mask_set_losses(output, self.targets, matches, torch.tensor(float(len(self.targets.masks))), layers=layers)

    def step(self, path: str) -> None:
        """One optimizer step."""
        self.model.train()
        sum(self.losses(path).values()).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP_NORM)
        self.optimizers[path].step()
        self.model.zero_grad(set_to_none=True)

    def compare_training(self) -> None:
        """Without dropout. Raises AssertionError when losses or gradients differ."""
        dropouts = [module for module in self.model.modules() if isinstance(module, torch.nn.Dropout)]
        rates = [module.p for module in dropouts]
        for module in dropouts:
            module.p = 0.0
        self.model.train()
        found = {}
        for path in ("ours", "plain"):
            losses = self.losses(path)
            sum(losses.values()).backward()
            found[path] = (losses, {name: p.grad.norm() for name, p in self.model.named_parameters() if p.grad is not None})
            self.model.zero_grad(set_to_none=True)
        for module, rate in zip(dropouts, rates):
            module.p = rate
        (ours, our_norms), (plain, plain_norms) = found["ours"], found["plain"]
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
        least = 1e-4 * float(max(plain_norms.values()))
        torch.testing.assert_close(our_norms, plain_norms, rtol=1e-2, atol=least)

    # ---- prediction ----

    @torch.no_grad()
    def predict(self, path: str, bf16: bool = False) -> dict:
        """Task -> label map, (masks, scores) of objects, or segment map of the photo, from a model that knows its texts in our path."""
        self.model.eval()
        if path == "plain":
            return reference.predict(self.model, self.photo, TASKS, self.thing, PHOTO)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            outputs, results = self.model.predict(self.photo, TASKS), {}
        self.regions = sum(int(output.region_valid.sum()) for output in outputs.values())
        for task, output in outputs.items():
            masks = upsample_masks(output.mask_logits[0], PHOTO, PHOTO)
            proposals = classify_masks(masks, output.class_logits[-1][0], output.region_logits[0], output.region_valid[0])
            if task == "semantic":
                results[task] = class_map(proposals, PHOTO).numpy()
            elif task == "panoptic":
                results[task] = panoptic_segments(proposals, self.thing, PHOTO).segment_map.numpy()
            else:
                found = instances(proposals, PHOTO, self.thing)
                results[task] = (found.masks.numpy(), found.scores.tolist())
        return results

    def compare_predictions(self) -> None:
        """Raises AssertionError when the two paths differ by more than pixels at a tie."""
        ours, plain = self.predict("ours"), self.predict("plain")
        for task in ("semantic", "panoptic"):
            assert np.mean(ours[task] != plain[task]) < 1e-3, f"{task} maps differ"
        np.testing.assert_allclose(ours["instance"][1], plain["instance"][1], rtol=1e-3)
        masks = [path["instance"][0] for path in (ours, plain)]
        assert (masks[0] != masks[1]).sum() <= 1e-3 * masks[0].size, "objects differ"


def timed(work: str, runs: dict, repeats: int) -> list[dict]:
    """Rows of functions that take turns and have run before: median seconds, matrix rate between them, most memory above the start."""
    rates, found = [], {name: [] for name in runs}
    for _ in range(repeats):
        rates.append(matrix_rate(CPU))
        for name, run in runs.items():
            reset_peak()
            before = memory("VmRSS")
            found[name].append((seconds(run, CPU), memory("VmHWM") - before))
    rate = median(rates)
    return [
        {"work": work, "path": name, "rate": rate, "seconds": median(t for t, _ in pairs), "mb": max(mb for _, mb in pairs)}
        for name, pairs in found.items()
    ]


def architecture_rows(arch: str, clip: str, options: dict, repeats: int) -> list[dict]:
    bench = Bench(arch, **options)
    bench.set_classes(TESTED)  # first: how many regions a photo has hangs on the weights
    bench.compare_predictions()
    regions = bench.regions
    runs = {
        "ours": lambda: bench.predict("ours"),
        "ours, bf16": lambda: bench.predict("ours", bf16=True),
        "plain": lambda: bench.predict("plain"),
    }
    rows = timed(f"{arch}, {clip}: three tasks on a photo of {PHOTO[0]}x{PHOTO[1]}", runs, repeats)
    rows = [row | {"note": f"CLIP reads {regions} regions"} for row in rows]
    bench.set_classes(TRAINED)
    bench.compare_training()
    step = f"{arch}, {clip}: training step, {BATCH} photos of {SIDE} px"
    return rows + timed(step, {path: lambda path=path: bench.step(path) for path in ("ours", "plain")}, repeats)


def panoptic_rows(processes: int = 2) -> list[dict]:
    """Seconds of counting panoptic quality; the plain procedure counts fewer maps, its time is given for as many."""
    pairs = [draw_pair(seed, *MAP_SIZE, SEGMENTS) for seed in range(min(DISTINCT, MAPS))]
    rate, rows = matrix_rate(CPU), []
    for name, counter in COUNTERS.items():
        maps = MAPS if counter in OURS else PLAIN_MAPS
        taken, _ = count_maps(name, pairs, maps, processes)
        kind, path = name.split(", ", 1)
        work = f"panoptic quality, {MAPS:,} maps of {MAP_SIZE[0]}x{MAP_SIZE[1]}, {processes} processes: {kind}"
        rows.append({"work": work, "path": path, "seconds": taken * MAPS / maps, "rate": rate})
    return rows


def answer(request: dict) -> list[dict]:
    """All rows; `arch`, `clips` (of CLIPS) and `repeats` may be given."""
    rows, repeats = [], request.get("repeats", 3)
    for clip in request.get("clips", list(CLIPS)):
        rows += architecture_rows(request.get("arch", "freeseg_r50"), clip, CLIPS[clip], repeats)
    return rows + panoptic_rows()


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG
    print(json.dumps(answer(json.loads(sys.argv[1]))))
