"""Through ``.sr`` as a user would: train, look up, downscale, score, keep what a field carries, write CF netCDF."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import ConfigError, GridError, XSuperResWarning
from xsuperres.testing import toy_field

QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 2, "validations": 1},
    "validation": None,
    "progress": False,
}


@pytest.fixture(autouse=True)
def empty_table():
    xsr.deactivate()
    yield
    xsr.deactivate()


@pytest.fixture
def fine() -> xr.DataArray:
    return toy_field(time=3, y=16, x=20)


# Models: last fitted, activated, given, or by path.


def test_the_model_last_fitted_is_used(fine):
    first = fine.sr.fit(2, **QUICK)
    coarse = fine.sr.coarsen(2)
    assert coarse.sr.downscale(scale=2).attrs["xsuperres_model"] == first.digest
    second = fine.sr.fit(2, **QUICK, seed=1)
    third = fine.sr.fit(2, **QUICK, seed=2, activate=False)
    assert coarse.sr.downscale(scale=2).attrs["xsuperres_model"] == second.digest
    xsr.activate(third)
    assert coarse.sr.downscale(scale=2).attrs["xsuperres_model"] == third.digest
    assert len({first.digest, second.digest, third.digest}) == 3


def test_the_active_model_is_looked_up_when_downscale_is_called(fine):
    accessor = fine.sr.coarsen(2).sr
    with pytest.raises(LookupError):
        accessor.downscale(scale=2)
    model = fine.sr.fit(2, **QUICK)
    xr.testing.assert_identical(accessor.downscale(scale=2), accessor.downscale(model))


def test_scales_and_variables_have_models_of_their_own(fine):
    rain = fine.rename("pr").assign_attrs(units="kg m-2 s-1", standard_name="precipitation_flux")
    two, four, pr = fine.sr.fit(2, **QUICK), fine.sr.fit(4, **QUICK), rain.sr.fit(2, **QUICK)
    assert set(xsr.active_models()) == {("tas", 2), ("tas", 4), ("pr", 2)}
    for field, scale, model in ((fine, 2, two), (fine, 4, four), (rain, 2, pr)):
        result = field.sr.coarsen(scale).sr.downscale(scale=scale)
        assert result.attrs["xsuperres_model"] == model.digest
        assert result.attrs["xsuperres_scale"] == scale
        assert result.shape == field.shape


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_a_model(toy, tmp_path, check, kind):
    path = kind(tmp_path / "m.safetensors")
    toy.model.save(path)
    expected = toy.coarse.sr.downscale(toy.model)
    xr.testing.assert_identical(toy.coarse.sr.downscale(path), expected)
    xr.testing.assert_identical(toy.coarse.sr.downscale(path, scale=2), expected)
    lazy = toy.coarse.chunk(time=1).sr.downscale(path)
    check.same_numbers(lazy.compute(scheduler="synchronous"), expected, toy.model.scaling.sd)
    described, again = (toy.coarse.sr.describe(model=m) for m in (path, toy.model))
    assert described.splitlines()[:-1] == again.splitlines()[:-1]  # the last line is a time


def test_scale_beside_a_model_is_checked(toy):
    assert toy.coarse.sr.downscale(toy.model, scale=2).shape == toy.fine.shape
    with pytest.raises(ConfigError, match=r"scale=4 differs from the model's scale of 2"):
        toy.coarse.sr.downscale(toy.model, scale=4)
    with pytest.raises(ConfigError, match="differs"):
        toy.coarse.sr.describe(4, model=toy.model)


def test_nothing_lives_on_the_accessor(fine):
    before = copy.copy(vars(fine.sr))
    fine.sr.fit(2, **QUICK)
    assert vars(fine.sr) == before
    assert list(before) == ["_obj"]


def test_fit_leaves_its_input_alone(fine):
    before = fine.copy(deep=True)
    model = fine.sr.fit(2, **QUICK, activate=False)
    coarse = fine.sr.coarsen(2)
    coarse.sr.downscale(model)
    coarse.sr.interpolate(2, like=fine)
    fine.sr.with_bounds()
    fine.sr.score(fine, coarse=coarse)
    xr.testing.assert_identical(fine, before)
    for name in ("lat", "lon"):
        assert fine[name].attrs == before[name].attrs
        assert fine[name].encoding == before[name].encoding


def test_the_same_seed_gives_the_same_weights(fine):
    first, second = (fine.sr.fit(2, **QUICK, activate=False) for _ in range(2))
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    other = fine.sr.fit(2, **QUICK, activate=False, seed=1)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.network.parameters(), other.network.parameters(), strict=True)
    )


def test_fit_does_not_touch_global_random_numbers(fine):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fine.sr.fit(2, **QUICK, activate=False)
    assert torch.equal(torch.rand(2), expected)


def test_validation_on_other_data(fine):
    """`validation=` takes a DataArray: it is scored, not forgotten."""
    other = toy_field(time=2, y=16, x=20, seed=0).assign_attrs(fine.attrs)
    model = fine.sr.fit(2, **(QUICK | {"validation": other}), activate=False)
    assert model.training.validation["rmse"] > 0
    assert "rmse" in model.history


# Fine-tuning.


def frozen(steps: int = 1) -> dict:
    return QUICK | {"optimization": {"max_steps": steps, "validations": 1, "learning_rate": 1e-9, "weight_decay": 0.0}}


def test_fine_tuning_starts_from_the_weights(toy):
    """With a tiny learning rate the tuned model predicts what the first one did."""
    settings = frozen() | {"network": toy.model.spec.config, "upsampling": "subpixel"}
    tuned = toy.fine.sr.fit(2, **settings, init=toy.model, activate=False, seed=5)
    sd = toy.model.scaling.sd
    expected = toy.coarse.sr.downscale(toy.model)
    assert float(abs(toy.coarse.sr.downscale(tuned) - expected).max()) < 1e-4 * sd
    fresh = toy.fine.sr.fit(2, **settings, activate=False, seed=5)
    assert float(abs(toy.coarse.sr.downscale(fresh) - expected).max()) > 1e-2 * sd


def test_fine_tuning_from_a_path(toy, tmp_path):
    toy.model.save(tmp_path / "m.safetensors")
    settings = frozen() | {"network": toy.model.spec.config, "upsampling": "subpixel"}
    first = toy.fine.sr.fit(2, **settings, init=toy.model, activate=False)
    second = toy.fine.sr.fit(2, **settings, init=tmp_path / "m.safetensors", activate=False)
    for ours, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fine_tuning_leaves_the_first_model_alone(toy):
    model = copy.deepcopy(toy.model)
    settings = QUICK | {"network": model.spec.config, "upsampling": "subpixel"}
    settings["optimization"] = {"max_steps": 3, "validations": 1, "learning_rate": 0.05}
    toy.fine.sr.fit(2, **settings, init=model, activate=False)
    for ours, theirs in zip(model.network.parameters(), toy.model.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fine_tuning_on_later_data_keeps_the_scaling(toy):
    warmer = (toy.fine + 4).assign_attrs(toy.fine.attrs)
    settings = frozen() | {"network": toy.model.spec.config, "upsampling": "subpixel"}
    tuned = warmer.sr.fit(2, **settings, init=toy.model, activate=False)
    assert tuned.scaling == toy.model.scaling
    assert tuned.static_scaling == toy.model.static_scaling


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"backbone": "dense"}, "backbone"),
        ({"upsampling": "resize"}, "upsampling"),
        ({"network": {"width": 7}}, "config"),
        ({"static": ["elevation"]}, "static"),
        ({"static": []}, "static"),
        ({"data": {"domain": "open"}}, "inputs"),
        ({"scale": 4}, "scale"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_fine_tuning_another_network_is_refused(toy, change, word):
    settings = frozen() | {"network": toy.model.spec.config, "upsampling": "subpixel", "scale": 2} | change
    with pytest.raises(ConfigError, match=rf"init=.*{word}"):
        toy.fine.sr.fit(**settings, init=toy.model)
    assert xsr.active_models() == {}


# What a field carries.


@pytest.fixture
def laden(toy):
    """Return the coarse field with everything a field from an archive carries."""
    da = toy.coarse.assign_coords(
        month=("time", [1, 1, 1]),
        height=((), 2.0, {"units": "m"}),
        realm=((), "atmos"),
    )
    da = da.assign_attrs(history="2020: made", cell_methods="time: mean", comment="as it was")
    da.encoding = {"dtype": "int16", "scale_factor": 0.01, "chunksizes": (1, 2, 2), "source": "a.nc", "_FillValue": -1}
    da["time"].encoding = {"units": "hours since 1900-01-01", "calendar": "standard"}
    da["lat"].encoding = {"dtype": "int16", "scale_factor": 0.1, "chunksizes": (14,), "source": "a.nc"}
    return da


OPERATIONS = {
    "downscale": (lambda da, toy: da.sr.downscale(toy.model), "super-resolution, scale 2, model"),
    "interpolate": (lambda da, toy: da.sr.interpolate(2), "bicubic interpolation, scale 2"),
    "interpolate like": (lambda da, toy: da.sr.interpolate(2, like=toy.fine), "bicubic interpolation, scale 2"),
    "coarsen": (lambda da, toy: da.sr.coarsen(2), "area-weighted coarsening, scale 2"),
}
every = pytest.mark.parametrize(("operation", "note"), OPERATIONS.values(), ids=OPERATIONS.keys())


@every
def test_attributes_and_history(toy, laden, operation, note):
    out = operation(laden, toy)
    assert out.name == "tas"
    expected = {k: v for k, v in laden.attrs.items() if k != "history"}
    assert {k: out.attrs[k] for k in expected} == expected
    first, second = out.attrs["history"].splitlines()
    assert first == "2020: made"
    assert note in second
    assert "xsuperres" in second
    more = {"xsuperres_model", "xsuperres_scale"} if "super" in note else set()
    assert set(out.attrs) == {*laden.attrs, *more}
    assert laden.attrs["history"] == "2020: made"


@every
def test_a_history_begins(toy, operation, note):
    bare = toy.coarse.copy()
    del bare.attrs["history"]  # that of coarsening
    out = operation(bare, toy)
    assert note in out.attrs["history"]
    assert len(out.attrs["history"].splitlines()) == 1


@every
def test_other_coordinates_are_kept(toy, laden, operation, note):
    out = operation(laden, toy)
    for name in ("time", "month", "height", "realm"):
        xr.testing.assert_identical(out[name].reset_coords(drop=True), laden[name].reset_coords(drop=True))
    for name in ("lat", "lon"):
        assert out[name].attrs["units"] == laden[name].attrs["units"]
        assert out[name].attrs["standard_name"] == laden[name].attrs["standard_name"]
        assert name in out.indexes


@every
def test_encodings_are_dropped(toy, laden, operation, note):
    """An int16 scale overflows on finer extremes; chunk sizes are those of another grid."""
    out = operation(laden, toy)
    assert not set(out.encoding) & {"dtype", "scale_factor", "add_offset", "_FillValue", "chunksizes", "source"}
    for name in ("lat", "lon"):
        assert not set(out[name].encoding) & {"dtype", "scale_factor", "chunksizes", "source"}
    assert out.time.encoding.get("units") == "hours since 1900-01-01"


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(toy, operation, note, dtype):
    out = operation(toy.coarse.astype(dtype, keep_attrs=True), toy)
    assert out.dtype == dtype
    assert out.lat.dtype == toy.coarse.lat.dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float64_adds_nothing_but_digits(toy, dtype):
    single = toy.coarse.sr.downscale(toy.model)
    double = toy.coarse.astype(dtype, keep_attrs=True).sr.downscale(toy.model)
    assert float(abs(double - single).max()) <= 1e-5 * toy.model.scaling.sd + 6.2e-5


@every
@pytest.mark.parametrize("dims", [("lat", "lon", "time"), ("lon", "time", "lat"), ("time", "lon", "lat")])
def test_the_order_of_dims_is_kept(toy, operation, note, dims):
    out = operation(toy.coarse.transpose(*dims), toy)
    assert out.dims == dims
    expected = operation(toy.coarse, toy)
    np.testing.assert_array_equal(out.transpose(*expected.dims), expected)


@every
def test_members_and_lead_times_are_carried_through(toy, operation, note):
    members = xr.concat(
        [toy.coarse, toy.coarse + 1, toy.coarse - 1], xr.DataArray([3, 5, 7], dims="member", name="member")
    )
    da = (
        members.expand_dims(lead=[0, 6])
        .transpose("time", "lat", "member", "lon", "lead")
        .assign_attrs(toy.coarse.attrs)
    )
    out = operation(da, toy)
    assert out.dims == da.dims
    assert out.member.values.tolist() == [3, 5, 7]
    assert out.lead.values.tolist() == [0, 6]
    single = operation(toy.coarse, toy)
    got = out.sel(member=3, lead=6).transpose(*single.dims)
    np.testing.assert_allclose(got, single, rtol=0, atol=1e-5 * toy.model.scaling.sd + 6.2e-5)
    np.testing.assert_array_equal(out.isel(lead=0), out.isel(lead=1))


@every
def test_a_single_field(toy, operation, note):
    out = operation(toy.coarse.isel(time=1), toy)
    assert out.dims == ("lat", "lon")
    assert out.time == toy.coarse.time[1]
    expected = operation(toy.coarse, toy).isel(time=1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * toy.model.scaling.sd + 6.2e-5)


@every
@pytest.mark.parametrize("lazy", [False, True])
def test_no_time_at_all(toy, operation, note, lazy):
    """A selection that happens to be empty gives an empty result."""
    empty = toy.coarse.isel(time=slice(0, 0))
    out = operation(empty.chunk() if lazy else empty, toy).compute()
    full = operation(toy.coarse, toy)
    assert out.shape == (0, *full.shape[1:])
    assert out.dtype == full.dtype


@every
def test_a_field_without_name_or_attributes(toy, operation, note):
    bare = toy.coarse.rename(None)
    bare.attrs = {"units": "K"}
    out = operation(bare, toy)
    assert out.name is None
    assert set(out.attrs) - {"xsuperres_model", "xsuperres_scale"} == {"units", "history"}


# Static fields on the fine grid.


def test_fine_static_fields_are_attached(toy):
    out = toy.coarse.sr.downscale(toy.model)
    for name in ("elevation", "land_fraction"):
        np.testing.assert_array_equal(out[name], toy.fine[name])
        assert out[name].attrs == toy.fine[name].attrs
    assert toy.coarse.drop_vars(["elevation", "land_fraction"]).sr.downscale(toy.model).equals(out)


def test_coordinates_are_those_of_training_bit_for_bit(toy):
    part = toy.coarse.isel(lat=slice(2, 9), lon=slice(3, 12)).sr.downscale(toy.model)
    expected = toy.fine.isel(lat=slice(4, 18), lon=slice(6, 24))
    np.testing.assert_array_equal(part.lat, expected.lat)
    np.testing.assert_array_equal(part.lon, expected.lon)
    assert part.lat.attrs == expected.lat.attrs


# Score.


def test_scoring_what_was_downscaled(fine):
    """The digest in the attributes leads to the model, and so to its baselines."""
    model = fine.sr.fit(2, **QUICK, activate=False)
    coarse = fine.sr.coarsen(2)
    result = coarse.sr.downscale(model)
    with pytest.warns(XSuperResWarning, match="training period"):
        table = result.sr.score(fine, coarse=coarse)
    assert {"network", "bilinear", "bicubic", "lapse", "static_regression", "delta", "regression"} <= set(
        table["product"].values.tolist()
    )
    assert table.attrs["model"] == model.digest
    with pytest.warns(XSuperResWarning, match="training period"):
        same = result.sr.score(fine)
    xr.testing.assert_allclose(same, table)


def test_scoring_by_path(fine, tmp_path):
    model = fine.sr.fit(2, **QUICK, activate=False)
    model.save(tmp_path / "m.safetensors")
    coarse = fine.sr.coarsen(2)
    base = coarse.sr.interpolate(2, like=fine)
    with pytest.warns(XSuperResWarning, match="training period"):
        table = base.sr.score(fine, coarse=coarse, model=tmp_path / "m.safetensors", metrics="rmse")
    assert "delta" in table["product"].values
    assert "prediction" in table["product"].values


def test_score_of_truth_is_perfect(toy):
    table = toy.fine.sr.score(toy.fine, coarse=toy.coarse, metrics=["rmse", "bias"], baselines="bicubic")
    assert float(table.rmse.sel(product="prediction", region="all")) == 0
    assert float(table.rmse.sel(product="bicubic", region="all")) > 0


# Describe.


def test_describe_says_what_downscaling_would_mean(toy):
    xsr.activate(toy.model)
    text = toy.coarse.sr.describe(scale=2)
    rows = dict(line.split(maxsplit=1) for line in text.replace("fine grid", "fine_grid").splitlines())
    assert "tas [K], float32" in text
    assert rows["halo"] == f"{toy.model.halo} coarse cells"
    assert "elevation, land_fraction" in text
    assert "lat 14 x lon 18" in text
    assert "lat 28 x lon 36" in text
    assert "time 3" in text
    assert toy.model.digest[:12] in text
    assert rows["memory"].startswith("about")
    assert rows["time"].startswith("about")
    assert toy.coarse.sr.describe(model=toy.model).splitlines()[:-1] == text.splitlines()[:-1]


def test_describe_without_a_model(toy):
    text = toy.coarse.sr.describe(scale=3)
    assert "halo" not in text
    assert "lat 42 x lon 54" in text
    assert "fine grid" not in toy.coarse.sr.describe()


def test_describe_says_what_would_be_refused(toy):
    moved = toy.coarse.assign_coords(lon=toy.coarse.lon + 90)
    assert "not on (a crop of) the model's coarse grid" in moved.sr.describe(model=toy.model)


def test_describe_names_a_globe(make_model):
    assert "periodic" in make_model(periodic=True).coarse.sr.describe()


def test_describe_computes_nothing(toy):
    import dask

    lazy = toy.coarse.chunk(time=1)

    def refuse(graph, keys, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        assert "chunks" in lazy.sr.describe(model=toy.model)


# Bounds and netCDF.


@pytest.fixture
def globe() -> xr.DataArray:
    """Return a small globe whose outermost rows are centred on the poles, as in ERA5."""
    lat, lon = np.linspace(90, -90, 13), np.arange(0, 360, 22.5)
    values = np.random.default_rng(2).normal(280, 5, (2, 13, 16)).astype("float32")
    return xr.DataArray(
        values,
        dims=("time", "lat", "lon"),
        coords={
            "time": np.array(["2001-01-01", "2001-01-02"], dtype="datetime64[ns]"),
            "lat": ("lat", lat, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": ("lon", lon, {"units": "degrees_east", "standard_name": "longitude"}),
        },
        name="tas",
        attrs={"units": "K", "standard_name": "air_temperature"},
    )


def test_bounds_end_at_the_poles(globe):
    ds = globe.sr.with_bounds()
    assert ds.lat.attrs["bounds"] == "lat_bnds"
    assert ds.lat_bnds.dims == ("lat", "bnds")
    assert ds.lat_bnds.values.max() == 90
    assert ds.lat_bnds.values.min() == -90
    np.testing.assert_allclose(ds.lat_bnds[0], [90, 82.5])
    np.testing.assert_allclose(ds.lat_bnds[1:, 0], ds.lat_bnds[:-1, 1])
    np.testing.assert_allclose(ds.lon_bnds[0], [-11.25, 11.25])
    np.testing.assert_allclose(ds.lon_bnds.diff("bnds").squeeze(), 22.5)
    assert "bounds" not in globe.lat.attrs


def test_bounds_of_the_fine_field(globe):
    """Refined through the bounds: the row centred on the pole is half a cell, and so are its parts."""
    ds = globe.sr.interpolate(2).sr.with_bounds()
    assert ds.lat_bnds.values.max() <= 90
    assert ds.lat_bnds.values.min() >= -90
    np.testing.assert_allclose(ds.lat_bnds[0, 0], 90)
    np.testing.assert_allclose(ds.lat_bnds[1:, 0], ds.lat_bnds[:-1, 1])
    inside = (ds.lat_bnds.min("bnds") <= ds.lat) & (ds.lat <= ds.lat_bnds.max("bnds"))
    assert inside.all()


@pytest.mark.parametrize("result", ["downscale", "interpolate", "coarsen"])
def test_netcdf_round_trip(toy, laden, tmp_path, result):
    """What is written is what comes back: values, coordinates, bounds, attributes; CF, by h5netcdf."""
    out = OPERATIONS[result][0](laden, toy)
    ds = out.sr.with_bounds()
    ds.to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "fine.nc", engine="h5netcdf") as opened:
        again = opened.load()
    assert again.attrs["Conventions"].startswith("CF-")
    np.testing.assert_array_equal(again.tas, out)
    assert again.tas.dtype == out.dtype
    for name in ("lat", "lon", "time"):
        np.testing.assert_array_equal(again[name], out[name])
    for name in ("lat_bnds", "lon_bnds"):
        np.testing.assert_array_equal(again[name], ds[name])
        assert "_FillValue" not in again[name].encoding or np.isnan(again[name].encoding["_FillValue"])
    assert {k: again.tas.attrs[k] for k in out.attrs} == out.attrs
    if result == "downscale":
        again_coarse = again.tas.sr.coarsen(2)
        np.testing.assert_allclose(again_coarse, out.sr.coarsen(2))
        with pytest.warns(XSuperResWarning, match="training period"):  # its model is known by the attribute
            table = again.tas.sr.score(toy.fine.assign_coords(time=out.time), baselines=[], metrics="rmse")
        assert table["product"].values.tolist() == ["network"]


def test_netcdf_of_a_rotated_grid(rotated_field, tmp_path):
    ds = rotated_field.sr.interpolate(2).sr.with_bounds()
    ds.to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "fine.nc", engine="h5netcdf", decode_coords="all") as again:
        assert again.tas.encoding["grid_mapping"] == "rotated_pole"
        assert {"lat", "lon", "rotated_pole", "rlat_bnds", "rlon_bnds"} <= set(again.coords)
        np.testing.assert_array_equal(again.lat, ds.lat)


def test_a_descending_field_has_descending_bounds(toy):
    """As CF asks: bounds in the direction of the coordinate."""
    ds = toy.coarse.isel(lat=slice(None, None, -1)).sr.with_bounds()
    assert (ds.lat_bnds[:, 0] > ds.lat_bnds[:, 1]).all()
    straight = toy.coarse.sr.with_bounds()
    np.testing.assert_array_equal(ds.lat_bnds[::-1, ::-1], straight.lat_bnds)


def test_bounds_of_a_field_without_name(toy):
    assert "field" in toy.coarse.rename(None).sr.with_bounds()


# Interpolation and coarsening, as a user sees them.


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_interpolate_methods(toy, method):
    out = toy.coarse.sr.interpolate(2, method=method)
    assert out.shape == toy.fine.shape
    assert method in out.attrs["history"]
    error = float(np.sqrt(((out - toy.fine.values) ** 2).mean()))
    assert error < float(toy.fine.std())


def test_there_and_back_has_the_same_coordinates(fine):
    out = fine.sr.coarsen(4).sr.interpolate(4, like=fine)
    for name in ("lat", "lon", "time"):
        xr.testing.assert_equal(out[name].reset_coords(drop=True), fine[name].reset_coords(drop=True))


def test_like_must_be_the_fine_grid(fine):
    coarse = fine.sr.coarsen(2)
    with pytest.raises(GridError, match="lies on another grid"):
        coarse.sr.interpolate(4, like=fine)
