"""The ``.sr`` accessors: of DataArrays for one variable, of Datasets for several at once.

An accessor stores its object and nothing else: xarray drops it with the object. A method is a signature, a docstring
and one call: a function of `training`, `applying`, `scoring` or `resampling`, bound here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import xarray as xr

from xsuperres.accessor import applying, resampling, scoring, training

if TYPE_CHECKING:
    from xsuperres.fields.field import Field
    from xsuperres.inference.plan import Options, Plan
    from xsuperres.model.artefact import SRModel

__all__ = ["Accessor", "DatasetSuperResolutionAccessor", "SuperResolutionAccessor", "T"]

T = TypeVar("T", xr.DataArray, xr.Dataset)


class Accessor(ABC, Generic[T]):
    """What both accessors share: their methods, and the object as a list of fields, and back."""

    def __init__(self, obj: T) -> None:
        self._obj: T = obj

    fit = training.fit
    downscale = applying.downscale
    downscale_to_zarr = applying.downscale_to_zarr
    describe = applying.describe
    score = scoring.score
    interpolate = resampling.interpolate
    coarsen = resampling.coarsen
    with_bounds = resampling.with_bounds

    def _plan(
        self, model: SRModel | str | os.PathLike[str] | None, scale: int | None, *, static: Any, predictors: Any,
        options: Options,
    ) -> Plan:  # fmt: skip
        """Return what downscaling these data by a model, or the active one for `scale`, will do."""
        from xsuperres.inference.plan import Plan
        from xsuperres.model.table import choose_model

        fields = self._fields()
        chosen = choose_model(model, scale, [field.name for field in fields])
        ordered = self._ordered(fields, chosen.input_names)
        return Plan.of(ordered, chosen, static=static, predictors=predictors, options=options)

    @abstractmethod
    def _fields(self, *, gaps: bool = False, checked: bool = False) -> list[Field]:
        """Return the fields of the object; `checked` refuses dtypes that are no float."""

    @abstractmethod
    def _ordered(self, fields: list[Field], names: Sequence[Any]) -> list[Field]:
        """Return fields in the order of a model's variables."""

    @abstractmethod
    def _rebuilt(self, arrays: Sequence[xr.DataArray], fields: Sequence[Field]) -> T:
        """Return the results of all fields as an object of the same kind."""

    @abstractmethod
    def _extra(self, fields: Sequence[Field]) -> dict[Hashable, xr.Variable]:
        """Return the variables apart from the fields that results keep."""

    @abstractmethod
    def _like(self, names: Iterable[Any], data: T | None, what: str) -> list[Any]:
        """Return the arrays of other data that belong to the object's fields, None for each where there are no data.

        Other data are of the same kind as the object, those of Datasets have the same names.
        """

    @abstractmethod
    def _joined(self, tables: Sequence[xr.Dataset], names: Sequence[Any]) -> xr.Dataset:
        """Return one table of one table per field."""


@xr.register_dataarray_accessor("sr")
class SuperResolutionAccessor(Accessor[xr.DataArray]):
    """Deep-learning super-resolution of a DataArray: train, downscale, interpolate, coarsen, score."""

    def _fields(self, *, gaps: bool = False, checked: bool = False) -> list[Field]:
        from xsuperres.fields.field import Field

        return [Field.of(self._obj, gaps=gaps) if checked else Field(self._obj, gaps=gaps)]

    def _ordered(self, fields: list[Field], names: Sequence[Any]) -> list[Field]:
        from xsuperres.errors import DataError

        if len(names) > 1:
            raise DataError(
                f"The model refines {list(names)} together, got the DataArray {self._obj.name!r}; put them in one "
                "Dataset: xr.Dataset({...}).sr."
            )
        return fields

    def _rebuilt(self, arrays: Sequence[xr.DataArray], fields: Sequence[Field]) -> xr.DataArray:
        return arrays[0]

    def _extra(self, fields: Sequence[Field]) -> dict[Hashable, xr.Variable]:
        return {}

    def _like(self, names: Iterable[Any], data: xr.DataArray | None, what: str) -> list[Any]:
        from xsuperres.errors import DataError

        if data is not None and not isinstance(data, xr.DataArray):
            hint = f"; pass one of its variables, {what}=ds[name]" if isinstance(data, xr.Dataset) else ""
            raise DataError(f"{what}= must be a DataArray, as these data are, got {type(data).__name__}{hint}.")
        return [data]

    def _joined(self, tables: Sequence[xr.Dataset], names: Sequence[Any]) -> xr.Dataset:
        return tables[0]


@xr.register_dataset_accessor("sr")
class DatasetSuperResolutionAccessor(Accessor[xr.Dataset]):
    """Deep-learning super-resolution of all fields of a Dataset by one network.

    Each has its own scaling, units and transform; they share dims, grid and times. Data variables without horizontal
    dims, and those that CF attributes name bounds, grid mappings or cell measures, are no fields; results keep those
    that do not lie on the horizontal grid.
    """

    def _fields(self, *, gaps: bool = False, checked: bool = False) -> list[Field]:
        from xsuperres.errors import DataError
        from xsuperres.fields.checks import check_values
        from xsuperres.fields.variables import fields_of

        fields = list(fields_of(self._obj, gaps=gaps).values())
        if not fields:
            raise DataError("The Dataset has no data variables that are fields; select those to refine.")
        for field in fields if checked else []:
            check_values(field.array)
        return fields

    def _ordered(self, fields: list[Field], names: Sequence[Any]) -> list[Field]:
        from xsuperres.errors import DataError

        named = {field.name: field for field in fields}
        if set(names) != set(named):
            raise DataError(
                f"The model refines {list(names)} together, the Dataset holds {list(map(str, named))}; select those "
                "variables: ds[[...]].sr."
            )
        return [named[name] for name in names]

    def _rebuilt(self, arrays: Sequence[xr.DataArray], fields: Sequence[Field]) -> xr.Dataset:
        variables: dict[Any, Any] = self._extra(fields) | {da.name: da for da in arrays}
        order = [*(name for name in self._obj.data_vars if name in variables), *variables]
        out = xr.Dataset({name: variables[name] for name in dict.fromkeys(order)}, attrs=self._obj.attrs)
        return out.set_coords([name for name in self._obj.coords if name in variables])

    def _extra(self, fields: Sequence[Field]) -> dict[Hashable, xr.Variable]:
        from xsuperres.fields.variables import off_grid

        return off_grid(self._obj, fields)

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

    def _joined(self, tables: Sequence[xr.Dataset], names: Sequence[Any]) -> xr.Dataset:
        labels = [str(name) for name in names]
        units = {n: [str(t[n].attrs.get("units", "")) for t in tables] for n in tables[0].data_vars}
        joined = xr.concat(tables, "variable", join="outer", combine_attrs="drop_conflicts")
        joined = joined.assign_coords(variable=labels)
        notes = dict.fromkeys(note for table in tables if (note := table.attrs.get("note")))
        for name, each in units.items():
            if len(set(each)) > 1:
                joined[name].attrs["units"] = ", ".join(f"{v}: {u}" for v, u in zip(labels, each, strict=True))
        return joined.assign_attrs({"note": "; ".join(notes)} if notes else {})
