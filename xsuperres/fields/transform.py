"""Transforms of the variable before it is scaled, and back: what makes skewed variables learnable.

Arrays of numpy or torch alike; elementwise, NaN stays NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Transform"]


@dataclass(frozen=True)
class Transform:
    """A monotonic function of the variable.

    Parameters
    ----------
    kind : {None, "log1p", "sqrt", "anomaly"}
        log1p and sqrt keep the sign; the anomaly is taken about planes, by the stage `Departures`.
    unit : float
        What the size is counted in before the logarithm, in units of the variable.

    Examples
    --------
    >>> rain = Transform("log1p", unit=2.0)
    >>> float(rain.back(rain.forth(np.float64(5.0))))
    5.0
    """

    kind: str | None = None
    unit: float = 1.0

    def forth(self, values: Any) -> Any:
        """Return the transformed values."""
        if self.kind == "log1p":
            sign, size = _parts(values)
            return sign * _of(values).log1p(size / self.unit)
        if self.kind == "sqrt":
            sign, size = _parts(values)
            return sign * _of(values).sqrt(size)
        return values

    def back(self, values: Any) -> Any:
        """Return the values in units of the variable."""
        if self.kind == "log1p":
            sign, size = _parts(values)
            return sign * _of(values).expm1(size) * self.unit
        if self.kind == "sqrt":
            return _of(values).abs(values) * values
        return values


def _of(values: Any) -> Any:
    """Return the module whose functions take `values`."""
    if isinstance(values, (np.ndarray, np.generic, float)):
        return np
    import torch

    return torch


def _parts(values: Any) -> tuple[Any, Any]:
    module = _of(values)
    return module.sign(values), module.abs(values)
