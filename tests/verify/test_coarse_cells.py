"""Scores of fields made from raw coarse data: larger, shifted, turned; as if it had been brought onto blocks before."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import GridError
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid
from xsuperres.fields.regrid import regrid
from xsuperres.testing import toy_field
from xsuperres.verify.coarse_cells import REGRIDDED

STATIC = ["elevation", "land_fraction"]
TRUTH_INSTEAD = "baselines are of the coarsened truth"


def score(fine: xr.DataArray, truth: xr.DataArray, **options) -> xr.Dataset:
    return fine.sr.score(truth, **options)


def regridded(da: xr.DataArray, grid: Grid, **options) -> xr.DataArray:
    return regrid(Field(da), grid, **options).array


@pytest.fixture(autouse=True)
def _no_models():
    xsr.deactivate()
    yield
    xsr.deactivate()


def later(da: xr.DataArray) -> xr.DataArray:
    return da.assign_coords(time=da.time + np.timedelta64(9999, "D"))


def around(coarse: xr.DataArray, dlat: float, dlon: float) -> xr.DataArray:
    """Return noise on cells of the same size, shifted, around those of `coarse`."""
    lat, lon = (
        coarse[d].values[0] + (coarse[d].values[1] - coarse[d].values[0]) * np.arange(-3, coarse[d].size + 3)
        for d in ("lat", "lon")
    )
    values = 288 + 5 * np.random.default_rng(0).normal(size=(coarse.sizes["time"], len(lat), len(lon)))
    coords = {
        "time": coarse.time,
        "lat": ("lat", lat + dlat, coarse.lat.attrs),
        "lon": ("lon", lon + dlon, coarse.lon.attrs),
    }
    return xr.DataArray(values.astype(np.float32), dims=coarse.dims, coords=coords, name="tas", attrs=coarse.attrs)


FORMS = {
    "raw": lambda da: da,
    "descending": lambda da: da.isel(lat=slice(None, None, -1)),
    "order of dims": lambda da: da.transpose("lon", "time", "lat"),
    "0 to 360": lambda da: da.assign_coords(lon=("lon", da.lon.values % 360, da.lon.attrs)),
    "other names": lambda da: da.rename(lat="latitude", lon="longitude"),
    "lazy": lambda da: da.chunk(time=1),
}


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, 0.9)])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_equals_the_score_of_what_the_network_saw(make_model, form, shift):
    """For data of a larger area, and on other cells, in any form: to rounding, but for the note."""
    toy = make_model()
    xsr.activate(toy.model)
    truth = later(toy.fine)
    raw = form(around(truth.sr.coarsen(2).drop_vars(STATIC), *shift))
    out = raw.sr.downscale(toy.model, check_range="ignore")
    table = out.sr.score(truth, coarse=raw)
    means = regridded(raw, toy.model.coarse_grid)
    same = means.sr.downscale(toy.model, check_range="ignore")
    expected = same.sr.score(truth, coarse=means)
    xr.testing.assert_allclose(table, expected, rtol=1e-6, atol=1e-6)
    assert {"static_regression", "delta", "regression"} <= set(table["product"].values)
    assert (REGRIDDED in table.attrs.get("note", "")) == any(shift)
    assert ("xsuperres_regridded" in out.attrs) == any(shift) and REGRIDDED not in expected.attrs.get("note", "")


def test_the_fraction_is_the_models():
    """Cells that were too empty for the network are not scored."""
    field = toy_field(time=4, y=24, x=32)
    holes = xr.DataArray(np.random.default_rng(0).random((24, 32)) < 0.3, dims=("lat", "lon"))
    field = field.where(~holes).assign_attrs(field.attrs)
    quick = {"sampling": {"batch_size": 1}, "optimization": {"max_steps": 1}, "validation": None, "progress": False}
    data = {"minimum_valid_fraction": 1.0}
    model = field.sr.fit(2, data=data, network={"width": 5, "depth": 1}, activate=False, **quick)
    truth = later(toy_field(time=4, y=24, x=32))
    raw = around(truth.sr.coarsen(2).drop_vars(STATIC), 0.3, 0.9)
    raw = raw.where(np.random.default_rng(1).random(raw.shape[1:]) < 0.8).assign_attrs(raw.attrs)
    out = raw.sr.downscale(model, check_range="ignore")
    means = regridded(raw, model.coarse_grid, minimum_valid_fraction=1.0)
    expected = out.sr.score(truth, coarse=means, model=model)
    xr.testing.assert_allclose(out.sr.score(truth, coarse=raw, model=model), expected, rtol=1e-6, atol=1e-6)


def test_without_coarse_the_note_says_what_the_baselines_are(make_model):
    toy = make_model()
    truth = later(toy.fine)
    for shift in (0.0, 0.7):
        raw = around(truth.sr.coarsen(2).drop_vars(STATIC), 0.0, shift)
        table = raw.sr.downscale(toy.model, check_range="ignore").sr.score(truth, model=toy.model, metrics="rmse")
        assert (TRUTH_INSTEAD in table.attrs.get("note", "")) == bool(shift)


def test_without_a_model():
    """A field of whatever origin, on cells whose blocks the coarse data do not have."""
    truth = toy_field(time=4, y=24, x=32)
    raw = around(truth.sr.coarsen(2).drop_vars(STATIC), 0.3, 0.9)
    means = regridded(raw, Field(truth).grid.coarsen(2))
    guess = means.sr.interpolate(2, like=truth)
    table = score(guess, truth, coarse=raw)
    xr.testing.assert_allclose(table, score(guess, truth, coarse=means), rtol=1e-6, atol=1e-6)
    assert REGRIDDED in table.attrs["note"]


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_field_that_is_no_whole_blocks_names_the_crop(make_model, shift):
    toy = make_model()
    truth = later(toy.fine)
    raw = around(truth.sr.coarsen(2).drop_vars(STATIC), 0.0, shift)
    out = raw.isel(lat=slice(None, None, -1)).sr.downscale(toy.model, check_range="ignore")
    odd = out.isel(lat=slice(3, 20), lon=slice(5, 16))
    with pytest.raises(GridError, match=r"whole blocks .*: \.isel\(lat=slice\(1, 17\), lon=slice\(1, 11\)\)") as error:
        odd.sr.score(truth.sel(lat=odd.lat, lon=odd.lon), coarse=raw, model=toy.model)
    assert "begins or ends inside a coarse cell" in str(error.value)
    whole = odd.isel(lat=slice(1, 17), lon=slice(1, 11))
    assert np.isfinite(whole.sr.score(truth.sel(lat=whole.lat, lon=whole.lon), coarse=raw, model=toy.model).rmse).any()


def test_other_data_than_the_field_was_made_from(make_model):
    """Blocks of another size are no field on cells of its own, unless the field is known to be of such."""
    toy = make_model()
    truth = later(toy.fine)
    out = truth.sr.coarsen(2).sr.downscale(toy.model)
    four = truth.isel(lon=slice(0, 36)).sr.coarsen(4)
    with pytest.raises(GridError, match="expected cells of 2 x 2 fine ones, as the scored field was made, got 4 x 4"):
        out.sr.score(truth, coarse=four, model=toy.model)
    twice = around(four.drop_vars(STATIC), 0.0, 0.0)
    made = twice.sr.downscale(toy.model, check_range="ignore")
    assert "xsuperres_regridded" in made.attrs
    assert REGRIDDED in made.sr.score(truth, coarse=twice, model=toy.model, metrics="rmse").attrs["note"]
    with pytest.raises(GridError, match="coarse does not cover the scored field"):
        out.sr.score(truth, coarse=truth.sr.coarsen(2).isel(lon=slice(1, None)), model=toy.model)
    moved = around(truth.sr.coarsen(2).drop_vars(STATIC), 0.0, 0.7).rename(lat="rlat", lon="rlon")
    for name, told in (("rlat", "grid_latitude"), ("rlon", "grid_longitude")):
        moved[name].attrs = {"standard_name": told, "units": "degrees"}
    with pytest.raises(GridError, match="got rotated latitude x rotated longitude"):
        out.sr.score(truth, coarse=moved, model=toy.model)
