"""The score table: alignment, baselines, regions, the model found by digest, warnings and refusals."""

import gc
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import ConfigError, DataError, GridError, UnitsError, UnknownNameError, XSuperResWarning
from xsuperres.fields import field as field_module
from xsuperres.fields.field import Field
from xsuperres.fields.forecasts import TimeAxes
from xsuperres.model.file import load_model
from xsuperres.model.table import deactivate
from xsuperres.testing import toy_field
from xsuperres.verify.baselines import baseline_fields, is_temperature
from xsuperres.verify.score import training_overlap
from xsuperres.verify.score_table import score_table

STEPS = {"max_steps": 3}


def score(fine: xr.DataArray, truth: xr.DataArray, **options) -> xr.Dataset:
    return fine.sr.score(truth, **options)


@pytest.fixture(scope="module")
def archive():
    return toy_field(time=10, y=16, x=24)


@pytest.fixture(scope="module")
def model(archive):
    """Return a fixed-domain model of the first six days."""
    return archive.isel(time=slice(0, 6)).sr.fit(2, optimization=STEPS, progress=False, activate=False)


@pytest.fixture(scope="module")
def open_model(archive):
    return archive.isel(time=slice(0, 6)).sr.fit(
        2, optimization=STEPS, data={"domain": "open"}, progress=False, activate=False
    )


@pytest.fixture
def truth(archive):
    return archive.isel(time=slice(6, 10))


@pytest.fixture
def fine(truth, model):
    return truth.sr.coarsen(2).sr.downscale(model)


def rmse(table, method, region="all"):
    return float(table.rmse.sel({"product": method, "region": region}))


def test_table_of_a_network(fine, truth, model):
    table = score(fine, truth)
    expected = ["network", "bilinear", "bicubic", "lapse", "static_regression", "delta", "regression"]
    assert table["product"].values.tolist() == expected
    assert table.region.values.tolist() == ["all", "land", "sea", "0-500 m", "500-1500 m", ">1500 m"]
    assert table.sizes == {"product": 7, "region": 6}
    assert table.attrs["model"] == model.identity
    assert table.attrs["scale"] == 2
    assert "note" not in table.attrs
    units = {name: variable.attrs["units"] for name, variable in table.data_vars.items()}
    assert units == dict.fromkeys(["rmse", "mae", "bias", "consistency"], "K") | dict.fromkeys(
        ["correlation", "sd_ratio", "gradient_ratio"], "1"
    )
    assert np.isfinite(table.to_array()).all()


def test_perfect_field(truth):
    table = score(truth, truth, coarse=truth.sr.coarsen(2))
    perfect = table.isel(product=0).sel(region="all")
    assert {n: float(v) for n, v in perfect.data_vars.items() if n in ("rmse", "mae", "bias")} == {
        "rmse": 0.0,
        "mae": 0.0,
        "bias": 0.0,
    }
    for name in ("correlation", "sd_ratio", "gradient_ratio"):
        assert float(perfect[name]) == pytest.approx(1.0)
    assert float(perfect.consistency) < 1e-4  # float32 coarse input


def test_equals_numpy(fine, truth):
    """The score of the bare field, written out."""
    edges = np.deg2rad(np.append(truth.lat.values - 0.4, truth.lat.values[-1] + 0.4))
    area = np.diff(np.sin(edges))[:, None] * np.ones(truth.shape[1:])
    land = truth.land_fraction.values >= 0.5
    square = ((fine.astype(float) - truth.astype(float)) ** 2).mean("time").values
    table = score(fine, truth, metrics="rmse", baselines=())
    assert rmse(table, "network") == pytest.approx(np.sqrt(np.average(square, weights=area)), rel=1e-9)
    assert rmse(table, "network", "land") == pytest.approx(
        np.sqrt(np.average(square[land], weights=area[land])), rel=1e-9
    )
    assert rmse(table, "network") != pytest.approx(np.sqrt(square.mean()), rel=1e-5)


def mirrored(da):
    return da.isel(lat=slice(None, None, -1))


def shuffled(da):
    return da.transpose("lon", "time", "lat")


def westward(da):
    return da.assign_coords(lon=("lon", da.lon.values - 360.0, da.lon.attrs))


def renamed(da):
    return da.rename(lat="latitude", lon="longitude")


