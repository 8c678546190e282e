"""Pairs go by label: members in whatever order, both or neither with coordinates, never by position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields import matching, pairs
from xsuperres.fields.field import Field
from xsuperres.testing import toy_field


def matched(coarse, fine):
    """Return the arrays of matched targets."""
    return [field.array for field in matching.matched(Field(coarse), [Field(da) for da in fine])]


def paired(coarse, fine, scale, **options):
    """Return the arrays of paired fields."""
    pair = pairs.paired([Field(da) for da in coarse], [Field(da) for da in fine], scale, **options)
    return replace(pair, coarse=tuple(f.array for f in pair.coarse), fine=tuple(f.array for f in pair.fine))


@pytest.fixture(scope="module")
def field() -> xr.DataArray:
    return toy_field(time=3, y=4, x=4)


def ensemble(field: xr.DataArray, labels) -> xr.DataArray:
    """Return members whose values tell which they are."""
    return xr.concat([field + label for label in labels], xr.IndexVariable("member", labels))


def test_members_take_the_order_of_the_coarse_ones(field):
    coarse, fine = ensemble(field, [0, 1, 2]), ensemble(field, [2, 0, 1]).transpose("time", "member", "lat", "lon")
    (found,) = matched(coarse, [fine])
    assert found.dims == fine.dims, "which order dims come in is no matter"
    np.testing.assert_array_equal(found.transpose(*coarse.dims), coarse)
    (same,) = matched(coarse, [coarse])
    assert same is coarse


def test_all_targets_are_ordered(field):
    fine = ensemble(field, [1, 0])
    first, second = matched(ensemble(field, [0, 1]), [fine, fine + 5])
    np.testing.assert_array_equal(second, first + 5)
    assert first.member.values.tolist() == [0, 1]


def test_lazy_targets_stay_lazy(field):
    (found,) = matched(ensemble(field, [0, 1]), [ensemble(field, [1, 0]).chunk()])
    assert found.chunks is not None


def test_a_target_without_members_is_the_truth_of_each(field):
    (found,) = matched(ensemble(field, [0, 1]), [field])
    assert found is field


@pytest.mark.parametrize("labelled", [True, False])
def test_other_names_of_horizontal_and_time_dims(field, labelled):
    other = field.rename(lat="latitude", lon="longitude", time="valid_time")
    coarse = field.sr.coarsen(2)
    pair = (coarse, other) if labelled else (coarse.drop_vars("time"), other.drop_vars("valid_time"))
    (found,) = paired([pair[0]], [pair[1]], 2).fine
    assert found.dims == ("time", "latitude", "longitude")
    np.testing.assert_array_equal(found, field)


@pytest.mark.parametrize("labels", [[1, 2], [0], [0, 1, 2]])
def test_other_members_are_refused(field, labels):
    with pytest.raises(DataError, match=rf"other values of 'member': expected \[0, 1\], got \[{labels[0]}"):
        matched(ensemble(field, [0, 1]), [ensemble(field, labels)])


def test_a_dim_that_the_coarse_data_lack(field):
    with pytest.raises(DataError, match=r"dims \['member'\] that the coarse data lack"):
        matched(field, [ensemble(field, [0, 1])])
    with pytest.raises(DataError, match=r"dims \['time'\] that the coarse data lack"):
        matched(field.isel(time=0, drop=True), [field])


def test_times_are_of_both_or_of_neither(field):
    bare = field.drop_vars("time")
    with pytest.raises(DataError, match="times along 'time', the target has none"):
        matched(field, [field.isel(time=0)])
    with pytest.raises(DataError, match="target has coordinates and the coarse data have none"):
        paired([bare.sr.coarsen(2)], [field], 2)
    with pytest.raises(DataError, match="coarse data have coordinates and the target has none"):
        paired([field.sr.coarsen(2)], [bare], 2)
    with pytest.raises(DataError, match="3 steps along 'time', the target 2"):
        paired([bare.sr.coarsen(2)], [bare.isel(time=slice(0, 2))], 2)
    assert paired([bare.sr.coarsen(2)], [bare], 2).fine[0].sizes == bare.sizes


def test_members_without_labels(field):
    one, other = (xr.concat([field] * count, "member") for count in (2, 3))
    with pytest.raises(DataError, match="2 steps along 'member', the target 3"):
        matched(one, [other])
    with pytest.raises(DataError, match="target has coordinates and the coarse data have none"):
        matched(one, [ensemble(field, [0, 1])])
    assert matched(one, [one])[0] is one


@pytest.mark.parametrize("which", ["coarse data repeat", "target repeats"])
def test_labels_that_come_twice(field, which):
    twice = field.isel(time=[0, 1, 1, 2])
    pair = (twice, field) if "coarse" in which else (field, twice)
    with pytest.raises(DataError, match=rf"{which} values of 'time', the first 2001-01-02.*drop_duplicates\('time'\)"):
        paired([pair[0].sr.coarsen(2)], [pair[1]], 2)
    members = ensemble(field, [0, 1]), ensemble(field, [0, 0])
    with pytest.raises(DataError, match=rf"{which} values of 'member', the first 0"):
        matched(*((members[1], [members[0]]) if "coarse" in which else (members[0], [members[1]])))
