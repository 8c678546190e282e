"""Where data lie on a model's domain: what is said of those that do not, static fields of other names and units."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import GridError, StaticFieldError, UnitsError, XSuperResWarning
from xsuperres.fields.grid import grid_of
from xsuperres.inference.domain import difference, misfit
from xsuperres.testing import toy_field

STATIC = ["elevation", "land_fraction"]


@pytest.fixture
def there() -> xr.DataArray:
    """Return a fine field far from the domain of the toy models."""
    field = toy_field(time=1, y=20, x=28, seed=5)
    return field.assign_coords(lon=field.lon + 100)


def bare(field: xr.DataArray) -> xr.Dataset:
    """Return the static fields of `field` as data variables."""
    return xr.Dataset({name: field[name].drop_vars(STATIC, errors="ignore") for name in STATIC})


# How data differ from the model's domain.

REFUSED = {
    "too coarse": (
        lambda toy: toy.fine.sr.coarsen(6).isel(time=[0]),
        "the spacing differs, got 4.8 x 6, expected 1.6 x 2, more than twice as coarse; train a model on data like",
    ),
    "one axis": (
        lambda toy: toy.coarse.isel(lon=slice(0, None, 3)),
        "the spacing differs, got 1.6 x 6, expected 1.6 x 2, more than twice as coarse",
    ),
    "too fine": (
        lambda toy: toy.fine.sr.interpolate(2),
        r"the spacing differs, got 0.4 x 0.5, expected 1.6 x 2, more than twice as fine; .* \.sr\.coarsen\(4\)",
    ),
    "outside in part": (
        lambda toy: toy.coarse.assign_coords(lon=toy.coarse.lon + 4),
        "outside: 'lon' reaches from 5 to 39, the model's from 1 to 35; select the part that both share",
    ),
    "shifted and outside": (
        lambda toy: toy.coarse.assign_coords(lat=toy.coarse.lat - 4.25, lon=toy.coarse.lon + 4),
        "outside: 'lat' reaches from 6.55 to 24.15, the model's from 10.8 to 28.4 and 'lon' reaches from 5 to 39",
    ),
    "far away": (
        lambda toy: toy.coarse.assign_coords(lon=toy.coarse.lon + 100.5),
        r"outside: 'lon' reaches from 101.5 to 135.5, the model's from 1 to 35\. ",
    ),
    "projected": (
        lambda toy: toy.coarse.drop_attrs().assign_attrs(toy.coarse.attrs).rename(lat="y", lon="x"),
        "expected axes that are latitude x longitude, got other x other",
    ),
    "rotated": (
        lambda toy: toy.coarse.assign_coords(lat=toy.coarse.lat + 0.2).rename(lat="rlat", lon="rlon"),
        "expected axes that are latitude x longitude, got rotated latitude x rotated longitude",
    ),
    "fine": (lambda toy: toy.fine, r"looks like the model's fine grid; coarsen it first: .sr.coarsen\(2\)"),
    "part of the fine grid": (lambda toy: toy.fine.isel(lat=slice(3, 9)), r"fine grid; coarsen it first"),
    "fine and shifted": (
        lambda toy: toy.fine.assign_coords(lon=toy.fine.lon + 0.3),
        r"looks like the model's fine grid; coarsen it first",
    ),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_says_by_how_much(make_model, change, words):
    toy = make_model(coarse=(12, 18))
    with pytest.raises(
        GridError, match=f"not on .a crop of. the model's coarse grid .*: .*{words}.*bound to its domain"
    ):
        change(toy).sr.downscale(toy.model)
    toy = make_model(coarse=(12, 18), domain="open")
    with pytest.raises(StaticFieldError, match=f"{words}.*static fields are needed there"):
        change(toy).sr.downscale(toy.model)


def test_across_a_gap():
    field = toy_field(time=2, y=8, x=24).isel(lon=[*range(8), *range(12, 24)])
    quick = {"sampling": {"batch_size": 1, "patch_size": 2}, "optimization": {"max_steps": 1}, "validation": None}
    model = field.sr.fit(2, network={"width": 4, "depth": 1}, progress=False, activate=False, **quick)
    whole = toy_field(time=1, y=8, x=24).sr.coarsen(2)
    for given in (whole, whole.assign_coords(lon=whole.lon + 0.5)):
        with pytest.raises(GridError, match="across a gap .*its parts along 'lon' one at a time: 1 to 7 and 13 to 23"):
            given.sr.downscale(model)
        part = given.isel(lon=slice(5, None)).sr.downscale(model)
        assert set(part.lon.values) <= set(field.lon.values[8:])


def test_how_cells_differ(make_model):
    toy = make_model(coarse=(12, 18))
    told = {
        "shifted by (dy, dx) = (-0.25, 0.5)": {"lat": toy.coarse.lat - 0.25, "lon": toy.coarse.lon + 0.5},
        "the spacing differs, got 1.6 x 2.5, expected 1.6 x 2": {"lon": np.arange(18) * 2.5 - 5},
        "cells of uneven sizes": {"lat": toy.coarse.lat + 0.3 * (np.arange(12) == 5)},
    }
    for words, coords in told.items():
        assert difference(toy.model, grid_of(toy.coarse.assign_coords(coords))) == words


def test_longitudes_of_another_turn_are_no_shift(make_model):
    toy = make_model(periodic=True, coarse=(10, 12))
    moved = toy.coarse.assign_coords(lon=toy.coarse.lon - 180 + 1)
    assert misfit(toy.model, grid_of(moved)) == "shifted by (dy, dx) = (0, 1)"


# Static fields of other units.

UNITS = {
    "percent": lambda ds: ds.assign(
        land_fraction=(100 * ds.land_fraction).assign_attrs(ds.land_fraction.attrs, units="%")
    ),
    "kilometres": lambda ds: ds.assign(elevation=(ds.elevation / 1000).assign_attrs(ds.elevation.attrs, units="km")),
}


@pytest.mark.parametrize("change", UNITS.values(), ids=UNITS.keys())
def test_static_fields_in_other_units_are_refused(make_model, there, change):
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    assert np.isfinite(coarse.sr.downscale(model, static=static)).all()
    with pytest.raises(
        UnitsError, match="static field '(land_fraction|elevation)': expected units of '(1|m)'.*'(%|km)'"
    ):
        coarse.sr.downscale(model, static=change(static))


def test_static_fields_in_other_units_are_refused_on_the_domain_too(make_model):
    toy = make_model()
    with pytest.raises(UnitsError, match="'elevation'"):
        toy.coarse.sr.downscale(toy.model, static=UNITS["kilometres"](bare(toy.fine)))


def test_static_fields_without_units_are_taken_as_they_are(make_model, there):
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    expected = coarse.sr.downscale(model, static=static)
    del static.elevation.attrs["units"]
    static.land_fraction.attrs["units"] = "(0 - 1)"  # as in ERA5
    with pytest.warns(XSuperResWarning, match="static field 'elevation': units are None, those of the model 'm'"):
        got = coarse.sr.downscale(model, static=static)
    np.testing.assert_array_equal(got, expected)


# Static fields of other names.


def test_static_fields_are_found_by_standard_name(make_model, there):
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    expected = coarse.sr.downscale(model, static=static)
    renamed = static.rename(elevation="orog", land_fraction="sftlf")
    xr.testing.assert_equal(coarse.sr.downscale(model, static=renamed), expected)
    riding = there.rename(elevation="orog", land_fraction="frac")
    xr.testing.assert_equal(coarse.sr.downscale(model, static=riding), expected)
    assert set(STATIC) <= set(coarse.sr.downscale(model, static=renamed).coords)


def test_static_fields_of_common_names_need_no_standard_name(make_model, there):
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    renamed = static.rename(elevation="orog")
    del renamed.orog.attrs["standard_name"]
    xr.testing.assert_equal(coarse.sr.downscale(model, static=renamed), coarse.sr.downscale(model, static=static))


def test_a_name_that_fits_goes_before_a_standard_name(make_model, there):
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    more = static.assign(orog=static.elevation + 500)
    xr.testing.assert_equal(coarse.sr.downscale(model, static=more), coarse.sr.downscale(model, static=static))


def test_several_of_one_standard_name_are_refused(make_model, there):
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    both = static.rename(elevation="orog").assign(smooth=static.elevation + 500)
    with pytest.raises(StaticFieldError, match=r"several of standard_name 'surface_altitude': \['orog', 'smooth'\]"):
        coarse.sr.downscale(model, static=both)


def test_another_standard_name_is_another_field(make_model, there):
    """A mask is no fraction."""
    model, coarse, static = make_model(domain="open").model, there.sr.coarsen(2), bare(there)
    renamed = static.rename(land_fraction="mask")
    renamed.mask.attrs["standard_name"] = "land_binary_mask"
    with pytest.raises(StaticFieldError, match=r"\['land_fraction'\] are needed .*'land_area_fraction'.*'mask'"):
        coarse.sr.downscale(model, static=renamed)


# Of an open model that is bound to no place.


def in_metres(field: xr.DataArray, spacing: float) -> xr.DataArray:
    y, x = (("y", spacing * np.arange(field.sizes["lat"])), ("x", spacing * np.arange(field.sizes["lon"])))
    field = field.drop_vars([*STATIC, "lat", "lon"], errors="ignore").rename(lat="y", lon="x")
    return field.assign_coords(y=(*y, {"units": "m"}), x=(*x, {"units": "m"}))


def test_an_open_model_is_taken_anywhere_but_to_another_resolution(make_model, there):
    """With a warning that says by how much, in degrees and kilometres."""
    quick = {"sampling": {"batch_size": 1}, "optimization": {"max_steps": 1}, "validation": None, "progress": False}
    field = toy_field(time=2, y=16, x=24).drop_vars(STATIC)
    free = field.sr.fit(2, network={"width": 4, "depth": 1}, data={"domain": "open"}, activate=False, **quick)
    coarse = there.drop_vars(STATIC).sr.coarsen(2)
    near = coarse.assign_coords(lat=("lat", coarse.lat.values[0] + np.arange(10.0), coarse.lat.attrs))
    for given in (coarse, near, in_metres(coarse, 2e5)):
        given.sr.downscale(free, check_range="ignore")
    fine = coarse.assign_coords(lat=10 + coarse.lat * 0.1, lon=coarse.lon * 0.1)
    for name in ("lat", "lon"):
        fine[name].attrs = coarse[name].attrs
    told = {
        r"got 0\.16 x 0\.2, expected 1\.6 x 2, more than twice as fine; .*\.sr\.coarsen\(10\)": fine,
        r"rows are 1 km apart, expected 177\.9 km, more than twice as fine": in_metres(coarse, 1e3),
        r"rows are 500 km apart, expected 177\.9 km, more than twice as coarse": in_metres(coarse, 5e5),
    }
    for words, given in told.items():
        with pytest.warns(XSuperResWarning, match=f"knows one resolution: .*{words}"):
            out = given.sr.downscale(free, check_range="ignore")
        assert out.shape == (1, 20, 28)
        assert "twice as" in given.sr.describe(model=free)
    opened = make_model(domain="open").model
    with pytest.warns(XSuperResWarning, match="knows one resolution"):
        fine.sr.downscale(opened, static=bare(_finer(there, fine)), check_range="ignore")


def _finer(there: xr.DataArray, coarse: xr.DataArray) -> xr.DataArray:
    """Return the fields of `there` on the cells of `coarse`, cut in two."""
    made = coarse.sr.interpolate(2)
    return there.assign_coords(lat=made.lat, lon=made.lon)