@pytest.mark.parametrize("change", [mirrored, shuffled, westward, renamed])
@pytest.mark.parametrize("which", ["fine", "truth", "coarse"])
def test_orientation_does_not_matter(fine, truth, change, which):
    fields = {"fine": fine, "truth": truth, "coarse": truth.sr.coarsen(2)}
    expected = score(**fields)
    found = score(**{**fields, which: change(fields[which])})
    xr.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_turned_circle(truth):
    globe = toy_field(time=2, y=12, x=24, periodic=True)
    coarse = globe.sr.coarsen(4)
    guess = coarse.sr.interpolate(4, like=globe)
    expected = score(guess, globe, coarse=coarse)
    turned = globe.roll(lon=12, roll_coords=True)
    turned = turned.assign_coords(lon=("lon", (turned.lon.values + 180) % 360 - 180, globe.lon.attrs))
    xr.testing.assert_allclose(score(guess, turned, coarse=coarse), expected, rtol=1e-9)
    xr.testing.assert_allclose(score(guess, turned, coarse=coarse.roll(lon=1, roll_coords=True)), expected, rtol=1e-9)
    with pytest.raises(GridError, match=r"whole blocks of 4 x 4 cells: \.isel\(lat=slice\(0, 12\), lon=slice\(2, 22\)"):
        score(guess.roll(lon=2, roll_coords=True), globe, coarse=coarse)


def test_same_cells_for_every_method(fine, truth):
    """A hole in the truth, in the prediction and in the coarse input takes the same cells from every row."""
    rng = np.random.default_rng(0)
    hole = xr.DataArray(rng.random(truth.shape) < 0.1, dims=truth.dims)
    gone = xr.DataArray(rng.random((4, 8, 12)) < 0.1, dims=truth.dims)
    coarse = truth.sr.coarsen(2).where(~gone)
    table = score(fine.where(~hole), truth, coarse=coarse, baselines=["bicubic"])
    kept = ~hole.values & ~gone.values.repeat(2, -2).repeat(2, -1)
    bicubic = coarse.sr.interpolate(2, like=truth)
    area = np.broadcast_to(np.cos(np.deg2rad(truth.lat.values))[:, None], truth.shape)  # even rows: the same weights
    for method, field in (("network", fine), ("bicubic", bicubic)):
        square = (field.values.astype(float) - truth.values.astype(float)) ** 2
        assert rmse(table, method) == pytest.approx(np.sqrt(np.average(square[kept], weights=area[kept])), rel=1e-9)


def test_regions_without_valid_cells_are_left_out(truth):
    land = truth.where(truth.land_fraction >= 0.5)
    table = score(land, land, coarse=truth.sr.coarsen(2), baselines=["bicubic"])
    assert "sea" not in table.region
    assert "land" in table.region


def test_percent_land_and_kilometres(fine, truth):
    attrs = {"standard_name": "land_area_fraction", "units": "%"}
    other = truth.assign_coords(
        land_fraction=(("lat", "lon"), 100 * truth.land_fraction.values, attrs),
        elevation=(("lat", "lon"), truth.elevation.values / 1000, {"standard_name": "surface_altitude", "units": "km"}),
    )
    bare = fine.drop_vars(["land_fraction", "elevation"])
    expected = score(fine, truth, baselines=["bicubic", "lapse"], metrics=["rmse"])
    found = score(bare, other, baselines=["bicubic", "lapse"], metrics=["rmse"])
    xr.testing.assert_allclose(found, expected, rtol=1e-6)


def test_unusable_elevation_is_noted(truth):
    holed = truth.assign_coords(elevation=truth.elevation.where(truth.land_fraction > 0.5))
    table = score(holed, holed, coarse=truth.sr.coarsen(2).drop_vars("elevation"))
    assert "lapse" not in table["product"]
    assert "'elevation' is NaN" in table.attrs["note"]
    assert "no lapse: elevation is not known" in table.attrs["note"]
    assert table.region.values.tolist() == ["all", "land", "sea"]


