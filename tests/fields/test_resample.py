"""Coarsening and interpolation of labelled fields: areas, gaps, laziness, what is kept and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import xsuperres as xsr
from xsuperres.errors import GridError, UnknownNameError
from xsuperres.fields.grid import grid_of
from xsuperres.fields.resample import coarsen_array, interpolate_array
from xsuperres.testing import toy_field


def oracle_coarsen(values: np.ndarray, area: np.ndarray, scale: int, fraction: float) -> np.ndarray:
    """Coarsen one plane cell by cell in float64."""
    ny, nx = (size // scale for size in values.shape)
    out = np.full((ny, nx), np.nan)
    for row in range(ny):
        for column in range(nx):
            cells = (slice(row * scale, (row + 1) * scale), slice(column * scale, (column + 1) * scale))
            v, a = values[cells].astype(float), area[cells]
            valid = np.isfinite(v)
            if valid.any() and a[valid].sum() >= fraction * a.sum() - 1e-12:
                out[row, column] = (v[valid] * a[valid]).sum() / a[valid].sum()
    return out


@given(
    st.integers(0, 10**6),
    st.integers(2, 5),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.4, 0.95]),
)
def test_coarsening_against_numpy(seed, scale, fraction, share):
    rng = np.random.default_rng(seed)
    values = rng.normal(280, 20, (3 * scale, 4 * scale))
    values[rng.random(values.shape) < share] = np.nan
    area = rng.uniform(0.1, 1.0, values.shape)
    got = coarsen_array(values, area, scale, minimum_valid_fraction=fraction)
    np.testing.assert_allclose(got, oracle_coarsen(values, area, scale, fraction), rtol=1e-12)


@pytest.mark.parametrize("lat", [np.linspace(90, -90, 24), np.linspace(-87, 31, 24) ** 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_global_mean_is_conserved(check, lat, dtype):
    fine = toy_field(y=24, x=36, periodic=True, dtype=dtype)
    check.coarsening_conserves(fine.assign_coords(lat=fine.lat.copy(data=lat)), 4)


def test_just_enough_and_just_too_little():
    values = np.full((2, 4), 5.0)
    values[0, :2] = np.nan  # half of the first cell
    values[:, 2:] = np.nan
    values[0, 3] = 5.0  # a quarter of the second
    got = coarsen_array(values, np.ones((2, 4)), 2, minimum_valid_fraction=0.5)
    np.testing.assert_array_equal(got, [[5.0, np.nan]])
    got = coarsen_array(values, np.ones((2, 4)), 2, minimum_valid_fraction=0.51)
    assert np.isnan(got).all()
    got = coarsen_array(values, np.ones((2, 4)), 2, minimum_valid_fraction=0.0)
    np.testing.assert_array_equal(got, [[5.0, 5.0]])


def test_without_any_valid_cell_there_is_no_mean():
    got = coarsen_array(np.full((2, 2), np.nan), np.ones((2, 2)), 2, minimum_valid_fraction=0.0)
    assert np.isnan(got).all()


def test_sums_are_float64():
    """A float32 sum of 180 x 360 kelvins would lose the third decimal."""
    values = np.full((64, 64), 287.123, np.float32)
    got = coarsen_array(values, np.random.default_rng(0).random((64, 64)), 64)
    assert got.dtype == np.float32
    assert got[0, 0] == np.float32(287.123)


def test_coarsen_keeps_labels():
    fine = toy_field(time=2, y=8, x=12).assign_coords(lead=3, kind=("time", ["a", "b"]))
    fine.attrs["history"] = "made"
    fine.encoding = {"scale_factor": 0.01, "add_offset": 1.0, "dtype": "int16", "chunksizes": (1, 8, 12)}
    coarse = fine.sr.coarsen(4)
    assert coarse.dims == fine.dims
    assert coarse.dtype == fine.dtype
    assert coarse.name == "tas"
    assert {k: v for k, v in coarse.attrs.items() if k != "history"} == {
        k: v for k, v in fine.attrs.items() if k != "history"
    }
    assert coarse.attrs["history"].startswith(f"made\nxsuperres {xsr.__version__}: area-weighted coarsening, scale 4")
    xr.testing.assert_identical(coarse.time, fine.time)
    assert coarse.kind.values.tolist() == ["a", "b"]
    assert int(coarse.lead) == 3
    assert not coarse.encoding
    assert fine.attrs["history"] == "made"  # the input is left alone


def test_2d_coordinates_are_coarsened_under_their_names():
    fine = toy_field(time=1, y=8, x=12)
    coarse = fine.sr.coarsen(4)
    area = grid_of(fine).area
    np.testing.assert_allclose(coarse.elevation, oracle_coarsen(fine.elevation.values, area, 4, 0.5), rtol=1e-12)
    assert coarse.elevation.attrs == fine.elevation.attrs
    turned = fine.isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat").sr.coarsen(4)
    xr.testing.assert_allclose(turned.elevation.sortby("lat").transpose("lat", "lon"), coarse.elevation)


@pytest.mark.parametrize("lazy", [False, True])
def test_interpolation_keeps_labels(lazy):
    coarse = toy_field(time=2, y=8, x=12).sr.coarsen(2).assign_coords(lead=3)
    coarse = coarse.chunk(lat=2) if lazy else coarse
    fine = coarse.sr.interpolate(3)
    assert fine.sizes == {"time": 2, "lat": 12, "lon": 18}
    assert fine.attrs["units"] == "K"
    assert "bicubic interpolation, scale 3" in fine.attrs["history"]
    assert "elevation" not in fine.coords  # a coarse static field is no fine one
    assert int(fine.lead) == 3
    assert fine.dtype == coarse.dtype


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("periodic", [False, True])
def test_interpolated_means_are_close_and_constants_exact(method, periodic):
    coarse = toy_field(time=2, y=6, x=8, periodic=periodic, dtype="float64")
    got = interpolate_array(coarse.values, 3, method, periodic=periodic)
    assert got.shape == (2, 18, 24)
    flat = interpolate_array(np.full((4, 5), 280.25), 3, method, periodic=periodic)
    np.testing.assert_allclose(flat, 280.25, rtol=1e-14)


@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from(["bilinear", "bicubic"]))
def test_periodic_interpolation_rolls(seed, cells, method):
    values = np.random.default_rng(seed).normal(size=(4, 8))
    rolled = interpolate_array(np.roll(values, cells, -1), 3, method, periodic=True)
    expected = np.roll(interpolate_array(values, 3, method, periodic=True), 3 * cells, -1)
    np.testing.assert_allclose(rolled, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_missing_cells_stay_missing_and_bleed_nowhere(check, make_model, method):
    coarse = make_model(scale=3, missing=True).coarse

    def operation(da):
        return da.sr.interpolate(3, method=method)

    check.constant_survives(operation, coarse, 280.0)
    check.missing_is_local(operation, coarse, (4, 8), 2, 3)
    present = operation(coarse).notnull().coarsen(lat=3, lon=3).mean()
    np.testing.assert_array_equal(present, coarse.notnull())


@pytest.mark.parametrize("operation", ["coarsen", "interpolate"])
@pytest.mark.parametrize("dims", [("lat",), ("lon",), ("lat", "lon")])
def test_orientation_changes_no_bit(check, operation, dims):
    fine = toy_field(time=2, y=12, x=16)
    check.orientation_free(lambda da: getattr(da.sr, operation)(4), fine, dims)


@pytest.mark.parametrize("operation", ["coarsen", "interpolate"])
@pytest.mark.parametrize("order", [("lat", "lon", "time"), ("lon", "time", "lat"), ("time", "lon", "lat")])
def test_order_of_dims_changes_no_bit(operation, order):
    fine = toy_field(time=2, y=12, x=16)
    expected = getattr(fine.sr, operation)(2)
    got = getattr(fine.transpose(*order).sr, operation)(2)
    assert got.dims == order
    np.testing.assert_array_equal(got.transpose(*fine.dims).values, expected.values)


SINGLE_CELLS = set(range(1, 24))


@settings(max_examples=25)
@given(
    st.integers(2, 4),
    st.sets(st.integers(1, 23), max_size=4),
    st.sets(st.integers(1, 23), max_size=4),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.booleans(),
)
@example(2, SINGLE_CELLS, {1}, "bicubic", True)
@example(3, {23}, SINGLE_CELLS, "bicubic", True)
def test_chunked_interpolation_equals_whole(scale, rows, columns, method, periodic):
    field = toy_field(time=1, y=24, x=24, periodic=periodic)
    field = field.where((field.lat > 15) | (field.lon % 50 > 7))
    chunks = {"lat": tuple(np.diff([0, *sorted(rows), 24])), "lon": tuple(np.diff([0, *sorted(columns), 24]))}
    whole = field.sr.interpolate(scale, method=method)
    parts = field.chunk(chunks).sr.interpolate(scale, method=method).compute(scheduler="synchronous")
    np.testing.assert_allclose(parts, whole, rtol=2e-7, atol=0)
    xr.testing.assert_identical(parts.coords.to_dataset(), whole.coords.to_dataset())


@settings(max_examples=25)
@given(st.integers(2, 4), st.sets(st.integers(1, 23), max_size=4), st.sets(st.integers(1, 23), max_size=4))
@example(2, SINGLE_CELLS, {1})
@example(3, {23}, SINGLE_CELLS)
def test_chunked_coarsening_equals_whole(scale, rows, columns):
    field = toy_field(time=1, y=24, x=24)
    field = field.where(field.lon > 7)
    chunks = {"lat": tuple(np.diff([0, *sorted(rows), 24])), "lon": tuple(np.diff([0, *sorted(columns), 24]))}
    whole = field.sr.coarsen(scale)
    parts = field.chunk(chunks).sr.coarsen(scale).compute(scheduler="synchronous")
    xr.testing.assert_identical(parts, whole)


def test_like_may_hold_more_than_the_domain():
    fine = toy_field(time=1, y=24, x=32)
    coarse = fine.isel(lat=slice(4, 16), lon=slice(8, 24)).sr.coarsen(4)
    got = coarse.sr.interpolate(4, like=fine)
    assert got.lat.equals(fine.lat[4:16])
    assert got.lon.equals(fine.lon[8:24])


def test_like_with_another_orientation_gives_the_coarse_one():
    fine = toy_field(time=1, y=24, x=32)
    got = fine.sr.coarsen(4).sr.interpolate(4, like=fine.isel(lat=slice(None, None, -1)))
    assert got.lat.equals(fine.lat)


def test_like_on_uneven_latitudes():
    """Naive subdivision of a coarse cell misses Gaussian latitudes; the groups of the fine grid do not."""
    nodes = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(24)[0]))
    fine = toy_field(time=1, y=24, x=32, periodic=True)
    fine = fine.assign_coords(lat=fine.lat.copy(data=nodes))
    got = fine.sr.coarsen(4).sr.interpolate(4, like=fine)
    assert got.lat.equals(fine.lat)
    assert got.lon.equals(fine.lon)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_like_on_another_grid_is_refused(shift):
    fine = toy_field(time=1, y=24, x=32)
    other = fine.assign_coords(lon=fine.lon + shift)
    with pytest.raises(GridError, match="`like` lies on another grid"):
        fine.sr.coarsen(4).sr.interpolate(4, like=other)


def test_like_of_another_scale_is_refused():
    fine = toy_field(time=1, y=24, x=32)
    with pytest.raises(GridError, match="scale=2"):
        fine.sr.coarsen(4).sr.interpolate(2, like=fine)


def test_an_unknown_method_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'bilinear'"):
        toy_field().sr.interpolate(2, method="bilinaer")


def test_cftime_and_calendar_pass_through():
    fine = toy_field(time=4, y=8, x=8)
    times = xr.date_range("2001-02-28", periods=4, calendar="360_day", use_cftime=True)
    fine = fine.assign_coords(time=times)
    got = fine.sr.coarsen(2).sr.interpolate(2)
    xr.testing.assert_identical(got.time, fine.time)
    assert got.time.dt.calendar == "360_day"


def test_what_is_made_from_a_downscaled_field_does_not_bear_its_model():
    """Else bicubic of it would be scored as the network."""
    field = toy_field(time=1, y=8, x=8).assign_attrs(xsuperres_model="0" * 64, xsuperres_scale=2)
    for made in (field.sr.coarsen(2), field.sr.interpolate(2)):
        assert not [name for name in made.attrs if name.startswith("xsuperres")]
