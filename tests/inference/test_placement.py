"""Coarse data on other cells than the model's: cropped, regridded with one line of log, never extrapolated."""

from __future__ import annotations

import logging
import re

import dask
import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import GridError, StaticFieldError
from xsuperres.fields.field import Field
from xsuperres.fields.grid import grid_of
from xsuperres.fields.regrid import regrid
from xsuperres.testing import toy_field

STATIC = ["elevation", "land_fraction"]
QUICK = {
    "network": {"width": 5, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1},
    "validation": None,
    "progress": False,
    "activate": False,
}


def wider(coarse: xr.DataArray, *, rows: int = 3, columns: int = 4, seed: int = 0) -> xr.DataArray:
    """Return coarse data on more of the same cells; what is around them is noise."""
    dy, dx = (float(coarse[d][1] - coarse[d][0]) for d in ("lat", "lon"))
    padded = coarse.drop_vars(STATIC, errors="ignore").pad(lat=rows, lon=columns)
    lat = coarse.lat.values[0] + dy * (np.arange(padded.sizes["lat"]) - rows)
    lon = coarse.lon.values[0] + dx * (np.arange(padded.sizes["lon"]) - columns)
    noise = 280 + np.random.default_rng(seed).normal(size=padded.shape).astype(np.float32)
    padded = padded.copy(data=np.where(np.isnan(padded), noise, padded).astype(coarse.dtype))
    return padded.assign_coords(lat=("lat", lat, coarse.lat.attrs), lon=("lon", lon, coarse.lon.attrs))


@pytest.fixture
def log(caplog):
    """Return the function that gives what was logged of data since it was last called."""
    caplog.set_level(logging.INFO, logger="xsuperres")

    def messages() -> list[str]:
        told = [record.getMessage() for record in caplog.records if record.name.startswith("xsuperres.inference")]
        caplog.clear()
        return told

    return messages


# a larger area


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("domain", ["fixed", "open"])
def test_a_larger_area_is_cropped(make_model, log, check, domain, lazy):
    toy = make_model(domain=domain)
    expected = toy.coarse.drop_vars(STATIC).sr.downscale(toy.model)
    assert log() == []
    given = wider(toy.coarse)
    out = (given.chunk(time=1) if lazy else given).sr.downscale(toy.model)
    (line,) = log()
    assert line == (
        "Coarse data (lat 20 x lon 26, 4.4 to 34.8 by 1.6, -7 to 43 by 2) are cropped to lat 14 x lon 18, 9.2 to 30 by "
        "1.6, 1 to 35 by 2."
    )
    assert (out.chunks is not None) == lazy
    xr.testing.assert_identical(out.coords.to_dataset(), expected.coords.to_dataset())
    assert out.attrs == expected.attrs and out.name == expected.name
    check.same_numbers(out, expected, toy.model.scaling.sd)


FORMS = {
    "descending": lambda da: da.isel(lat=slice(None, None, -1)),
    "westward": lambda da: da.isel(lon=slice(None, None, -1)),
    "order of dims": lambda da: da.transpose("lon", "time", "lat"),
    "other names": lambda da: da.rename(lat="latitude", lon="longitude"),
    "0 to 360": lambda da: da.assign_coords(lon=("lon", da.lon.values % 360, da.lon.attrs)),
    "-180 to 180": lambda da: da.assign_coords(lon=("lon", (da.lon.values + 180) % 360 - 180, da.lon.attrs)),
}


@pytest.mark.parametrize("west", [0.5, 160.5, 348.5])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_larger_area_in_any_form(make_model, form, west):
    """Across the date line and the meridian of Greenwich too; result as of the crop in the same form."""
    toy = make_model(west=west)
    whole, own = form(wider(toy.coarse)), form(toy.coarse.drop_vars(STATIC))
    out, expected = whole.sr.downscale(toy.model), own.sr.downscale(toy.model)
    assert out.dims == whole.dims
    np.testing.assert_array_equal(out.values, expected.values)
    for dim in out.dims:
        if dim != "time":
            np.testing.assert_array_equal(out[dim].values % 360, expected[dim].values % 360)
            assert (np.diff(whole[dim].values)[0] > 0) == (np.diff(out[dim].values)[0] > 0)