def test_lapse_by_hand(truth):
    coarse = truth.sr.coarsen(2)
    area = np.cos(np.deg2rad(truth.lat.values))[:, None] * np.ones(truth.shape[1:])
    groups = lambda v: v.reshape(8, 2, 12, 2).sum(axis=(1, 3))  # noqa: E731
    height = xr.DataArray(
        groups(truth.elevation.values * area) / groups(area), coarse.isel(time=0).coords, ("lat", "lon")
    )
    anomaly = truth.elevation - height.astype("float64").sr.interpolate(2, like=truth)
    expected = coarse.sr.interpolate(2, like=truth) - 0.0065 * anomaly
    found = baseline_fields(coarse, truth, names="lapse")["lapse"]
    assert found.dtype == np.float32
    assert found.dims == truth.dims
    np.testing.assert_allclose(found, expected, atol=2e-3)  # elevation is kept in float32
    table = score(truth, truth, coarse=coarse, metrics=["bias"])
    by_hand = float((expected - truth).mean("time").weighted(np.cos(np.deg2rad(truth.lat))).mean())
    assert float(table.bias.sel({"product": "lapse", "region": "all"})) == pytest.approx(by_hand, abs=1e-4)


def test_trained_baselines_by_hand(fine, truth, model):
    coarse = truth.sr.coarsen(2)
    found = baseline_fields(coarse, fine, model=model)
    bicubic = coarse.sr.interpolate(2, like=truth)
    fitted = model.baselines
    np.testing.assert_allclose(found["delta"], bicubic + fitted.delta, rtol=1e-6)
    np.testing.assert_allclose(found["regression"], fitted.intercept + fitted.slope * bicubic, rtol=1e-6)
    linear = np.einsum("s,syx->yx", fitted.coefficients, model.static_anomaly)
    np.testing.assert_allclose(found["static_regression"], bicubic + linear, rtol=1e-6)
    for field in found.values():
        xr.testing.assert_equal(field.lat, fine.lat)
        assert field.attrs["units"] == "K"


def test_statics_by_standard_name(truth, fine, model):
    other = truth.rename(elevation="orog", land_fraction="sftlf")
    far = other.assign_coords(lon=("lon", truth.lon.values + 100, truth.lon.attrs))  # not the model's own grid
    found = baseline_fields(far.sr.coarsen(2), far, model=model)
    assert list(found) == ["bilinear", "bicubic", "lapse", "static_regression"]
    expected = baseline_fields(truth.sr.coarsen(2), truth, model=model, names="static_regression")
    np.testing.assert_allclose(found["static_regression"], expected["static_regression"], rtol=1e-6)
    with pytest.raises(ConfigError, match="'land_fraction' is not known here"):
        baseline_fields(far.sr.coarsen(2), far.drop_vars("sftlf"), model=model, names=["static_regression"])
    own = baseline_fields(truth.sr.coarsen(2), truth.drop_vars(["elevation", "land_fraction"]), model=model)
    np.testing.assert_allclose(own["static_regression"], expected["static_regression"], rtol=1e-6)


def test_statics_in_other_units_than_the_model(truth, open_model):
    """Coefficients in K per metre, times kilometres, would be a row near bicubic and nothing said."""
    far = truth.assign_coords(lon=("lon", truth.lon.values + 100, truth.lon.attrs))
    far = far.assign_coords(elevation=(far.elevation / 1000).assign_attrs(far.elevation.attrs | {"units": "km"}))
    guess = far.sr.coarsen(2).sr.interpolate(2, like=far)
    table = score(guess, far, coarse=far.sr.coarsen(2), model=open_model, metrics="rmse")
    assert table["product"].values.tolist() == ["prediction", "bilinear", "bicubic", "lapse"], "lapse knows kilometres"
    assert (
        "no static_regression: static field 'elevation': expected units of 'm' like the model, got 'km'"
        in (table.attrs["note"])
    )
    with pytest.raises(ConfigError, match="got 'km'"):
        baseline_fields(far.sr.coarsen(2), far, model=open_model, names="static_regression")


# Models of explicit pairs.


@pytest.fixture(scope="module")
def forecast(archive):
    """Return coarse data that are not the coarsened truth: warmer, and noisy."""
    coarse = archive.sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    noise = np.random.default_rng(0).normal(size=coarse.shape).astype(np.float32)
    return (coarse + 3 + noise).assign_attrs(coarse.attrs).rename("t2m")


@pytest.fixture(scope="module")
def paired_model(archive, forecast):
    train = slice(0, 6)
    return forecast[train].sr.fit(target=archive[train], optimization=STEPS, progress=False, activate=False)


