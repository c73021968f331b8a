"""SimSeg: ours against the plain official procedure in one process; run as `python -m tools.benchmark_simseg '{"repeats": 3}'`.

The answer is one JSON line. One part alone, such as the training step of ViT-B: `'{"parts": ["training"], "archs": ["simseg_vit_b"]}'`.
Evaluation goes from a decoded photo to confusion counts: resize, forward, choice of classes, dense CRF,
closing, label map, counts. The plain procedure takes one photo at a time, projects patches twice, refines with pydensecrf (the
rows are missing when it is not installed), keeps a float64 score volume of all classes, and makes three histograms. Both see the
same weights, random ones of the published sizes, and the same class vectors.
"""

import importlib.util
import json
import logging
import math
import sys
from functools import partial
from statistics import median
from unittest import mock

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ofaseg.data.image_text_transforms import square_resize
from ofaseg.data.transforms import to_tensors
from ofaseg.evaluation import candidates, semantic
from ofaseg.evaluation.dense_crf import pydensecrf_binary
from ofaseg.evaluation.retrieval import retrieval_scores
from ofaseg.evaluation.zero_shot_settings import load_settings
from ofaseg.losses import contrastive_loss
from ofaseg.models.layers import whole_tiles
from ofaseg.models.layers.subclass_fusion import RULES, padded_subclasses, subclass_maps
from ofaseg.models.simseg import PIXEL_MEAN, PIXEL_STD, SimSeg, architecture_config
from ofaseg.models.text_encoders.class_embeddings import padded
from ofaseg.utils.precision import cast_weights_once
from tools.benchmark_cases import drawn_photo
from tools.benchmark_measure import matrix_rate, memory, reset_peak, seconds
from tools.data_pack import data_pack

CPU = torch.device("cpu")
BATCH, SIDE, TEMPLATES, TEXT_LENGTH = 8, 288, 80, 25
VOCABULARY = 30522
SETS = {21: "pascal_voc", 60: "pascal_context", 81: "coco_object"}
"""Classes -> the dataset whose settings are used."""


def photos(count: int) -> list[np.ndarray]:
    """(H, W, 3) uint8 photos: of COCO in the real-data pack, else drawn ones of 480x640."""
    pack = data_pack()
    if pack is not None:
        paths = sorted((pack / "coco_mini" / "val2017").glob("*.jpg"))[:count]
        return [np.array(Image.open(path).convert("RGB")) for path in paths]
    return [drawn_photo(480, 640, seed).permute(1, 2, 0).numpy() for seed in range(count)]