def test_the_globe_is_cropped_across_its_seam(make_model):
    toy = make_model(west=348.5)
    globe = toy_field(time=3, y=14, x=180, periodic=True).drop_vars(STATIC).assign_attrs(toy.coarse.attrs)
    globe = globe.assign_coords(lat=toy.coarse.lat, lon=("lon", np.arange(1.0, 360, 2), toy.coarse.lon.attrs))
    out = globe.sr.downscale(toy.model, check_range="ignore")
    np.testing.assert_array_equal(out.lon.values % 360, toy.fine.lon.values % 360)
    own = globe.isel(lon=[int(np.argmin(np.abs(globe.lon.values - x))) for x in toy.coarse.lon.values % 360])
    np.testing.assert_array_equal(out.values, own.sr.downscale(toy.model, check_range="ignore").values)


def test_only_the_model_that_needs_its_domain_stays_there(make_model, log):
    """An open model goes where the data are, given static fields for all of them, or if it knows none."""
    toy = make_model(domain="open")
    world = toy_field(time=1, y=36, x=52, seed=4)
    world = world.assign_coords(lat=world.lat - float(world.lat[4] - toy.fine.lat[0]), lon=world.lon - 8)
    static = world.coords.to_dataset()[STATIC].reset_coords()
    coarse = world.sr.coarsen(2).drop_vars(STATIC)
    assert grid_of(coarse).locate(toy.model.coarse_grid) is not None
    assert coarse.sr.downscale(toy.model, static=static).shape == world.shape and log() == []
    assert coarse.sr.downscale(toy.model).shape == (1, *toy.fine.shape[1:]) and len(log()) == 1
    bare = toy.fine.drop_vars(STATIC)
    free = bare.sr.fit(2, data={"domain": "open"}, **QUICK)
    assert coarse.sr.downscale(free).shape == world.shape and log() == []
    shifted = coarse.assign_coords(lon=coarse.lon + 0.7)
    assert shifted.sr.downscale(free).shape == world.shape and log() == []


# other cells


@pytest.mark.parametrize("lazy", [False, True])
def test_shifted_cells_are_regridded_onto_those_that_are_covered(make_model, log, lazy):
    """By half a cell: the mean of two neighbours; the model's last column has only one."""
    toy = make_model()
    bare = toy.coarse.drop_vars(STATIC)
    shifted = bare.assign_coords(lon=bare.lon - 1)
    out = (shifted.chunk(time=1, lat=7) if lazy else shifted).sr.downscale(toy.model)
    (line,) = log()
    assert line == (
        "Coarse data (lat 14 x lon 18, 9.2 to 30 by 1.6, 0 to 34 by 2) are regridded conservatively onto the model's "
        "cells (lat 14 x lon 17, 9.2 to 30 by 1.6, 1 to 33 by 2): shifted by (dy, dx) = (0, 1); the model was trained "
        "on means over these cells, which regridding smooths."
    )
    mean = (0.5 * (bare.values[..., :-1].astype(float) + bare.values[..., 1:])).astype(np.float32)
    expected = bare.isel(lon=slice(0, 17)).copy(data=mean).sr.downscale(toy.model)
    assert (out.chunks is not None) == lazy
    np.testing.assert_allclose(out.values, expected.values, rtol=0, atol=1e-4)
    assert out.lon.values.tolist() == toy.fine.lon.values[:34].tolist()
    assert out.lat.values.tolist() == toy.fine.lat.values.tolist()
    xr.testing.assert_identical(out.elevation, expected.elevation)