def test_a_paired_model_is_compared_on_what_it_was_given(truth, forecast, paired_model):
    """Baselines made of the coarsened truth would have no bias of 3 K and no noise: another problem."""
    made_from = forecast.isel(time=slice(6, 10))
    fine = made_from.sr.downscale(paired_model)
    assert fine.name == "tas"
    with pytest.raises(ConfigError, match="explicit pairs: pass coarse="):
        fine.sr.score(truth)
    table = fine.sr.score(truth, coarse=made_from)
    assert float(table.bias.sel({"product": "bicubic", "region": "all"})) == pytest.approx(3, abs=0.5)
    assert abs(float(table.bias.sel({"product": "delta", "region": "all"}))) < 0.5
    perfect = truth.sr.coarsen(2).sr.interpolate(2, like=truth)
    with pytest.raises(ConfigError, match="explicit pairs"):
        perfect.sr.score(truth, model=paired_model)


def test_coarse_data_of_pairs_are_brought_onto_blocks():
    """A forecast on cells of its own, beyond the truth, is scored as it was trained on: by its conservative mean."""
    globe = toy_field(time=8, y=24, x=48, periodic=True).drop_vars(["elevation", "land_fraction"])
    fine = globe.isel(lat=slice(4, 20), lon=slice(12, 36))
    made_from = globe.assign_coords(lon=globe.lon + 0.5 * float(globe.lon[1] - globe.lon[0])).sr.coarsen(4)
    train, test = slice(0, 6), slice(6, None)
    model = made_from[train].sr.fit(target=fine[train], optimization=STEPS, progress=False, activate=False)
    out = made_from[test].sr.downscale(model)
    truth = fine[test].sel(lat=out.lat, lon=out.lon)
    table = score(out, truth, coarse=made_from[test], metrics=["rmse", "consistency"])
    assert {"bicubic", "delta"} <= set(table["product"].values)
    mirrored_too = score(out, truth, coarse=mirrored(shuffled(made_from[test])), metrics=["rmse", "consistency"])
    xr.testing.assert_allclose(mirrored_too, table, rtol=1e-6)
    odd = {"lat": slice(1, 9)}
    with pytest.raises(GridError):
        score(out.isel(odd), truth.isel(odd), coarse=made_from[test])


def test_model_without_statics(archive, truth):
    plain = archive.drop_vars(["elevation", "land_fraction"]).rename("psl").drop_attrs(deep=False)
    model = plain.isel(time=slice(0, 6)).sr.fit(2, optimization=STEPS, progress=False, activate=False)
    known = plain.isel(time=slice(6, 10))
    table = score(known.sr.coarsen(2).sr.downscale(model), known, metrics=["rmse"])
    assert table["product"].values.tolist() == ["network", "bilinear", "bicubic", "delta", "regression"]
    assert table.attrs["note"] == (
        "no lapse: the variable is not a temperature; no static_regression: the model was trained without static fields"
    )
    assert "units" not in table.rmse.attrs


def test_baselines_keep_orientation_and_crop(truth, model):
    coarse = shuffled(mirrored(truth.sr.coarsen(2)))
    like = mirrored(truth)
    found = baseline_fields(coarse, like, model=model)
    for name, field in baseline_fields(truth.sr.coarsen(2), truth, model=model).items():
        assert found[name].dims == ("lon", "time", "lat")
        np.testing.assert_array_equal(found[name].lat, like.lat)
        xr.testing.assert_allclose(mirrored(found[name]).transpose(*field.dims).drop_attrs(), field.drop_attrs())
    part = truth.isel(lat=slice(4, 12), lon=slice(2, 20))
    assert {"delta", "regression"} <= set(baseline_fields(part.sr.coarsen(2), part, model=model))
    odd = truth.isel(lat=slice(3, 11), lon=slice(2, 20))  # other coarse cells than the model's
    assert not {"delta", "regression"} & set(baseline_fields(odd.sr.coarsen(2), odd, model=model))


def test_cells_never_trained_fall_back_to_bicubic(truth, archive):
    masked = archive.isel(time=slice(0, 6)).where(archive.lon > 8)
    model = masked.sr.fit(2, optimization=STEPS, progress=False, activate=False)
    found = baseline_fields(truth.sr.coarsen(2), truth, model=model)
    west = {"lon": slice(0, 6)}
    np.testing.assert_array_equal(found["delta"].isel(west), found["bicubic"].isel(west))
    np.testing.assert_array_equal(found["regression"].isel(west), found["bicubic"].isel(west))


