"""The horizontal grid: finding axes, their order, cells and areas, coarser and finer coordinates, crops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import xsuperres as xsr
from xsuperres.errors import GridError
from xsuperres.fields.grid import check_scale, find_axes, grid_of
from xsuperres.testing import toy_field


def plane(lat, lon, *, names=("lat", "lon"), attrs=True, **coords) -> xr.DataArray:
    y, x = names
    told = (
        {"standard_name": "latitude", "units": "degrees_north"},
        {"standard_name": "longitude", "units": "degrees_east"},
    )
    lines = {
        y: (y, np.asarray(lat), told[0] if attrs else {}),
        x: (x, np.asarray(lon), told[1] if attrs else {}),
    }
    values = np.random.default_rng(0).normal(280, 5, (len(lat), len(lon)))
    return xr.DataArray(values, dims=names, coords=lines | coords, name="tas", attrs={"units": "K"})


def lat_lon(ny: int = 6, nx: int = 8, **options) -> xr.DataArray:
    return plane(np.arange(ny) + 10.5, np.arange(nx) + 20.5, **options)


class TestFindingAxes:
    @pytest.mark.parametrize(
        "names",
        [
            ("lat", "lon"),
            ("latitude", "longitude"),
            ("Latitude", "Longitude"),
            ("y", "x"),
            ("rlat", "rlon"),
            ("projection_y_coordinate", "projection_x_coordinate"),
            ("south_north", "west_east"),
        ],
    )
    def test_by_common_names(self, names):
        found = find_axes(lat_lon(names=names, attrs=False))
        assert (found.y, found.x) == names

    @pytest.mark.parametrize("which", ["standard_name", "units", "axis"])
    def test_by_attributes_whatever_the_names(self, which):
        da = lat_lon(names=("a", "b"), attrs=False)
        words = {"standard_name": ("latitude", "longitude"), "units": ("degrees_north", "degrees_east")}
        first, second = words.get(which, ("Y", "X"))
        da.a.attrs[which], da.b.attrs[which] = first, second
        found = find_axes(da)
        assert (found.y, found.x) == ("a", "b")

    def test_attributes_win_over_misleading_names(self):
        """An x that says it is a latitude is one."""
        da = lat_lon(names=("x", "y"))
        found = find_axes(da)
        assert (found.y, found.x) == ("x", "y")

    def test_rotated_pole(self, rotated_field):
        found = find_axes(rotated_field)
        assert (found.y, found.x) == ("rlat", "rlon")
        grid = grid_of(rotated_field)
        assert not grid.x.periodic
        assert set(grid.coords) == {"rlat", "rlon", "lat", "lon"}

    def test_projected_in_metres(self):
        y, x = 1e3 * np.arange(6), -5e3 + 1e3 * np.arange(8)
        da = plane(y, x, names=("y", "x"), attrs=False)
        da.y.attrs.update(standard_name="projection_y_coordinate", units="m")
        da.x.attrs.update(standard_name="projection_x_coordinate", units="m")
        grid = grid_of(da)
        assert (grid.y.kind, grid.x.kind) == ("other", "other")
        assert not grid.x.periodic
        np.testing.assert_allclose(grid.area, 1.0)

    def test_time_is_told_from_the_horizontal(self):
        assert find_axes(toy_field(time=2)).time == "time"
        assert find_axes(lat_lon()).time is None

    @pytest.mark.parametrize(
        ("values", "told", "expected"),
        [
            (np.array(["2001-01-01", "2002-01-01"], "M8[ns]"), {}, "S"),
            ([264.0, 265.0], {"standard_name": "forecast_reference_time"}, "S"),
            (xr.date_range("2001", periods=2, calendar="noleap", use_cftime=True).values, {}, "S"),
            (["r1i1p1f1", "r2i1p1f1"], {}, None),
            ([1, 2], {}, None),
        ],
    )
    def test_times_under_another_name(self, values, told, expected):
        """A dim of dates, or of what says that it is initial times; where nothing else is time."""
        da = toy_field(time=2).rename(time="S").assign_coords(S=("S", values, told))
        assert find_axes(da).time == expected
        both = da.expand_dims(time=toy_field(time=3).time.values)
        assert find_axes(both).time == "time"

    def test_coordinates_under_another_name_than_the_dim(self):
        da = lat_lon()
        da = da.drop_vars(["lat", "lon"]).rename(lat="j", lon="i")
        da = da.assign_coords(
            lat=("j", np.arange(6) + 10.5, {"units": "degrees_north"}),
            lon=("i", np.arange(8) + 20.5, {"units": "degrees_east"}),
        )
        grid = grid_of(da)
        assert grid.dims == ("j", "i")
        assert (grid.y.kind, grid.x.kind) == ("latitude", "longitude")
        fine = da.sr.interpolate(2)
        np.testing.assert_allclose(fine.lat, 10.25 + 0.5 * np.arange(12))
        np.testing.assert_allclose(fine.lon, 20.25 + 0.5 * np.arange(16))

    @pytest.mark.parametrize("dims", [("a", "b"), ("time", "station"), ("lat", "b")])
    def test_none_found_is_an_error_that_lists_names(self, dims):
        da = xr.DataArray(
            np.zeros((3, 4)), dims=dims, coords={d: np.arange(n) for d, n in zip(dims, (3, 4), strict=True)}
        )
        with pytest.raises(GridError, match=r"No latitude and longitude found.*rename or annotate"):
            grid_of(da)

    def test_dimensions_without_coordinates_are_refused(self):
        with pytest.raises(GridError, match="no 1-D coordinate"):
            grid_of(xr.DataArray(np.zeros((3, 4)), dims=("lat", "lon")))


class TestOrder:
    @pytest.mark.parametrize("order", list(itertools.permutations(["time", "member", "lat", "lon"])))
    def test_any_order_of_dims_comes_back(self, order):
        da = toy_field(time=2, y=4, x=6).expand_dims(member=2).transpose(*order)
        grid = grid_of(da)
        canonical = grid.canonical(da)
        assert canonical.dims[-2:] == ("lat", "lon")
        xr.testing.assert_identical(grid.restored(canonical, da.dims), da.variable)

    @pytest.mark.parametrize("flips", [("lat",), ("lon",), ("lat", "lon")])
    def test_canonical_is_south_to_north_and_west_to_east(self, flips):
        da = lat_lon()
        turned = da.isel({dim: slice(None, None, -1) for dim in flips})
        grid = grid_of(turned)
        assert (np.diff(grid.y.centres) > 0).all()
        assert (np.diff(grid.x.centres) > 0).all()
        canonical = grid.canonical(turned)
        np.testing.assert_array_equal(canonical.values, da.values)
        xr.testing.assert_identical(grid.restored(canonical, turned.dims), turned.variable)
        np.testing.assert_array_equal(grid.coords["lat"], da.lat)

    @pytest.mark.parametrize("lat", [[1.0, 2, 2, 3], [1.0, 3, 2, 4], [1.0, 2, np.nan, 4]])
    def test_repeated_unsorted_or_missing_latitudes_are_refused(self, lat):
        with pytest.raises(GridError, match="'lat'"):
            grid_of(plane(lat, np.arange(4.0)))

    @pytest.mark.parametrize("lon", [[1.0, 2, 2, 3], [1.0, 3, 2, 4, 5], [0.0, 100, 50, 150, 120, 200]])
    def test_repeated_or_unsorted_longitudes_are_refused(self, lon):
        with pytest.raises(GridError, match="'lon'"):
            grid_of(plane(np.arange(4.0), lon))

    def test_latitudes_beyond_the_pole_are_refused(self):
        with pytest.raises(GridError, match="beyond the poles"):
            grid_of(plane([89.0, 90.0, 91.0], np.arange(4.0)))

    def test_a_single_row_is_refused(self):
        with pytest.raises(GridError, match="at least 2"):
            grid_of(plane([10.0], np.arange(4.0)))

    def test_text_coordinates_are_refused(self):
        da = lat_lon().assign_coords(lat=("lat", list("abcdef")))
        with pytest.raises(GridError, match="numeric"):
            grid_of(da)


class TestLongitudes:
    @pytest.mark.parametrize("west", [0.0, 0.5, -180.0, -179.5, 350.0, 179.5, -7.25, 360.0])
    @pytest.mark.parametrize("nx", [36, 360])
    @pytest.mark.parametrize("ceiling", [None, 180.0, 360.0])
    def test_the_globe_is_periodic_wherever_it_starts(self, west, nx, ceiling):
        lon = west + 360.0 / nx * np.arange(nx)
        if ceiling is not None:
            lon = (lon - ceiling) % 360.0 + ceiling - 360.0
        grid = grid_of(plane(np.arange(4.0), lon))
        assert grid.x.periodic
        np.testing.assert_allclose(np.diff(grid.x.centres), 360.0 / nx)
        np.testing.assert_allclose((grid.x.centres - lon + 180) % 360 - 180, 0, atol=1e-9)

    def test_float32_longitudes_of_a_fine_globe_are_periodic(self):
        lon = (0.1 * np.arange(3600)).astype(np.float32)
        assert grid_of(plane(np.arange(2.0), lon)).x.periodic

    @pytest.mark.parametrize("convention", ["0..360", "-180..180"])
    def test_europe_is_one_region(self, convention):
        lon = np.arange(350.0, 370.0, 2.0)
        lon = lon % 360 if convention == "0..360" else (lon + 180) % 360 - 180
        grid = grid_of(plane(np.arange(4.0), lon))
        assert not grid.x.periodic
        assert grid.parts() == [slice(0, 10)]
        np.testing.assert_allclose(np.diff(grid.x.centres), 2.0)

    def test_the_globe_less_a_column_is_not_periodic(self):
        assert not grid_of(plane(np.arange(4.0), np.arange(0.0, 359.0))).x.periodic

    def test_a_repeated_meridian_is_refused(self):
        with pytest.raises(GridError, match=r"full turn|repeated"):
            grid_of(plane(np.arange(4.0), np.arange(0.0, 361.0)))

    def test_a_turn_and_a_half_is_refused(self):
        with pytest.raises(GridError, match=r"full turn|repeated|monotonic"):
            grid_of(plane(np.arange(4.0), np.arange(0.0, 540.0)))

    def test_a_gap_is_refused_and_named(self):
        lon = np.delete(np.arange(0.0, 40.0), [11, 12, 13])
        with pytest.raises(GridError, match=r"gap between 10 and 14.*(Select|fill)"):
            grid_of(plane(np.arange(4.0), lon))

    def test_a_gap_cuts_a_region_in_parts(self):
        lon = np.delete(np.arange(0.0, 40.0), range(12, 16))
        grid = grid_of(plane(np.arange(4.0), lon), gaps=True)
        assert grid.parts() == [slice(0, 12), slice(12, 36)]
        assert not grid.x.periodic
        np.testing.assert_allclose(grid.x.upper - grid.x.lower, 1.0)  # a gap is no wide cell

    def test_the_globe_less_a_band_is_one_part(self):
        """It is turned so that the gap lies at its ends, and values go along."""
        lon = np.r_[np.arange(0.5, 180.0), np.arange(288.5, 360.0)]
        da = plane(np.arange(4.0), lon)
        grid = grid_of(da, gaps=True)
        assert grid.parts() == [slice(0, len(lon))]
        assert not grid.x.periodic
        assert grid.x.centres[0] == 288.5
        np.testing.assert_array_equal(grid.canonical(da.lon.broadcast_like(da))[0] % 360, grid.x.centres % 360)
        np.testing.assert_array_equal(grid.coords["lon"] % 360, grid.x.centres % 360)

    def test_a_gap_in_latitude_is_refused_even_where_gaps_are_allowed(self):
        with pytest.raises(GridError, match="gap"):
            grid_of(plane([1.0, 2.0, 3.0, 7.0, 8.0], np.arange(4.0)), gaps=True)

    def test_parts_must_each_be_divisible(self):
        lon = np.delete(np.arange(0.0, 40.0), range(11, 16))
        with pytest.raises(GridError, match="11 cells, which scale=4 does not divide"):
            grid_of(plane(np.arange(4.0), lon), gaps=True).coarsen(4)


class TestArea:
    @pytest.mark.parametrize("lat", [np.arange(-90, 91, 2.0), np.arange(-89.5, 90), np.arange(90, -91, -5.0)])
    def test_the_globe_is_a_sphere(self, lat):
        grid = grid_of(plane(lat, np.arange(0.0, 360.0, 5.0)))
        assert grid.y.lengths().sum() == pytest.approx(2.0, rel=1e-12)
        assert grid.y.lower.min() == -90
        assert grid.y.upper.max() == 90
        assert (grid.y.lengths() > 0).all()  # the pole row too, whose centre has cosine 0

    def test_against_the_formula(self):
        da = plane([-30.0, -10.0, 5.0, 20.0], [0.0, 2.0, 4.0])
        edges = np.deg2rad([-40.0, -20.0, -2.5, 12.5, 27.5])
        band = np.sin(edges[1:]) - np.sin(edges[:-1])
        expected = np.repeat(band[:, None] * 2.0, 3, axis=1)
        np.testing.assert_allclose(grid_of(da).area, expected / expected.mean(), rtol=1e-12)

    @pytest.mark.parametrize("order", [1, -1])
    def test_coarse_cells_are_the_sum_of_their_fine_cells(self, order):
        grid = grid_of(plane(np.linspace(-90, 90, 25)[::order][:24], np.arange(0.0, 360.0, 15.0)))
        fine, coarse = grid.area, grid.coarsen(4).area
        sums = fine.reshape(6, 4, 6, 4).sum(axis=(1, 3))
        np.testing.assert_allclose(coarse / coarse.sum(), sums / sums.sum(), rtol=1e-12)

    def test_gaussian_latitudes(self):
        """Uneven spacing works: cells reach half-way, and areas follow the quadrature weights."""
        nodes, weights = np.polynomial.legendre.leggauss(32)
        lat = np.rad2deg(np.arcsin(nodes))
        grid = grid_of(plane(lat, np.arange(0.0, 360.0, 5.625)))
        np.testing.assert_allclose(grid.y.lengths(), weights, rtol=0.06)
        fine = grid.coarsen(2).refine(2)
        assert (np.diff(fine.y.centres) > 0).all()
        np.testing.assert_allclose(fine.y.lengths().sum(), grid.y.lengths().sum(), rtol=1e-12)

    def test_given_bounds_are_taken(self):
        da = plane([0.0, 10.0, 20.0], np.arange(0.0, 30.0, 10.0))
        da.lat.attrs["bounds"] = "lat_bnds"
        pairs = np.array([[-2.0, 6.0], [6.0, 17.0], [17.0, 24.0]])
        source = da.to_dataset().assign(lat_bnds=(("lat", "bnds"), pairs))
        grid = grid_of(da, bounds=source)
        np.testing.assert_array_equal(grid.y.lower, pairs[:, 0])
        np.testing.assert_array_equal(grid.y.upper, pairs[:, 1])
        turned = source.isel(lat=slice(None, None, -1))
        np.testing.assert_array_equal(grid_of(turned.tas, bounds=turned).y.upper, pairs[:, 1])

    def test_bounds_that_miss_their_centres_are_refused(self):
        da = plane([0.0, 10.0, 20.0], np.arange(0.0, 30.0, 10.0))
        da.lat.attrs["bounds"] = "lat_bnds"
        source = da.to_dataset().assign(lat_bnds=(("lat", "bnds"), np.array([[5.0, 9], [9, 12], [12, 30]])))
        with pytest.raises(GridError, match="Bounds"):
            grid_of(da, bounds=source)


class TestScale:
    @pytest.mark.parametrize("scale", [1, 0, -2, 2.5, "4", None, True, np.float32(1.5), float("nan"), float("inf")])
    def test_nonsense_is_refused(self, scale):
        with pytest.raises(GridError, match="scale must be"):
            check_scale(scale)

    @pytest.mark.parametrize("scale", [2, np.int64(3), 4.0, np.float32(5)])
    def test_whole_numbers_become_ints(self, scale):
        assert type(check_scale(scale)) is int
        assert check_scale(scale) == scale

    def test_a_size_that_does_not_divide_names_the_crop(self):
        da = lat_lon(10, 8)
        with pytest.raises(GridError, match=r"10 cells, which scale=4 does not divide.*isel\(lat=slice\(0, 8\)\)"):
            da.sr.coarsen(4)
        da.isel(lat=slice(0, 8)).sr.coarsen(4)

    def test_a_domain_smaller_than_a_cell(self):
        with pytest.raises(GridError, match="larger domain"):
            lat_lon(3, 8).sr.coarsen(4)


class TestCoarserAndFiner:
    @given(st.integers(2, 6), st.booleans(), st.sampled_from([0.0, -180.0, 349.5, 10.0]), st.booleans())
    def test_refining_the_coarsened_gives_the_grid_back(self, scale, southward, west, periodic):
        lat = np.linspace(-60, 55, 4 * scale)
        nx = 6 * scale
        lon = (west + (360.0 / nx if periodic else 0.7) * np.arange(nx)) % 360.0
        grid = grid_of(plane(lat[::-1] if southward else lat, lon))
        again = grid.coarsen(scale).refine(scale)
        for axis, other in ((grid.y, again.y), (grid.x, again.x)):
            np.testing.assert_allclose(axis.centres, other.centres, rtol=0, atol=1e-9)
            np.testing.assert_allclose(axis.lower, other.lower, rtol=0, atol=1e-9)
            assert axis.periodic == other.periodic
        location = grid.locate(again)
        assert location is not None
        np.testing.assert_array_equal(location.columns, np.arange(nx))
        np.testing.assert_allclose((again.coords["lon"] - grid.coords["lon"].values + 180) % 360 - 180, 0, atol=1e-9)

    @pytest.mark.parametrize("scale", [2, 3, 4, 5, 6])
    def test_era5_coordinates_come_back_equal(self, scale):
        """Not within rounding: `.equals`, or a dataset made of both would lose rows in alignment."""
        fine = xsr.tutorial.open_dataset("era5_global_1deg").tas.isel(time=slice(0, 1)).load()
        coarse = fine.sr.coarsen(scale)
        again = coarse.sr.interpolate(scale, method="nearest", like=fine)
        for dim in ("lat", "lon"):
            assert again[dim].equals(fine[dim])
            assert again[dim].attrs == fine[dim].attrs
        guess = coarse.sr.interpolate(scale, method="nearest")
        for dim in ("lat", "lon"):
            np.testing.assert_allclose(guess[dim], fine[dim], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("west", [0.5, 350.5])
    @pytest.mark.parametrize("southward", [False, True])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_model_gives_the_stored_coordinates(self, make_model, west, southward, dtype):
        toy = make_model(west=west, scale=3)
        fine, coarse = toy.fine, toy.coarse
        if southward:
            fine, coarse = (da.isel(lat=slice(None, None, -1)) for da in (fine, coarse))
        got = coarse.astype(dtype, keep_attrs=True).sr.downscale(toy.model)
        for name in ("lat", "lon", "elevation", "land_fraction"):
            assert got[name].equals(fine[name]), name

    def test_a_crop_gets_the_stored_coordinates_of_the_crop(self, make_model):
        toy = make_model(scale=3)
        got = toy.coarse.isel(lat=slice(2, 9), lon=slice(5, 11)).sr.downscale(toy.model)
        wanted = toy.fine.isel(lat=slice(6, 27), lon=slice(15, 33))
        assert all(got[name].equals(wanted[name]) for name in ("lat", "lon", "elevation"))

    @pytest.mark.parametrize("dims", [("lat", "lon"), ("j", "i")])
    def test_a_model_answers_in_the_convention_of_the_data(self, make_model, dims):
        """Also where longitude is a coordinate of a dimension with another name."""
        toy = make_model(west=350.5, scale=3)
        coarse = toy.coarse.assign_coords(lon=(toy.coarse.lon + 180) % 360 - 180)
        expected = (toy.fine.lon.values + 180) % 360 - 180
        if dims != ("lat", "lon"):
            lines = {
                name: (dim, coarse[name].values, coarse[name].attrs)
                for name, dim in zip(("lat", "lon"), dims, strict=True)
            }
            coarse = coarse.drop_vars(["lat", "lon"]).rename(lat="j", lon="i").assign_coords(lines)
        np.testing.assert_allclose(coarse.sr.downscale(toy.model).lon, expected)

    @pytest.mark.parametrize("names", [("latitude", "longitude"), ("y", "x")])
    def test_names_of_the_data_are_kept(self, make_model, names):
        toy = make_model(scale=3)
        got = toy.coarse.rename(dict(zip(("lat", "lon"), names, strict=True))).sr.downscale(toy.model)
        assert got.dims == ("time", *names)
        assert set(got.coords) == {"time", *names, "elevation", "land_fraction"}
        np.testing.assert_array_equal(got.values, toy.coarse.sr.downscale(toy.model).values)

    def test_rotated_coordinates_come_back_equal(self, rotated_field):
        coarse = rotated_field.sr.coarsen(2)
        assert {"lat", "lon", "rlat", "rlon", "rotated_pole"} <= set(coarse.coords)
        again = coarse.sr.interpolate(2, like=rotated_field)
        for name in ("lat", "lon", "rlat", "rlon", "rotated_pole"):
            xr.testing.assert_identical(again[name].variable, rotated_field[name].variable)

    def test_rotated_coordinates_are_refined_across_the_date_line(self, rotated_field):
        """Unknown fine grid: 2-D coordinates are interpolated on the sphere, never through 0."""
        lon = rotated_field.lon.values
        assert lon.max() > 170
        assert lon.min() < -170
        got = rotated_field.sr.coarsen(2).sr.interpolate(2)
        assert great_circle(got, rotated_field).max() < 0.05
        assert np.abs(got.lon).max() <= 180

    def test_rotated_longitudes_keep_to_0_360(self, rotated_field):
        da = rotated_field.assign_coords(lon=rotated_field.lon % 360.0)
        got = da.sr.coarsen(2).sr.interpolate(2)
        assert got.lon.min() >= 0
        assert great_circle(got, rotated_field).max() < 0.05

    def test_over_the_pole(self):
        """A polar stereographic grid around the north pole."""
        x = 1e5 * (np.arange(8) - 3.5)
        east, north = np.meshgrid(x, x)
        lat = 90 - np.rad2deg(2 * np.arctan(np.hypot(east, north) / (2 * 6.371e6)))
        lon = np.rad2deg(np.arctan2(east, -north))
        da = plane(x, x, names=("y", "x"), attrs=False)
        da = da.assign_coords(
            lat=(("y", "x"), lat, {"standard_name": "latitude"}),
            lon=(("y", "x"), lon, {"standard_name": "longitude"}),
        )
        got = da.sr.coarsen(2).sr.interpolate(2)
        assert great_circle(got, da).max() < 0.1
        assert got.lat.max() <= 90

    def test_no_coordinate_of_the_fine_grid_is_left_on_the_coarse_one(self, rotated_field):
        coarse = rotated_field.sr.coarsen(4)
        assert coarse.lat.shape == (3, 4)
        assert coarse.sizes == {"time": 2, "rlat": 3, "rlon": 4}


def great_circle(a: xr.DataArray, b: xr.DataArray) -> np.ndarray:
    """Return distances in degrees between the 2-D points of two fields."""
    points = []
    for da in (a, b):
        lat, lon = np.deg2rad(da.lat.values), np.deg2rad(da.lon.values)
        points.append(np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]))
    return np.rad2deg(2 * np.arcsin(np.clip(np.linalg.norm(points[0] - points[1], axis=0) / 2, 0, 1)))


class TestLocate:
    globe = plane(np.arange(-40.0, 41.0, 5.0), np.arange(0.0, 360.0, 10.0))

    def columns(self, lon, stored=None, lat=None):
        lat = np.arange(-20.0, 21.0, 5.0) if lat is None else lat
        found = grid_of(self.globe if stored is None else stored).locate(grid_of(plane(lat, lon)))
        return None if found is None else (found.rows.tolist(), found.columns.tolist())

    def test_a_crop(self):
        assert self.columns([20.0, 30.0, 40.0]) == (list(range(4, 13)), [2, 3, 4])

    @pytest.mark.parametrize("turn", [-720.0, -360.0, 360.0])
    def test_modulo_a_turn(self, turn):
        assert self.columns(np.array([20.0, 30.0, 40.0]) + turn) == (list(range(4, 13)), [2, 3, 4])

    def test_across_the_seam(self):
        assert self.columns([-20.0, -10.0, 0.0, 10.0])[1] == [34, 35, 0, 1]
        assert self.columns([340.0, 350.0, 0.0, 10.0])[1] == [34, 35, 0, 1]

    def test_the_whole_globe_from_elsewhere(self):
        lon = np.arange(-180.0, 180.0, 10.0)
        assert self.columns(lon)[1] == [*range(18, 36), *range(18)]

    def test_a_crop_across_the_seam_increases(self):
        grid = grid_of(self.globe)
        crop = grid.crop(grid.locate(grid_of(plane(np.arange(-20.0, 21, 5), [340.0, 350.0, 0.0, 10.0]))))
        np.testing.assert_array_equal(crop.x.centres, [340.0, 350.0, 360.0, 370.0])
        np.testing.assert_array_equal(crop.coords["lon"], [340.0, 350.0, 0.0, 10.0])
        assert not crop.x.periodic

    @pytest.mark.parametrize("lon", [[25.0, 35.0], [20.0, 31.0], [20.0, 40.0], [20.0, 25.0, 30.0]])
    def test_other_cells_are_not_there(self, lon):
        assert self.columns(lon) is None

    def test_no_wrap_on_a_region(self):
        region = self.globe.isel(lon=slice(0, 20))
        assert self.columns([180.0, 190.0], region) == (list(range(4, 13)), [18, 19])
        assert self.columns([190.0, 200.0], region) is None
        assert self.columns([-10.0, 0.0], region) is None

    def test_rows_outside(self):
        assert self.columns([20.0, 30.0], lat=[35.0, 40.0]) == ([15, 16], [2, 3])
        assert self.columns([20.0, 30.0], lat=[40.0, 45.0]) is None

    def test_tolerance_is_a_thousandth_of_the_spacing(self):
        assert self.columns(np.array([20.0, 30.0]) + 0.009) is not None
        assert self.columns(np.array([20.0, 30.0]) + 0.02) is None

    def test_across_a_gap_is_not_there(self):
        lon = np.r_[0.0:50:10, 80.0:130:10]
        stored = grid_of(plane(np.arange(-20.0, 21, 5), lon), gaps=True)
        inside = grid_of(plane(np.arange(-20.0, 21, 5), [80.0, 90.0]))
        assert stored.locate(inside).columns.tolist() == [5, 6]
        assert stored.locate(grid_of(plane(np.arange(-20.0, 21, 5), [40.0, 50.0]))) is None

    def test_metres_are_no_degrees(self):
        metres = plane(np.arange(-20.0, 21, 5), [20.0, 30.0], names=("y", "x"), attrs=False)
        assert grid_of(self.globe).locate(grid_of(metres)) is None
