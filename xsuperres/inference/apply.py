"""One block of coarse values to one block of fine values: fill, scale, network, skip, restore.

Tensors only. Validation during training and every kind of `downscale` run this same function.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xsuperres.errors import XSuperResWarning
from xsuperres.fields.channels import Channels, CoarsePlanes
from xsuperres.fields.resample import fine_index
from xsuperres.model.artefact import SRModel
from xsuperres.nn.network import Cells, SuperResolution
from xsuperres.nn.place import Place, at
from xsuperres.nn.resample import interpolate, interpolate_valid, repeat_cells
from xsuperres.nn.temporal import taken

__all__ = ["Frames", "Mask", "Prepared", "apply", "bytes_per_cell", "prepare", "sub_batch"]

Mask = Literal["input", "model"] | None


@dataclass(frozen=True)
class Prepared:
    """A model ready to run on one device: tensors of its whole domain, cropped block by block.

    `fine` (c, Y, X) are the fine channels, `correction` (t, Y, X) what the skip adds to bicubic in scaled units,
    `coarse` the planes of the coarse grid, `offset` (t, Y, X) what is added to transformed values, `trained`
    (t, Y, X) the fine cells that were trained on, where some never were.
    """

    network: SuperResolution
    channels: Channels
    scale: int
    reach: int
    time_halo: tuple[int, int]
    bytes_per_cell: int
    fine: Tensor
    correction: Tensor | None
    coarse: CoarsePlanes
    offset: Tensor | None
    trained: Tensor | None
    device: torch.device


def prepare(model: SRModel, device: torch.device | str = "cpu", network: SuperResolution | None = None) -> Prepared:
    """Return `model` ready to run on `device`; `network` replaces its own (validation during training)."""
    device, channels = torch.device(device), model.channels

    def tensor(values: np.ndarray | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None if values is None else torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)

    correction, count = channels.correction, channels.targets
    offsets = channels.offsets or (None, None)
    return Prepared(
        network=network if network is not None else _placed(model.network, device),
        channels=channels,
        scale=model.scale,
        reach=model.reach,
        time_halo=model.time_halo,
        bytes_per_cell=bytes_per_cell(model),
        fine=torch.from_numpy(channels.fine).to(device),
        correction=tensor(None if correction is None else correction / np.array(channels.sd[:count])[:, None, None]),
        coarse=CoarsePlanes(tensor(channels.climatology, torch.float64), tensor(offsets[0], torch.float64)),
        offset=tensor(offsets[1]),
        trained=tensor(model.fine_mask, torch.bool),
        device=device,
    )


def _placed(network: SuperResolution, device: torch.device) -> SuperResolution:
    """Return the network on `device`; the model's own stays where it is."""
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


@dataclass(frozen=True)
class Frames:
    """A block's frames, and which of them each output step is made from.

    Parameters
    ----------
    values : ndarray (f, variables, y, x)
        In units of the variables, NaN where missing.
    rows, columns : ndarray of int
        Where the block lies on the model's coarse grid.
    calendar : ndarray (f, features) or None
        What the calendar says.
    windows : ndarray of int (n, w) or None
        Frames of each output step, the first ones never falling; None: one step per frame.
    place : Place or None
        Where the block lies on the input's grid; needed by networks that are random or look at the whole domain.
    keys : tuple of Tensor (f,), (n,), or None
        What tells the random numbers of frames, and of output steps, apart; None: nothing is random.
    """

    values: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    calendar: np.ndarray | None = None
    windows: np.ndarray | None = None
    place: Place | None = None
    keys: tuple[Tensor, Tensor] | None = None

    @property
    def steps(self) -> int:
        """Number of output steps."""
        return len(self.values) if self.windows is None else len(self.windows)