def test_nothing_is_computed_before_it_is_asked_for(make_model):
    toy = make_model()
    lazy = wider(toy.coarse).assign_coords(lon=wider(toy.coarse).lon + 0.4).chunk(time=1)

    def refuse(dsk, keys, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        out = lazy.sr.downscale(toy.model)
    assert out.chunks[0] == (1, 1, 1)
    whole = lazy.compute().sr.downscale(toy.model)
    np.testing.assert_allclose(out.compute(scheduler="synchronous"), whole, rtol=0, atol=1e-4)


GIVEN = {
    "whole degrees": (np.arange(5.0, 40), np.arange(-4.0, 46)),
    "Gaussian-like": (np.rad2deg(np.arcsin(np.linspace(0.02, 0.62, 26))), np.arange(-4.5, 46, 1.125)),
    "half the spacing": (np.arange(6.0, 36, 0.82), np.arange(-3.5, 44)),
    "twice the spacing": (np.arange(4.0, 40, 3.2), np.arange(-6.0, 50, 4)),
}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("lat", "lon"), GIVEN.values(), ids=GIVEN.keys())
def test_any_near_resolution(make_model, log, check, lat, lon, descending):
    """Onto all of the model's cells, whose fine coordinates the result has bit for bit; a constant stays."""
    toy = make_model()
    lat = lat[::-1] if descending else lat
    coords = {"lat": ("lat", lat, toy.coarse.lat.attrs), "lon": ("lon", lon, toy.coarse.lon.attrs)}
    waves = 280 + 5 * np.sin(np.deg2rad(9 * lat))[:, None] * np.cos(np.deg2rad(7 * lon))
    given = xr.DataArray(waves.astype(np.float32)[None], dims=("time", "lat", "lon"), coords=coords, name="tas")
    given = given.assign_attrs(toy.coarse.attrs)
    out = given.sr.downscale(toy.model)
    (line,) = log()
    assert "regridded conservatively onto the model's cells (lat 14 x lon 18, " in line
    assert (out.lat.values == toy.fine.lat.values[:: -1 if descending else 1]).all()
    assert (out.lon.values == toy.fine.lon.values).all()
    means = regrid(Field(given), toy.model.coarse_grid, method="conservative").array
    expected = means.sr.downscale(toy.model).isel(lat=slice(None, None, -1 if descending else 1))
    check.same_numbers(out, expected, toy.model.scaling.sd)
    constant = regrid(Field(given * 0 + 280), toy.model.coarse_grid, method="conservative").array
    np.testing.assert_allclose(constant, 280, rtol=1e-6)


def test_one_degree_centred_on_whole_degrees_against_blocks_of_quarter_degrees(log):
    """What the issue is about: ERA5 blocks, a forecast on whole degrees, 0 to 360 against -180 to 180."""
    lat, lon = 40 + 0.25 * np.arange(24), (-6 + 0.25 * np.arange(40))
    field = toy_field(time=3, y=24, x=40).assign_coords(lat=lat, lon=lon)
    field.lat.attrs, field.lon.attrs = {"units": "degrees_north"}, {"units": "degrees_east"}
    model = field.sr.fit(4, **QUICK)
    given = toy_field(time=2, y=11, x=360, periodic=True).drop_vars(STATIC)
    given = given.assign_coords(lat=np.arange(48.0, 37, -1), lon=np.arange(360.0))
    given.lat.attrs, given.lon.attrs = field.lat.attrs, field.lon.attrs
    out = given.sr.downscale(model)
    (line,) = log()
    assert "lon 360, 38 to 48 by 1, 0 to 359 by 1, periodic) are regridded" in line and "shifted by" in line
    assert (out.lat.values == lat[::-1]).all() and (out.lon.values == lon).all()
    assert np.isfinite(out).all() and out.shape == (2, 24, 40)
    same = given.assign_coords(lat=("lat", given.lat.values - 0.625, given.lat.attrs), lon=np.arange(0.375, 360))
    same.lon.attrs = field.lon.attrs
    out = same.sr.downscale(model, check_range="ignore")
    assert "are cropped to" in log()[0] and (out.lon.values == lon).all(), "in one turn here too, not 354 to 3.75"


def random_field(lat: np.ndarray, lon: np.ndarray, like: xr.DataArray) -> xr.DataArray:
    """Return weather without a pattern on these cells."""
    values = 280 + np.random.default_rng(0).normal(size=(1, len(lat), len(lon))).astype(np.float32)
    coords = {"lat": ("lat", lat, like.lat.attrs), "lon": ("lon", lon, like.lon.attrs)}
    return xr.DataArray(values, dims=("time", "lat", "lon"), coords=coords, name="tas", attrs=like.attrs)


