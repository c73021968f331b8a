"""Optimizers and learning-rate schedules, registered with fairseq on import."""

from ofaseg.optim import adamw, cosine_warmup, fusioner  # noqa: F401
