"""The linear baselines: what a network must beat, and what it is added to.

Arrays in canonical order, float64. `TrainingMoments` gathers sums over the training samples block by block, so
that data larger than memory are fitted in one pass; `TrainingMoments.fit` turns them into scaling statistics and
baselines, all closed form:

- bicubic: interpolation of the coarse field;
- static_regression: bicubic + pooled coefficients x static anomalies (fine minus interpolated coarse);
- lapse: bicubic - 6.5 K/km x elevation anomaly, the standard atmosphere's lapse rate, for temperature;
- delta: bicubic + the mean training residual of each cell, on a fixed domain;
- regression: per-cell linear regression on bicubic, ridge towards slope 1, on a fixed domain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xsuperres.errors import DataError
from xsuperres.fields.stages import contrast

__all__ = ["LAPSE_RATE", "InputMoments", "LinearBaselines", "Scaling", "TrainingMoments", "coarse_area"]

LAPSE_RATE = -6.5e-3  # K m-1, ICAO standard atmosphere


@dataclass(frozen=True)
class Scaling:
    """Training mean and standard deviation of a variable, area-weighted; of targets in transformed units.

    A variable that mirroring gives another sign is scaled about 0.
    """

    mean: float
    sd: float


@dataclass(frozen=True)
class LinearBaselines:
    """Coefficients of the linear baselines.

    Parameters
    ----------
    coefficients : ndarray (static,)
        Of static_regression, in units of the variable per unit of the static field.
    delta, slope, intercept : ndarray (y, x)
        Per fine cell: the mean training residual of bicubic; the regression on bicubic. NaN where the training
        target is never valid. Empty on an open domain, which has no cells of its own.
    climatology : ndarray (coarse y, coarse x)
        Mean training input; empty on an open domain.
    residual_sd : dict
        Standard deviations. Of the training target about "linear_open" (static_regression), "linear_fixed"
        (delta), "bicubic", "none" (the training mean) and "climatology" (each cell's own training mean);
        of the coarse "contrast".
    """

    coefficients: np.ndarray
    delta: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    climatology: np.ndarray
    residual_sd: dict[str, float]

    def pooled(self) -> LinearBaselines:
        """Return what holds on any domain: the same without values per cell."""
        empty = np.zeros((0, 0))
        return replace(self, delta=empty, slope=empty, intercept=empty, climatology=empty)


class InputMoments:
    """Area-weighted sums over the coarse values of one variable.

    Parameters
    ----------
    contrast_radius : int
        Of the neighbourhood whose contrast is measured, without wrap-around.
    """

    def __init__(self, contrast_radius: int = 0) -> None:
        self.contrast_radius = contrast_radius
        self.weight = self.sum = self.squares = self.contrast_squares = 0.0
        self.missing = False

    def add(self, coarse: np.ndarray, area: np.ndarray) -> None:
        """Add fields (n, y, x) on cells of an area (y, x), 0 for those held out; NaN is missing."""
        import torch

        values = torch.from_numpy(np.ascontiguousarray(coarse, dtype=np.float64))
        valid = torch.isfinite(values)
        weight, known = torch.from_numpy(area) * valid, values.where(valid, 0)
        self.weight += float(weight.sum())
        self.sum += float((weight * known).sum())
        self.squares += float((weight * known.square()).sum())
        self.contrast_squares += float((weight * contrast(values, valid, self.contrast_radius).square()).sum())
        self.missing = self.missing or not bool(valid.all())

    @property
    def contrast_sd(self) -> float:
        """Standard deviation of the contrast."""
        return float(np.sqrt(self.contrast_squares / self.weight)) if self.weight else 0.0

    def scaling(self, name: object) -> Scaling:
        """Return mean and standard deviation.

        Raises
        ------
        DataError
            If no value is valid, or the variable is constant.
        """
        if not self.weight:
            raise DataError(f"{name!r} has no valid value to train on: every cell is NaN; check the selection.")
        mean = self.sum / self.weight
        variance = self.squares / self.weight - mean**2
        if not variance > 1e-12 * max(1e-12, mean**2):
            raise DataError(f"{name!r} is constant ({mean:g}) on the training samples; nothing can be learnt from it.")
        return Scaling(mean, float(np.sqrt(variance)))


def coarse_area(area: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the areas of coarse cells, `shape` of them, from those of fine ones.

    Examples
    --------
    >>> coarse_area(np.ones((4, 6)), (2, 3))[0]
    array([4., 4., 4.])
    """
    ny, nx = shape
    return area.reshape(ny, area.shape[0] // ny, nx, area.shape[1] // nx).sum(axis=(1, 3))


class TrainingMoments:
    """Weighted sums over training samples.

    Parameters
    ----------
    area : ndarray (y, x)
        Weights of the fine cells; 0 for those held out.
    anomaly : ndarray (static, y, x)
        Static anomalies.
    contrast_radius : int
        Of the neighbourhood whose contrast is measured.
    """

    def __init__(self, area: np.ndarray, anomaly: np.ndarray, *, contrast_radius: int = 0) -> None:
        self.area, self.anomaly = area, anomaly
        self.inputs = InputMoments(contrast_radius)
        shape, statics = area.shape, len(anomaly)
        self.count = np.zeros(shape)
        self.sums = {name: np.zeros(shape) for name in ("b", "t", "bb", "bt", "tt")}
        self.normal = np.zeros((statics, statics))
        self.moment = np.zeros(statics)
        self.coarse_sum: np.ndarray | None = None
        self.coarse_count: np.ndarray | None = None

    def add(self, target: np.ndarray, bicubic: np.ndarray, coarse: np.ndarray) -> None:
        """Add samples: target and bicubic (n, y, x), coarse (n, coarse y, coarse x); NaN is missing."""
        valid = np.isfinite(target) & np.isfinite(bicubic)
        t = np.where(valid, target, 0.0).astype(np.float64)
        b = np.where(valid, bicubic, 0.0).astype(np.float64)
        count, residual = valid.sum(axis=0), (t - b).sum(axis=0)
        self.count += count
        for name, product in (("b", b), ("t", t), ("bb", b * b), ("bt", b * t), ("tt", t * t)):
            self.sums[name] += product.sum(axis=0)
        weighted = self.anomaly * self.area
        self.normal += np.einsum("iyx,jyx,yx->ij", weighted, self.anomaly, count.astype(float))
        self.moment += np.einsum("iyx,yx->i", weighted, residual)
        present = np.isfinite(coarse)
        if self.coarse_sum is None or self.coarse_count is None:
            self.coarse_sum, self.coarse_count = np.zeros(coarse.shape[1:]), np.zeros(coarse.shape[1:])
        self.coarse_sum += np.where(present, coarse, 0.0).sum(axis=0, dtype=np.float64)
        self.coarse_count += present.sum(axis=0)
        self.inputs.add(coarse, coarse_area(self.area, coarse.shape[-2:]))

    def fit(self, name: object = "the data") -> tuple[Scaling, LinearBaselines]:
        """Return scaling statistics and baselines.

        Raises
        ------
        DataError
            If no value is valid, or the field is constant.
        """
        weight = self.area * self.count
        if not weight.sum() > 0 or self.coarse_sum is None or self.coarse_count is None:
            raise DataError(f"{name!r} has no valid value to train on: every cell is NaN; check the selection.")
        mean = float((self.area * self.sums["t"]).sum() / weight.sum())
        variance = float((self.area * self.sums["tt"]).sum() / weight.sum() - mean**2)
        if not variance > 1e-12 * max(1e-12, mean**2):
            raise DataError(f"{name!r} is constant ({mean:g}) on the training samples; nothing can be learnt.")
        coefficients = self._coefficients()
        slope, intercept, delta = self._per_cell()
        sizes = {"none": variance, **self._residual_variances(coefficients, delta)}
        residual_sd = {kind: float(np.sqrt(max(size, 1e-12 * variance))) for kind, size in sizes.items()}
        with np.errstate(invalid="ignore"):
            climatology = np.where(self.coarse_count > 0, self.coarse_sum / np.maximum(self.coarse_count, 1), np.nan)
        baselines = LinearBaselines(coefficients, delta, slope, intercept, climatology, residual_sd)
        return Scaling(mean, float(np.sqrt(variance))), baselines

    def _coefficients(self) -> np.ndarray:
        """Return the pooled least-squares coefficients of the residual on static anomalies."""
        if not len(self.moment):
            return np.zeros(0)
        size = np.sqrt(np.maximum(np.diag(self.normal), 1e-300))
        scaled = self.normal / np.outer(size, size)
        return np.linalg.lstsq(scaled, self.moment / size, rcond=1e-9)[0] / size

    def _per_cell(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return slope, intercept and mean residual of every cell.

        The ridge penalty, the same in every cell, minimises generalised cross-validation (Golub et al. 1979,
        doi:10.1080/00401706.1979.10489751) over the domain.
        """
        n = np.maximum(self.count, 1)
        mean_b, mean_t = self.sums["b"] / n, self.sums["t"] / n
        bb = np.maximum(self.sums["bb"] - n * mean_b**2, 0.0)
        br = self.sums["bt"] - n * mean_b * mean_t - bb
        rr = np.maximum(self.sums["tt"] - n * mean_t**2 - bb - 2 * br, 0.0)
        weight = self.area * (self.count > 1)
        typical = float((weight * bb).sum() / max(weight.sum(), 1e-300))
        scores = {}
        for penalty in typical * np.logspace(-4, 4, 33) if typical > 0 else ():
            gain = br / (bb + penalty)
            misfit = (weight * (rr - 2 * gain * br + gain**2 * bb)).sum()
            freedom = 1 - (weight * (1 + bb / (bb + penalty)) / n).sum() / max(weight.sum(), 1e-300)
            if freedom > 0:
                scores[penalty] = misfit / freedom**2
        best = min(scores, key=scores.__getitem__, default=np.inf)
        slope = 1 + (br / (bb + best) if np.isfinite(best) else np.zeros_like(bb))
        seen = self.count > 0
        planes = slope, mean_t - slope * mean_b, mean_t - mean_b
        return tuple(np.where(seen, plane, np.nan) for plane in planes)  # type: ignore[return-value]

    def _residual_variances(self, coefficients: np.ndarray, delta: np.ndarray) -> dict[str, float]:
        total = float((self.area * self.count).sum())
        square = self.sums["tt"] - 2 * self.sums["bt"] + self.sums["bb"]
        plain = float((self.area * square).sum()) / total
        explained = 2 * coefficients @ self.moment - coefficients @ self.normal @ coefficients
        fixed = float((self.area * (square - self.count * np.nan_to_num(delta) ** 2)).sum()) / total
        about = self.sums["tt"] - self.sums["t"] ** 2 / np.maximum(self.count, 1)
        return {
            "bicubic": plain,
            "linear_open": plain - float(explained) / total,
            "linear_fixed": fixed,
            "climatology": float((self.area * about).sum()) / total,
            "contrast": self.inputs.contrast_sd**2,
        }