def test_open_model_has_no_rows_per_cell(truth, open_model):
    table = score(truth.sr.coarsen(2).sr.downscale(open_model), truth)
    assert table["product"].values.tolist() == ["network", "bilinear", "bicubic", "lapse", "static_regression"]
    assert "no delta, regression: the model is not bound to one domain" in table.attrs["note"]


def test_without_a_model_the_note_says_why(fine, truth):
    plain = fine.drop_attrs(deep=False).assign_attrs(units="K", standard_name="air_temperature")
    table = score(plain, truth, coarse=truth.sr.coarsen(2))
    assert table["product"].values.tolist() == ["prediction", "bilinear", "bicubic", "lapse"]
    assert "bears no model digest" in table.attrs["note"]
    stranger = plain.assign_attrs(xsuperres_model="f" * 64, xsuperres_scale=np.int64(2))
    table = score(stranger, truth)
    assert table["product"].values.tolist() == ["network", "bilinear", "bicubic", "lapse"]
    assert "not loaded in this process" in table.attrs["note"]


def test_model_is_found_by_digest_never_by_name(archive, truth, tmp_path):
    trained = archive.isel(time=slice(0, 6)).sr.fit(2, optimization=STEPS, seed=7, progress=False)
    trained.save(tmp_path / "m.safetensors")
    fine = truth.sr.coarsen(2).sr.downscale(trained)
    expected = score(fine, truth)
    fine.to_netcdf(tmp_path / "fine.nc")
    deactivate()
    other = archive.isel(time=slice(0, 6)).sr.fit(2, optimization=STEPS, seed=8, progress=False)  # same name and scale
    del trained
    gc.collect()
    loaded = load_model(tmp_path / "m.safetensors")
    with xr.open_dataset(tmp_path / "fine.nc") as stored:
        table = score(stored.tas.load(), truth)
    assert table.attrs["model"] == loaded.digest != other.digest
    xr.testing.assert_allclose(table, expected, rtol=1e-6)
    deactivate()


def test_explicit_model(fine, truth, model, open_model):
    plain = fine.assign_attrs(xsuperres_model="0" * 64)
    with pytest.warns(XSuperResWarning, match="was made by model 000"):
        table = score(plain, truth, model=model)
    assert "delta" in table["product"]
    del plain.attrs["xsuperres_model"]
    assert score(plain, truth, model=model)["product"][0] == "prediction"
    del plain.attrs["xsuperres_scale"]
    assert score(plain, truth, model=model, metrics="rmse").attrs["scale"] == 2


def test_overlap_with_the_training_period(archive, model):
    late = archive.isel(time=slice(4, 8))  # the model was trained on five, and validated with the sixth
    fine = late.sr.coarsen(2).sr.downscale(model)
    with pytest.warns(XSuperResWarning, match="1 time step.*training period.*100%"):
        score(fine, late, metrics="rmse")
    with pytest.warns(XSuperResWarning, match="1 time step"):
        score(fine.isel(time=0), late.isel(time=0), metrics="rmse")
    elsewhere = late.assign_coords(lon=("lon", late.lon.values + 100, late.lon.attrs))
    assert training_overlap(model, Field.of(elsewhere))[1] == 0.0
    half = late.assign_coords(lon=("lon", late.lon.values + 12 - 360, late.lon.attrs))
    assert training_overlap(model, Field.of(half)) == (1, pytest.approx(0.5))


def test_overlap_in_another_calendar(archive):
    days = xr.date_range("2001-01-01", periods=10, calendar="360_day", use_cftime=True)
    field = archive.assign_coords(time=days)
    model = field.isel(time=slice(0, 6)).sr.fit(2, optimization=STEPS, progress=False, activate=False)
    assert training_overlap(model, Field.of(field))[0] == 5
    assert training_overlap(model, Field.of(archive.isel(time=slice(4, 10))))[0] == 1
    assert training_overlap(model, Field.of(field.drop_vars("time")))[0] == 0


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda t: t.isel(lat=slice(0, 14)), GridError, "lies on other cells"),
        (lambda t: t.assign_coords(lon=("lon", t.lon.values + 0.01, t.lon.attrs)), GridError, "lies on other cells"),
        (lambda t: t.isel(time=slice(0, 3)), DataError, "3 steps along 'time'"),
        (lambda t: t.isel(time=slice(None, None, -1)), DataError, "other values of 'time'"),
        (lambda t: t.assign_coords(time=t.time + np.timedelta64(1, "h")), DataError, "expected 4 from 2001-01-07"),
        (lambda t: t.expand_dims(member=2), DataError, r"dims \['member'\]"),
        (lambda t: (t - 273.15).assign_attrs(units="degC"), UnitsError, "expected units of 'K'"),
        (lambda t: t.astype("float16"), DataError, "float16"),
    ],
)
def test_misaligned_truth_is_refused(fine, truth, change, error, match):
    with pytest.raises(error, match=match):
        score(fine, change(truth))


