"""What coordinates mean: rotated poles, units, grid mappings and 2-D latitudes tell grids of equal numbers apart."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xsuperres as xsr
from xsuperres.errors import GridError
from xsuperres.fields.field import Field
from xsuperres.fields.frame import displaced, grid_mapping
from xsuperres.fields.grid import grid_of
from xsuperres.fields.pairs import paired
from xsuperres.fields.regrid import covered, regrid
from xsuperres.testing import toy_field

QUICK = {
    "network": {"width": 5, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1},
    "validation": None,
    "progress": False,
    "activate": False,
}
POLE = {
    "grid_mapping_name": "rotated_latitude_longitude",
    "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
}


def places(y: np.ndarray, x: np.ndarray, pole: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return true latitude and longitude of rotated ones, degrees; `pole` is that of the rotated grid."""
    v, u = np.meshgrid(np.deg2rad(y), np.deg2rad(x), indexing="ij")
    tilt, turn = np.deg2rad(90.0 - pole[0]), np.deg2rad(pole[1] + 180.0)
    px, py, pz = np.cos(v) * np.cos(u), np.cos(v) * np.sin(u), np.sin(v)
    px, pz = px * np.cos(tilt) - pz * np.sin(tilt), px * np.sin(tilt) + pz * np.cos(tilt)
    px, py = px * np.cos(turn) - py * np.sin(turn), px * np.sin(turn) + py * np.cos(turn)
    return np.rad2deg(np.arcsin(pz)), np.rad2deg(np.arctan2(py, px))


def rotated(y, x, *, pole=(39.25, -162.0), told=True, flat=True, index=False, time: int = 3) -> xr.DataArray:
    """Return weather on a rotated pole: with its grid mapping (`told`), 2-D places (`flat`), axes that only count."""
    names = ("y", "x") if index else ("rlat", "rlon")
    field = toy_field(time=time, y=len(y), x=len(x)).drop_vars(["elevation", "land_fraction", "lat", "lon"])
    lines = [np.arange(len(y)), np.arange(len(x))] if index else [y, x]
    attrs = (
        [{}, {}] if index else [{"standard_name": f"grid_{n}", "units": "degrees"} for n in ("latitude", "longitude")]
    )
    coords = {n: (n, v, a) for n, v, a in zip(names, lines, attrs, strict=True)}
    if told:
        mapping = {"grid_north_pole_latitude": pole[0], "grid_north_pole_longitude": pole[1]}
        coords["rotated_pole"] = ((), 0, POLE | mapping)
        field.attrs["grid_mapping"] = "rotated_pole"
    if flat:
        lat, lon = places(y, x, pole)
        coords["lat"] = (names, lat, {"standard_name": "latitude", "units": "degrees_north"})
        coords["lon"] = (names, lon, {"standard_name": "longitude", "units": "degrees_east"})
    return field.rename(lat=names[0], lon=names[1]).assign_coords(coords)


ROWS, COLUMNS = np.arange(16) * 0.5 - 4.25, np.arange(24) * 0.5 - 6.25
ELSEWHERE = (37.5, -162.0)


# the grid mapping


def test_the_variable_of_the_mapping_is_found():
    crs = xr.Variable((), 0, POLE | {"earth_radius": 6371229.0, "note": "text"})
    expected = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": [39.25],
        "grid_north_pole_longitude": [-162.0],
    }
    da = xr.DataArray(0.0, coords={"crs": crs, "height": 2.0})
    assert grid_mapping(da) == expected, "the only one there is"
    assert grid_mapping(da.assign_attrs(grid_mapping="crs")) == expected
    assert grid_mapping(da.assign_attrs(grid_mapping="crs: rlat rlon wgs: lat lon")) == expected
    assert grid_mapping(da.assign_attrs(grid_mapping="elsewhere")) == {}
    assert grid_mapping(da.assign_coords(wgs=crs)) == {}, "one of two"
    da.encoding["grid_mapping"] = "crs"
    assert grid_mapping(da) == expected, "as xarray decodes it"
    assert grid_mapping(da.assign_coords(crs=((), 0, {"standard_parallel": "30., 60."}))) == {}
    assert grid_mapping(da.drop_vars("crs")) == {}


SAME = {
    "as it is": {},
    "the same meridian": {"grid_north_pole_longitude": 198.0},
    "float32": {"grid_north_pole_latitude": np.float32(39.25)},
    "more is told": {"north_pole_grid_longitude": 0.0},
    "less is told": {"grid_north_pole_latitude": None},
    "another figure of the Earth": {"earth_radius": 6370000.0},
}
OTHERS = {
    "another pole": {"grid_north_pole_latitude": 37.5},
    "another meridian": {"grid_north_pole_longitude": -161.0},
    "another kind": {"grid_mapping_name": "latitude_longitude"},
}


