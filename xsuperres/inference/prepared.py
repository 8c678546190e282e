"""A model ready to run: its tensors on one device, cropped block by block, and what a block of it takes.

Tensors only, but for the range of its inputs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xsuperres.fields.channels import Channels
from xsuperres.inference.devices import HALF, ON_CPU, Device, Execution, device_of
from xsuperres.inference.tally import Limits
from xsuperres.model.artefact import SRModel
from xsuperres.nn.network import Encoded, SuperResolution

logger = logging.getLogger(__name__)

__all__ = ["Prepared", "bytes_of", "bytes_per_cell", "prepare", "sub_batch"]


@dataclass(frozen=True)
class Prepared:
    """A model ready to run on one device: tensors of its whole domain, cropped block by block.

    `channels` are the stages with their planes on the device, `fine` (c, Y, X) the fine channels, `trained` (t, Y, X)
    the fine cells that were trained on, where some never were, `limits` the range of the inputs. `encode` and
    `decode` are the network's own, or compiled. `fitting` notes how many fields (Y, X) at once the device's memory
    holds where more did not fit.
    """

    network: SuperResolution
    encode: Callable[..., Encoded]
    decode: Callable[..., Tensor]
    channels: Channels
    scale: int
    reach: int
    time_halo: tuple[int, int]
    bytes_per_cell: int
    fine: Tensor
    trained: Tensor | None
    limits: Limits
    device: Device
    precision: str
    fitting: dict[tuple[int, ...], int] = field(default_factory=dict)


def prepare(model: SRModel, execution: Execution = ON_CPU, network: SuperResolution | None = None) -> Prepared:
    """Return `model` ready to run on the execution's device; `network` replaces its own (validation in training)."""
    device = device_of(execution.device)
    trained = None if model.fine_mask is None else torch.from_numpy(model.fine_mask).to(device.torch)
    network = network if network is not None else _placed(model.network, device.torch)
    encode, decode = _compiled(network) if execution.compile else (network.encode, network.decode)
    return Prepared(
        network=network,
        encode=encode,
        decode=decode,
        channels=model.channels.on(device.torch),
        scale=model.scale,
        reach=model.reach,
        time_halo=model.time_halo,
        bytes_per_cell=bytes_per_cell(model),
        fine=torch.from_numpy(model.channels.fine).to(device.torch),
        trained=trained,
        limits=Limits.of(model),
        device=device,
        precision=execution.precision,
    )


def _compiled(network: SuperResolution) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a network's parts compiled, for tiles of any shape at once, unless it asks where it is."""
    if network.is_random or network.global_context:
        logger.warning("compile=True is not for networks that are random or look at the whole domain; it is left out.")
        return network.encode, network.decode
    return torch.compile(network.encode, dynamic=True), torch.compile(network.decode, dynamic=True)


def _placed(network: SuperResolution, device: torch.device) -> SuperResolution:
    """Return the network on `device`; the model's own stays where it is."""
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


def bytes_per_cell(model: SRModel) -> int:
    """Return roughly how many bytes of activations one coarse cell of one field takes in the network."""
    config, cells = model.spec.config, model.scale**2
    wide = 3 * config.width + 4 * config.head_width + 8
    fine = wide if model.network.before else 4 * config.head_width + 8
    fusion = 0 if model.network.fusion is None else 10 * model.network.fusion.hidden
    before = fusion if model.network.before else 0
    return 4 * (cells * (fine + before) + 6 * config.width + fusion - before)


def bytes_of(prepared: Prepared) -> int:
    """Return how many bytes a prepared model takes."""
    planes = [prepared.fine, prepared.trained, *prepared.channels.planes()]
    weights = sum(parameter.nbytes for parameter in prepared.network.parameters())
    return weights + sum(plane.nbytes for plane in planes if plane is not None)


def sub_batch(prepared: Prepared, cells: int) -> int:
    """Return how many fields of `cells` coarse cells go through the network at once."""
    config = prepared.network.spec.config
    wide = config.width if prepared.network.before else config.head_width
    room = prepared.device.floats * (2 if prepared.precision in HALF else 1)
    return max(1, room // max(1, cells * prepared.scale**2 * wide))