def test_one_step_of_another_time_is_refused(fine, truth):
    with pytest.raises(DataError, match="truth has other valid times: expected 2001-01-07.*, got 2001-01-08"):
        score(fine.isel(time=0), truth.isel(time=1))
    numbered = [field.assign_coords(time=range(4)).isel(time=k) for field, k in ((fine, 0), (truth, 1))]
    with pytest.raises(DataError, match="other values of 'time': expected 0, got 1"):
        score(*numbered)


def test_wrong_coarse_is_refused(fine, truth):
    with pytest.raises(GridError, match="coarse does not cover the scored field"):
        score(fine, truth, coarse=truth.sr.coarsen(2).isel(lat=slice(0, 7)))
    with pytest.raises(GridError, match="2 x 2 fine ones"):
        score(fine, truth, coarse=truth.sr.coarsen(4))
    moved = truth.assign_coords(lon=("lon", truth.lon.values + 1, truth.lon.attrs))
    with pytest.raises(GridError, match="coarse does not cover the scored field"):
        score(fine, truth, coarse=moved.sr.coarsen(2))
    with pytest.raises(ConfigError, match="scale is not known"):
        score(truth, truth)


def test_missing_units_warn(fine, truth):
    with pytest.warns(XSuperResWarning, match="units are None"):
        score(fine, truth.drop_attrs(deep=False), metrics="rmse", baselines="bicubic")


def test_asked_for_names(fine, truth, open_model):
    table = score(fine, truth, baselines="bicubic", metrics=["pearson", "rmse"])
    assert table["product"].values.tolist() == ["network", "bicubic"]
    assert list(table.data_vars) == ["correlation", "rmse"]
    with pytest.raises(UnknownNameError, match="Did you mean 'bicubic'"):
        score(fine, truth, baselines=["bicubik"])
    with pytest.raises(UnknownNameError, match="metric"):
        score(fine, truth, metrics=["r2"])
    with pytest.raises(ConfigError, match="delta: the model is not bound"):
        score(truth.sr.coarsen(2).sr.downscale(open_model), truth, baselines=["delta"])
    with pytest.raises(ConfigError, match="at least one"):
        score(fine, truth, metrics=[])
    with pytest.raises(ConfigError, match="product and region"):
        score(fine.rename(time="region"), truth.rename(time="region"))


def test_dims_are_kept(fine, truth):
    by_time = score(fine, truth, dim=["lat", "lon"])
    assert by_time.rmse.dims == ("product", "region", "time")
    xr.testing.assert_equal(by_time.time, truth.time)
    whole = score(fine, truth)
    mean = (by_time.rmse**2).mean("time") ** 0.5
    xr.testing.assert_allclose(mean.drop_attrs(), whole.rmse.drop_attrs(), rtol=1e-9)
    maps = score(mirrored(fine), truth, dim="time", metrics=["bias"], baselines=["delta"])
    assert maps.bias.dims == ("product", "region", "lat", "lon")
    expected = (mirrored(fine).astype(float) - mirrored(truth).astype(float)).mean("time")
    np.testing.assert_array_equal(maps.lat, mirrored(fine).lat)
    np.testing.assert_allclose(maps.bias[0, 0], expected, atol=1e-9)
    with pytest.raises(UnknownNameError, match="Did you mean 'time'"):
        score(fine, truth, dim="tine")


def test_members_are_scored_one_by_one(fine, truth):
    members = xr.concat([fine, fine + 1], xr.DataArray([0, 1], dims="member"), combine_attrs="override")
    table = score(members, truth, dim=["time", "lat", "lon"], metrics=["bias"])
    assert table.bias.dims == ("product", "region", "member")
    difference = table.bias.sel({"product": "network", "region": "all"}).diff("member")
    assert float(difference.squeeze()) == pytest.approx(1.0, abs=1e-5)


