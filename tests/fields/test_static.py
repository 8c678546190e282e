"""Static fields: found, checked, brought to a grid, and their anomalies."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import StaticFieldError, XSuperResWarning
from xsuperres.fields.grid import grid_of
from xsuperres.fields.resample import coarsen_array, interpolate_array
from xsuperres.fields.static import (
    ELEVATION,
    LAND,
    anomalies,
    find_static,
    fit_static_scaling,
    named,
    static_channels,
)
from xsuperres.testing import toy_field


@pytest.fixture
def fine():
    return toy_field(time=1, y=12, x=16)


def planes_of(fine: xr.DataArray) -> xr.Dataset:
    return fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()


def find(fine: xr.DataArray, static=None) -> xr.Dataset:
    return find_static(fine, grid_of(fine), static)


class TestFinding:
    def test_by_standard_name_on_the_data(self, fine):
        renamed = fine.rename(elevation="zs", land_fraction="cover")
        assert list(find(renamed)) == ["zs", "cover"]

    def test_by_usual_name_without_attributes(self, fine):
        bare = fine.drop_vars(["elevation", "land_fraction"]).assign_coords(orog=(("lat", "lon"), np.ones((12, 16))))
        assert list(find(bare)) == ["orog"]

    def test_other_2d_coordinates_are_no_static_fields(self, fine):
        extra = fine.assign_coords(
            cell_id=(("lat", "lon"), np.arange(192).reshape(12, 16)),
            along=("lat", np.arange(12)),
            region=(("lat", "lon"), np.full((12, 16), "sea")),
        )
        assert list(find(extra)) == ["elevation", "land_fraction"]
        assert list(find(extra, ["cell_id"])) == ["cell_id"]

    def test_2d_latitudes_are_no_static_fields(self, rotated_field):
        assert list(find(rotated_field)) == []

    def test_none_is_fine(self, fine):
        assert list(find(fine.drop_vars(["elevation", "land_fraction"]))) == []

    def test_a_list_selects(self, fine):
        assert list(find(fine, ["land_fraction"])) == ["land_fraction"]
        assert list(find(fine, "elevation")) == ["elevation"]
        assert list(find(fine, [])) == []

    def test_values_are_canonical_in_their_own_dtype(self, fine):
        turned = fine.isel(lat=slice(None, None, -1)).transpose("lon", "lat", "time")
        expected, got = find(fine), find(turned)
        assert got.elevation.dims == ("lat", "lon")
        assert got.elevation.dtype == fine.elevation.dtype == np.float64
        assert find(fine.assign_coords(elevation=fine.elevation.astype(int))).elevation.dtype == int
        np.testing.assert_array_equal(got.elevation, expected.elevation)

    def test_a_larger_dataset_is_cut(self, fine):
        part = fine.isel(lat=slice(4, 8), lon=slice(2, 10)).drop_vars(["elevation", "land_fraction"])
        got = find(part, planes_of(fine))
        np.testing.assert_array_equal(got.elevation, fine.elevation[4:8, 2:10])

    def test_a_dataset_in_another_orientation_and_convention(self, fine):
        other = planes_of(fine).isel(lat=slice(None, None, -1)).transpose("lon", "lat")
        other = other.assign_coords(lon=other.lon - 360.0).rename(lat="latitude", lon="longitude")
        np.testing.assert_array_equal(find(fine, other).elevation, find(fine).elevation)

    def test_a_data_array_of_its_own(self, fine):
        assert list(find(fine, planes_of(fine).elevation)) == ["elevation"]

    def test_one_time_is_squeezed(self, fine):
        got = find(fine, planes_of(fine).expand_dims(time=1))
        np.testing.assert_array_equal(got.elevation, find(fine).elevation)

    def test_bounds_are_no_static_fields(self, fine):
        static = planes_of(fine).assign(lat_bnds=(("lat", "bnds"), np.zeros((12, 2))))
        assert list(find(fine, static)) == ["elevation", "land_fraction"]

    def test_booleans_and_integers_count(self, fine):
        static = planes_of(fine)[["land_fraction"]] > 0.5
        assert set(np.unique(find(fine, static).land_fraction)) == {0.0, 1.0}


class TestErrors:
    def test_missing_names(self, fine):
        with pytest.raises(StaticFieldError, match=r"\['slope'\].*elevation.*assign_coords"):
            find(fine, ["elevation", "slope"])

    def test_another_grid(self, fine):
        static = planes_of(fine)
        with pytest.raises(StaticFieldError, match="another grid"):
            find(fine, static.assign_coords(lon=static.lon + 0.5))
        with pytest.raises(StaticFieldError, match="another grid"):
            find(fine, static.isel(lon=slice(1, None)))  # partly outside is outside

    def test_missing_values_are_counted(self, fine):
        static = planes_of(fine)
        static["elevation"] = static.elevation.where(static.lat > static.lat[2])
        with pytest.raises(StaticFieldError, match=r"'elevation' is NaN on 25 % of the domain.*fillna"):
            find(fine, static)

    def test_missing_values_elsewhere_do_not_matter(self, fine):
        static = planes_of(fine)
        static["elevation"] = static.elevation.where(static.lat > static.lat[2])
        part = fine.isel(lat=slice(3, None))
        assert list(find(part, static)) == ["elevation", "land_fraction"]

    def test_extra_dims(self, fine):
        with pytest.raises(StaticFieldError, match=r"two horizontal dims.*isel"):
            find(fine, planes_of(fine).expand_dims(time=3))

    def test_text(self, fine):
        static = planes_of(fine).assign(soil=(("lat", "lon"), np.full((12, 16), "clay")))
        with pytest.raises(StaticFieldError, match="numeric"):
            find(fine, static)

    def test_a_constant_field_warns(self, fine):
        static = find(fine, (0 * planes_of(fine)[["elevation"]] + 100.0))
        grid = grid_of(fine)
        with pytest.warns(XSuperResWarning, match="'elevation' is constant"):
            scaling = fit_static_scaling(static, anomalies(static, grid, 2), grid.area)
        channels = static_channels(static, anomalies(static, grid, 2), scaling)
        assert np.isfinite(channels).all()
        np.testing.assert_allclose(channels, 0, atol=1e-5)


class TestAnomalies:
    @pytest.mark.parametrize("periodic", [False, True])
    def test_are_fine_minus_interpolated_coarse(self, periodic):
        fine = toy_field(time=1, y=12, x=16, periodic=periodic)
        grid, static = grid_of(fine), find(fine)
        got = anomalies(static, grid, 4)
        for plane, name in zip(got, static, strict=True):
            values = static[name].values.astype(np.float64)
            coarse = coarsen_array(values, grid.area, 4)
            np.testing.assert_allclose(plane, values - interpolate_array(coarse, 4, periodic=periodic), atol=1e-9)

    def test_of_a_plane_field_vanish_inside(self):
        fine = toy_field(time=1, y=16, x=20).drop_vars(["elevation", "land_fraction"])
        fine = fine.assign_coords(lat=fine.lat.copy(data=np.arange(16) * 1e-3))  # so near the equator areas are equal
        fine = fine.assign_coords(orog=fine.lat * 1e3 + 3 * fine.lon)
        got = anomalies(find(fine), grid_of(fine), 2)
        np.testing.assert_allclose(got[0, 4:-4, 4:-4], 0, atol=1e-5)
        assert np.abs(got).max() > 0.1  # at the edges it does not

    def test_do_not_cross_a_gap(self):
        """Each part is coarsened and interpolated by itself, as if the other were not there."""
        fine = toy_field(time=1, y=8, x=24)
        holed = fine.isel(lon=np.r_[0:8, 16:24])
        grid = grid_of(holed, gaps=True)
        got = anomalies(find_static(holed, grid, None), grid, 4)
        for part, columns in ((slice(0, 8), slice(0, 8)), (slice(8, 16), slice(16, 24))):
            alone = fine.isel(lon=columns)
            np.testing.assert_allclose(got[..., part], anomalies(find(alone), grid_of(alone), 4), rtol=0, atol=1e-9)

    def test_without_static_fields(self, fine):
        bare = fine.drop_vars(["elevation", "land_fraction"])
        got = anomalies(find(bare), grid_of(bare), 2)
        assert got.shape == (0, 12, 16)
        scaling = fit_static_scaling(find(bare), got, grid_of(bare).area)
        assert static_channels(find(bare), got, scaling).shape == (0, 12, 16)


def test_channels_have_unit_variance(fine):
    grid, static = grid_of(fine), find(fine)
    anomaly = anomalies(static, grid, 2)
    channels = static_channels(static, anomaly, fit_static_scaling(static, anomaly, grid.area))
    assert channels.shape == (4, 12, 16)
    assert channels.dtype == np.float32
    weight = grid.area / grid.area.sum()
    np.testing.assert_allclose((channels**2 * weight).sum(axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose((channels[2:] * weight).sum(axis=(1, 2)), 0, atol=1e-5)


def test_named(fine):
    static = find(fine)
    assert named(static, ELEVATION).name == "elevation"
    assert named(static, LAND).name == "land_fraction"
    assert named(static, ["soil_type"]) is None
    bare = static.copy()
    bare.elevation.attrs.clear()
    assert named(bare.rename(elevation="orog"), ELEVATION).name == "orog"
