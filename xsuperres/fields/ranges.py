"""The range of each coarse training input: of every cell on a fixed domain, of rows of latitude or of all on open ones.

Numpy in and out. What lies in the range of few values says little about the next one, so limits are wider than the
range: by eight widths per value that it was found among (half a width for 16 fields, next to nothing for a thousand).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xsuperres.fields.grid import Grid

__all__ = ["Extremes", "InputRange"]

_WIDTHS = 8.0
_FLOOR = 1e-3  # of the range of all cells: rounding, and cells that never changed


@dataclass(frozen=True, eq=False)
class InputRange:
    """The lowest and highest coarse training values of one variable.

    Parameters
    ----------
    lowest, highest : ndarray (y, x), (y, 1) or (1, 1)
        float32, of each coarse cell, of each row, or of all cells; NaN where there never was a value.
    count : ndarray of the same shape
        float32, among how many values they were found.
    """

    lowest: np.ndarray
    highest: np.ndarray
    count: np.ndarray

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest value of all cells; NaN if there is none."""
        if not self.count.any():
            return np.nan, np.nan
        return float(np.nanmin(self.lowest)), float(np.nanmax(self.highest))

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and highest values that count as inside, float32; NaN where nothing is known.

        A cell is at least as wide as half the median cell, for few values rarely are.

        Examples
        --------
        >>> plane = np.ones((1, 1), np.float32)
        >>> low, high = InputRange(270 * plane, 280 * plane, 16 * plane).limits()
        >>> low.item(), high.item()
        (264.989..., 285.010...)
        """
        if not self.count.any():
            return self.lowest, self.highest
        width = self.highest.astype(np.float64) - self.lowest
        low, high = self.span
        margin = _WIDTHS / np.maximum(self.count, 1) * np.maximum(width, np.nanmedian(width) / 2) + _FLOOR * (
            high - low
        )
        return (self.lowest - margin).astype(np.float32), (self.highest + margin).astype(np.float32)

    def on(self, own: Grid, other: Grid) -> InputRange:
        """Return the range on another coarse grid: of the nearest rows of latitude, else of all cells."""
        if self.lowest.shape == (1, 1):
            return self
        if not (_by_latitude(own) and _by_latitude(other)):
            low, high = (np.full((1, 1), value, np.float32) for value in self.span)
            return InputRange(low, high, self.count.sum(keepdims=True))
        rows = np.abs(other.y.centres[:, None] - own.y.centres).argmin(axis=1)
        return InputRange(self.lowest[rows], self.highest[rows], self.count[rows])


class Extremes:
    """The lowest and highest values of variables so far, block by block.

    Parameters
    ----------
    coarse : Grid
        Of the values.
    fixed : bool
        Whether the domain is, so that cells are told apart.
    """

    def __init__(self, coarse: Grid, *, fixed: bool) -> None:
        self.over = (0,) if fixed else (0, 3) if _by_latitude(coarse) else (0, 2, 3)
        self.lowest: np.ndarray | float = np.inf
        self.highest: np.ndarray | float = -np.inf
        self.count: np.ndarray | int = 0

    def add(self, values: np.ndarray) -> None:
        """Add coarse fields (n, variables, y, x); NaN is missing."""
        valid = np.isfinite(values)
        low = values.min(axis=self.over, keepdims=True, initial=np.inf, where=valid)[0]
        high = values.max(axis=self.over, keepdims=True, initial=-np.inf, where=valid)[0]
        self.lowest, self.highest = np.minimum(self.lowest, low), np.maximum(self.highest, high)
        self.count = self.count + valid.sum(axis=self.over, keepdims=True)[0]

    def ranges(self) -> tuple[InputRange, ...]:
        """Return the range of each variable."""
        count = np.asarray(self.count, np.float32)
        lowest, highest = (np.where(count > 0, e, np.nan).astype(np.float32) for e in (self.lowest, self.highest))
        return tuple(InputRange(*planes) for planes in zip(lowest, highest, count, strict=True))


def _by_latitude(grid: Grid) -> bool:
    """Return whether the rows lie on circles of latitude; those of a rotated pole do not."""
    return grid.kind(grid.y) == "latitude"
