"""One block of coarse values to one block of fine values: fill, scale, network, skip, restore.

Tensors only. Validation during training and every kind of `downscale` run this same function.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from xsuperres.errors import XSuperResError
from xsuperres.fields.channels import Channels
from xsuperres.fields.grid import fine_index
from xsuperres.inference.devices import is_short_of_memory
from xsuperres.inference.frames import EncodedFrames, Frames, placed
from xsuperres.inference.prepared import Prepared
from xsuperres.nn.network import Cells, Fixed
from xsuperres.nn.place import at
from xsuperres.nn.resample import repeat_cells
from xsuperres.nn.temporal import taken

__all__ = ["Mask", "apply"]

logger = logging.getLogger(__name__)

Mask = Literal["input", "model"] | None
T = TypeVar("T")


@torch.inference_mode()
def apply(prepared: Prepared, frames: Frames, *, batch_size: int | None = None, mask: Mask = "input") -> np.ndarray:
    """Downscale a block.

    Parameters
    ----------
    frames : Frames
        The block.
    batch_size : int, optional
        Output steps per pass through the network; all at once by default. Halved where the device's memory is short.
    mask : {"input", "model", None}
        Which cells are NaN in the result: those of missing coarse cells, also those that were never trained on, none.

    Returns
    -------
    ndarray (n, targets, scale y, scale x)
        In the variables' units and the dtype of the values.
    """
    scale, n = prepared.scale, frames.steps
    lines = (fine_index(index, scale)[None] for index in (frames.rows, frames.columns))
    cells = Cells(*(torch.from_numpy(line) for line in lines))
    shape = (n, prepared.channels.targets, *(size * scale for size in frames.values.shape[-2:]))
    constants = _attempted(prepared, partial(_BlockConstants.of, prepared, cells, frames))
    if constants is None:
        raise _too_large(prepared, shape)
    out = np.empty(shape, frames.values.dtype)
    encoded = EncodedFrames(prepared, frames, constants.channels, constants.fixed)
    downloads = prepared.device.downloads()
    start, step = 0, max(1, min(n, batch_size or n, prepared.fitting.get(shape[-2:], n)))
    while start < n:
        span = slice(start, min(start + step, n))
        fine = _attempted(prepared, partial(_masked_steps, prepared, encoded, constants, span, mask))
        if fine is None:
            step = _halved(span.stop - span.start, prepared, shape)
            continue
        downloads.put(fine, out[span])
        start = span.stop
    downloads.finish()
    return out


def _attempted(prepared: Prepared, work: Callable[[], T]) -> T | None:
    """Return what comes of some work, or None if the device's memory is too small; nothing of the failure is kept."""
    try:
        return work()
    except RuntimeError as error:
        if not is_short_of_memory(error):
            raise
    prepared.device.release()
    return None


def _halved(steps: int, prepared: Prepared, shape: tuple[int, ...]) -> int:
    """Return half as many steps, for a device whose memory did not do, and for the blocks to come."""
    if steps == 1:
        raise _too_large(prepared, shape)
    logger.warning("%s is out of memory with %d fields at once; trying %d.", prepared.device.name, steps, steps // 2)
    prepared.fitting[shape[-2:]] = steps // 2
    return steps // 2


def _too_large(prepared: Prepared, shape: tuple[int, ...]) -> XSuperResError:
    return XSuperResError(
        f"One field of {shape[-2]} x {shape[-1]} fine cells does not fit into the memory of {prepared.device.name}; "
        "use smaller chunks in y and x, a smaller memory_budget in set_options, or device='cpu'."
    )


@dataclass(frozen=True)
class _BlockConstants:
    """What all steps of a block share: what its fixed channels add to the features, and the stages on its cells."""

    fixed: Fixed
    channels: Channels
    never_trained: Tensor | None

    @classmethod
    def of(cls, prepared: Prepared, cells: Cells, frames: Frames) -> _BlockConstants:
        rows, columns = cells.rows[0], cells.columns[0]
        fine = prepared.fine[:, rows[:, None], columns][None].contiguous(memory_format=torch.channels_last)
        with prepared.device.arithmetic(prepared.precision):
            fixed = prepared.network.fixed(fine if fine.shape[1] else None, cells)
        channels = prepared.channels.cut(frames.rows, frames.columns, prepared.scale)
        trained = None if prepared.trained is None else prepared.trained[:, rows[:, None], columns]
        return cls(fixed, channels, None if trained is None else ~trained)


def _masked_steps(
    prepared: Prepared, encoded: EncodedFrames, constants: _BlockConstants, span: slice, mask: Mask
) -> Tensor:
    """Return some output steps (n, t, Y, X), NaN where `mask` says so."""
    fine = _steps(prepared, encoded, constants, span, restore=mask is not None)
    if mask != "model" or constants.never_trained is None:
        return fine
    return fine.masked_fill(constants.never_trained, torch.nan)


def _steps(
    prepared: Prepared, encoded: EncodedFrames, constants: _BlockConstants, span: slice, *, restore: bool
) -> Tensor:
    """Return some output steps (n, t, Y, X) in the variables' units."""
    frames, channels, head = encoded.frames, constants.channels, prepared.network.output_head
    encoded.until(span)
    own = torch.from_numpy(encoded.output[span] - encoded.own.first)
    features, values, valid = (taken(part, own) for part in encoded.own.parts)
    place = placed(frames, None if frames.keys is None else frames.keys[1][span])
    window = None if frames.windows is None else torch.from_numpy(frames.windows[span] - encoded.gates.first)
    gates = prepared.network.windowed(encoded.gates.parts, window)
    with at(place), prepared.device.arithmetic(prepared.precision):
        raw = prepared.decode(features, gates, constants.fixed).float()
    output = head.mean(raw) if frames.keys is None else head.draw(raw, place)
    complete = bool(encoded.complete[encoded.output[span]].all())
    with prepared.device.arithmetic("fp32"):
        skip = channels.skip.interpolated(values, valid, prepared.scale, complete=complete)
    dtype = torch.float64 if frames.values.dtype == np.float64 else torch.float32
    result = channels.fields(channels.prediction(output, skip), dtype)
    if restore and not complete:
        present = repeat_cells(valid.float(), prepared.scale) > 0.5
        result = torch.where(present, result, torch.nan)
    return result