@torch.inference_mode()
def apply(prepared: Prepared, frames: Frames, *, batch_size: int | None = None, mask: Mask = "input") -> np.ndarray:
    """Downscale a block.

    Parameters
    ----------
    frames : Frames
        The block.
    batch_size : int, optional
        Output steps per pass through the network; all at once by default.
    mask : {"input", "model", None}
        Which cells are NaN in the result: those of missing coarse cells, also those that were never trained on, none.

    Returns
    -------
    ndarray (n, targets, scale y, scale x)
        In the variables' units and the dtype of the values.
    """
    scale, n = prepared.scale, frames.steps
    lines = (fine_index(index, scale)[None] for index in (frames.rows, frames.columns))
    ground = _Ground.of(prepared, Cells(*(torch.from_numpy(line) for line in lines)), frames)
    shape = (n, prepared.channels.targets, *(size * scale for size in frames.values.shape[-2:]))
    out = np.empty(shape, frames.values.dtype)
    step = max(1, min(n, batch_size or n))
    encoded = _Encoded(prepared, frames, ground)
    for start in range(0, n, step):
        fine = _steps(prepared, encoded, ground, slice(start, min(start + step, n)), restore=mask is not None)
        if mask == "model" and ground.never is not None:
            fine = fine.masked_fill(ground.never, torch.nan)
        out[start : start + step] = fine.to("cpu").numpy()
    return out


@dataclass(frozen=True)
class _Ground:
    """What all steps of a block share: its fine channels (1, c, Y, X) and the planes of its cells."""

    fixed: Tensor | None
    correction: Tensor | None
    coarse: CoarsePlanes
    offset: Tensor | None
    never: Tensor | None

    @classmethod
    def of(cls, prepared: Prepared, cells: Cells, frames: Frames) -> _Ground:
        def window(planes: Tensor | None) -> Tensor | None:
            return None if planes is None else planes[:, cells.rows[0][:, None], cells.columns[0]]

        def coarse(planes: Tensor | None) -> Tensor | None:
            return None if planes is None else planes[:, torch.from_numpy(frames.rows)[:, None], frames.columns]

        fine = window(prepared.fine)
        assert fine is not None
        fine = fine[None].contiguous(memory_format=torch.channels_last)
        trained = window(prepared.trained)
        planes = CoarsePlanes(coarse(prepared.coarse.climatology), coarse(prepared.coarse.offset))
        return cls(
            prepared.network.fixed(fine if fine.shape[1] else None, cells),
            window(prepared.correction),
            planes,
            window(prepared.offset),
            None if trained is None else ~trained,
        )


class _Encoded:
    """Encodes frames once each, in order, and keeps those that later steps need.

    Features, values and what is valid are kept from the first output frame on, gates from its window's first frame.
    """

    def __init__(self, prepared: Prepared, frames: Frames, ground: _Ground) -> None:
        self.prepared, self.frames, self.ground = prepared, frames, ground
        self.stop = 0
        self.own, self.gates = _Kept(), _Kept()  # (features, values, valid), (gates,)

    def until(self, windows: np.ndarray, output: int) -> None:
        """Keep what the windows (n, w) need, whose output frames are those at `output`."""
        first, stop = int(windows.min()), int(windows.max()) + 1
        new: tuple[Tensor, ...] = ()
        start = max(first, self.stop)
        if stop > start:
            parts, values, valid = self._encode(slice(start, stop))
            new = (parts[0], values, valid, *parts[1:])
        self.own = self.own.moved(int(windows[:, output].min()), new[:3], start)
        self.gates = self.gates.moved(first, new[3:], start)
        self.stop = max(stop, self.stop)

    def _encode(self, span: slice) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        prepared, frames = self.prepared, self.frames
        block = torch.from_numpy(np.ascontiguousarray(frames.values[span])).to(prepared.device)
        valid, recipe = torch.isfinite(block), prepared.channels
        _warn_of_missing(valid, recipe)
        calendar = None
        if frames.calendar is not None:
            calendar = torch.from_numpy(frames.calendar[span]).to(prepared.device)
        values, channels = recipe.coarse(block, valid, self.ground.coarse, calendar)
        with at(_place(frames, None if frames.keys is None else frames.keys[0][span])):
            parts = prepared.network.encode(channels.contiguous(memory_format=torch.channels_last), self.ground.fixed)
        return parts, values, valid[:, : recipe.targets]