class Bench:
    """One model with its inputs, and one iteration of every path."""

    def __init__(self, arch: str, classes: int, count: int):
        torch.manual_seed(0)
        self.model = SimSeg(architecture_config(arch), VOCABULARY).eval()
        self.classes, self.settings = classes, load_settings(SETS[classes])
        self.photos = photos(count)
        generator = torch.Generator().manual_seed(1)
        self.label_maps = [torch.randint(classes, photo.shape[:2], generator=generator) for photo in self.photos]
        self.vectors = F.normalize(torch.randn(classes, self.model.config.projection_dim, generator=generator), dim=1)
        self.model.keep_class_embeddings(self.vectors)
        self.crf_calls = 0

    # ---- evaluation ----

    @torch.no_grad()
    def ours(self, bf16: bool = False) -> list[np.ndarray]:
        """Label maps of all photos, in batches; the towers in bfloat16 where asked for (--override autocast=bf16)."""
        results, counts = [], torch.zeros(self.classes**2 + 2, dtype=torch.long)
        for start in range(0, len(self.photos), BATCH):
            part = self.photos[start : start + BATCH]
            batch = torch.stack([to_tensors(square_resize({"image": photo}, SIDE))["image"] for photo in part])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                output = self.model.predict(image=batch)
            sizes = [photo.shape[:2] for photo in part]
            made = candidates.segment_by_candidates(output, self.model.pixels(batch), sizes, self.settings, self.refine)
            for segmentation, label_map in zip(made, self.label_maps[start:]):
                counts += semantic.bin_counts(segmentation.label_map, label_map, self.classes)
                results.append(segmentation.label_map.numpy())
        return results

    refine = "dense_crf"

    @torch.no_grad()
    def plain(self) -> list[np.ndarray]:
        """The same, one photo at a time, as published."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        results, self.crf_calls = [], 0
        for photo, label_map in zip(self.photos, self.label_maps):
            small = np.asarray(Image.fromarray(photo).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            image = ((torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255 - mean) / std)[None]
            tokens = self.model.image_encoder(image)[:, 1:]
            pooled = self.model.image_projection(tokens).topk(5, dim=1).values.mean(1)
            vector = pooled / (pooled.pow(2).sum(-1, keepdim=True).sqrt() + 1e-8)
            patches = F.normalize(self.model.image_projection(tokens)[0], dim=-1)
            pixels = ((image[0] * std + mean) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
            prediction = self._plain_label_map((vector @ self.vectors.T)[0], patches, pixels, photo.shape[:2])
            label = label_map.numpy()
            agreed = prediction[prediction == label]
            [np.histogram(values, bins=self.classes, range=(0, self.classes - 1)) for values in (agreed, prediction, label)]
            results.append(prediction)
        return results

    def _plain_label_map(self, scores: Tensor, patches: Tensor, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        volume = np.zeros((self.classes, *size))
        top = scores.topk(min(self.settings.top_m, self.classes))
        threshold = top.values.mean() + top.values.std()
        side = int(len(patches) ** 0.5)
        for k in top.indices[: self.settings.candidates].tolist():
            if k == self.settings.background_class:
                continue
            if scores[k] < threshold:
                break
            similarity = (patches @ self.vectors[k]).view(1, 1, side, side)
            similarity = F.interpolate(similarity, scale_factor=SIDE // side)[0, 0]
            similarity = (similarity - similarity.min()) / (similarity.max() - similarity.min())
            mask = pydensecrf_binary(pixels, similarity[None])[0].numpy().astype(np.uint8) * 255
            self.crf_calls += 1
            mask = cv2.erode(cv2.dilate(mask, np.ones((7, 7))), np.ones((7, 7)))
            volume[k] = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST) * float(scores[k])
        return volume.argmax(0)

    # ---- training and texts ----

    def pairs(self, count: int) -> dict[str, Tensor]:
        """Inputs of `count` pairs; captions are 8 to 18 tokens long."""
        generator = torch.Generator().manual_seed(2)
        image = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        ids = torch.randint(1000, VOCABULARY, (count, TEXT_LENGTH), generator=generator)
        lengths = torch.randint(8, 19, (count, 1), generator=generator)
        mask = (torch.arange(TEXT_LENGTH) < lengths).long()
        return {"image": image, "input_ids": ids * mask, "attention_mask": mask}

    def training(self, count: int, sub_batch: int = 0):
        """A function of one optimizer step on `count` pairs, whole or in decoupled parts of `sub_batch`."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-5, fused=True)
        inputs = self.pairs(count)

        def loss_of(output):
            image, text, temperature = output
            return contrastive_loss(image, text, image, text, temperature)[0] / count

        def decoupled() -> None:
            parts = [dict(zip(inputs, values)) for values in zip(*(value.split(sub_batch) for value in inputs.values()))]
            with torch.no_grad():
                outputs = [self.model(**part) for part in parts]
            leaves = [torch.cat([output[i] for output in outputs]).requires_grad_() for i in (0, 1)]
            leaves.append(outputs[0].temperature.detach().clone().requires_grad_())
            gradients = torch.autograd.grad(loss_of(leaves), leaves)
            targets = zip(gradients[0].split(sub_batch), gradients[1].split(sub_batch), [gradients[2] / len(parts)] * len(parts))
            for part, wanted in zip(parts, targets):
                sum((value * target).sum() for value, target in zip(self.model(**part), wanted)).backward()

        def step() -> None:
            self.model.train()
            decoupled() if sub_batch else loss_of(self.model(**inputs)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.model.eval()

        return step

    def class_texts(self):
        """(ours, plain): functions that make the vector of one class from 80 prompts of 8 to 14 tokens."""
        generator = torch.Generator().manual_seed(3)
        lengths = torch.randint(8, 15, (TEMPLATES,), generator=generator).tolist()
        prompts = [torch.randint(1000, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
        ids, mask = padded([*prompts, [0] * TEXT_LENGTH], 0)
        mask[:TEMPLATES, 1:] = (torch.arange(1, TEXT_LENGTH) < torch.tensor(lengths)[:, None]).long()

        def ours() -> Tensor:
            self.model.set_classes([prompts])
            vectors = self.model.class_embeddings()
            self.model.keep_class_embeddings(self.vectors)
            return vectors

        @torch.no_grad()
        def plain() -> Tensor:
            vector = self.model.embed_text(ids[:TEMPLATES], mask[:TEMPLATES]).mean(0, keepdim=True)
            return vector / vector.norm(dim=1, keepdim=True)

        return ours, plain


def turns(runs: dict, repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of each function, which take turns, and the matrix rate in GFLOP/s between them."""
    found, rate = every_turn(runs, repeats)
    return {name: median(values) for name, values in found.items()}, rate


def every_turn(runs: dict, repeats: int) -> tuple[dict[str, list[float]], float]:
    """As `turns`, with the seconds of every repeat."""
    rates, found = [], {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        rates.append(matrix_rate(CPU))
        for name, run in runs.items():
            found[name].append(seconds(run, CPU))
    return found, median(rates)


def least_rows(work: str, runs: dict, repeats: int, photos: int = 1) -> list[dict]:
    """Rows of some paths, times per photo; beside the median stands the quickest turn, for hosts whose speed changes."""
    found, rate = every_turn(runs, repeats)
    first, rows = min(next(iter(found.values()))), []
    for name, values in found.items():
        least = f"least {min(values) / photos:.3g} s ({min(values) / first:.2f})"
        rows.append({"work": work, "path": name, "seconds": median(values) / photos, "rate": rate, "note": least})
    return rows


def peak(run) -> float:
    """Highest memory in MB during one call, above what was there before."""
    reset_peak()
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


def evaluation_rows(arch: str, classes: int, count: int, repeats: int) -> list[dict]:
    """Seconds per photo of both procedures. Raises AssertionError when their label maps differ in over 1 % of the pixels."""
    bench, compiled = Bench(arch, classes, count), importlib.util.find_spec("pydensecrf") is not None
    runs = {
        "ours": bench.ours,
        "ours, towers in bf16": lambda: bench.ours(bf16=True),
        "ours, threshold instead of CRF": lambda: _with_refine(bench, "threshold"),
    }
    if compiled:
        runs["plain"] = bench.plain
        differing = np.mean([np.mean(a != b) for a, b in zip(bench.ours(), bench.plain())])
        assert differing < 0.01, f"label maps differ in {100 * differing:.2f} % of the pixels"
    work = f"{arch}, {classes} names, evaluation of a photo"
    with cast_weights_once():  # as over the thousands of photos of an evaluation
        rows = least_rows(work, runs, repeats, count)
    for row in rows if compiled else ():
        row["note"] += f", {bench.crf_calls / count:.1f} CRF calls a photo"
    return rows + [{"work": work, "path": f"{name}: memory", "mb": peak(run)} for name, run in runs.items()]


def _with_refine(bench: Bench, name: str):
    bench.refine = name
    try:
        return bench.ours()
    finally:
        bench.refine = "dense_crf"


def training_rows(arch: str, repeats: int) -> list[dict]:
    """Seconds of a step of 8 pairs, and of 16 pairs whole and in decoupled parts of 8, with the memory of each."""
    bench = Bench(arch, 21, 1)
    runs = {"8 pairs": bench.training(8), "16 pairs": bench.training(16), "16 pairs, decoupled in parts of 8": bench.training(16, 8)}
    found, rate = turns(runs, repeats)
    work = f"{arch}, training step at {SIDE} px"
    return [{"work": work, "path": name, "seconds": found[name], "rate": rate, "mb": peak(run)} for name, run in runs.items()]


def text_rows(repeats: int) -> list[dict]:
    """Seconds per class of 80 prompts, cut to their length or padded to 25."""
    ours, plain = Bench("simseg_vit_s", 21, 1).class_texts()
    torch.testing.assert_close(ours(), plain(), rtol=0, atol=1e-5)
    found, rate = turns({"ours": ours, "plain": plain}, repeats)
    return [{"work": "class vector from 80 prompts", "path": name, "seconds": value, "rate": rate} for name, value in found.items()]


def fusion_rows(repeats: int, classes: int = 81, names: int = 5) -> list[dict]:
    """Class maps of a photo from subclasses, beside those from class names: 324 patches, 512 dimensions, all classes."""
    generator = torch.Generator().manual_seed(5)
    patches, photo, own, finer = (
        F.normalize(torch.randn(*shape, 512, generator=generator), dim=-1) for shape in ((1, 324), (1,), (classes,), (classes * names,))
    )

    def fused(rule: str):
        return lambda: subclass_maps(patches, photo, *padded_subclasses(finer, [names] * classes), own, rule)

    runs = {"class names": lambda: patches @ own.T} | {rule: fused(rule) for rule in RULES}
    found, rate = turns(runs, repeats)
    work = f"class maps, {classes} classes with {names} subclasses"
    return [{"work": work, "path": name, "seconds": value, "rate": rate} for name, value in found.items()]


def tile_rows(arch: str, repeats: int) -> list[dict]:
    """Seconds per photo of the image tower in bfloat16, its tokens filled up to whole tiles or not, wherever that would be possible."""
    tower, rows = Bench(arch, 21, 1).model.image_encoder, []

    @torch.no_grad()
    def run(images: Tensor, tokens_per_zero: float) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16), mock.patch.object(whole_tiles, "LEAST", tokens_per_zero):
            tower(images)

    for patches in (14, 16, 18, 19, 20):
        side = patches * tower.patch
        images = torch.rand(BATCH, 3, side, side)
        runs = {"as they are": partial(run, images, math.inf), "filled": partial(run, images, 1)}
        with cast_weights_once():
            rows += least_rows(f"{arch}, image tower in bf16, {patches**2 + 1} tokens", runs, repeats, BATCH)
    return rows


def attention_rows(repeats: int, counts: tuple[int, ...] = (50, 77, 145, 197, 257, 325, 401, 511, 577, 677, 785)) -> list[dict]:
    """Seconds of PyTorch's attention in bfloat16 over some numbers of tokens, as they are or filled up, with about 10 million scores."""
    rows = []
    for count in counts:
        size, batch = count + -count % whole_tiles.TILE, max(1, 10_000_000 // (12 * count**2))
        filled, mask = torch.randn(3, batch, 12, size, 64).bfloat16(), torch.zeros(1, 1, 1, size).bfloat16()
        mask[..., count:] = -torch.inf
        attend = F.scaled_dot_product_attention
        runs = {"as they are": partial(attend, *filled[:, :, :, :count]), f"filled up to {size}": partial(attend, *filled, mask)}
        rows += least_rows(f"attention in bf16 over {count} tokens", runs, repeats)
    return rows


def retrieval_rows() -> list[dict]:
    """Ranks of 5,000 photos and 25,000 captions, 512 dimensions, both directions."""
    generator = torch.Generator().manual_seed(4)
    images, texts = (F.normalize(torch.randn(n, 512, generator=generator), dim=1) for n in (5000, 25000))
    ids = torch.arange(5000)

    def ours() -> None:
        retrieval_scores(images, ids, texts, ids.repeat_interleave(5))

    def sorting() -> None:
        for query, gallery in ((images, texts), (texts, images)):
            (query @ gallery.T).argsort(1, descending=True)

    found, rate = turns({"ours": ours, "full argsort": sorting}, 1)
    rows = {"ours": ours, "full argsort": sorting}
    return [
        {"work": "retrieval ranks, 5,000 x 25,000", "path": name, "seconds": found[name], "rate": rate, "mb": peak(run)}
        for name, run in rows.items()
    ]


PARTS = ("evaluation", "training", "tiles", "texts", "fusion", "retrieval", "attention")


def answer(request: dict) -> list[dict]:
    """All rows; `archs`, `classes`, `photos` and `repeats` may be given, and `parts`, some of `PARTS`."""
    rows, repeats, parts = [], request.get("repeats", 3), request.get("parts", PARTS)
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for arch in request.get("archs", ["simseg_vit_s", "simseg_vit_b"]):
        for classes in request.get("classes", [21, 81]) if "evaluation" in parts else ():
            rows += evaluation_rows(arch, classes, request.get("photos", 8), repeats)
        rows += training_rows(arch, repeats) if "training" in parts else []
        rows += tile_rows(arch, repeats) if "tiles" in parts else []
    others = {"texts": text_rows, "fusion": fusion_rows, "retrieval": lambda _: retrieval_rows(), "attention": attention_rows}
    return rows + [row for part, made in others.items() if part in parts for row in made(repeats)]


def table(rows: list[dict]) -> list[str]:
    """Markdown: one line per path, with times and memory relative to the first path of the same work."""
    lines = ["| work | path | seconds | [s x GFLOP/s] | times the first | MB above start | |", "|---|---|---|---|---|---|---|"]
    first: dict[str, float] = {}
    memories = {(row["work"], row["path"].removesuffix(": memory")): row["mb"] for row in rows if "mb" in row}
    for row in (row for row in rows if "seconds" in row):
        start = first.setdefault(row["work"], row["seconds"])
        mb = memories.get((row["work"], row["path"]))
        cells = [row["work"], row["path"], f"{row['seconds']:.3g}", f"{row['seconds'] * row['rate']:,.3g}", f"{row['seconds'] / start:.2f}"]
        lines.append("| " + " | ".join([*cells, "" if mb is None else f"{mb:,.0f}", row.get("note", "")]) + " |")
    return lines


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG
    cv2.setNumThreads(0)
    print(json.dumps(answer(json.loads(sys.argv[1]))))
