"""Several variables, predictors, calendars, transforms, pairs: what the network is shown, and what comes back."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import (
    ConfigError,
    DataError,
    GridError,
    NoModelError,
    UnitsError,
    UnknownNameError,
    XSuperResWarning,
)
from xsuperres.testing import toy_field

TINY = {"width": 5, "depth": 1, "head_width": 4}


def options(**changes):
    base = {
        "network": TINY,
        "upsampling": "subpixel",
        "sampling": {"batch_size": 2, "patch_size": 6},
        "optimization": {"max_steps": 4, "validations": 1},
        "progress": False,
        "activate": False,
    }
    return base | changes


@pytest.fixture(scope="module")
def fine() -> xr.DataArray:
    return toy_field(time=8, y=24, x=36)


@pytest.fixture(scope="module")
def rain(fine) -> xr.DataArray:
    """Return a skewed, positive field that has to do with the other."""
    values = np.exp((fine.values - fine.values.mean()) / fine.values.std() * 1.5) * 1e-6
    attrs = {"units": "kg m-2 s-1", "standard_name": "precipitation_flux"}
    return fine.copy(data=values.astype(np.float32)).rename("pr").assign_attrs(attrs | {"long_name": "rain"})


@pytest.fixture(scope="module")
def ds(fine, rain) -> xr.Dataset:
    return xr.Dataset({"tas": fine, "pr": rain}, attrs={"title": "toy"})


# the Dataset accessor


def test_variables_of_a_dataset_are_refined_together(ds, check):
    model = ds.sr.fit(2, **options())
    assert model.names == ("tas", "pr") and model.spec.outputs == 2
    sds = [target.scaling.sd for target in model.targets]
    np.testing.assert_allclose(sds, [float(ds.tas.std()), float(ds.pr.std())], rtol=0.2)
    coarse = ds.sr.coarsen(2)
    out = coarse.sr.downscale(model)
    assert isinstance(out, xr.Dataset) and list(out.data_vars) == ["tas", "pr"] and out.attrs == ds.attrs
    for name in ("tas", "pr"):
        assert out[name].attrs["units"] == ds[name].attrs["units"]
        assert out[name].lat.equals(ds.lat) and out[name].elevation.equals(ds.elevation)
        error, plain = (
            float(((x - ds[name]) ** 2).mean()) for x in (out[name], coarse[name].sr.interpolate(2, like=ds))
        )
        assert error < plain
    lazy = coarse.chunk(time=3, lat=6, lon=9).sr.downscale(model)
    for name, sd in zip(("tas", "pr"), sds, strict=True):
        assert lazy[name].chunks is not None
        check.same_numbers(lazy[name], out[name], sd)


def test_one_variable_gives_what_the_data_array_gives(ds):
    alone, together = ds.tas.sr.fit(2, **options()), ds[["tas"]].sr.fit(2, **options())
    coarse = ds.tas.sr.coarsen(2)
    expected = coarse.sr.downscale(alone)
    np.testing.assert_array_equal(coarse.to_dataset().sr.downscale(together).tas, expected)
    np.testing.assert_array_equal(coarse.sr.downscale(together), expected)


def test_a_model_of_several_variables_is_looked_up_by_all_their_names(ds):
    xsr.deactivate()  # what other tests of this process have left
    model = ds.sr.fit(2, **options(activate=True))
    try:
        assert (("pr", "tas"), 2) in xsr.active_models()
        coarse = ds.sr.coarsen(2)
        turned = coarse[["pr", "tas"]].sr.downscale(scale=2)
        assert list(turned.data_vars) == ["pr", "tas"]
        np.testing.assert_array_equal(turned.tas, coarse.sr.downscale(model).tas)
        with pytest.raises(NoModelError):
            coarse.tas.sr.downscale(scale=2)
        with pytest.raises(DataError, match="refines"):
            coarse[["tas"]].sr.downscale(model)
    finally:
        xsr.deactivate()


def test_one_data_array_for_a_model_of_several_variables(ds):
    model, coarse = ds.sr.fit(2, **options()), ds.sr.coarsen(2)
    with pytest.raises(DataError, match=r"\['tas', 'pr'\] together, got the DataArray 'tas'"):
        coarse.tas.sr.downscale(model)


@pytest.fixture(scope="module")
def archive(ds) -> xr.Dataset:
    """Return the Dataset as CF archives are, with bounds of cells and times, a grid mapping and an index."""
    out = ds.copy()
    out["tas"] = out.tas.assign_attrs(grid_mapping="crs")
    out["crs"] = ((), 0, {"grid_mapping_name": "latitude_longitude"})
    out["time_bnds"] = ("time", "bnds"), np.stack([ds.time.values, ds.time.values + np.timedelta64(1, "D")], axis=1)
    out["lat_bnds"] = ("lat", "bnds"), np.stack([ds.lat.values - 0.4, ds.lat.values + 0.4], axis=1)
    out["co2"] = "time", np.linspace(400, 410, ds.sizes["time"])
    return out.assign_coords(
        time=out.time.assign_attrs(bounds="time_bnds"), lat=out.lat.assign_attrs(bounds="lat_bnds")
    )


def test_what_is_no_field_is_left_out_and_kept(archive, ds, tmp_path):
    kept = ["crs", "time_bnds", "co2"]
    model, plain = archive.sr.fit(2, **options()), ds.sr.fit(2, **options())
    assert model.names == ("tas", "pr")
    coarse = archive.sr.coarsen(2)
    for out in (coarse, coarse.sr.interpolate(2), coarse.sr.downscale(model), coarse.chunk(time=3).sr.downscale(model)):
        assert list(out.data_vars) == ["tas", "pr", *kept]
        for name in kept:
            xr.testing.assert_identical(out[name].variable, archive[name].variable)
        assert "lat_bnds" not in out
    decoded = coarse.set_coords(["crs", "time_bnds"]).sr.downscale(model)  # as of decode_coords="all"
    assert {"crs", "time_bnds"} <= set(decoded.coords) and list(decoded.data_vars) == ["tas", "pr", "co2"]
    fine = coarse.sr.downscale(model)
    np.testing.assert_array_equal(fine.tas, ds.sr.coarsen(2).sr.downscale(plain).tas)
    written = fine.sr.with_bounds()
    assert {"lat_bnds", "lon_bnds", *kept} <= set(written.data_vars)
    assert written.time.attrs["bounds"] == "time_bnds" and written.lat.attrs["bounds"] == "lat_bnds"
    assert written.sizes["lat"] == written.lat_bnds.sizes["lat"] == 24
    written.time.encoding["units"] = "hours since 2000-01-01"
    written.to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "fine.nc", engine="h5netcdf") as again:
        np.testing.assert_array_equal(again.time_bnds, archive.time_bnds)
        assert {**again.tas.attrs, **again.tas.encoding}["grid_mapping"] == "crs"


def test_a_score_of_fields_alone(archive):
    coarse = archive.sr.coarsen(2)
    table = coarse.sr.interpolate(2, like=archive).sr.score(archive, coarse=coarse, baselines=[])
    assert table["variable"].values.tolist() == ["tas", "pr"]


def test_every_variable_has_a_dtype_of_its_own(fine, rain):
    """A predictor in double precision does not double the archive, nor does another variable."""
    double = rain.astype("float64", keep_attrs=True)
    model, coarse = fine.sr.fit(2, predictors=double, **options()), fine.sr.coarsen(2)
    both = xr.Dataset({"tas": fine, "pr": double})
    together = both.sr.fit(2, **options())
    for chunks in (None, {"time": 3}):
        given = coarse if chunks is None else coarse.chunk(chunks)
        out = given.sr.downscale(model, predictors=double)
        assert out.dtype == out.compute().dtype == np.float32
        given = both.sr.coarsen(2) if chunks is None else both.sr.coarsen(2).chunk(chunks)
        out = given.sr.downscale(together)
        assert (out.tas.dtype, out.pr.dtype) == (np.float32, np.float64)
        assert (out.compute().tas.dtype, out.compute().pr.dtype) == (np.float32, np.float64)


def test_other_data_of_several_variables_validate(ds):
    """The score of a Dataset that is given equals that of the same times held out."""
    train, held = ds.isel(time=slice(0, 6)), ds.isel(time=slice(6, None))
    given = train.sr.fit(2, **options(validation=held))
    split = ds.sr.fit(2, **options(validation=slice("2001-01-07", None)))
    assert given.training.validation_kind == "other data"
    assert given.training.validation["rmse"] == pytest.approx(split.training.validation["rmse"], rel=1e-4)
    turned = train.sr.fit(2, **options(validation=held[["pr", "tas"]].assign(co2=1.0)))
    assert turned.training.validation == given.training.validation
    with pytest.raises(ConfigError, match=r"validation= lacks \['pr'\]"):
        train.sr.fit(2, **options(validation=held[["tas"]]))
    with pytest.raises(DataError, match="share their dims"):
        train.sr.fit(2, **options(validation=held.assign(pr=held.pr.isel(time=0, drop=True))))


def test_the_score_has_a_dim_of_variables(ds):
    model = ds.sr.fit(2, **options(validation=slice("2001-01-07", None)))
    test = ds.isel(time=slice(6, None))
    fine = test.sr.coarsen(2).sr.downscale(model)
    table = fine.sr.score(test)
    assert table["variable"].values.tolist() == ["tas", "pr"]
    for name in ("tas", "pr"):
        alone = fine[name].sr.score(test[name])
        for metric in ("rmse", "bias"):
            np.testing.assert_allclose(
                table[metric].sel(variable=name, product="network", region="all"),
                alone[metric].sel(product="network", region="all"),
            )
    assert "delta" in table["product"].values
    assert np.isnan(table.rmse.sel(variable="pr", product="lapse", region="all"))


def test_variables_on_other_times_are_refused(ds):
    from xsuperres.fields.field import Field, check_together

    with pytest.raises(DataError, match="different coordinates"):
        check_together([Field(ds.tas), Field(ds.pr.assign_coords(time=ds.time + np.timedelta64(1, "h")))])
    with pytest.raises(DataError, match="dims"):
        check_together([Field(ds.tas), Field(ds.pr.isel(time=0, drop=True))])


# transforms and bounds


@pytest.mark.parametrize("kind", ["log1p", "sqrt", "anomaly"])
@pytest.mark.parametrize("missing", [False, True])
def test_a_transform_is_undone(rain, check, kind, missing, tmp_path):
    """Before training the network adds nothing: what comes out is the linear baseline, in units of the variable."""
    field = rain.where((rain.lat > 13) | (rain.lon > 12)) if missing else rain
    model = field.sr.fit(2, **options(data={"transform": kind}, optimization={"max_steps": 1, "learning_rate": 1e-12}))
    coarse = field.sr.coarsen(2)
    out = coarse.sr.downscale(model)
    target, unit = model.targets[0], model.targets[0].transform.unit
    forth = {"log1p": lambda v: np.log1p(v / unit), "sqrt": np.sqrt, "anomaly": lambda v: v}[kind]
    back = {"log1p": lambda v: np.expm1(v) * unit, "sqrt": lambda v: v * np.abs(v), "anomaly": lambda v: v}[kind]
    shown = coarse.copy(data=forth(coarse.values.astype(float)))
    above = 0.0
    if kind == "anomaly":
        shown, above = shown - target.climatology[0], target.climatology[1]
    expected = back(shown.sr.interpolate(2, like=field).values + np.nan_to_num(target.baselines.delta) + above)
    known = np.isfinite(out.values) & np.isfinite(expected)
    expected = np.maximum(expected, 0.0)  # rain is never negative
    np.testing.assert_allclose(out.values[known], expected[known], rtol=2e-3, atol=1e-9)
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(coarse.sr.downscale(tmp_path / "model.safetensors"), out)
    check.same_numbers(coarse.chunk(time=3, lat=6).sr.downscale(model), out, float(field.std()))


def test_anomalies_where_the_target_never_is(fine):
    """A land-only target over complete coarse data: the sea has the coarse climatology, interpolated, not 0 K."""
    bare = fine.drop_vars(["elevation", "land_fraction"])
    coarse, land = bare.sr.coarsen(2), bare.where(bare.lon > float(bare.lon.mean()))
    idle = options(data={"transform": "anomaly"}, optimization={"max_steps": 1, "learning_rate": 1e-12})
    model = coarse.sr.fit(target=land, **idle)
    assert all(np.isfinite(plane).all() for plane in model.targets[0].climatology)
    bicubic = coarse.sr.interpolate(2, like=bare)
    for mask in ("input", None):
        out = coarse.sr.downscale(model, mask=mask)
        assert out.notnull().all()
        sea = out.isel(lon=slice(0, 18))
        np.testing.assert_allclose(sea, bicubic.isel(lon=slice(0, 18)), rtol=0, atol=1e-3)
        assert float(np.abs(out - bare).max()) < 5 * model.scaling.sd


def test_anomalies_where_even_the_coarse_field_never_was(fine):
    """A coarse cell that has data for the first time is filled with the mean of the others, not with 0 K."""
    coast = fine.where(fine.lon > float(fine.lon.mean()))
    model = coast.sr.fit(2, **options(data={"transform": "anomaly"}))
    below, above = model.targets[0].climatology
    assert np.isfinite(below).all() and np.isfinite(above).all()
    assert float(below[:, 0].min()) == pytest.approx(float(coast.sr.coarsen(2).mean()), abs=0.1)
    out = fine.sr.coarsen(2).sr.downscale(model, mask="input")
    assert float(np.abs(out - fine).max()) < 60


def test_trained_baselines_are_in_units_of_the_variable(rain):
    train, test = rain.isel(time=slice(0, 6)), rain.isel(time=slice(6, None))
    model = train.sr.fit(2, **options(data={"transform": "log1p"}))
    table = test.sr.coarsen(2).sr.downscale(model).sr.score(test, metrics="rmse")
    rmse = {str(p): float(table.rmse.sel(product=p, region="all")) for p in table["product"].values}
    assert rmse["delta"] < rmse["bicubic"] and rmse["regression"] < rmse["bicubic"], rmse


def test_a_setting_of_a_variable_that_is_not_there(ds):
    for data in ({"valid_min": {"prr": 0}}, {"transform": {"prr": "sqrt"}}):
        with pytest.raises(UnknownNameError, match="Did you mean 'pr'"):
            ds.sr.fit(2, **options(data=data))


def test_bounds_are_kept(rain):
    model = rain.sr.fit(2, **options(data={"valid_min": 1e-6, "valid_max": 2e-6}))
    out = rain.sr.coarsen(2).sr.downscale(model)
    assert float(out.min()) >= np.float32(1e-6) and float(out.max()) <= np.float32(2e-6)


def test_softplus_keeps_the_output_positive(rain, reinitialise):
    from xsuperres.nn.network import build_network

    out, rain = {}, rain.assign_attrs(standard_name="unknown_flux")  # one that might be negative
    for act in (None, "softplus", "relu"):
        model = rain.sr.fit(2, **options(network=TINY | {"output_activation": act}))
        network = build_network(model.spec).eval()
        reinitialise(network, seed=3, gain=3.0)
        out[act] = rain.sr.coarsen(2).sr.downscale(replace(model, network=network))
    assert float(out[None].min()) < -1e-7
    assert float(out["softplus"].min()) > -1e-12
    np.testing.assert_allclose(out["relu"], out[None].clip(0), atol=1e-11)


def test_an_activation_of_anomalies_is_refused(rain):
    with pytest.raises(ConfigError, match="transform='anomaly'"):
        rain.sr.fit(2, **options(network=TINY | {"output_activation": "relu"}, data={"transform": "anomaly"}))
    with pytest.raises(ConfigError, match="fixed domain"):
        rain.sr.fit(2, **options(data={"transform": "anomaly", "domain": "open"}))


# predictors and the calendar


def test_predictors_on_any_grid(fine, rain, check):
    coarse = fine.sr.coarsen(2)
    third = (
        toy_field(time=8, y=64, x=96, seed=4).rename("z").assign_attrs(units="m", standard_name="geopotential_height")
    )
    lat = np.linspace(float(fine.lat[0]) - 1, float(fine.lat[-1]) + 1, 64)
    lon = np.linspace(float(fine.lon[0]) - 1, float(fine.lon[-1]) + 1, 96)
    third = third.drop_vars(["elevation", "land_fraction"]).assign_coords(lat=lat, lon=lon)
    same = (coarse * 2).rename("same").assign_attrs(units="1")
    model = fine.sr.fit(2, predictors=[rain, third, same], **options())
    assert [p.variable.name for p in model.predictors] == ["pr", "z", "same"]
    out = coarse.sr.downscale(model, predictors=[same, rain.sr.coarsen(2), third])
    np.testing.assert_allclose(out, coarse.sr.downscale(model, predictors=[rain, third, same]), rtol=1e-6, atol=1e-4)
    lazy = coarse.chunk(time=3, lat=6).sr.downscale(model, predictors=[same.chunk(time=2), rain, third])
    check.same_numbers(lazy, out, model.scaling.sd)
    other = coarse.sr.downscale(model, predictors=[same, rain + 1e-6, third])
    assert float(np.abs(other - out).max()) > 0, "they are read"


def test_a_predictor_that_tells_the_answer_is_used(fine):
    """The fine structure of each time, told by its coarse pattern, is learnt from the predictor alone."""
    rng = np.random.default_rng(0)
    amount = xr.DataArray(rng.normal(size=24).astype(np.float32), dims="time")
    base = toy_field(time=24, y=24, x=36)
    pattern = xr.DataArray(np.tile([[1.0, -1.0], [-1.0, 1.0]], (12, 18)).astype(np.float32), dims=("lat", "lon"))
    field = (base + 3 * amount * pattern).transpose(*base.dims).astype(np.float32).assign_attrs(base.attrs)
    told = base.copy(data=np.broadcast_to(amount.values[:, None, None], base.shape).copy()).rename("amount")
    told = told.assign_attrs(units="1")
    train, test = slice(0, 18), slice(18, None)
    error = {}
    for name, predictors in (("with", told), ("without", None)):
        given = None if predictors is None else predictors.isel(time=train)
        model = field.isel(time=train).sr.fit(
            2, predictors=given,
            **options(optimization={"max_steps": 250, "learning_rate": 1e-2, "validations": 2},
                      network={"width": 8, "depth": 1, "head_width": 8}),
        )  # fmt: skip
        given = None if predictors is None else predictors.isel(time=test)
        out = field.isel(time=test).sr.coarsen(2).sr.downscale(model, predictors=given)
        error[name] = float(((out - field.isel(time=test)) ** 2).mean() ** 0.5)
    assert error["with"] < 0.6 * error["without"], error


def test_other_data_with_predictors_validate(fine, rain):
    train, held = slice(0, 6), slice(6, None)
    both = xr.Dataset({"tas": fine, "pr": rain})
    given = fine[train].sr.fit(2, predictors=rain[train], **options(validation=both.isel(time=held)))
    split = fine.sr.fit(2, predictors=rain, **options(validation=slice("2001-01-07", None)))
    assert given.training.validation["rmse"] == pytest.approx(split.training.validation["rmse"], rel=1e-4)
    with pytest.raises(ConfigError, match=r"must be a Dataset of \['tas', 'pr'\]"):
        fine[train].sr.fit(2, predictors=rain[train], **options(validation=fine[held]))
    with pytest.raises(UnitsError, match="validation"):
        wrong = both.isel(time=held).assign(pr=rain[held].assign_attrs(units="mm day-1"))
        fine[train].sr.fit(2, predictors=rain[train], **options(validation=wrong))


def test_predictors_are_asked_for_by_name_and_units(fine, rain):
    model, coarse = fine.sr.fit(2, predictors=rain, **options()), fine.sr.coarsen(2)
    with pytest.raises(DataError, match=r"predictors \['pr'\].*missing"):
        coarse.sr.downscale(model)
    with pytest.raises(UnitsError, match="predictor 'pr'"):
        coarse.sr.downscale(model, predictors=rain.assign_attrs(units="mm day-1"))
    with pytest.raises(DataError, match="lacks 1 of 8 values of 'time'"):
        coarse.sr.downscale(model, predictors=rain.isel(time=slice(1, None)))
    with pytest.raises(GridError):
        coarse.sr.downscale(model, predictors=rain.isel(lon=slice(0, 20)))
    with pytest.raises(DataError, match="names of their own"):
        fine.sr.fit(2, predictors=[rain, rain], **options())
    with pytest.raises(DataError, match="takes Datasets"):
        fine.sr.fit(2, predictors=["pr"], **options())


@pytest.mark.parametrize("domain", ["fixed", "open"])
@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
def test_what_a_predictor_lacks_does_not_hide_the_target(fine, check, reinitialise, tmp_path, upsampling, domain):
    """A sea surface temperature is missing over land: the network sees the target there all the same."""
    coarse = fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    sea = coarse.where(coarse.lon > 12).rename("sst").assign_attrs(units="K", standard_name="sea_surface_temperature")
    network, data = TINY | {"skip": None}, {"domain": domain, "calendar": True}
    model = fine.sr.fit(2, predictors=sea, **options(upsampling=upsampling, network=network, data=data))
    reinitialise(model.network)
    model = replace(model)  # a new object: the digest is cached on the old one
    assert model.spec.masks == ((1,),)
    out = coarse.sr.downscale(model, predictors=sea)
    other = coarse.copy(deep=True)
    other[:, 5, 1] += 10
    changed = np.abs(other.sr.downscale(model, predictors=sea) - out)
    assert float(changed.max()) > 0.05 * model.scaling.sd
    assert bool((changed[:, 10:12, 2:4] > 0).any(("lat", "lon")).all())
    lazy = coarse.chunk(time=3, lon=9).sr.downscale(model, predictors=sea)
    check.same_numbers(lazy, out, model.scaling.sd)
    model.save(tmp_path / "model.safetensors")
    again = xsr.load_model(tmp_path / "model.safetensors")
    assert again.spec == model.spec and hash(again.spec) == hash(model.spec)
    np.testing.assert_array_equal(coarse.sr.downscale(again, predictors=sea), out)


def test_targets_with_complementary_masks(fine, check, reinitialise):
    """Each is seen where it is, though the other is missing there."""
    land = fine.lon > float(fine.lon.mean())
    both = xr.Dataset({"soil": fine.where(land), "sea": fine.where(~land)})
    both = both.map(lambda da: da.assign_attrs(units="K"))
    model = both.sr.fit(2, **options(upsampling="interpolation", network=TINY | {"skip": None}))
    reinitialise(model.network)
    model = replace(model)
    assert model.spec.masks == ((0, 2), (1, 3))
    coarse = both.sr.coarsen(2)
    out = coarse.sr.downscale(model)
    for name, column in (("soil", 14), ("sea", 3)):
        other = coarse.copy(deep=True)
        other[name][:, 5, column] += 10
        changed = np.abs(other.sr.downscale(model)[name] - out[name])
        assert float(changed.max()) > 0.05 * float(fine.std()), name
    lazy = coarse.chunk(time=3, lon=9).sr.downscale(model)
    for name in both:
        check.same_numbers(lazy[name], out[name], float(fine.std()))


def test_the_calendar_is_shown(fine, check):
    """A cycle of the day that the coarse field does not show is learnt from the hour."""
    model = fine.sr.fit(2, **options(data={"calendar": True}))
    assert model.spec.inputs == 6
    coarse = fine.sr.coarsen(2)
    out = coarse.sr.downscale(model)
    other = coarse.assign_coords(time=coarse.time + np.timedelta64(180, "D")).sr.downscale(model)
    assert float(np.abs(out.values - other.values).max()) > 0
    check.same_numbers(coarse.chunk(time=3).sr.downscale(model), out, model.scaling.sd)
    with pytest.raises(DataError, match="calendar=True needs dates"):
        fine.drop_vars("time").sr.fit(2, **options(data={"calendar": True}))


# explicit pairs


@pytest.fixture(scope="module")
def globe() -> xr.DataArray:
    """Return a fine global field of weather, one-degree-like: 4 fine cells make a coarse one."""
    return toy_field(time=12, y=48, x=96, periodic=True)


def test_pairs_of_aligned_grids_equal_perfect_prognosis(fine):
    """Where the coarse data are the coarsened target both ways are one."""
    coarse = fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    pairs, perfect = coarse.sr.fit(target=fine, **options()), fine.sr.fit(2, **options())
    assert pairs.scale == 2 and pairs.paired and not any(pairs.margin)
    for name, weight in perfect.network.state_dict().items():
        np.testing.assert_allclose(pairs.network.state_dict()[name], weight, rtol=0, atol=2e-5, err_msg=name)


@pytest.fixture
def empty_table():
    xsr.deactivate()
    yield
    xsr.deactivate()


@pytest.fixture(scope="module")
def mos(fine) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the biased forecast of one variable and another one to make of it."""
    coarse = fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"]) + 5
    model = {"units": "degK", "standard_name": "air_temperature", "long_name": "forecast", "cell_methods": "time: mean"}
    station = {"units": "K", "standard_name": "surface_temperature", "long_name": "analysis"}
    return coarse.rename("tas").assign_attrs(model), fine.rename("t2m").assign_attrs(station)


