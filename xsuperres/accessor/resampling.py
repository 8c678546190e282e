"""Between grids without a network: the accessor's methods `interpolate`, `coarsen`, `with_bounds`.

Heavy modules are imported when a method needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

if TYPE_CHECKING:
    from xsuperres.accessor.registered import Accessor, T

__all__ = ["coarsen", "interpolate", "with_bounds"]


def interpolate(
    self: Accessor[T],
    scale: int,
    *,
    method: str = "bicubic",
    like: xr.DataArray | xr.Dataset | None = None,
) -> T:
    """Refine these data by interpolation, the same weights in every cell, NaN-aware.

    Parameters
    ----------
    scale : int
        Fine cells per coarse cell along each horizontal axis.
    method : {"nearest", "bilinear", "bicubic"}
        Bicubic is cubic convolution (Keys 1981).
    like : DataArray or Dataset, optional
        On the fine grid: its coordinates are taken, bit for bit.

    Returns
    -------
    DataArray or Dataset
        Same dims, horizontal sizes times `scale`, units unchanged; lazy if dask-backed.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> fine = xsr.testing.toy_field(time=1, y=8, x=8)
    >>> fine.sr.coarsen(4).sr.interpolate(4).sizes == fine.sizes
    True
    """
    from xsuperres.fields.resample import interpolate

    fields = self._fields(checked=True)
    return self._rebuilt([interpolate(field, scale, method=method, like=like).array for field in fields], fields)


def coarsen(self: Accessor[T], scale: int, *, minimum_valid_fraction: float = 0.5) -> T:
    """Coarsen these data by area-weighted means of scale x scale cells, NaN-aware.

    Parameters
    ----------
    scale : int
        Fine cells per coarse cell along each horizontal axis; must divide the grid.
    minimum_valid_fraction : float
        A coarse cell is NaN when less than this fraction of its area is valid.

    Returns
    -------
    DataArray or Dataset
        Same dims, horizontal sizes divided by `scale`, units unchanged; lazy if dask-backed. 2-D coordinates are
        coarsened under their names.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> xsr.testing.toy_field(time=1, y=8, x=12).sr.coarsen(4).shape
    (1, 2, 3)
    """
    from xsuperres.fields.resample import coarsen

    fields, least = self._fields(checked=True), minimum_valid_fraction
    return self._rebuilt([coarsen(field, scale, minimum_valid_fraction=least).array for field in fields], fields)


def with_bounds(self: Accessor[T]) -> xr.Dataset:
    """Return these data as a Dataset with the bounds of its horizontal cells, ready for CF netCDF.

    Returns
    -------
    Dataset
        These data and ``<dim>_bnds`` (dim, bnds), latitudes ending at the poles; lazy if dask-backed.

    Examples
    --------
    >>> import xsuperres as xsr
    >>> sorted(xsr.testing.toy_field(time=1, y=8, x=8).sr.with_bounds().data_vars)
    ['lat_bnds', 'lon_bnds', 'tas']
    """
    from xsuperres.fields.labels import with_bounds

    fields = self._fields()
    extra = self._extra(fields)
    parts = [with_bounds(field, extra) for field in fields]
    return xr.merge(parts, combine_attrs="override", compat="identical", join="exact")
