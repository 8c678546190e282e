"""The ``.sr`` accessors: of DataArrays for one variable, of Datasets for several at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
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
        from xsuperres.errors import DataError

        if names is not None and len(names) > 1:
            raise DataError(
                f"The model refines {list(names)} together, got the DataArray {self._obj.name!r}; put them in one "
                "Dataset: xr.Dataset({...}).sr."
            )
        return [self._obj]

    def _returned(self, fields: Sequence[xr.DataArray]) -> xr.DataArray:
        return fields[0]

    def _beside(self) -> dict[Hashable, xr.Variable]:
        return {}

    def _like(self, names: Iterable[Any], data: xr.DataArray | None, what: str) -> list[Any]:
        from xsuperres.errors import DataError

        if data is not None and not isinstance(data, xr.DataArray):
            hint = f"; pass one of its variables, {what}=ds[name]" if isinstance(data, xr.Dataset) else ""
            raise DataError(f"{what}= must be a DataArray, as these data are, got {type(data).__name__}{hint}.")
        return [data]

    def _joined(self, tables: Sequence[xr.Dataset]) -> xr.Dataset:
        return tables[0]


@xr.register_dataset_accessor("sr")
class DatasetSuperResolutionAccessor(Archiving[xr.Dataset], Scoring[xr.Dataset], Accessor[xr.Dataset]):
    """Deep-learning super-resolution of all fields of a Dataset by one network.

    Each has its own scaling, units and transform; they share dims, grid and times. Data variables without horizontal
    dims, and those that CF attributes name bounds, grid mappings or cell measures, are no fields; results keep those
    that do not lie on the horizontal grid.
    """

    def _fields(self, names: Sequence[Any] | None = None) -> list[xr.DataArray]:
        from xsuperres.errors import DataError
        from xsuperres.fields.variables import field_names

        there = field_names(self._obj)
        if not there:
            raise DataError("The Dataset has no data variables that are fields; select those to refine.")
        wanted = there if names is None else list(names)
        if set(wanted) != set(there):
            raise DataError(
                f"The model refines {wanted} together, the Dataset holds {list(map(str, there))}; select those "
                "variables: ds[[...]].sr."
            )
        return [self._obj[name] for name in wanted]

    def _returned(self, fields: Sequence[xr.DataArray]) -> xr.Dataset:
        made: dict[Any, Any] = self._beside() | {da.name: da for da in fields}
        order = [*(name for name in self._obj.data_vars if name in made), *made]
        out = xr.Dataset({name: made[name] for name in dict.fromkeys(order)}, attrs=self._obj.attrs)
        return out.set_coords([name for name in self._obj.coords if name in made])

    def _beside(self) -> dict[Hashable, xr.Variable]:
        from xsuperres.fields.variables import off_grid

        return off_grid(self._obj)

    def _like(self, names: Iterable[Any], data: xr.Dataset | None, what: str) -> list[Any]:
        from xsuperres.errors import DataError

        if data is None:
            return [None for _ in names]
        if not isinstance(data, xr.Dataset):
            raise DataError(f"{what}= must be a Dataset, as these data are, got {type(data).__name__}.")
        missing = [name for name in names if name not in data.data_vars]
        if missing:
            raise DataError(
                f"{what}= lacks the variables {missing}, it holds {list(map(str, data.data_vars))}; those of two "
                f"Datasets belong together by name: rename them, {what}=ds.rename(...)."
            )
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