def test_the_target_may_have_another_name(mos, empty_table, tmp_path):
    """The model is looked up by what it is given; its result is what it was trained to make, and is called that."""
    coarse, target = mos
    model = coarse.sr.fit(target=target, **options(activate=True))
    assert list(xsr.active_models()) == [("tas", 2)]
    out = coarse.sr.downscale(scale=2)
    assert out.name == "t2m" and out.attrs["xsuperres_model"] == model.digest
    expected = target.attrs | {"cell_methods": "time: mean"}
    assert {name: out.attrs[name] for name in expected} == expected
    assert abs(float(out.mean() - target.mean())) < 0.5, "the bias of 5 K is gone"
    model.save(tmp_path / "model.safetensors")
    again = xsr.load_model(tmp_path / "model.safetensors")
    assert again.input_names == ("tas",) and again.names == ("t2m",) and again.targets[0].source.units == "degK"
    xr.testing.assert_identical(coarse.sr.downscale(again), out)
    xr.testing.assert_identical(coarse.to_dataset().sr.downscale(model).t2m, out)
    assert "analysis [K] from tas" in repr(model) and "x2" in repr(model)
    with pytest.warns(XSuperResWarning, match="name is 't2m', the model was trained on 'tas'"):
        coarse.assign_attrs(standard_name="air_temperature").rename("t2m").sr.downscale(model)
    with pytest.raises(NoModelError):
        coarse.rename("t2m").sr.downscale(scale=2)


