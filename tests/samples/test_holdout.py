"""What validates: blocks at the ends of equal stretches of time, a period, or a stretch of the domain."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import ConfigError, DataError
from xsuperres.fields.field import Field
from xsuperres.fields.grid import grid_of
from xsuperres.samples.holdout import cut_band, hold_out, whole_cells
from xsuperres.testing import toy_field


def held(da: xr.DataArray, validation, *, scale: int = 2, halo: int = 3):
    return hold_out(Field(da), grid_of(da), validation, scale=scale, halo=halo)


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return (start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def times(count: int) -> xr.DataArray:
    return toy_field(time=count, y=4, x=6)


@pytest.mark.parametrize("count", [2, 3, 7, 10, 16, 40, 100, 365])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.5, 0.9])
def test_a_fraction_is_held_out_in_few_blocks(count, fraction):
    found = held(times(count), fraction)
    np.testing.assert_array_equal(found.training, ~found.validation)
    assert found.validation.sum() == min(max(1, round(fraction * count)), count - 1)
    assert 1 <= len(runs(found.validation)) <= 4, "random steps would be the neighbours of training steps"
    assert found.validation[-1], "the end of the record is held out"
    assert fraction > 0.5 or not found.validation[0]
    assert (found.weight == 1).all() and (found.validation_weight == 1).all()
    assert "time" in found.kind


def test_blocks_lie_at_the_ends_of_equal_stretches():
    found = held(times(100), 0.2)
    assert runs(found.validation) == [(20, 25), (45, 50), (70, 75), (95, 100)]
    assert runs(held(times(10), 0.2).validation) == [(8, 10)]
    assert runs(held(times(40), 0.2).validation) == [(16, 20), (36, 40)]


def test_every_member_of_a_held_out_time_is_held_out():
    da = times(10).expand_dims(member=3, axis=1)
    found = held(da, 0.2)
    np.testing.assert_array_equal(found.validation.reshape(10, 3), np.repeat([[False]] * 8 + [[True]] * 2, 3, axis=1))
    np.testing.assert_array_equal(held(da.transpose("member", "lat", "time", "lon"), 0.2).validation, found.validation)


@pytest.mark.parametrize("calendar", [None, "360_day"])
def test_a_time_that_repeats_is_held_out_wherever_it_is(calendar):
    """Forecasts of many initial times share their valid times: none is trained on and validated with."""
    days = xr.date_range("2001-01-01", periods=40, freq="D", calendar=calendar or "standard", use_cftime=bool(calendar))
    where = (np.arange(30)[:, None] + np.arange(10)).ravel()
    da = times(len(where)).assign_coords(time=np.asarray(days)[where])
    found = held(da, 0.2)
    trained, validated = ({*where[mask].tolist()} for mask in (found.training, found.validation))
    assert not trained & validated and len(trained | validated) == 39
    inside = np.isin(np.arange(39), list(validated))
    assert runs(inside) == [(16, 20), (35, 39)]


def test_samples_are_counted_along_time_else_along_the_first_dim():
    da = times(4).expand_dims(member=3)
    assert Field(da).sample_dim == "time"
    other = times(4).rename(time="member").drop_vars("member")
    assert Field(other).sample_dim == "member"
    single = times(4).isel(time=0)
    assert Field(single).sample_dim is None
    assert held(other, 0.25).validation.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        (slice("2001-01-03", "2001-01-04"), [2, 3]),
        (slice("2001-01-08", None), [7, 8, 9]),
        (slice(None, "2001-01-01"), [0]),
        (slice("2001-01-09", "2050"), [8, 9]),
    ],
)
def test_a_period(period, expected):
    found = held(times(10), period)
    assert np.flatnonzero(found.validation).tolist() == expected
    np.testing.assert_array_equal(found.training, ~found.validation)
    assert "period" in found.kind


def test_a_period_in_a_360_day_calendar():
    dates = xr.date_range("1990-01-30", periods=6, freq="30D", calendar="360_day", use_cftime=True)
    found = held(times(6).assign_coords(time=dates), slice("1990-02-30", "1990-04-30"))
    assert np.flatnonzero(found.validation).tolist() == [1, 2, 3]


def test_a_period_of_times_that_are_not_sorted():
    """Seasons joined one after the other: a period is a set of times, whatever their order."""
    da = times(6).isel(time=[3, 4, 5, 0, 1, 2])
    try:
        found = held(da, slice("2001-01-01", "2001-01-02"))
    except (ConfigError, DataError):
        return
    assert np.flatnonzero(found.validation).tolist() == [3, 4]


@pytest.mark.parametrize("along", ["x", "y"])
def test_a_stretch_of_the_longer_axis(along):
    da = toy_field(time=3, y=12, x=80) if along == "x" else toy_field(time=3, y=80, x=12)
    found = held(da, "space", scale=2, halo=5)
    lines = [plane[0] if along == "x" else plane[:, 0] for plane in (found.weight, found.validation_weight)]
    assert all(
        (plane == (line if along == "x" else line[:, None])).all()
        for plane, line in zip((found.weight, found.validation_weight), lines, strict=True)
    )
    training, validation = (line.reshape(40, 2) for line in lines)
    assert (training[:, 0] == training[:, 1]).all() and (validation[:, 0] == validation[:, 1]).all()
    assert runs(validation[:, 0] > 0) == [(34, 40)], "15 % of 40 coarse cells"
    assert runs(training[:, 0] > 0) == [(0, 29)], "5 coarse cells lie between"
    assert found.training.all() and found.validation.all() and found.training.size == 3
    assert ("lon" if along == "x" else "lat") in found.kind


@pytest.mark.parametrize("halo", [0, 1, 5])
def test_a_stretch_of_a_globe_is_apart_on_both_sides(halo):
    da = toy_field(time=2, y=12, x=80, periodic=True)
    found = held(da, "space", halo=halo)
    training, validation = (plane[0].reshape(40, 2)[:, 0] > 0 for plane in (found.weight, found.validation_weight))
    distance = np.abs(np.arange(40)[:, None] - np.arange(40)[None, :])
    distance = np.minimum(distance, 40 - distance)[np.ix_(training, validation)]
    assert distance.min() == halo + 1
    assert not (training & validation).any()


@pytest.mark.parametrize("validation", [None, False])
def test_nothing_is_held_out(validation):
    found = held(times(5), validation)
    assert found.training.all() and not found.validation.any() and found.kind == "none"


@pytest.mark.parametrize("kind", [xr.DataArray, xr.Dataset])
def test_other_data(kind):
    other = times(2) if kind is xr.DataArray else times(2).to_dataset()
    found = held(times(5), other)
    assert not found.validation.any() and found.training.all() and found.kind == "other data"


@pytest.mark.parametrize("validation", ["spce", 0, 1, 1.5, -0.2, True, [0.2], np.nan, {"time": 3}])
def test_what_is_no_validation_is_refused(validation):
    with pytest.raises(ConfigError, match="validation must be a fraction"):
        held(times(5), validation)


@pytest.mark.parametrize("validation", [slice("1999", "2000"), slice("2001", "2001")])
def test_a_period_of_nothing_or_of_everything_is_refused(validation):
    with pytest.raises(DataError, match="of 5 steps along 'time'"):
        held(times(5), validation)


def test_a_period_without_times_is_refused():
    with pytest.raises(ConfigError, match="needs a time coordinate"):
        held(times(5).drop_vars("time"), slice(0, 2))
    with pytest.raises(ConfigError, match="needs a time coordinate"):
        held(times(5).isel(time=0, drop=True), slice(0, 2))


def test_no_time_at_all_is_refused():
    with pytest.raises(DataError, match="length 0"):
        held(times(5).isel(time=slice(0, 0)), 0.2)


def test_one_step_cannot_be_split():
    with pytest.raises(DataError, match="validation='space', or validation=None"):
        held(times(1), 0.2)


def test_a_domain_too_narrow_for_a_stretch():
    with pytest.raises(DataError, match="wider domain"):
        held(toy_field(time=2, y=8, x=16), "space", halo=6)


# bands and whole cells


@pytest.mark.parametrize("turn", [0, 180])
@pytest.mark.parametrize("names", [("lat", "lon"), ("latitude", "longitude"), ("rlat", "rlon")])
@pytest.mark.parametrize("southward", [False, True])
def test_a_band_is_cut_whatever_the_names_and_the_convention(turn, names, southward):
    globe = toy_field(time=1, y=4, x=36, periodic=True).rename(lat=names[0], lon=names[1])
    lon = globe[names[1]]
    globe = globe.assign_coords({names[1]: ((lon + turn) % 360 - turn).assign_attrs(lon.attrs)})
    globe = globe.isel({names[0]: slice(None, None, -1)}) if southward else globe
    rest, band = cut_band(globe, 170, 230)
    inside = (band[names[1]].values - 170) % 360
    assert band.sizes[names[1]] == 6 and inside.max() < 60
    assert rest.sizes[names[1]] == 30 and ((rest[names[1]].values - 170) % 360).min() >= 60
    np.testing.assert_array_equal(band, globe.sel({names[1]: band[names[1]]}))


def test_a_band_on_a_projected_axis():
    plane = toy_field(time=1, y=4, x=8).drop_vars(["elevation", "land_fraction"]).rename(lat="y", lon="x")
    plane = plane.drop_vars(["x", "y"]).assign_coords(x=np.arange(8) * 25e3, y=np.arange(4) * 25e3)
    rest, band = cut_band(plane, 50e3, 100e3)
    assert band.x.values.tolist() == [50e3, 75e3] and rest.sizes["x"] == 6


@pytest.mark.parametrize("band", [(0, 0), (300, 310), (0, 360)])
def test_a_band_without_or_with_all_columns(band):
    with pytest.raises(DataError, match="columns of 'lon'"):
        cut_band(toy_field(time=1, y=4, x=8), *band)


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@pytest.mark.parametrize("southward", [False, True])
def test_whole_cells_of_connected_stretches(scale, southward):
    """What is left can be trained on at that scale, and only the end of each stretch is lost."""
    globe = toy_field(time=1, y=23, x=72, periodic=True)
    rest, band = cut_band(globe.isel(lat=slice(None, None, -1)) if southward else globe, 93, 157)
    for part in (rest, band):
        kept = whole_cells(part, scale)
        grid_of(kept, gaps=True).coarsen(scale)
        assert kept.sizes["lat"] == 23 // scale * scale
        stretches = grid_of(part, gaps=True).parts()
        assert kept.sizes["lon"] == sum((p.stop - p.start) // scale * scale for p in stretches)
        np.testing.assert_array_equal(kept, part.sel(lat=kept.lat, lon=kept.lon))