@pytest.mark.parametrize("west", [160.5, 348.5])
def test_the_globe_in_any_convention_against_a_domain_across_a_seam(make_model, west):
    toy = make_model(west=west)
    given = random_field(np.arange(-87.5, 90, 2.5), np.arange(0, 360, 2.5), toy.coarse)
    out = given.sr.downscale(toy.model)
    np.testing.assert_array_equal(out.lon.values, toy.fine.lon.values)
    np.testing.assert_array_equal(out.lat.values, toy.fine.lat.values)
    turned = given.roll(lon=72, roll_coords=True)
    turned = turned.assign_coords(lon=("lon", (turned.lon.values + 180) % 360 - 180, given.lon.attrs))
    other = turned.sr.downscale(toy.model)
    np.testing.assert_array_equal(other.values, out.values)
    np.testing.assert_array_equal(other.lon.values, (toy.fine.lon.values + 180) % 360 - 180 if west > 180 else out.lon)


def test_rows_on_the_poles_reach_them(log):
    """A globe with rows centred on the poles against one whose rows end there."""
    lat, lon = -90 + 7.5 * (np.arange(24) + 0.5), 7.5 * (np.arange(48) + 0.5)
    field = toy_field(time=2, y=24, x=48, periodic=True).drop_vars(STATIC)
    field = field.assign_coords(lat=("lat", lat, field.lat.attrs), lon=("lon", lon, field.lon.attrs))
    model = field.sr.fit(2, **QUICK)
    given = random_field(np.arange(-90.0, 91, 15), np.arange(0.0, 360, 15), field)
    out = given.sr.downscale(model, check_range="ignore")
    assert (out.lat.values == lat).all() and (out.lon.values == lon).all() and np.isfinite(out).all()
    assert "regridded conservatively" in log()[0]


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_static_fields_given_to_a_model_that_is_bound_to_its_domain(make_model, shift):
    """They are compared with its own on the cells that are used, whatever the area of the data."""
    toy = make_model()
    static = toy.fine.coords.to_dataset()[STATIC].reset_coords()
    given = wider(toy.coarse)
    given = given.assign_coords(lon=given.lon + shift)
    xr.testing.assert_identical(given.sr.downscale(toy.model, static=static), given.sr.downscale(toy.model))
    with pytest.warns(xsr.errors.XSuperResWarning, match="'elevation' differs"):
        given.sr.downscale(toy.model, static=static.assign(elevation=static.elevation + 500))


def test_a_part_of_a_globe_across_its_seam(make_model):
    """All of the covered columns, not those on one side of Greenwich."""
    toy = make_model(periodic=True, coarse=(10, 24))
    lon = np.arange(-55.0, 62, 14)
    out = random_field(toy.coarse.lat.values, lon, toy.coarse).sr.downscale(toy.model)
    assert (np.diff(out.lon) > 0).all() and out.lon[0] < -40 and out.lon[-1] > 40, "as the data are, not from 315"
    assert set(out.lon.values % 360) <= set(toy.fine.lon.values)
    assert np.isfinite(out).all()


def test_a_circle_that_is_shifted_stays_a_circle(make_model, check):
    """Rolling the data changes nothing but the place: there is no seam."""
    toy = make_model(periodic=True, coarse=(10, 24))
    bare = toy.coarse.drop_vars(STATIC)
    given = bare.assign_coords(lon=bare.lon + 5)
    out = given.sr.downscale(toy.model)
    assert out.shape == toy.fine.shape
    np.testing.assert_array_equal(out.lon.values, toy.fine.lon.values)
    rolled = given.roll(lon=7, roll_coords=True)
    rolled = rolled.assign_coords(lon=("lon", (rolled.lon.values + 180) % 360 - 180, given.lon.attrs))
    there = rolled.sr.downscale(toy.model)
    assert there.lon[0] % 360 == out.lon[34], "a circle begins where that of the data does"
    check.same_numbers(there.roll(lon=34), out, toy.model.scaling.sd)