def test_a_target_without_labels_leaves_those_of_the_coarse_data(mos):
    coarse, target = mos
    bare = target.rename(None).assign_attrs(long_name=None)
    del bare.attrs["long_name"], bare.attrs["standard_name"]
    out = coarse.sr.downscale(coarse.sr.fit(target=bare, **options()))
    assert out.name == "tas" and out.attrs["long_name"] == "forecast" and out.attrs["units"] == "K"


def test_pairs_of_datasets_go_by_name(ds):
    """In whatever order, among whatever else: each variable is made of its own."""
    coarse, turned = ds.sr.coarsen(2), ds[["pr", "tas"]].assign(psl=ds.tas * 0 + 1e5, crs=0)
    model, straight = coarse.sr.fit(target=turned, **options()), coarse.sr.fit(target=ds, **options())
    assert model.names == model.input_names == ("tas", "pr")
    xr.testing.assert_identical(coarse.sr.downscale(model), coarse.sr.downscale(straight))
    with pytest.raises(DataError, match=r"target= lacks the variables \['tas'\].*rename"):
        coarse.sr.fit(target=ds.rename(tas="t2m"), **options())


def test_pairs_of_members_go_by_label(fine):
    """Each member of the target is 10 K warmer than the last, as those of the coarse data are."""
    coarse = fine.sr.coarsen(2)
    given = xr.concat([coarse, coarse + 10], xr.IndexVariable("member", [0, 1])).assign_attrs(coarse.attrs)
    target = xr.concat([fine + 10, fine], xr.IndexVariable("member", [1, 0])).assign_attrs(fine.attrs)
    model = given.sr.fit(target=target, **options())
    assert model.training.validation["rmse"] < 2
    with pytest.raises(DataError, match="other values of 'member'"):
        given.sr.fit(target=target.assign_coords(member=[1, 2]), **options())


