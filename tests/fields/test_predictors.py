"""Predictors as they come: in Datasets with bounds and grid mappings, with times that repeat."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields.field import Field
from xsuperres.fields.predictors import named_predictors, on_coarse
from xsuperres.testing import toy_field


def test_bounds_and_grid_mappings_are_no_predictors():
    ds = toy_field(time=2, y=4, x=6).rename("z").assign_attrs(grid_mapping="crs").to_dataset()
    ds["time_bnds"] = ("time", "bnds"), np.stack([ds.time.values, ds.time.values], axis=1)
    ds["crs"] = 0
    ds["nao"] = "time", np.ones(2)
    assert list(named_predictors(ds)) == ["z", "nao"], "what is a number is not left out in silence"


def test_times_that_come_twice_are_refused():
    field = toy_field(time=4, y=4, x=6)
    twice = xr.concat([field, field.isel(time=[3])], "time").rename("z")
    with pytest.raises(DataError, match=r"'z' repeats values of 'time', the first 2001-01-04.*drop_duplicates"):
        on_coarse(Field(twice), Field(field).grid.coarsen(2), Field(field))
