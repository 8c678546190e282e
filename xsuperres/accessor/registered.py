"""The ``.sr`` accessors: of DataArrays for one variable, of Datasets for several at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr

from xsuperres.accessor.archive import Archiving
from xsuperres.accessor.base import Accessor
from xsuperres.accessor.scores import Scoring

__all__ = ["DatasetSuperResolutionAccessor", "SuperResolutionAccessor"]


@xr.register_dataarray_accessor("sr")
class SuperResolutionAccessor(Archiving[xr.DataArray], Scoring[xr.DataArray], Accessor[xr.DataArray]):
    """Deep-learning super-resolution of a DataArray: train, downscale, interpolate, coarsen, score."""

    def _fields(self, names: Sequence[Any] | None = None) -> list[xr.DataArray]:
        return [self._obj]

    def _returned(self, fields: Sequence[xr.DataArray]) -> xr.DataArray:
        return fields[0]

    def _like(self, names: Iterable[Any], data: xr.DataArray | None) -> list[Any]:
        return [data]

    def _joined(self, tables: Sequence[xr.Dataset]) -> xr.Dataset:
        return tables[0]


@xr.register_dataset_accessor("sr")
class DatasetSuperResolutionAccessor(Archiving[xr.Dataset], Scoring[xr.Dataset], Accessor[xr.Dataset]):
    """Deep-learning super-resolution of all data variables of a Dataset by one network.

    Each variable has its own scaling, units and transform; they share dims, grid and times.
    """

    def _fields(self, names: Sequence[Any] | None = None) -> list[xr.DataArray]:
        from xsuperres.errors import DataError

        ds = self._obj
        if not ds.data_vars:
            raise DataError("The Dataset has no data variables; select those that the network is to refine.")
        wanted = list(ds.data_vars) if names is None else list(names)
        missing = [name for name in wanted if name not in ds.data_vars]
        if missing or len(wanted) != len(ds.data_vars):
            raise DataError(
                f"The model refines {wanted} together, the Dataset holds {list(map(str, ds.data_vars))}; select those "
                "variables: ds[[...]].sr."
            )
        return [ds[name] for name in wanted]

    def _returned(self, fields: Sequence[xr.DataArray]) -> xr.Dataset:
        order = {name: at for at, name in enumerate(self._obj.data_vars)}
        fields = sorted(fields, key=lambda da: order.get(da.name, len(order)))
        return xr.Dataset({da.name: da for da in fields}, attrs=self._obj.attrs)

    def _like(self, names: Iterable[Any], data: xr.Dataset | None) -> list[Any]:
        from xsuperres.errors import DataError

        missing = [name for name in names if data is not None and name not in data]
        if data is None:
            return [None for _ in names]
        if missing:
            raise DataError(f"Expected the variables {missing}, got {list(map(str, data.data_vars))}.")
        return [data[name] for name in names]

    def _joined(self, tables: Sequence[xr.Dataset]) -> xr.Dataset:
        names = [str(da.name) for da in self._fields()]
        units = {n: [str(t[n].attrs.get("units", "")) for t in tables] for n in tables[0].data_vars}
        joined = xr.concat(tables, "variable", join="outer", combine_attrs="drop_conflicts")
        joined = joined.assign_coords(variable=names)
        notes = dict.fromkeys(note for table in tables if (note := table.attrs.get("note")))
        for name, found in units.items():
            if len(set(found)) > 1:
                joined[name].attrs["units"] = ", ".join(f"{v}: {u}" for v, u in zip(names, found, strict=True))
        return joined.assign_attrs({"note": "; ".join(notes)} if notes else {})