def test_pairs_of_two_kinds_and_of_other_dims(fine):
    coarse = fine.sr.coarsen(2)
    with pytest.raises(DataError, match=r"target= must be a DataArray.*got Dataset; pass one of its variables"):
        coarse.sr.fit(target=fine.to_dataset(), **options())
    with pytest.raises(DataError, match=r"target= must be a Dataset.*got DataArray"):
        coarse.to_dataset().sr.fit(target=fine, **options())
    with pytest.raises(DataError, match="target has coordinates and the coarse data have none"):
        coarse.drop_vars("time").sr.fit(target=fine.isel(time=slice(3, 7)), **options())
    with pytest.raises(DataError, match=r"dims \['member'\] that the coarse data lack"):
        coarse.sr.fit(target=xr.concat([fine, fine], "member"), **options())


@pytest.mark.parametrize("kind", ["DataArray", "Dataset"])
def test_pairs_are_not_validated_on_other_fine_data(fine, kind):
    """They would be coarsened, and the weights kept that solve another problem best."""
    other = fine if kind == "DataArray" else fine.to_dataset()
    with pytest.raises(ConfigError, match=r"without target= only.*slice\("):
        fine.sr.coarsen(2).sr.fit(target=fine, **options(validation=other))


def test_a_coarse_domain_larger_than_the_fine_one_is_context(globe, check):
    fine = globe.isel(lat=slice(16, 40), lon=slice(24, 72))
    coarse = globe.sr.coarsen(4)
    model = coarse.sr.fit(target=fine, **options())
    assert min(model.margin) >= 1
    out = coarse.sr.downscale(model)
    assert out.lat.equals(fine.lat) and out.lon.equals(fine.lon) and out.elevation.equals(fine.elevation)
    assert out.notnull().all()
    check.same_numbers(coarse.chunk(time=5, lon=12).sr.downscale(model), out, model.scaling.sd)
    own = coarse.sel(lat=slice(*_ends(fine.lat)), lon=slice(*_ends(fine.lon)))
    alone = own.sr.downscale(model)
    assert alone.shape == out.shape
    inner = {"lat": slice(8, -8), "lon": slice(16, -16)}
    assert float(np.abs(alone - out).max()) > float(np.abs((alone - out).isel(inner)).max())


