"""How many cells of coarse data lie outside the range of the training, and how many of them are too many.

Numpy in and out. Counts of parts add up, and what is too many of the whole depends on no order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from xsuperres.fields.grid import Location
from xsuperres.fields.ranges import InputRange
from xsuperres.model.artefact import SRModel

__all__ = ["Label", "Limits", "Planes", "Tally", "tallied"]

Planes = tuple[np.ndarray, np.ndarray]

# Of all cells, above or below: the fewer fields there were in training, the more of the next ones lie outside.
# Held-out fields of ERA5 (tas, pr, psl, uas, vas at 4 degrees; trained on 8 to 16 fields of a week), the larger side:
#   open   8 fields 0.038 of 0.045, 12 fields 0.015 of 0.037, 16 fields 0.006 of 0.033; tas + or - 4 K at least 0.042
#   fixed  8 fields 0.078 of 0.135, 12 fields 0.050 of 0.110, 16 fields 0.040 of 0.098; tas + or - 4 K at least 0.37
# HadGEM2 tas, the 30 years after 100: 0.003 of 0.066, open 0.0003 of 0.022; + or - 4 K at least 0.85, open 0.29.
_MANY, _FEW = 0.02, 0.2  # of a domain that is open, and this over the number of fields
_FIXED = 3.0  # times as many where each cell has a range of its own
_PIECE = 2**20  # cells at a time


@dataclass(frozen=True)
class Label:
    """What is said of a variable: its name, its units after a blank, whose range it is, that of all cells."""

    name: str
    units: str
    where: str
    span: tuple[float, float]

    @classmethod
    def of(cls, name: str | None, units: str | None, part: InputRange) -> Label:
        """Return the label of a variable and its range."""
        rows, columns = part.lowest.shape
        where = "cell" if columns > 1 else "latitude" if rows > 1 else "domain"
        return cls(name or "the data", f" {units}" if units else "", where, part.span)


@dataclass(frozen=True, eq=False)
class Limits:
    """What counts as inside, of each input of a model, and the share of cells on one side that is too many.

    `planes` are the lowest and highest value of each: (y, x), (y, 1) or (1, 1), NaN unknown.
    """

    planes: tuple[Planes, ...]
    labels: tuple[Label, ...]
    share: float

    @classmethod
    def of(cls, model: SRModel) -> Limits:
        """Return the limits of a model's inputs."""
        labels = [part.coarse for part in model.inputs]
        share = _MANY + _FEW / max(1, model.training.samples)
        return cls(
            tuple(part.limits() for part in model.ranges),
            tuple(Label.of(label.name, label.units, part) for label, part in zip(labels, model.ranges, strict=True)),
            share * (_FIXED if model.fixed_domain else 1.0),
        )


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of each variable's cells: `below` and `above` the limits, `known` (finite, with limits), `seen` (all).

    `lowest` and `highest` are the extremes of those known, infinite where there is none.
    """

    below: np.ndarray
    above: np.ndarray
    known: np.ndarray
    seen: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def of(cls, numbers: Sequence[Sequence[float | None]]) -> Tally:
        """Return the tally that `numbers` were made from."""
        *counts, lowest, highest = numbers
        ends = ([end if v is None else v for v in line] for line, end in ((lowest, np.inf), (highest, -np.inf)))
        return cls(*(np.array(line, np.int64) for line in counts), *(np.array(line, float) for line in ends))

    @property
    def numbers(self) -> list[list[float | None]]:
        """The tally as plain numbers, ready for JSON and msgpack."""
        lines = [getattr(self, field.name).tolist() for field in fields(self)]
        return [[value if math.isfinite(value) else None for value in line] for line in lines]

    def __add__(self, other: Tally) -> Tally:
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(Tally)}
        ways = {"lowest": np.minimum, "highest": np.maximum}
        return Tally(**{name: ways.get(name, np.add)(*pair) for name, pair in pairs.items()})

    @property
    def share(self) -> np.ndarray:
        """The share of the known cells of each variable that lie outside."""
        return (self.below + self.above) / np.maximum(self.known, 1)

    def alarming(self, share: float, of: int) -> np.ndarray:
        """Return the variables of which more than a share of `of` cells lies above, or below.

        Cells that were not seen count as inside, those that are missing not at all: what has been too many remains so.
        """
        there = of - (self.seen - self.known)
        return np.flatnonzero(np.maximum(self.below, self.above) > share * there)


def tallied(planes: Sequence[Planes], values: np.ndarray, location: Location) -> Tally:
    """Return the counts of coarse fields (..., variables, y, x) at `location` of the model's coarse grid."""
    values = values.reshape(-1, *values.shape[-3:])
    step = max(1, _PIECE // max(1, math.prod(values.shape[2:])))
    pieces = [values[start : start + step] for start in range(0, max(1, len(values)), step)]
    columns = []
    for index, limits in enumerate(planes):
        low, high = (_cut(plane, location) for plane in limits)
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
