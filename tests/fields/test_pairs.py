"""Whether pairs are of the same weather: judged on departures from the season, where there are any."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import XSuperResWarning
from xsuperres.fields import pairs
from xsuperres.fields.field import Field
from xsuperres.testing import toy_field


def paired(coarse, fine, scale, **options):
    """Return the arrays of paired fields."""
    pair = pairs.paired([Field(da) for da in coarse], [Field(da) for da in fine], scale, **options)
    return replace(pair, coarse=tuple(f.array for f in pair.coarse), fine=tuple(f.array for f in pair.fine))


def monthly(months: int) -> xr.DataArray:
    field = toy_field(time=months, y=8, x=12)
    return field.assign_coords(time=xr.date_range("2001-01-15", periods=months, freq="30D", use_cftime=False))


@pytest.mark.parametrize("months", [12, 13, 24])
def test_a_perfect_pair_of_few_months_is_not_doubted(months):
    """One time per calendar month leaves no departure from the season, and so nothing to judge by."""
    fine = monthly(months)
    if months == 12:
        assert len(set(fine.time.dt.month.values)) == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired([fine.sr.coarsen(2)], [fine], 2)


def test_months_of_a_single_time_do_not_hide_the_others():
    fine = monthly(24)
    coarse = fine.sr.coarsen(2)
    shuffled = coarse.copy(data=np.random.default_rng(0).normal(size=coarse.shape).astype(np.float32))
    with pytest.warns(XSuperResWarning, match="correlate by"):
        paired([shuffled], [fine], 2)


@pytest.mark.parametrize("columns", [20, 24, 44])
def test_context_around_a_wide_target_is_no_full_turn(columns):
    """Of a global forecast there is context on both sides, but each longitude once."""
    globe = toy_field(time=2, y=8, x=48, periodic=True)
    pair = paired([globe.sr.coarsen(4)], [globe.isel(lon=slice(0, columns))], 4, reach=6)
    west, east = pair.margin[2:]
    assert west == east and columns // 4 + west + east < 12
    assert west == min(6, (11 - columns // 4) // 2)
    assert pair.fine[0].sizes["lon"] == 4 * pair.coarse[0].sizes["lon"]