def test_dask_is_computed_once(fine, truth):
    """Every block of every input is read once, though seven methods and seven metrics need it."""
    expected = score(fine, truth)
    reads = []

    def lazily(da, **chunks):
        def read(block):
            reads.append(block.shape)
            return block

        data = da.chunk(chunks).data.map_blocks(read, dtype=da.dtype, meta=np.empty((0, 0, 0), da.dtype))
        return da.copy(data=data), data.npartitions

    fields = [lazily(fine, time=2, lat=5), lazily(truth, time=2), lazily(truth.sr.coarsen(2), lat=3)]
    with dask.config.set(scheduler="synchronous"):
        found = score(fields[0][0], fields[1][0], coarse=fields[2][0])
    assert len(reads) == sum(count for _, count in fields)
    xr.testing.assert_allclose(found, expected, rtol=1e-9)
    reads.clear()
    guesses = baseline_fields(fields[2][0], fields[1][0])
    assert not reads
    assert all(dask.is_dask_collection(guess) for guess in guesses.values())


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("given", [True, False])
def test_each_array_is_understood_once(fine, truth, monkeypatch, given, lazy):
    """Axes, cells and times are read of the field, the truth and the coarse data, and not again."""
    calls = []
    for module, name in ((field_module, "find_axes"), (field_module, "grid_along"), (TimeAxes, "of")):
        right = getattr(module, name)

        def counted(*args, name=name, right=right, **options):
            calls.append(name)
            return right(*args, **options)

        monkeypatch.setattr(module, name, counted)
    coarse = truth.sr.coarsen(2) if given else None
    calls.clear()
    score(fine.chunk(lat=8) if lazy else fine, truth, coarse=coarse)
    assert {name: calls.count(name) for name in set(calls)} == dict.fromkeys(
        ("find_axes", "grid_along", "of"), 2 + given
    )


def test_warnings_point_at_the_caller(fine, truth, archive, open_model):
    """At this file, for a DataArray and for a Dataset, however deep the reason lies."""
    bare = truth.elevation.drop_attrs().assign_attrs(standard_name="surface_altitude")  # without units
    far = [
        da.assign_coords(lon=da.lon + 100, elevation=bare.variable)
        for da in (truth.sr.coarsen(2).sr.interpolate(2, like=truth), truth)
    ]
    late = archive.isel(time=slice(4, 8))
    calls = {
        "units are None": lambda: fine.sr.score(truth.drop_attrs(deep=False), metrics="rmse"),
        "training period": lambda: late.sr.score(late, model=open_model, metrics="rmse"),
        "was made by model": lambda: fine.sr.score(truth, model=open_model, metrics="rmse"),
        "static field 'elevation': units are None": lambda: far[0].sr.score(far[1], model=open_model, metrics="rmse"),
        "tas|units are None": lambda: fine.to_dataset().sr.score(truth.drop_attrs(deep=False).to_dataset()),
    }
    for text, call in calls.items():
        with pytest.warns(XSuperResWarning, match=text) as caught:
            call()
        assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}, text


def test_chunked_coordinates(fine, truth):
    chunks = {"time": 2, "lat": 8}
    found = score(fine.chunk(chunks), truth.chunk(chunks), metrics="rmse")
    xr.testing.assert_allclose(found, score(fine, truth, metrics="rmse"), rtol=1e-9)


def test_real_data():
    """The lapse row of ERA5 beats bicubic by about what was measured for this project."""
    tas = xsr.tutorial.open_dataset("era5_global_1deg").tas.isel(time=[0, 12]).load()
    coarse = tas.sr.coarsen(4)
    bicubic = coarse.sr.interpolate(4, like=tas)
    table = score(bicubic, tas, coarse=coarse, metrics=["rmse", "consistency"])
    assert rmse(table, "prediction") == rmse(table, "bicubic")
    assert 0.7 < rmse(table, "lapse") / rmse(table, "bicubic") < 0.85
    assert rmse(table, "lapse", "sea") < rmse(table, "lapse", "land")


