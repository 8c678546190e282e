"""AdamW, whose state is plain tensors by the names of the parameters.

Torch only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xsuperres.training.state import State, copied

__all__ = ["AdamW"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class _Moments(NamedTuple):
    """Of one parameter's gradient: moving mean and mean square, and the number of its steps, float32."""

    mean: Tensor
    square: Tensor
    steps: Tensor


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), by torch's fused kernel.

    Bit for bit what ``torch.optim.AdamW(fused=True)`` does. That one imports torch's compiler as soon as it is made,
    which takes longer than many a training: 850 modules, two seconds of CPU.

    Parameters
    ----------
    module : torch module
        Whose parameters are moved, in place.
    weight_decay : float
        Per step, in units of the learning rate.
    """

    def __init__(self, module: nn.Module, weight_decay: float) -> None:
        self.parameters = dict(module.named_parameters())
        self.weight_decay = weight_decay
        self.moments: dict[str, _Moments] = {}  # from the first gradient on

    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient against it, with learning rate `rate`."""
        moved = {name: (p, p.grad) for name, p in self.parameters.items() if p.grad is not None}
        if not moved:
            return
        for name, (parameter, _) in moved.items():
            if name not in self.moments:
                self.moments[name] = _at_rest(parameter)
        moments = [self.moments[name] for name in moved]
        steps = [moment.steps for moment in moments]
        with torch.no_grad():
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [parameter for parameter, _ in moved.values()],
                [gradient for _, gradient in moved.values()],
                [moment.mean for moment in moments],
                [moment.square for moment in moments],
                [],
                steps,
                lr=rate,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                weight_decay=self.weight_decay,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def forget_gradients(self) -> None:
        """Drop the gradients, so that those of the next loss do not add to them."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> State:
        """Return the moments and steps of every parameter that has moved."""
        return {name: copied(moments._asdict()) for name, moments in self.moments.items()}

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        self.moments = {}
        for name, tensors in state.items():
            self.moments[name] = moments = _at_rest(self.parameters[name])
            for part, tensor in tensors.items():
                getattr(moments, part).copy_(tensor)


def _at_rest(parameter: Tensor) -> _Moments:
    """Return the moments before the first step, laid out in memory as the parameter is: the kernel needs that."""
    zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
    return _Moments(zeros, zeros.clone(), torch.zeros((), dtype=torch.float32, device=parameter.device))
