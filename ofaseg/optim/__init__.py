"""Optimizers and learning-rate schedules, registered with fairseq on import."""

from ofaseg.optim import adamw, cosine_constant_warmup, cosine_warmup, freeseg, fusioner  # noqa: F401
