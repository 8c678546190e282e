"""Which samples an epoch consists of: an index plan without data.

Numpy only. A sample is a window of coarse cells of one field: (field, first row, first column). Windows are drawn
anew every epoch, wrap across a periodic longitude, and never cross a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["WindowPlan"]


@dataclass(frozen=True)
class WindowPlan:
    """The windows of a domain.

    Parameters
    ----------
    rows : int
        Coarse rows of the domain.
    parts : sequence of slice
        Its connected stretches of coarse columns; one that covers everything if `periodic`.
    patch : int or None
        Side of the square windows; None for the full field, which needs a single part.
    margin : int
        Columns by which a full periodic field is widened on both sides; they are context without weight.
    """

    rows: int
    parts: Sequence[slice]
    periodic: bool = False
    patch: int | None = None
    margin: int = 0

    @property
    def columns(self) -> int:
        """Coarse columns of the domain."""
        return int(self.parts[-1].stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of every window."""
        narrowest = min(part.stop - part.start for part in self.parts)
        if self.patch is None:
            return self.rows, narrowest + 2 * self.margin
        return min(self.patch, self.rows), min(self.patch, narrowest)

    @property
    def last_column(self) -> int:
        """One past the last coarse column that a window of a periodic domain may read, unwrapped."""
        return self.columns + (self.margin if self.patch is None else self.shape[1] - 1)

    @property
    def per_field(self) -> int:
        """How many windows of a field make an epoch: enough to cover its area once."""
        height, width = self.shape
        if self.patch is None:
            return len(self._full_starts())
        return max(1, round(self.rows * self.columns / (height * width)))

    def windows(self, fields: int, rng: np.random.Generator) -> np.ndarray:
        """Return the windows of one epoch in random order, int64 (count, 3): field, first row, first column."""
        field = np.repeat(np.arange(fields), self.per_field)
        row, column = self._corners(len(field), rng)
        return rng.permutation(np.stack([field, row, column], axis=1), axis=0)

    def _corners(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.shape
        row = rng.integers(0, self.rows - height + 1, count)
        if self.periodic:
            start = -self.margin if self.patch is None else 0
            free = 1 if self.patch is None else self.columns
            return row, start + rng.integers(0, free, count)
        if self.patch is None:
            return row, np.resize(self._full_starts(), count)
        starts = np.concatenate([np.arange(p.start, p.stop - width + 1) for p in self.parts])
        return row, rng.choice(starts, count)

    def _full_starts(self) -> np.ndarray:
        """Return first columns of windows that together cover every part: side by side, the last one flush."""
        width = self.shape[1] - 2 * self.margin
        starts = [[*range(p.start, p.stop - width, width), p.stop - width] for p in self.parts]
        return np.concatenate(starts)