def _ends(line: xr.DataArray) -> tuple[float, float]:
    low, high = float(line.min()) - 0.1, float(line.max()) + 0.1
    return (low, high) if float(line[1]) > float(line[0]) else (high, low)


def test_a_forecast_on_other_cells_is_brought_onto_blocks(globe, caplog):
    """Coarse cells centred elsewhere: conservatively, at training and at inference, and the log says so."""
    fine = globe.isel(lat=slice(8, 40))
    shifted = globe.assign_coords(lon=globe.lon + 0.5 * float(globe.lon[1] - globe.lon[0]))
    coarse = shifted.sr.coarsen(4).drop_vars(["elevation", "land_fraction"])
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        model = coarse.sr.fit(target=fine, **options())
    assert "conservatively" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        out = coarse.sr.downscale(model)
    assert "conservatively" in caplog.text
    assert set(np.round(out.lon.values, 6)) <= set(np.round(fine.lon.values, 6))
    truth = fine.sel(lat=out.lat, lon=out.lon)
    assert float(((out - truth) ** 2).mean()) < float(
        ((coarse.sr.interpolate(4, method="nearest").mean() - truth) ** 2).mean()
    )


def test_members_share_one_truth_and_times_are_joined(globe):
    fine = globe.isel(lat=slice(16, 40), lon=slice(24, 72), time=slice(2, None))
    coarse = globe.sr.coarsen(4)
    ensemble = xr.concat([coarse, coarse + 0.1, coarse - 0.1], "member")
    model = ensemble.sr.fit(target=fine, **options())
    assert model.training.samples == 3 * 8
    out = ensemble.sr.downscale(model)
    assert out.dims == ("member", "time", "lat", "lon") and out.sizes["time"] == 12


