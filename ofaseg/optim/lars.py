"""LARS, layer-wise adaptive rate scaling (You et al. 2017): large batches for linear classifiers on frozen features."""

import torch


class LARS(torch.optim.Optimizer):
    """Each tensor's step is scaled to a share of its own length. With weight w, gradient g and momentum buffer b::

        d = (g + weight_decay * w) * lr * eta * |w| / (|g| + weight_decay * |w| + eps)     the share is 1 where |w| or |g| is 0
        b = momentum * b + d            (d at the first step)
        w = w - b

    The rate stands inside the buffer, as in the published linear probe: a change of it acts on later gradients only. All tensors are
    scaled, biases too. Lengths stay on the device.

    Args:
        params: parameters or groups, as for any torch optimizer.
        lr: rate, above 0.
        momentum, weight_decay, eta, eps: 0 or more.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, eta: float = 1e-3, eps: float = 1e-8):
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta, eps=eps)
        wrong = [name for name, value in defaults.items() if value < 0 or (name == "lr" and value == 0)]
        if wrong:
            raise ValueError(f"LARS: {wrong[0]} is {defaults[wrong[0]]}; it must be {'above 0' if wrong[0] == 'lr' else '0 or more'}")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update; returns the loss of `closure`, which is called with gradients when given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: torch.Tensor, group: dict) -> None:
        decay, length, slope = group["weight_decay"], weight.norm(), weight.grad.norm()
        share = torch.where((length > 0) & (slope > 0), group["eta"] * length / (slope + decay * length + group["eps"]), 1.0)
        change = (weight.grad + decay * weight) * (share * group["lr"])
        state = self.state[weight]
        if "momentum_buffer" in state:
            change = state["momentum_buffer"].mul_(group["momentum"]).add_(change)
        else:
            state["momentum_buffer"] = change
        weight.sub_(change)