def test_report(fine, truth):
    table = score(fine, truth)
    lines = score_table(table).splitlines()
    assert lines[0] == "tas, scale 2, region all"
    assert lines[1].split()[:5] == ["product", "RMSE", "[K]", "/", "bicubic"]
    assert len(lines) == 9
    assert lines[4].split()[2] == "1.000"
    assert "land" in score_table(table, region="land").splitlines()[0]
    with pytest.raises(UnknownNameError, match="region"):
        score_table(table, region="ocean")
    with pytest.raises(DataError, match="time"):
        score_table(score(fine, truth, dim=["lat", "lon"]))
    small = table.copy(deep=True)[["bias", "correlation"]] * 0 + 1e-6
    small.bias.attrs, small.attrs["note"] = {"units": "kg m-2 s-1"}, "why " * 60
    text = score_table(small.where(small["product"] != "lapse"))
    assert "1.000e-06" in text
    assert " -" in text
    assert text.splitlines()[-1].startswith("why")


@pytest.mark.parametrize(
    ("name", "attrs", "expected"),
    [
        ("tas", {"units": "K"}, True),
        ("x", {"standard_name": "air_temperature"}, True),
        ("tas", {"standard_name": "sea_surface_temperature", "units": "K"}, False),
        ("sst", {"units": "K"}, False),
        ("tas", {"units": "Pa"}, False),
    ],
)
def test_temperatures(name, attrs, expected):
    assert is_temperature(name, attrs) is expected


def test_the_default_coarse_field_is_made_as_the_model_was_trained(make_model):
    """A coarse cell that the model's training took for valid is valid in the score too."""
    toy = make_model(scale=4, missing=True)
    truth = toy.fine.copy(deep=True).assign_coords(time=toy.fine.time + np.timedelta64(9999, "D"))
    truth[:, :4, :4] = np.nan
    truth[:, 0, 0] = 280.0  # one cell in sixteen
    scored = {}
    for fraction in (0.05, 0.5):
        model = replace(toy.model, data=replace(toy.model.data, minimum_valid_fraction=fraction))
        coarse = truth.sr.coarsen(4, minimum_valid_fraction=fraction)
        fine = coarse.sr.downscale(model)
        names = {"metrics": "bias", "baselines": "bicubic", "model": model}
        told, alone = fine.sr.score(truth, coarse=coarse, **names), fine.sr.score(truth, **names)
        xr.testing.assert_allclose(told.bias, alone.bias)
        scored[fraction] = float(alone.bias.sel(product="bicubic", region="all"))
    assert scored[0.05] != scored[0.5], "the cell counts for one model and not for the other"


def test_steps_that_were_held_out_do_not_overlap(archive):
    """In the middle of the training period, in any order of times, with members or without."""
    held = slice("2001-01-04", "2001-01-06")
    mixed = archive.isel(time=[7, 2, 5, 0, 9, 1, 3, 8, 6, 4])
    members = archive.expand_dims(member=2, axis=1)
    for field in (archive, mixed, members):
        model = field.sr.fit(2, optimization=STEPS, validation=held, progress=False, activate=False)
        assert model.training.period == ("2001-01-01T00:00:00", "2001-01-10T00:00:00")
        assert model.training.held_out == (("2001-01-04T00:00:00", "2001-01-06T00:00:00"),)
        assert training_overlap(model, Field.of(archive.sel(time=held)))[0] == 0
        assert training_overlap(model, Field.of(archive.sel(time=slice("2001-01-03", "2001-01-07"))))[0] == 2
        assert training_overlap(model, Field.of(archive))[0] == 7
    truth = archive.sel(time=held)
    truth.sr.coarsen(2).sr.downscale(model).sr.score(truth, model=model, metrics="rmse")  # without a warning


def test_stretches_at_the_ends_and_in_another_calendar(archive):
    days = xr.date_range("2001-01-01", periods=10, calendar="360_day", use_cftime=True)
    field = archive.assign_coords(time=days)
    model = field.sr.fit(2, optimization=STEPS, progress=False, activate=False)
    assert model.training.period == ("2001-01-01 00:00:00", "2001-01-08 00:00:00")
    assert model.training.held_out == (("2001-01-09 00:00:00", "2001-01-10 00:00:00"),)
    assert training_overlap(model, Field.of(field))[0] == 8


def test_space_holds_out_no_time(archive):
    wide = toy_field(time=4, y=16, x=80)
    model = wide.sr.fit(2, optimization=STEPS, validation="space", progress=False, activate=False)
    assert model.training.held_out == ()
    assert training_overlap(model, Field.of(wide))[0] == 4