def test_a_free_running_model_is_noticed(globe):
    fine = globe.isel(lat=slice(16, 40), lon=slice(24, 72))
    other = toy_field(time=12, y=48, x=96, periodic=True, seed=9).sr.coarsen(4)
    noise = np.random.default_rng(0).normal(size=other.shape).astype(np.float32) * 5
    with pytest.warns(XSuperResWarning, match="correlate by"):
        (other + noise).assign_attrs(other.attrs).sr.fit(target=fine, **options())


def test_pairs_that_do_not_fit(globe, fine):
    coarse = globe.sr.coarsen(4)
    with pytest.raises(GridError, match="whole number"):
        globe.sr.coarsen(3).sr.fit(target=globe.sr.coarsen(2), **options())
    with pytest.raises(DataError, match="No time is common"):
        coarse.assign_coords(time=coarse.time + np.timedelta64(3650, "D")).sr.fit(target=globe, **options())
    with pytest.raises(UnitsError):
        coarse.sr.fit(target=globe.assign_attrs(units="degC"), **options())
    with pytest.raises(ConfigError, match="differs from the 4 fine cells"):
        coarse.sr.fit(3, target=globe, **options())
    with pytest.raises(ConfigError, match="Pass the scale"):
        globe.sr.fit(**options())
    with pytest.raises(GridError, match="do not cover"):
        coarse.isel(lat=slice(0, 3)).sr.fit(target=globe.isel(lat=slice(30, 48)), **options())