def with_mapping(da: xr.DataArray, changes: dict) -> xr.DataArray:
    attrs = {name: value for name, value in (POLE | changes).items() if value is not None}
    return da.assign_coords(rotated_pole=((), 0, attrs))


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME.keys())
def test_one_mapping_told_differently(changes):
    da = rotated(ROWS, COLUMNS, flat=False)
    assert grid_of(da).locate(grid_of(with_mapping(da, changes))) is not None


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS.keys())
def test_another_mapping_is_another_place(changes):
    da = rotated(ROWS, COLUMNS, flat=False)
    other = with_mapping(da, changes)
    assert grid_of(da).locate(grid_of(other)) is None
    assert not covered(grid_of(da), grid_of(other).coarsen(2))
    with pytest.raises(GridError, match=f"another grid mapping: expected {next(iter(changes))}"):
        regrid(Field(da), grid_of(other).coarsen(2))
    with pytest.raises(GridError, match="another grid mapping"):
        other.sr.coarsen(2).sr.interpolate(2, like=da)
    with pytest.raises(GridError, match="another grid mapping"):
        paired([Field(other.sr.coarsen(2))], [Field(da)], 2)


# 2-D latitudes and longitudes


@settings(max_examples=30)
@given(
    st.integers(0, 5),
    st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    st.sampled_from([0.5, 1.0, 1.9]),
    st.sampled_from([(39.25, -162.0), (5.0, 0.5), (90.0, 0.0)]),
    st.sampled_from([np.float32, np.float64]),
)
def test_one_rotated_pole_is_one_place_on_any_cells(first, shift, size, pole, dtype):
    """Crops, shifted, finer and coarser cells, across the date line and over a pole: no false alarm."""
    field = rotated(ROWS, COLUMNS, pole=pole, told=False)
    y, x = (a[first] + 0.5 * s + size * 0.5 * np.arange(8) for a, s in zip((ROWS, COLUMNS), shift, strict=True))
    other = rotated(y, x, pole=pole, told=False)
    other = other.assign_coords({n: other[n].astype(dtype) for n in ("lat", "lon")})
    assert displaced(grid_of(field), grid_of(other)) is None
    assert displaced(grid_of(other), grid_of(field)) is None
    assert displaced(grid_of(field), grid_of(field).coarsen(4)) is None


@settings(max_examples=30)
@given(st.floats(0.3, 40.0), st.sampled_from([-1, 1]), st.booleans(), st.floats(-0.5, 0.5))
def test_another_pole_is_told_from_2d_coordinates_alone(degrees, sign, meridian, shift):
    """As soon as cells are elsewhere by more than a tenth of their size."""
    pole = (39.25, -162.0 + sign * degrees) if meridian else (39.25 + sign * degrees, -162.0)
    field = rotated(ROWS, COLUMNS, told=False)
    other = rotated(ROWS, COLUMNS + 0.5 * shift, pole=pole, told=False)
    assert "2-D latitudes and longitudes lie elsewhere" in displaced(grid_of(field), grid_of(other))
    nearly = rotated(ROWS, COLUMNS, pole=(39.25 + 0.01 * sign, -162.0), told=False)
    assert displaced(grid_of(field), grid_of(nearly)) is None


