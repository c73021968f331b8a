"""Fusioner: ours against the plain published procedure in one process; run as `python -m tools.benchmark_fusioner '{"repeats": 3}'`.

The answer is one JSON line. The plain procedure takes one sample at a time, encodes the 32 prompts of its class anew, padded to 77
tokens, for every sample and every window, and upsamples the decoder's features before the cosine. Both see the same weights, random
ones of the published sizes; outputs are compared before anything is timed.
"""

import json
import logging
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from ofaseg.checkpoints.fusioner import load_towers
from ofaseg.evaluation.corner_windows import corner_windows
from ofaseg.losses import masked_bce
from ofaseg.models.fusioner import Fusioner, architecture_config
from ofaseg.models.layers.upsampled_cosines import cosine_maps, upsampled_cosines
from ofaseg.models.text_encoders.class_embeddings import padded
from tools.benchmark_simseg import peak, turns

BATCH, TEMPLATES, CONTEXT = 8, 32, 77
PHOTO = (375, 500)
"""Height and width of the photo that windows slide over."""


class Bench:
    """One model with its inputs, and one iteration of every path."""

    def __init__(self, arch: str):
        torch.manual_seed(0)
        self.model = Fusioner(architecture_config(arch, random_towers=True))
        load_towers(self.model)
        self.side = self.model.config.image_size
        generator = torch.Generator().manual_seed(1)
        self.image = torch.randint(256, (BATCH, 3, self.side, self.side), dtype=torch.uint8, generator=generator)
        self.target = torch.randint(2, (BATCH, 1, self.side, self.side), generator=generator)
        self.photo = self.model.normalised(torch.randint(256, (1, 3, *PHOTO), dtype=torch.uint8, generator=generator))
        lengths = torch.randint(10, 14, (BATCH, TEMPLATES), generator=generator).tolist()
        top = self.model.config.vocab_size
        self.prompts = [[torch.randint(1, top, (n,), generator=generator).tolist() for n in of_class] for of_class in lengths]
        self.model.set_classes(self.prompts)
        self.text = self.model.class_embeddings().unsqueeze(1)  # each sample's one class
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def plain_text(self, i: int) -> Tensor:
        """(1, D) vector of the class of sample i, from prompts that are all as long as the context."""
        ids, mask = padded([*self.prompts[i], [0] * CONTEXT], 0)
        vectors = self.model.embed_text(ids[:-1], mask[:-1]).mean(0, keepdim=True)
        return F.normalize(vectors, dim=-1)

    # ---- training ----

    def training(self, autocast: bool = False, head=upsampled_cosines):
        """A function of one optimizer step on a batch."""

        def step() -> None:
            self.model.train()
            self.model.cosines = head
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                logits = self.model(self.image, self.text).class_logits
            losses, _ = masked_bce(logits, self.target)
            losses.mean().backward()
            self._update()

        return step

    def plain_training(self) -> None:
        """The same, one sample at a time."""
        self.model.train()
        self.model.cosines = cosine_maps
        for i in range(BATCH):
            logits = self.model(self.image[i : i + 1], self.plain_text(i)).class_logits
            losses, _ = masked_bce(logits, self.target[i : i + 1])
            (losses[0] / BATCH).backward()
        self._update()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.cosines = upsampled_cosines
        self.model.eval()

    # ---- prediction ----

    def new_class(self) -> None:
        """The vector of one class from its prompts, cut to their length."""
        self.model.set_classes(self.prompts[:1])
        self.model.class_embeddings()

    def predict(self, autocast: bool = False, image=None) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return self.model.predict(image=self.image[:1] if image is None else image, text=self.text[0]).class_logits

    @torch.no_grad()
    def plain_predict(self, image=None) -> Tensor:
        self.model.cosines = cosine_maps
        logits = self.model(self.image[:1] if image is None else image, self.plain_text(0)).class_logits
        self.model.cosines = upsampled_cosines
        return logits

    def windows(self, predict, batch: int) -> Tensor:
        return corner_windows(lambda part: predict(image=part), self.photo, self.side, batch=batch)


def _compared(bench: Bench) -> None:
    """Raises AssertionError when ours and the plain procedure differ."""
    for ours, plain in (
        (bench.predict(), bench.plain_predict()),
        (bench.windows(bench.predict, 16), bench.windows(bench.plain_predict, 1)),
    ):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-4)


def rows_of(work: str, runs: dict, repeats: int, share: int = 1) -> list[dict]:
    """Seconds and memory of functions that take turns."""
    found, rate = turns(runs, repeats)
    return [{"work": work, "path": name, "seconds": found[name] / share, "rate": rate, "mb": peak(run)} for name, run in runs.items()]


def architecture_rows(arch: str, repeats: int) -> list[dict]:
    bench = Bench(arch)
    bench.model.eval()
    _compared(bench)
    rows = rows_of(
        f"{arch}, training step of {BATCH}",
        {
            "ours": bench.training(),
            "ours, features upsampled": bench.training(head=cosine_maps),
            "ours, fusion and decoder in bf16": bench.training(autocast=True),
            "plain": bench.plain_training,
        },
        repeats,
    )
    rows += rows_of(
        f"{arch}, a photo of {bench.side} px",
        {"ours": bench.predict, "ours, fusion and decoder in bf16": lambda: bench.predict(True), "plain": bench.plain_predict},
        repeats,
    )
    rows += rows_of(
        f"{arch}, a photo of {PHOTO[0]}x{PHOTO[1]} in windows",
        {"ours": lambda: bench.windows(bench.predict, 16), "plain": lambda: bench.windows(bench.plain_predict, 1)},
        repeats,
    )
    text = {"ours": bench.new_class, "plain": lambda: bench.plain_text(0)}
    return rows + rows_of(f"{arch}, class vector from {TEMPLATES} prompts", text, repeats)


def answer(request: dict) -> list[dict]:
    """All rows; `archs` and `repeats` may be given."""
    return [row for arch in request.get("archs", ["fusioner_vit_b32"]) for row in architecture_rows(arch, request.get("repeats", 3))]


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # importing fairseq leaves it at DEBUG
    print(json.dumps(answer(json.loads(sys.argv[1]))))
