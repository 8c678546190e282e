"""One block of coarse values to one block of fine values: fill, scale, network, skip, restore.

Tensors only. Validation during training and every kind of `downscale` run this same function.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xsuperres.errors import XSuperResWarning
from xsuperres.fields.channels import Channels
from xsuperres.fields.resample import fine_index
from xsuperres.model.artefact import SRModel
from xsuperres.nn.network import Cells, SuperResolution
from xsuperres.nn.resample import interpolate, interpolate_valid, repeat_cells

__all__ = ["Mask", "Prepared", "apply", "bytes_per_cell", "prepare", "sub_batch"]

Mask = Literal["input", "model"] | None


@dataclass(frozen=True)
class Prepared:
    """A model ready to run on one device: tensors of its whole domain, cropped block by block.

    `fine` (c, Y, X) are the fine channels, `correction` (Y, X) what the skip adds to bicubic in scaled units,
    `climatology` (y, x) the mean training input, `trained` (Y, X) the fine cells that were trained on, where some
    never were.
    """

    network: SuperResolution
    channels: Channels
    scale: int
    halo: int
    bytes_per_cell: int
    fine: Tensor
    correction: Tensor | None
    climatology: Tensor | None
    trained: Tensor | None
    device: torch.device


def prepare(model: SRModel, device: torch.device | str = "cpu", network: SuperResolution | None = None) -> Prepared:
    """Return `model` ready to run on `device`; `network` replaces its own (validation during training)."""
    device, channels = torch.device(device), model.channels

    def tensor(values: np.ndarray | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

    correction = channels.correction
    return Prepared(
        network=network if network is not None else _placed(model.network, device),
        channels=channels,
        scale=model.scale,
        halo=model.halo,
        bytes_per_cell=bytes_per_cell(model),
        fine=torch.from_numpy(channels.fine).to(device),
        correction=tensor(None if correction is None else correction / channels.sd),
        climatology=tensor(channels.climatology, torch.float64),
        trained=tensor(model.fine_mask, torch.bool),
        device=device,
    )


def _placed(network: SuperResolution, device: torch.device) -> SuperResolution:
    """Return the network on `device`; the model's own stays where it is."""
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


@torch.inference_mode()
def apply(
    prepared: Prepared,
    coarse: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    *,
    batch_size: int | None = None,
    mask: Mask = "input",
) -> np.ndarray:
    """Downscale a block.

    Parameters
    ----------
    coarse : ndarray (n, y, x)
        Values in the variable's units, NaN where missing.
    rows, columns : ndarray of int
        Where the block lies on the model's coarse grid.
    batch_size : int, optional
        Fields per pass through the network; all at once by default.
    mask : {"input", "model", None}
        Which cells are NaN in the result: those of missing coarse cells, also those that were never trained on, none.

    Returns
    -------
    ndarray (n, scale y, scale x)
        In the variable's units and the dtype of `coarse`.
    """
    n, (ny, nx), scale = len(coarse), coarse.shape[1:], prepared.scale
    cells = Cells(torch.from_numpy(fine_index(rows, scale)[None]), torch.from_numpy(fine_index(columns, scale)[None]))
    out = np.empty((n, ny * scale, nx * scale), coarse.dtype)
    surroundings = _surroundings(prepared, cells, rows, columns)
    never = None if mask != "model" or prepared.trained is None else ~_window(prepared.trained, cells)
    step = max(1, min(n, batch_size or n))
    for start in range(0, n, step):
        block = torch.from_numpy(np.ascontiguousarray(coarse[start : start + step])).to(prepared.device)
        fine = _apply(prepared, block, cells, *surroundings, restore=mask is not None)
        if never is not None:
            fine = fine.masked_fill(never, torch.nan)
        out[start : start + step] = fine.to("cpu").numpy()
    return out


def _surroundings(
    prepared: Prepared, cells: Cells, rows: np.ndarray, columns: np.ndarray
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the fine channels (1, c, Y, X), correction (Y, X) and climatology (y, x) of a block."""
    fine = _window(prepared.fine, cells)[None].contiguous(memory_format=torch.channels_last)
    correction = None if prepared.correction is None else _window(prepared.correction, cells)
    climatology = prepared.climatology
    if climatology is not None:
        climatology = climatology[torch.from_numpy(rows)[:, None], torch.from_numpy(columns)[None, :]]
    return (fine if fine.shape[1] else None), correction, climatology


def _window(planes: Tensor, cells: Cells) -> Tensor:  # (..., Y, X) of the domain -> (..., Y, X) of the block
    return planes[..., cells.rows[0][:, None], cells.columns[0][None, :]]


def _apply(
    prepared: Prepared,
    block: Tensor,
    cells: Cells,
    fine: Tensor | None,
    correction: Tensor | None,
    climatology: Tensor | None,
    *,
    restore: bool,
) -> Tensor:  # (n, y, x) -> (n, Y, X)
    valid, recipe = torch.isfinite(block), prepared.channels
    complete = bool(valid.all())
    if not complete and not recipe.with_mask:
        warnings.warn(
            "There are NaN cells, but the model was trained on complete fields and has no mask channel: they are "
            "filled for the network and restored; values next to them are less certain.",
            XSuperResWarning,
            stacklevel=2,
        )
    value, channels = recipe.coarse(block, valid, climatology)
    network_input = channels.contiguous(memory_format=torch.channels_last)
    scaled = prepared.network(network_input, fine, cells)[:, 0] * recipe.gain
    if recipe.has_skip:
        scaled = scaled + _bicubic(value, valid[:, None], prepared.scale, complete=complete)
    if correction is not None:
        scaled = scaled + correction
    result = (scaled * recipe.sd + recipe.mean).to(block.dtype)
    if restore and not complete:
        present = repeat_cells(valid[:, None].float(), prepared.scale)[:, 0] > 0.5
        result = torch.where(present, result, torch.nan)
    return result


def _bicubic(value: Tensor, valid: Tensor, scale: int, *, complete: bool) -> Tensor:
    """Return the interpolation of scaled values (n, 1, y, x) as (n, Y, X), from valid cells only."""
    fine = interpolate(value, scale) if complete else interpolate_valid(value, valid, scale)
    return fine[:, 0]


def bytes_per_cell(model: SRModel) -> int:
    """Return roughly how many bytes of activations one coarse cell of one field takes in the network."""
    config, cells = model.spec.config, model.scale**2
    wide = 3 * config.width + 4 * config.head_width + 8
    fine = wide if model.network.before else 4 * config.head_width + 8
    return 4 * (cells * fine + 6 * config.width)


_CACHE_FRIENDLY = 16 * 2**20  # floats of the widest activation; more per pass gains nothing and costs memory


def sub_batch(prepared: Prepared, cells: int) -> int:
    """Return how many fields of `cells` coarse cells go through the network at once."""
    config = prepared.network.spec.config
    wide = config.width if prepared.network.before else config.head_width
    return max(1, _CACHE_FRIENDLY // max(1, cells * prepared.scale**2 * wide))
