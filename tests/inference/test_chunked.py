"""`downscale`: tiles of memory, chunks, masks, static fields of other domains, coordinates."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import (
    ConfigError,
    DataError,
    GridError,
    NoModelError,
    StaticFieldError,
    UnitsError,
    XSuperResWarning,
)
from xsuperres.inference import tile
from xsuperres.testing import toy_field


def statics_of(field: xr.DataArray) -> xr.Dataset:
    return field.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()


@pytest.fixture
def elsewhere():
    """A field on a domain that no model was trained on."""
    field = toy_field(time=2, y=20, x=28, seed=6)
    return field.assign_coords(lon=field.lon + 60)


# tiles and chunks


@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_tiles_of_the_memory_budget_equal_the_whole(make_model, check, monkeypatch, upsampling, periodic, lazy):
    """Also where one dask chunk is far larger than the budget."""
    toy = make_model(upsampling=upsampling, coarse=(24, 96), periodic=periodic)
    whole = toy.coarse.sr.downscale(toy.model)
    calls, true_apply = [], tile.apply

    def spy(prepared, frames, **options):
        calls.append(frames.values.shape)
        return true_apply(prepared, frames, **options)

    monkeypatch.setattr(tile, "apply", spy)
    with xsr.set_options(memory_budget=2**20):
        tiled = (toy.coarse.chunk(lat=-1, lon=-1) if lazy else toy.coarse).sr.downscale(toy.model)
    tiled = tiled.compute() if lazy else tiled
    assert len(calls) > 1 and max(shape[-2] * shape[-1] for shape in calls) < 24 * 96
    assert tiled.chunks is None
    check.same_numbers(tiled, whole, toy.model.scaling.sd)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_batch_size_changes_nothing_but_memory(make_model, check, size):
    toy = make_model(missing=True)
    whole = toy.coarse.sr.downscale(toy.model)
    check.same_numbers(toy.coarse.sr.downscale(toy.model, batch_size=size), whole, toy.model.scaling.sd)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing(make_model, size):
    with pytest.raises(ConfigError, match="batch_size"):
        make_model().coarse.sr.downscale(make_model().model, batch_size=size)


@pytest.mark.parametrize("chunks", [{"lat": 2}, {"lon": 1}, {"lat": 1, "lon": 1}, {"lon": (1, 16, 1)}])
@pytest.mark.parametrize("periodic", [False, True])
def test_chunks_smaller_than_the_halo_are_merged_with_a_warning(make_model, check, chunks, periodic):
    toy = make_model(periodic=periodic)
    assert toy.model.halo > 2
    whole = toy.coarse.sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="smaller than the model's halo.*merged"):
        lazy = toy.coarse.chunk(chunks).sr.downscale(toy.model)
    sizes = dict(zip(lazy.dims, lazy.chunks, strict=True))
    for dim in chunks:
        assert len(sizes[dim]) == 1 or min(sizes[dim][:-1]) >= 2 * toy.model.scale * toy.model.halo
        assert len(set(sizes[dim][:-1])) <= 1, "equal, as Zarr wants them"
    check.same_numbers(lazy.compute(scheduler="synchronous"), whole, toy.model.scaling.sd)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("chunks", [{"lat": (12, 2)}, {"lon": (10, 7, 1)}, {"lat": (13, 1), "lon": (9, 8, 1)}])
def test_a_last_chunk_smaller_than_the_halo_stays(make_model, check, chunks, periodic):
    """Else an archive would be cut anew, off the bounds of its stored chunks, for its last few cells."""
    toy = make_model(periodic=periodic)
    whole = toy.coarse.sr.downscale(toy.model)
    lazy = toy.coarse.chunk(chunks).sr.downscale(toy.model)
    sizes = dict(zip(lazy.dims, lazy.chunks, strict=True))
    assert {dim: tuple(2 * size for size in given) for dim, given in chunks.items()} == {d: sizes[d] for d in chunks}
    check.same_numbers(lazy.compute(scheduler="synchronous"), whole, toy.model.scaling.sd)


@pytest.mark.parametrize(("stored", "merged"), [(1, 8), (3, 9), (25, 25)])
def test_merged_chunks_are_whole_ones_and_can_be_written(tmp_path, stored, merged):
    fine = toy_field(time=81, y=12, x=16)
    options = {"network": {"width": 4, "depth": 1, "head_width": 4}, "optimization": {"max_steps": 1}}
    model = fine.sr.fit(2, time_window=5, validation=None, progress=False, activate=False, **options)
    coarse = fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    lazy = coarse.chunk(time=stored)
    if stored == merged:
        result = lazy.sr.downscale(model)
    else:
        with pytest.warns(XSuperResWarning, match="merged"):
            result = lazy.sr.downscale(model)
    assert set(result.chunksizes["time"][:-1]) == {merged}
    result.to_dataset().to_zarr(tmp_path / "fine.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "fine.zarr", consolidated=False) as stored_result:
        np.testing.assert_allclose(stored_result.tas, coarse.sr.downscale(model), rtol=0, atol=1e-3)


def test_chunks_in_time_are_never_merged(make_model):
    toy = make_model()
    assert toy.coarse.chunk(time=1).sr.downscale(toy.model).chunks == ((1, 1, 1), (28,), (36,))


def test_the_warning_points_at_the_line_of_the_user(make_model):
    toy = make_model()
    with pytest.warns(XSuperResWarning) as caught:
        toy.coarse.chunk(lat=1).sr.downscale(toy.model)
    assert caught[0].filename == __file__


# missing values


def test_lazy_gaps_without_a_mask_channel_warn_when_they_are_met(make_model):
    toy = make_model()
    holed = toy.coarse.copy(deep=True)
    holed[0, 4, 5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lazy = holed.chunk(time=1).sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="no mask channel"):
        out = lazy.compute(scheduler="synchronous")
    assert out.isnull().sum() == 4 and out[0, 8:10, 10:12].isnull().all()
    with pytest.raises(DataError, match=r"NaN in 0\.132 %"):
        holed.sr.downscale(toy.model)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_the_models_mask_is_that_of_its_cells(make_model, lazy, turned):
    """Where it was never trained: the target, or the coarse cell, was missing in all times."""
    toy = make_model(missing=True)
    absent = toy.coarse.isnull().all("time").values.repeat(2, axis=0).repeat(2, axis=1)
    never = toy.fine.isnull().all("time") | absent
    coarse = toy.coarse.fillna(280.0)
    if turned:
        coarse = coarse.isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
        never = never.isel(lat=slice(None, None, -1)).transpose("lon", "lat")
    coarse = coarse.chunk(time=2, lat=7) if lazy else coarse
    out = {mask: coarse.sr.downscale(toy.model, mask=mask).compute() for mask in ("input", "model", None)}
    assert np.isfinite(out["input"]).all() and np.isfinite(out[None]).all()
    got = out["model"].isnull()
    assert never.any() and not never.all()
    np.testing.assert_array_equal(got, never.expand_dims(time=3, axis=got.get_axis_num("time")))
    part = coarse.compute().isel(lat=slice(3, 12), lon=slice(6, 16)).sr.downscale(toy.model)
    expected = never.isel(lat=slice(6, 24), lon=slice(12, 32))
    np.testing.assert_array_equal(part.isnull().isel(time=0), expected)


def test_a_mask_that_is_none_of_them(make_model):
    with pytest.raises(ConfigError, match="mask must be 'input', 'model' or None"):
        make_model().coarse.sr.downscale(make_model().model, mask="land")


# coordinates


@pytest.mark.parametrize("lazy", [False, True])
def test_coordinates_are_the_stored_ones_bit_for_bit(make_model, lazy):
    toy = make_model(scale=3)
    coarse = toy.coarse.chunk(time=1) if lazy else toy.coarse
    out = coarse.sr.downscale(toy.model)
    for name in ("lat", "lon", "time"):
        assert out[name].identical(toy.fine[name].drop_vars(["elevation", "land_fraction"], errors="ignore"))
    crop = coarse.isel(lat=slice(2, 9), lon=slice(5, 12)).sr.downscale(toy.model)
    for dim, part in (("lat", slice(6, 27)), ("lon", slice(15, 36))):
        assert (crop[dim].values == toy.fine[dim].values[part]).all()
    descending = coarse.isel(lat=slice(None, None, -1)).sr.downscale(toy.model)
    assert (descending.lat.values == toy.fine.lat.values[::-1]).all()


def test_coarse_coordinates_off_by_rounding_are_the_models(make_model):
    toy = make_model(scale=3)
    rounded = toy.coarse.assign_coords(
        lat=toy.coarse.lat.astype("float32") + 1e-5, lon=toy.coarse.lon.astype("float32")
    )
    out = rounded.sr.downscale(toy.model)
    assert (out.lat.values == toy.fine.lat.values).all()
    np.testing.assert_array_equal(out, toy.coarse.sr.downscale(toy.model))


def test_static_fields_come_along_on_the_fine_grid(make_model, elsewhere):
    toy = make_model(domain="open")
    out = toy.coarse.sr.downscale(toy.model)
    np.testing.assert_allclose(out.elevation, toy.fine.elevation, rtol=1e-6)
    assert out.elevation.attrs["standard_name"] == "surface_altitude"
    moved = elsewhere.sr.coarsen(2).sr.downscale(toy.model, static=statics_of(elsewhere))
    np.testing.assert_allclose(moved.elevation, elsewhere.elevation, rtol=1e-6)


def test_attributes_say_what_was_done(make_model):
    toy = make_model()
    out = toy.coarse.assign_attrs(history="made by hand").sr.downscale(toy.model)
    assert out.name == "tas" and out.attrs["units"] == "K"
    assert out.attrs["xsuperres_model"] == toy.model.digest and out.attrs["xsuperres_scale"] == 2
    assert "made by hand" in out.attrs["history"] and toy.model.digest[:16] in out.attrs["history"]


# other domains


def test_an_open_model_elsewhere_needs_static_fields(make_model, elsewhere):
    toy = make_model(domain="open")
    with pytest.raises(StaticFieldError, match="'elevation', 'land_fraction' on the fine grid"):
        elsewhere.sr.coarsen(2).sr.downscale(toy.model)


@pytest.mark.parametrize("partly", [slice(4, 32), slice(-6, 22)])
def test_partly_outside_is_outside(make_model, partly):
    toy = make_model(domain="open")
    wide = toy_field(time=1, y=28, x=60)
    wide = wide.assign_coords(lon=wide.lon - 8)
    part = wide.isel(lon=slice(partly.start + 8, partly.stop + 8)).sr.coarsen(2)
    if partly.start < 0 or partly.stop > 36:
        with pytest.raises(StaticFieldError):
            part.sr.downscale(toy.model)
    else:
        assert np.isfinite(part.sr.downscale(toy.model)).all()


def test_a_fixed_model_elsewhere_is_refused_with_or_without_static_fields(make_model, elsewhere):
    toy = make_model()
    for options in ({}, {"static": statics_of(elsewhere)}):
        with pytest.raises(GridError, match="bound to its domain"):
            elsewhere.sr.coarsen(2).sr.downscale(toy.model, **options)


@pytest.mark.parametrize("lazy", [False, True])
def test_static_fields_of_a_larger_domain_are_cropped(make_model, lazy):
    toy = make_model(domain="open")
    world = toy_field(time=1, y=40, x=90, seed=6)
    part = world.isel(lat=slice(6, 26), lon=slice(20, 52))
    coarse = part.sr.coarsen(2)
    expected = coarse.sr.downscale(toy.model, static=statics_of(part))
    coarse = coarse.chunk(lon=8) if lazy else coarse
    got = coarse.sr.downscale(toy.model, static=statics_of(world))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * toy.model.scaling.sd + 6.2e-5)
    assert (got.lat.values == part.lat.values).all() and (got.lon.values == part.lon.values).all()


@pytest.mark.parametrize("change", ["convention", "descending", "order of dims", "chunks", "coordinates", "float64"])
def test_static_fields_in_another_form_are_the_same(make_model, elsewhere, change):
    toy = make_model(domain="open")
    field = elsewhere.assign_coords(lon=elsewhere.lon + 270 - 60 - 20)  # across 0..360's end when in -180..180
    coarse, static = field.sr.coarsen(2), statics_of(field)
    expected = coarse.sr.downscale(toy.model, static=static)
    changed = {
        "convention": lambda s: s.assign_coords(lon=s.lon - 360),
        "descending": lambda s: s.isel(lat=slice(None, None, -1)),
        "order of dims": lambda s: s.transpose("lon", "lat"),
        "chunks": lambda s: s.chunk(lat=7),
        "coordinates": lambda s: s.set_coords(["elevation", "land_fraction"]),
        "float64": lambda s: s.astype("float64"),
    }[change](static)
    got = coarse.sr.downscale(toy.model, static=changed)
    np.testing.assert_array_equal(got, expected)
    assert got.dims == expected.dims and (got.lat.values == expected.lat.values).all()


def test_more_static_fields_than_needed_are_left_aside(make_model, elsewhere):
    toy = make_model(domain="open")
    static, coarse = statics_of(elsewhere), elsewhere.sr.coarsen(2)
    more = static.assign(soil=static.elevation * np.nan)[["soil", "land_fraction", "elevation"]]
    np.testing.assert_array_equal(
        coarse.sr.downscale(toy.model, static=more), coarse.sr.downscale(toy.model, static=static)
    )


def test_missing_names_are_listed(make_model, elsewhere):
    toy = make_model(domain="open")
    coarse, static = elsewhere.sr.coarsen(2), statics_of(elsewhere)
    with pytest.raises(StaticFieldError, match=r"\['land_fraction'\]"):
        coarse.sr.downscale(toy.model, static=static[["elevation"]])
    with pytest.raises(StaticFieldError, match="land_fraction"):
        coarse.sr.downscale(toy.model, static=static.elevation)
    with pytest.raises(StaticFieldError, match="takes a Dataset or DataArray"):
        coarse.sr.downscale(toy.model, static=["elevation", "land_fraction"])


def test_static_fields_on_another_grid_or_with_gaps(make_model, elsewhere):
    toy = make_model(domain="open")
    coarse, static = elsewhere.sr.coarsen(2), statics_of(elsewhere)
    with pytest.raises((GridError, StaticFieldError), match="expected cells of"):
        coarse.sr.downscale(toy.model, static=static.assign_coords(lon=static.lon + 0.3))
    with pytest.raises((GridError, StaticFieldError)):
        coarse.sr.downscale(toy.model, static=static.isel(lat=slice(2, None)))
    holed = static.copy(deep=True)
    holed.elevation[3, 3] = np.nan
    with pytest.raises(StaticFieldError, match="'elevation' is NaN"):
        coarse.sr.downscale(toy.model, static=holed)


def test_static_fields_on_the_training_domain_win_over_the_models(make_model):
    """Given on purpose, they are what an open model uses, here too."""
    toy = make_model(domain="open")
    flat = statics_of(toy.fine) * 0.5
    own, given = toy.coarse.sr.downscale(toy.model), toy.coarse.sr.downscale(toy.model, static=flat)
    assert abs(own - given).max() > 0.1
    np.testing.assert_array_equal(toy.coarse.sr.downscale(toy.model, static=statics_of(toy.fine)), own)


def test_a_model_elsewhere_keeps_its_name_for_score(make_model, elsewhere):
    toy = make_model(domain="open")
    out = elsewhere.sr.coarsen(2).sr.downscale(toy.model, static=statics_of(elsewhere))
    assert out.attrs["xsuperres_model"] == toy.model.digest


# what does not fit the model


def test_units_names_and_scale_are_checked(make_model):
    toy = make_model()
    with pytest.raises(UnitsError, match="degC"):
        toy.coarse.assign_attrs(units="degC").sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="units are None"):
        toy.coarse.drop_attrs(deep=False).sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="name is 'pr'"):
        toy.coarse.rename("pr").sr.downscale(toy.model)
    with pytest.warns(XSuperResWarning, match="standard_name"):
        toy.coarse.assign_attrs(standard_name="sea_surface_temperature").sr.downscale(toy.model)
    with pytest.raises(ConfigError, match="scale"):
        toy.coarse.sr.downscale(toy.model, scale=3)
    with pytest.raises(GridError):
        toy.fine.sr.downscale(toy.model)
    np.testing.assert_array_equal(
        toy.coarse.assign_attrs(units="kelvin").sr.downscale(toy.model), toy.coarse.sr.downscale(toy.model)
    )


def test_without_a_model(make_model):
    xsr.deactivate()
    with pytest.raises(NoModelError, match=r"\.sr\.fit\(scale=2\)"):
        make_model().coarse.sr.downscale(scale=2)
    with pytest.raises(ConfigError, match="Pass a model"):
        make_model().coarse.sr.downscale()


def test_a_model_can_be_given_by_path(make_model, tmp_path):
    toy = make_model()
    toy.model.save(tmp_path / "m.safetensors")
    expected = toy.coarse.sr.downscale(toy.model)
    np.testing.assert_array_equal(toy.coarse.sr.downscale(tmp_path / "m.safetensors"), expected)
    np.testing.assert_array_equal(toy.coarse.sr.downscale(str(tmp_path / "m.safetensors"), scale=2), expected)


def test_tasks_that_fail_say_why_under_threads(make_model):
    toy = make_model()

    def broken(block):
        raise OSError("the disk is gone")

    lazy = toy.coarse.chunk(time=1)
    lazy = lazy.copy(data=lazy.data.map_blocks(broken, dtype=lazy.dtype, meta=np.empty((0,) * 3, lazy.dtype)))
    with dask.config.set(scheduler="threads"), pytest.raises(OSError, match="the disk is gone"):
        lazy.sr.downscale(toy.model).compute()
