"""A field is understood once, and what is labelled like it has its orientation, its dims and its coordinates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError
from xsuperres.fields import field as module
from xsuperres.fields.field import Field, check_together
from xsuperres.testing import toy_field


@pytest.fixture
def counted(monkeypatch):
    """Count how often axes and grids are derived."""
    counts = {"find_axes": 0, "grid_along": 0}

    def counting(name):
        true = getattr(module, name)

        def count(*args, **options):
            counts[name] += 1
            return true(*args, **options)

        return count

    for name in counts:
        monkeypatch.setattr(module, name, counting(name))
    return counts


def test_nothing_is_derived_before_it_is_asked_for_and_then_once(counted):
    field = Field(toy_field(time=2, y=4, x=6))
    assert field.name == "tas" and field.units == "K" and not field.lazy
    assert counted == {"find_axes": 0, "grid_along": 0}
    for _ in range(3):
        assert field.axes.time == "time" and field.grid.shape == (4, 6) and field.lead == ["time"]
        assert field.times.along == "time"
    assert counted == {"find_axes": 1, "grid_along": 1}


def test_other_arrays_on_the_same_cells_share_the_grid(counted):
    field = Field(toy_field(time=4, y=4, x=6))
    first = field.with_array(field.array.isel(time=[0]))
    renamed = first.renamed("time", "valid_time")
    assert renamed.grid is field.grid and first.grid is field.grid, "whichever is asked first"
    assert renamed.axes.time == "valid_time" and renamed.array.dims == ("valid_time", "lat", "lon")
    assert renamed.times.along == "valid_time" and first.times.along == "time"
    assert counted == {"find_axes": 1, "grid_along": 1}


def test_integers_are_no_field():
    with pytest.raises(DataError, match="integer dtype"):
        Field.of(toy_field(time=1, y=4, x=6).astype("int16"))


@pytest.mark.parametrize("order", list(itertools.permutations(["time", "lat", "lon"])))
@pytest.mark.parametrize("flips", [(), ("lat",), ("lat", "lon")])
def test_labels_are_put_back_as_they_were(order, flips):
    """Canonical values, labelled with the field's own grid, are the field again: values, coordinates, orientation."""
    da = toy_field(time=2, y=4, x=6).transpose(*order).isel({dim: slice(None, None, -1) for dim in flips})
    field = Field(da)
    again = field.labelled(field.canonical().data, field.grid, note="nothing was done")
    history = again.array.attrs.pop("history")
    assert history.endswith("nothing was done")
    xr.testing.assert_identical(again.array, da)
    assert [again.array[name].dims for name in da.coords] == [da[name].dims for name in da.coords]
    np.testing.assert_array_equal(again.canonical().values, field.canonical().values)


def test_the_grid_of_a_result_is_the_one_that_its_coordinates_tell():
    field = Field(toy_field(time=1, y=8, x=12).isel(lat=slice(None, None, -1)))
    coarse = field.grid.coarsen(2)
    result = field.labelled(np.zeros((1, 4, 6), np.float32), coarse, note="coarse")
    told = Field(result.array).grid
    np.testing.assert_allclose(result.grid.y.centres, told.y.centres)
    np.testing.assert_allclose(result.grid.y.lower, told.y.lower)
    assert result.grid.y.flipped and told.y.flipped
    assert result.grid.locate(told) is not None and told.locate(result.grid) is not None


def test_further_planes_do_not_replace_coordinates_of_the_grid_or_the_field():
    field = Field(toy_field(time=1, y=4, x=6))
    plane = xr.Variable(("lat", "lon"), np.ones((4, 6)))
    result = field.labelled(field.array.values, field.grid, note="", planes={"roughness": plane, "elevation": plane})
    assert (result.array.roughness == 1).all()
    np.testing.assert_array_equal(result.array.elevation, field.array.elevation)


def test_variables_that_lie_elsewhere_do_not_go_together():
    field = toy_field(time=2, y=4, x=6)
    check_together([Field(field), Field(field.transpose("lon", "time", "lat") + 1)])
    with pytest.raises(DataError, match="different coordinates"):
        check_together([Field(field), Field(field.assign_coords(lat=field.lat + 0.1))])
