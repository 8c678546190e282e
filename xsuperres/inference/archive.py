"""`downscale_to_zarr`: the result of a plan, with all that goes with it, written region by region and opened again.

Labelled arrays out; `store` writes, `identity` tells runs apart.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.checks import is_lazy
from xsuperres.fields.field import Field
from xsuperres.fields.labels import with_bounds
from xsuperres.inference.place import place_of
from xsuperres.inference.plan import Plan
from xsuperres.inference.store import open_archive, region_budget, write_archive
from xsuperres.inference.template import Encoding, loaded

__all__ = ["write"]

_UNNAMED = "field"  # what a DataArray without a name is stored as


def write(
    plan: Plan,
    store: Any,
    *,
    extra: Mapping[Hashable, xr.Variable],
    attrs: Mapping[Any, Any],
    resume: bool,
    encoding: Encoding | None,
    storage_options: Mapping[str, Any] | None,
    memory_budget: int | None,
    progress: bool,
) -> list[xr.DataArray]:
    """Write the fine fields of a plan to an archive, or what is missing of them, and return them from there, lazy.

    Parameters
    ----------
    extra : mapping
        Variables that go with the fields, such as the bounds of times.
    attrs : mapping
        Of the Dataset.
    resume, encoding, storage_options, memory_budget, progress
        See `SuperResolutionAccessor.downscale_to_zarr`.
    """
    place, budget = place_of(store, storage_options), region_budget(memory_budget)
    request = uuid.uuid4().hex
    results = plan.in_blocks(budget).result(request)
    fine = _contents(results, extra, attrs)
    run = plan.identity(fine, encoding)
    write_archive(place, fine, run, request, resume=resume, encoding=encoding, budget=budget, progress=progress)
    return [open_archive(place, str(da.name or _UNNAMED), da) for da in results]


def _contents(
    results: Sequence[xr.DataArray], extra: Mapping[Hashable, xr.Variable], attrs: Mapping[Any, Any]
) -> xr.Dataset:
    """Return what an archive holds: the lazy results, the bounds of their cells, and what else goes with them."""
    for da in results:
        if da.name is None and _UNNAMED in da.coords:
            raise DataError(
                f"Data without a name are stored as {_UNNAMED!r}, but a coordinate has that name; give them one: "
                "da.rename('tas')."
            )
    parts = [with_bounds(Field(da), extra) for da in results]
    fine = xr.merge(parts, combine_attrs="override", compat="identical", join="exact")
    names = [da.name or _UNNAMED for da in results]
    clashing = [name for name in names if not is_lazy(fine[name])]
    if clashing:
        raise DataError(f"The archive stores cell bounds under the names {clashing}; rename these fields.")
    return loaded(fine.assign_attrs({**attrs, **fine.attrs}), names)
