"""``--optimizer freeseg_adamw``: how the masks of FreeSeg, as those of Mask2Former, are trained.

AdamW in groups: pretrained weights of the image encoder have a tenth of the learning rate; weights of normalisation layers and tables of
queries do not decay. The schedule of the published runs, lr * (1 - n / N) ** 0.9, is fairseq's ``polynomial_decay --power 0.9``.
"""

from dataclasses import dataclass, field

from fairseq.optim import register_optimizer

from ofaseg.optim.adamw import TorchAdamW, TorchAdamWConfig

BACKBONE = "backbone"
"""What `param_group` of a parameter says when it belongs to the image encoder. One that is not to decay has `no_decay`."""
SCALE = "lr_scale"
"""Entry of an optimizer group: what the learning rate is multiplied by."""


@dataclass
class FreeSegAdamWConfig(TorchAdamWConfig):
    backbone_lr_scale: float = field(default=0.1, metadata={"help": "what the learning rate of the image encoder is multiplied by"})


@register_optimizer("freeseg_adamw", dataclass=FreeSegAdamWConfig)
class FreeSegAdamW(TorchAdamW):
    """`torch_adamw` with groups for the image encoder and for weights that do not decay, as the model has marked them."""

    def groups(self, params: list) -> list[dict]:
        """With and without decay, of the model and of its image encoder; empty ones are left out."""
        groups = []
        for backbone in (False, True):
            part = [p for p in params if (getattr(p, "param_group", "") == BACKBONE) == backbone]
            scale = {SCALE: self.cfg.backbone_lr_scale if backbone else 1.0}
            groups.append({"params": [p for p in part if self._decays(p)], **scale})
            groups.append({"params": [p for p in part if not self._decays(p)], "weight_decay": 0.0, **scale})
        return [group for group in groups if group["params"]]

    def _decays(self, parameter) -> bool:
        return not getattr(parameter, "no_decay", False) and not (self.cfg.no_decay_vectors and parameter.ndim <= 1)

    def set_lr(self, lr: float) -> None:
        """Sets every group's multiple of a rate."""
        for group in self.param_groups:
            group["lr"] = lr * group[SCALE]

    def get_lr(self) -> float:
        """The rate that `set_lr` was told."""
        group = max(self.param_groups, key=lambda group: group[SCALE])
        return group["lr"] / group[SCALE] if group[SCALE] else 0.0

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """As `TorchAdamW.load_state_dict`; the multiples stay those of this run."""
        scales = [group[SCALE] for group in self.param_groups]
        super().load_state_dict(state_dict, optimizer_overrides)
        rate = self.get_lr()
        for group, scale in zip(self.param_groups, scales):
            group[SCALE] = scale
        self.set_lr(rate)

    @property
    def supports_flat_params(self) -> bool:
        return False  # one flat tensor has no groups: --fp16-no-flatten-grads
