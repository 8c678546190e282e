"""Scores as text.

A Dataset of `score` in, text out.
"""

from __future__ import annotations

import textwrap

import numpy as np
import xarray as xr

from xsuperres.errors import DataError, unknown_name

__all__ = ["score_table"]


def score_table(score: xr.Dataset, *, region: str = "all") -> str:
    """Return a score as an aligned text table: methods as rows, metrics as columns.

    Parameters
    ----------
    score : Dataset
        From ``fine.sr.score(truth)``, reduced over all dims.
    region : str
        One of its regions.

    Returns
    -------
    str
        With the ratio of each product's RMSE to that of bicubic, where both are there, and the score's note.

    Raises
    ------
    DataError
        If other dims than product and region are left.

    Examples
    --------
    >>> rmse = ("product", "region"), [[1.2], [1.5]], {"units": "K", "long_name": "RMSE"}
    >>> coords = {"product": ["network", "bicubic"], "region": ["all"]}
    >>> print(score_table(xr.Dataset({"rmse": rmse}, coords, {"variable": "tas", "scale": 4})))
    tas, scale 4, region all
    product  RMSE [K]  / bicubic
    network     1.200      0.800
    bicubic     1.500      1.000
    """
    left = [str(dim) for dim in score.dims if dim not in ("product", "region")]
    if left:
        raise DataError(f"The score has dims {left} left; select or average first, e.g. score.mean({left}).")
    if region not in score.region.values:
        raise unknown_name("region", region, map(str, score.region.values))
    here = score.sel(region=region)
    columns = [["product", *map(str, here["product"].values)]]
    largest = max((float(abs(v).max()) for v in here.data_vars.values() if _units(v) != "1"), default=np.nan)
    for name, variable in here.data_vars.items():
        form = ".4f" if _units(variable) == "1" else _format(largest)
        columns.append([_heading(variable), *(_number(value, form) for value in variable.values)])
        if name == "rmse" and "bicubic" in here["product"].values:
            ratio = variable / variable.sel({"product": "bicubic"})
            columns.append(["/ bicubic", *(f"{value:.3f}" for value in ratio.values)])
    title = f"{score.attrs.get('variable', 'field')}, scale {score.attrs.get('scale', '?')}, region {region}"
    lines = [title, *_aligned(columns)]
    if "note" in score.attrs:
        lines += textwrap.wrap(f"Note: {score.attrs['note']}", 110)
    return "\n".join(lines)


def _heading(variable: xr.DataArray) -> str:
    units = _units(variable)
    return variable.attrs.get("long_name", str(variable.name)) + (f" [{units}]" if units not in ("", "1") else "")


def _units(variable: xr.DataArray) -> str:
    return str(variable.attrs.get("units", ""))


def _format(largest: float) -> str:
    """Return the format of the columns with units: four digits of the largest, an exponent where that is unreadable."""
    if not np.isfinite(largest) or not 1e-3 <= largest < 1e6:
        return ".3e"
    return f".{max(0, 3 - int(np.floor(np.log10(largest))))}f"


def _number(value: float, form: str) -> str:
    return format(float(value), form) if np.isfinite(value) else "-"


def _aligned(columns: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