CONVENTIONS = {
    "0 to 360": lambda lon: np.sort(lon % 360),
    "-180 to 180": lambda lon: np.sort((lon + 180) % 360 - 180),
    "wrapped at 360": lambda lon: np.roll(lon % 360, 12),
    "wrapped at 180": lambda lon: np.roll((lon + 180) % 360 - 180, 3),
    "from 20": lambda lon: np.sort((lon - 20) % 360 + 20),
}


@pytest.mark.parametrize("part", [slice(None), slice(7, 15)])
@pytest.mark.parametrize("shift", [0.0, 2.5, -7.5])
@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS.keys())
def test_longitudes_stay_in_the_convention_of_the_data(make_model, convention, shift, part):
    """On other cells as on matching ones: in the same turn, from where the data begin, whatever the model has."""
    toy = make_model(periodic=True, coarse=(10, 24))
    lon = convention(toy.coarse.lon.values + shift)
    given = random_field(toy.coarse.lat.values, lon[part], toy.coarse)
    out = given.sr.downscale(toy.model, check_range="ignore")
    assert set(out.lon.values % 360) <= set(toy.fine.lon.values)
    own, found = given.lon.values, out.lon.values
    assert own.min() - 11.3 <= found.min() and found.max() <= own.max() + 11.3
    assert (np.diff(found) < 0).sum() == (np.diff(own) < 0).sum()
    apart = (found[0] - own[0] + 180) % 360 - 180
    assert -11.3 <= apart <= 11.3, "begins where the data do"


def test_forecasts_keep_what_they_have(make_model):
    """Dims, their order, valid times and labels, on other cells too."""
    toy = make_model()
    start = np.array(["2001-01-01", "2001-01-05", "2001-01-09"], "M8[ns]")
    steps = np.arange(2) * np.timedelta64(6, "h").astype("m8[ns]")
    given = wider(toy.coarse).assign_coords(time=start, lat=wider(toy.coarse).lat + 0.3)
    given = given.expand_dims(step=steps, member=["a", "b"]).transpose("lon", "member", "time", "lat", "step")
    given = given.assign_coords(valid_time=(("time", "step"), start[:, None] + steps), height=2.0)
    out = given.sr.downscale(toy.model)
    assert out.dims == given.dims
    for name in ("time", "step", "member", "valid_time", "height"):
        assert out[name].identical(given[name]), name


def test_several_variables_and_predictors_come_along(log):
    field = toy_field(time=3, y=16, x=24)
    other = toy_field(time=3, y=16, x=24, seed=3).rename("ts").drop_vars(STATIC)
    wind = toy_field(time=3, y=16, x=24, seed=4).rename("wind").drop_vars(STATIC)
    both = xr.Dataset({"tas": field, "ts": other})
    model = both.sr.fit(2, predictors=wind, **QUICK)
    coarse = both.sr.coarsen(2).drop_vars(STATIC)
    given = coarse.assign_coords(lon=coarse.lon + 0.5)
    shown = wind.sr.coarsen(2).assign_coords(lon=given.lon)
    out = given.sr.downscale(model, predictors=shown)
    assert len(log()) == 1
    assert set(out.data_vars) == {"tas", "ts"} and out.tas.shape == (3, 16, 22)
    assert out.lon.values.tolist() == field.lon.values[2:].tolist()


# what was trained on pairs


def test_pairs_were_regridded_at_training_too(log):
    fine = toy_field(time=12, y=24, x=48)
    coarse = fine.sr.coarsen(4).drop_vars(STATIC)
    coarse = coarse.assign_coords(lon=coarse.lon + 0.5)
    model = coarse.sr.fit(target=fine, **QUICK)
    out = coarse.sr.downscale(model)
    (line,) = log()
    assert "regridded conservatively" in line and "smooth" not in line
    assert set(out.lon.values) <= set(fine.lon.values)


# refused