def test_around_the_pole():
    """A polar stereographic grid, in metres, whose cells meet all meridians."""
    line = 1e5 * (np.arange(16) - 7.5)
    y, x = np.meshgrid(line, line, indexing="ij")
    lat, lon = 90 - np.rad2deg(2 * np.arctan(np.hypot(x, y) / 1.27e7)), np.rad2deg(np.arctan2(x, -y))
    coords = {"y": line, "x": line, "lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    da = xr.DataArray(np.zeros((16, 16)), dims=("y", "x"), coords=coords)
    grid = grid_of(da)
    for part in (grid.coarsen(2), grid_of(da[3:9, 5:14]), grid.coarsen(4).refine(2)):
        assert displaced(grid, part) is None
    assert displaced(grid, grid_of(da.roll(x=1, roll_coords=True).assign_coords(x=line))) is not None
    assert displaced(grid, grid_of(da.where(da.lat > 0).assign_coords(lat=da.lat * np.nan))) is None, "unknown"


def test_axes_that_only_count(make_model):
    """y and x from 0 say nothing: the places do; without them there is nothing to compare."""
    field = rotated(ROWS, COLUMNS, index=True, told=False)
    model = field.sr.fit(2, **QUICK)
    coarse = field.sr.coarsen(2)
    assert coarse.sr.downscale(model).lat.equals(field.lat)
    part = coarse.isel(y=slice(2, 6), x=slice(3, 9))
    assert part.sr.downscale(model).lat.equals(field.lat[4:12, 6:18])
    recounted = part.assign_coords(y=np.arange(4) * 2 + 0.5, x=np.arange(6) * 2 + 0.5)
    with pytest.raises(
        GridError, match=r"2-D latitudes and longitudes lie elsewhere: the cell at y=0.5, x=0.5 lies at"
    ):
        recounted.sr.downscale(model)
    placeless = recounted.drop_vars(["lat", "lon"])
    assert placeless.sr.downscale(model).shape == (3, 8, 12)


@pytest.mark.parametrize("told", [True, False])
def test_lazy_coordinates_are_not_read(told):
    """Nothing lazy is computed before it is asked for; what is told of the grid mapping is compared all the same."""
    model = rotated(ROWS, COLUMNS, told=told).sr.fit(2, **QUICK)
    coarse = rotated(ROWS, COLUMNS, told=told).sr.coarsen(2)
    whole, lazy = coarse.sr.downscale(model), coarse.chunk(time=1)
    assert lazy.lat.chunks is not None

    def refuse(dsk, keys, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        out = lazy.sr.downscale(model)
    xr.testing.assert_allclose(out.compute(scheduler="synchronous"), whole, rtol=1e-6)
    moved = rotated(ROWS, COLUMNS, pole=ELSEWHERE, told=told).sr.coarsen(2)
    with pytest.raises(GridError, match="grid_north_pole_latitude" if told else "lie elsewhere"):
        moved.sr.downscale(model)
    if told:
        with pytest.raises(GridError, match="grid_north_pole_latitude"):
            moved.chunk(time=1).sr.downscale(model)


# models


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize(("told", "flat"), [(True, False), (False, True)])
def test_another_pole_is_refused_by_a_model(told, flat, shift):
    """On cells of the same numbers and on others; the mapping survives the model's file."""
    model = rotated(ROWS, COLUMNS, told=told, flat=flat).sr.fit(2, **QUICK)
    own = rotated(ROWS, COLUMNS + shift, told=told, flat=flat).sr.coarsen(2)
    there = rotated(ROWS, COLUMNS + shift, pole=ELSEWHERE, told=told, flat=flat).sr.coarsen(2)
    words = "grid_north_pole_latitude 39.25, got 37.5" if told else "lie elsewhere"
    assert own.sr.downscale(model, check_range="ignore").sizes["rlat"] == 16
    with pytest.raises(GridError, match=f"{words}.*bound to its domain"):
        there.sr.downscale(model)


def test_the_mapping_is_in_the_model_file(tmp_path):
    model = rotated(ROWS, COLUMNS, flat=False).sr.fit(2, **QUICK)
    model.save(tmp_path / "m.safetensors")
    again = xsr.load_model(tmp_path / "m.safetensors")
    assert again.grid.mapping == model.grid.mapping and again.grid.mapping["grid_north_pole_latitude"] == [39.25]
    with pytest.raises(GridError, match="another grid mapping"):
        rotated(ROWS, COLUMNS, pole=ELSEWHERE, flat=False).sr.coarsen(2).sr.downscale(again)


def test_a_model_without_a_mapping_has_the_digest_it_had(make_model):
    """Files of before hold none, and results bear the digest of their model."""
    from xsuperres.model.file import _parts

    assert "grid_mapping" not in _parts(make_model().model)[1]


def test_rotated_numbers_are_no_latitudes():
    field = toy_field(time=2, y=16, x=24)
    model = field.sr.fit(2, **QUICK)
    coarse = field.sr.coarsen(2).drop_vars(["elevation", "land_fraction"]).rename(lat="rlat", lon="rlon")
    for name, told in (("rlat", "grid_latitude"), ("rlon", "grid_longitude")):
        coarse[name].attrs = {"standard_name": told, "units": "degrees"}
    with pytest.raises(GridError, match="axes that are latitude x longitude, got rotated latitude x rotated longitude"):
        coarse.sr.downscale(model)


def in_units(units: str | None, factor: float = 1.0) -> xr.DataArray:
    field = (
        toy_field(time=2, y=16, x=24).drop_vars(["elevation", "land_fraction", "lat", "lon"]).rename(lat="y", lon="x")
    )
    attrs = {} if units is None else {"units": units}
    return field.assign_coords(y=("y", factor * np.arange(16.0), attrs), x=("x", factor * np.arange(24.0), attrs))


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_kilometres_are_no_metres(factor):
    """Where the numbers coincide, and where they would do once converted."""
    model = in_units("m").sr.fit(2, **QUICK)
    coarse = in_units("km", factor).sr.coarsen(2)
    with pytest.raises(GridError, match="expected axes in m x m, got km x km; convert the coordinates"):
        coarse.sr.downscale(model)
    with pytest.raises(GridError, match="in m x m, got km x km; convert"):
        coarse.sr.fit(target=in_units("metres"), **QUICK)
    for units in ("metres", "Meter", None):
        assert in_units(units).sr.coarsen(2).sr.downscale(model).shape == (2, 16, 24)