@dataclass(frozen=True)
class _Kept:
    """Tensors of consecutive frames, the first of which is number `first`."""

    parts: tuple[Tensor, ...] = ()
    first: int = 0

    def moved(self, first: int, new: tuple[Tensor, ...], start: int) -> _Kept:
        """Return what is left from frame `first` on, joined with new frames that begin at `start`."""
        left = tuple(part[first - self.first :] for part in self.parts)
        if not new:
            return _Kept(left, first)
        if not left or not len(left[0]):
            return _Kept(tuple(part[first - start :] for part in new), first)
        return _Kept(tuple(torch.cat(pair) for pair in zip(left, new, strict=True)), first)


def _place(frames: Frames, keys: Tensor | None) -> Place | None:
    return None if frames.place is None else replace(frames.place, keys=keys)


def _warn_of_missing(valid: Tensor, recipe: Channels) -> None:
    complete = [index for index in range(valid.shape[1]) if index not in recipe.masked]
    if complete and not bool(valid[:, complete].all()):
        warnings.warn(
            "There are NaN cells, but the model was trained on complete fields and has no mask channel: they are "
            "filled for the network and restored; values next to them are less certain.",
            XSuperResWarning,
            stacklevel=2,
        )


def _steps(prepared: Prepared, encoded: _Encoded, ground: _Ground, span: slice, *, restore: bool) -> Tensor:
    """Return some output steps (n, t, Y, X) in the variables' units."""
    frames, recipe = encoded.frames, prepared.channels
    windows = np.arange(span.start, span.stop)[:, None] if frames.windows is None else frames.windows[span]
    output_frame = prepared.time_halo[0]
    encoded.until(windows, output_frame)
    own = torch.from_numpy(windows[:, output_frame] - encoded.own.first)
    features, values, valid = (taken(part, own) for part in encoded.own.parts)
    gates = tuple(encoded.gates.parts)
    keys = None if frames.keys is None else frames.keys[1][span]
    with at(_place(frames, keys)):
        window = None if frames.windows is None else torch.from_numpy(windows - encoded.gates.first)
        output = prepared.network.decode((features, *gates), ground.fixed, window)
    complete = bool(valid.all())
    skip = None
    if recipe.has_skip:
        skip = _bicubic(values, valid, prepared.scale, complete=complete)
        if ground.correction is not None:
            skip = skip + ground.correction
    dtype = torch.float64 if frames.values.dtype == np.float64 else torch.float32
    result = recipe.restored(recipe.combined(output, skip), ground.offset, dtype)
    if restore and not complete:
        present = repeat_cells(valid.float(), prepared.scale) > 0.5
        result = torch.where(present, result, torch.nan)
    return result


def _bicubic(value: Tensor, valid: Tensor, scale: int, *, complete: bool) -> Tensor:
    """Return the interpolation of scaled values (n, t, y, x) as (n, t, Y, X), from valid cells only."""
    return interpolate(value, scale) if complete else interpolate_valid(value, valid, scale)


def bytes_per_cell(model: SRModel) -> int:
    """Return roughly how many bytes of activations one coarse cell of one field takes in the network."""
    config, cells = model.spec.config, model.scale**2
    wide = 3 * config.width + 4 * config.head_width + 8
    fine = wide if model.network.before else 4 * config.head_width + 8
    fusion = 0 if model.network.fusion is None else 10 * model.network.fusion.hidden
    before = fusion if model.network.before else 0
    return 4 * (cells * (fine + before) + 6 * config.width + fusion - before)


_CACHE_FRIENDLY = 2**20  # floats of the widest activation: what stays in the cache between layers runs twice as fast


def sub_batch(prepared: Prepared, cells: int) -> int:
    """Return how many fields of `cells` coarse cells go through the network at once."""
    config = prepared.network.spec.config
    wide = config.width if prepared.network.before else config.head_width
    return max(1, _CACHE_FRIENDLY // max(1, cells * prepared.scale**2 * wide))