def test_baselines_are_within_the_bounds_too(rain):
    """Else a network that cannot be negative would be compared with lines that can."""
    from xsuperres.verify.baselines import baseline_fields

    model = rain.sr.fit(2, **options(data={"valid_min": 2e-6}))
    fields = baseline_fields(rain.sr.coarsen(2), rain, model=model, names=["static_regression", "delta", "regression"])
    for name, field in fields.items():
        assert float(field.min()) == np.float32(2e-6), name
    free = rain.assign_attrs(standard_name="unknown_flux").sr.fit(2, **options())
    (loose,) = baseline_fields(rain.sr.coarsen(2), rain, model=free, names="delta").values()
    assert float(loose.min()) < 2e-6
    assert model.training.validation["ratio_to_linear"] == pytest.approx(1, abs=0.3)


def test_a_scale_in_the_place_of_the_model(fine):
    with pytest.raises(ConfigError, match=r"got int \(4\); did you mean scale=4\?"):
        fine.sr.coarsen(2).sr.downscale(4)


def test_an_open_model_of_pairs_has_no_margin_elsewhere(globe):
    """The context of its training belongs to its training domain; elsewhere every cell given is refined."""
    inner = globe.isel(lat=slice(8, 40), lon=slice(12, 60))
    model = globe.sr.coarsen(2).sr.fit(target=inner, **options(data={"domain": "open"}))
    assert min(model.margin) >= 1
    elsewhere = inner.assign_coords(lon=inner.lon + 150)
    coarse = elsewhere.sr.coarsen(2).drop_vars(["elevation", "land_fraction"], errors="ignore")
    static = elsewhere.coords.to_dataset().drop_vars("time").reset_coords()
    names = list(model.static_scaling.names)
    out = coarse.sr.downscale(model, static=static[names] if names else None, check_range="ignore")
    assert out.sizes == inner.sizes
