"""Whether coarse data lie in the range of the training: the share of cells that do not, counted block by block.

Numpy in. In-memory data are counted at once; of lazy data every task counts its own cells, and what a process has seen
of a result so far decides, so that neither an odd step nor the size of chunks does.
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.fields.grid import Location
from xsuperres.fields.ranges import InputRange
from xsuperres.model.artefact import Input, SRModel
from xsuperres.tiles import Window

__all__ = ["CHECKS", "CheckRange", "Guard", "Limits", "Tally", "check_now", "tallied", "warn_everywhere"]

CheckRange = Literal["warn", "raise", "ignore"]
CHECKS = ("warn", "raise", "ignore")

_LIMIT = 0.05  # of the cells: held-out days of ERA5 reach 0.033, 4 K more 0.07 on open domains, 0.4 on fixed ones
_FIELDS = 6  # until so many have been seen, the others count as inside
_PIECE = 2**20  # cells at a time
_KEPT = 64  # results per process; the one not seen for longest goes first
_SO_FAR: dict[str, _Progress] = {}
_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False)
class Limits:
    """The lowest and highest value of each input that count as inside: planes (y, x), (y, 1) or (1, 1), NaN unknown."""

    planes: tuple[tuple[np.ndarray, np.ndarray], ...]
    names: tuple[str, ...]
    units: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, inputs: Sequence[Input], ranges: Sequence[InputRange]) -> Limits:
        """Return the limits of some of a model's inputs."""
        labels = [part.coarse for part in inputs]
        return cls(
            tuple(part.limits() for part in ranges),
            tuple(label.name or "the data" for label in labels),
            tuple(f" {label.units}" if label.units else "" for label in labels),
            tuple(part.span for part in ranges),
        )


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of each variable's cells: `below` and `above` the limits, `known` (finite, with limits), `seen` (all).

    `lowest` and `highest` are the extremes of those known.
    """

    below: np.ndarray
    above: np.ndarray
    known: np.ndarray
    seen: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    def __add__(self, other: Tally) -> Tally:
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(Tally)}
        ways = {"lowest": np.minimum, "highest": np.maximum}
        return Tally(**{name: ways.get(name, np.add)(*pair) for name, pair in pairs.items()})

    @property
    def share(self) -> np.ndarray:
        """The share of the known cells of each variable that lie outside."""
        return (self.below + self.above) / np.maximum(self.known, 1)

    def alarming(self, least: int) -> np.ndarray:
        """Return the variables of which too many cells lie outside, of at least `least` that would be seen."""
        known = self.known * np.maximum(1.0, least / np.maximum(self.seen, 1))
        return np.flatnonzero(self.below + self.above > _LIMIT * known)


@dataclass(eq=False)
class _Progress:
    """What a process has seen of a result, and whether it has said so."""

    tally: Tally
    told: bool = False


@dataclass(frozen=True)
class Guard:
    """Watches the blocks of one lazy result; small, picklable, deterministic to tokenize.

    `result` tells results apart, `least` is the number of cells of a variable before which those to come count as
    inside.
    """

    way: CheckRange
    result: str
    least: int

    @classmethod
    def of(cls, way: CheckRange, result: str, shape: tuple[int, int, int]) -> Guard | None:
        """Return the guard of a result made from coarse fields (n, y, x); None to ignore.

        Its count starts anew in this process; others go on with theirs.
        """
        if way == "ignore":
            return None
        with _LOCK:
            _SO_FAR.pop(result, None)
        return cls(way, result, min(shape[0], _FIELDS) * math.prod(shape[1:]))

    def watch(self, limits: Limits, block: np.ndarray, parts: Sequence[Window], location: Location) -> None:
        """Count the own cells of a block (..., variables, y, x); `location` has the model's cells of all of them.

        Raises
        ------
        DataError
            If it is to raise, and too many cells of the result lie outside.
        """
        lead = [part.own for part in parts[: block.ndim - 3]]
        y, x = (part.own for part in parts[-2:])
        tally = tallied(limits, block[(*lead, slice(None), y, x)], Location(location.rows[y], location.columns[x]))
        with _LOCK:
            before = _SO_FAR.pop(self.result, None)
            now = _Progress(tally) if before is None else _Progress(before.tally + tally, before.told)
            _SO_FAR[self.result] = now
            while len(_SO_FAR) > _KEPT:
                del _SO_FAR[next(iter(_SO_FAR))]
            alarming = now.tally.alarming(self.least)
            told, now.told = now.told, now.told or bool(len(alarming))
        if len(alarming) and (self.way == "raise" or not told):
            _tell(self.way, limits, now.tally, alarming, of=" computed so far")


def check_now(way: CheckRange, model: SRModel, values: np.ndarray, location: Location) -> None:
    """Count all cells (..., variables, y, x) at `location` of the model's coarse grid.

    Raises
    ------
    DataError
        If it is to raise, and too many lie outside.
    """
    if way == "ignore":
        return
    limits = Limits.of(model.inputs, model.ranges)
    tally = tallied(limits, values, location)
    alarming = tally.alarming(0)
    if len(alarming):
        _tell(way, limits, tally, alarming, stacklevel=5)


def tallied(limits: Limits, values: np.ndarray, location: Location) -> Tally:
    """Return the counts of coarse fields (..., variables, y, x) at `location` of the model's coarse grid."""
    values = values.reshape(-1, *values.shape[-3:])
    step = max(1, _PIECE // max(1, math.prod(values.shape[2:])))
    pieces = [values[start : start + step] for start in range(0, max(1, len(values)), step)]
    columns = []
    for index, planes in enumerate(limits.planes):
        low, high = (_cut(plane, location) for plane in planes)
        counted = [_counted(piece[:, index], low, high) for piece in pieces]
        columns.append([merge(numbers) for merge, numbers in zip(_MERGE, zip(*counted, strict=True), strict=True)])
    return Tally(*(np.array(numbers) for numbers in zip(*columns, strict=True)))


_MERGE: tuple[Any, ...] = (sum, sum, sum, sum, min, max)


def _counted(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, ...]:
    """Return what a tally says of fields (n, y, x) of one variable."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)  # as in training: float64 may round to beyond an equal limit
    known = np.isfinite(values) & ~np.isnan(low)
    below, above = (int(np.count_nonzero(known & outside)) for outside in (values < low, values > high))
    lowest = np.min(values, initial=np.inf, where=known)
    highest = np.max(values, initial=-np.inf, where=known)
    return below, above, int(np.count_nonzero(known)), values.size, float(lowest), float(highest)


def _cut(plane: np.ndarray, location: Location) -> np.ndarray:
    """Return the cells of a location; a line of one cell holds for all."""
    rows = location.rows if plane.shape[0] > 1 else np.zeros(1, int)
    columns = location.columns if plane.shape[1] > 1 else np.zeros(1, int)
    return plane[np.ix_(rows, columns)]


def _tell(
    way: CheckRange, limits: Limits, tally: Tally, alarming: np.ndarray, *, of: str = "", stacklevel: int = 3
) -> None:
    """Warn or raise: which variables, how many of their cells, what the range was and is, what to do."""
    told = []
    for index in alarming:
        plane, units = limits.planes[index][0], limits.units[index]
        where = "cell" if plane.shape[1] > 1 else "latitude" if plane.shape[0] > 1 else "domain"
        above, below = (100 * count[index] / tally.known[index] for count in (tally.above, tally.below))
        then, now = limits.spans[index], (tally.lowest[index], tally.highest[index])
        told.append(
            f"{limits.names[index]!r}: {100 * tally.share[index]:.3g} % of the coarse values{of} lie outside the "
            f"range of their {where} in training ({above:.3g} % above, {below:.3g} % below); together they are "
            f"{now[0]:.4g} to {now[1]:.4g}{units}, in training {then[0]:.4g} to {then[1]:.4g}{units}."
        )
    message = f"{' '.join(told)} The network extrapolates there; train on such data too, or pass "
    if way == "raise":
        raise DataError(f"{message}check_range='warn' or 'ignore'.")
    warn_everywhere(f"{message}check_range='ignore'.", stacklevel + 1)


def warn_everywhere(message: str, stacklevel: int) -> None:
    """Warn here, and in a task of a distributed worker its clients too."""
    if "distributed" in sys.modules:
        from distributed import warn

        warn(message, XSuperResWarning, stacklevel)
    else:
        warnings.warn(message, XSuperResWarning, stacklevel)
