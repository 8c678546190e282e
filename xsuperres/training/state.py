"""What a training is at one moment, as plain values: what a file of tensors and JSON can hold.

Torch only. Objects that change during a training have `state`, which returns a copy, and `restore`, which sets an
object made anew from the same settings and data to it: the training then goes on to the same bits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["State", "copied", "random_state", "restore_random_state"]

State: TypeAlias = dict[str, Any]  # nested; leaves are tensors, numbers, text, None and lists of numbers


def copied(tensors: dict[str, Tensor]) -> State:
    """Return copies of tensors, by name."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def random_state(device: torch.device) -> State:
    """Return the states of torch's generators on the CPU, and on the GPU that is trained on.

    From these dropout, noise and gradient penalties draw their numbers.
    """
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "gpu": gpu}


def restore_random_state(state: State, device: torch.device) -> None:
    """Set the generators to a `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["gpu"] is not None:
        torch.cuda.set_rng_state(state["gpu"], device)