def test_a_strip_of_less_than_a_cell_covers_none(make_model):
    toy = make_model()
    field = toy_field(time=1, y=4, x=40).drop_vars(STATIC)
    strip = field.assign_coords(lat=("lat", 13.6 + 0.9 * np.arange(4), field.lat.attrs))
    assert strip.sr.downscale(toy.model).sizes["lat"] == 4
    thin = strip.isel(lat=slice(0, 2)).assign_coords(lat=("lat", [14.9, 15.75], field.lat.attrs))
    with pytest.raises(GridError, match="do not cover any cell"):
        thin.sr.downscale(toy.model)


@pytest.mark.parametrize(("domain", "error"), [("fixed", GridError), ("open", StaticFieldError)])
def test_partly_outside_is_outside_to_one_cell(make_model, log, domain, error):
    """Whatever the cells; what lies in the domain, or contains it, is near enough by one cell."""
    toy = make_model(domain=domain)
    bare = toy.coarse.drop_vars(STATIC)
    for shift, columns in ((2.0, 17), (1.2, 17), (-1.2, 17)):
        assert bare.assign_coords(lon=bare.lon + shift).sr.downscale(toy.model).sizes["lon"] == 2 * columns
        assert len(log()) == 1
    for shift in (4.4, -5.0, 20.0):
        with pytest.raises(error, match="outside: 'lon' reaches from .* select the part that both share"):
            bare.assign_coords(lon=bare.lon + shift).sr.downscale(toy.model)
    part = bare.assign_coords(lon=bare.lon + 4.4).isel(lon=slice(0, 14))
    assert part.sr.downscale(toy.model).sizes["lon"] == 26


def test_nothing_is_extrapolated(make_model):
    """Every fine cell of the result lies inside the data, whichever cells these have."""
    toy = make_model()
    rng = np.random.default_rng(0)
    for _ in range(20):
        step = rng.uniform((0.9, 1.1), (3.1, 3.9))
        lat = rng.uniform(9, 14) + step[0] * np.arange(rng.integers(4, 12))
        lon = rng.uniform(0, 9) + step[1] * np.arange(rng.integers(4, 18))
        given = random_field(lat, lon, toy.coarse)
        try:
            out = given.sr.downscale(toy.model)
        except GridError as error:
            assert "outside" in str(error) or "do not cover" in str(error) or "1 cells" in str(error)
            continue
        grid, edges = grid_of(given), grid_of(out)
        for data, fine in ((grid.y, edges.y), (grid.x, edges.x)):
            assert data.lower[0] - 0.01 <= fine.lower[0] and fine.upper[-1] <= data.upper[-1] + 0.01


# what comes after


def test_scores_know_the_model_by_its_digest(make_model):
    """Coordinates are the model's bit for bit, so that truth on its grid lies on the same cells."""
    toy = make_model()
    xsr.activate(toy.model)
    bare = wider(toy.coarse)
    for given in (bare, bare.assign_coords(lon=bare.lon + 0.7)):
        out = given.sr.downscale(toy.model)
        assert out.attrs["xsuperres_model"] == toy.model.digest
        later = toy.fine.assign_coords(time=toy.fine.time + np.timedelta64(9999, "D"))
        table = out.assign_coords(time=later.time).sr.score(later.sel(lat=out.lat, lon=out.lon), metrics="rmse")
        assert "static_regression" in table["product"].values and np.isfinite(table.rmse.sel(product="network")).all()
    xsr.deactivate()


def test_describe_says_what_would_be_done(make_model):
    toy = make_model()
    given = wider(toy.coarse)
    told = given.sr.describe(model=toy.model)
    assert "are cropped to lat 14 x lon 18" in told and re.search("fine grid +lat 28 x lon 36", told)
    told = given.assign_coords(lon=given.lon + 0.7).sr.describe(model=toy.model)
    assert "are regridded conservatively" in told and "shifted by (dy, dx) = (0, 0.7)" in told and "halo" in told
    opened = make_model(domain="open").model
    assert "For all of the data pass static= with elevation, land_fraction" in given.sr.describe(model=opened)
    far = given.assign_coords(lon=given.lon + 90)
    assert "not on (a crop of) the model's coarse grid: outside" in far.sr.describe(model=toy.model)
