"""Forecasts as they come: dims, coordinates, valid times, and windows that stay within one forecast."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.inference import layout
from xsuperres.nn.network import build_network
from xsuperres.testing import toy_field

TINY = {"width": 5, "depth": 1, "head_width": 4}
REFERENCE, PERIOD, TIME = ({"standard_name": n} for n in ("forecast_reference_time", "forecast_period", "time"))
STATIC = ["elevation", "land_fraction"]
SIX_HOURS = np.timedelta64(6, "h").astype("m8[ns]")


def fit(da, scale=2, **options):
    """Train for two steps with a tiny network."""
    defaults = {"network": TINY, "upsampling": "subpixel", "validation": None, "activate": False, "progress": False}
    defaults |= {"sampling": {"batch_size": 2, "patch_size": 4}, "optimization": {"max_steps": 2, "validations": 1}}
    return da.sr.fit(scale, **(defaults | options))


@pytest.fixture(scope="module")
def fine() -> xr.DataArray:
    """Return a series of fine fields, six hours apart."""
    field = toy_field(time=24, y=16, x=24)
    return field.assign_coords(time=field.time[0].values + np.arange(24) * SIX_HOURS)


@pytest.fixture(scope="module")
def models(fine, reinitialise):
    """Return the function that makes a model of random weights, trained on the plain series."""
    made = {}

    def make(window: int | None = 3, **data):
        key = (window, *sorted(data.items()))
        if key not in made:
            model = fit(fine, time_window=window, data=data)
            network = build_network(model.spec).eval()
            reinitialise(network, seed=5, gain=1.2)
            made[key] = replace(model, network=network)
        return made[key]

    return make


@pytest.fixture(scope="module")
def forecast(fine) -> xr.DataArray:
    """Return 3 initial times x 2 members x 5 leads of coarse fields, with all the coordinates that files have."""
    coarse = fine.sr.coarsen(2).drop_vars(STATIC)
    inits, steps = coarse.time.values[[0, 4, 12]], np.arange(5) * SIX_HOURS
    rng = np.random.default_rng(0)
    frames = np.stack([np.stack([coarse.values[i : i + 5] for i in (0, 4, 12)])] * 2, axis=1)
    noisy = (frames + rng.normal(size=frames.shape)).astype(np.float32)
    return xr.DataArray(
        noisy,
        dims=("time", "number", "step", "latitude", "longitude"),
        coords={
            "time": ("time", inits, REFERENCE | {"long_name": "initial time of forecast"}),
            "number": ("number", ["r1i1p1f1", "r2i1p1f1"], {"standard_name": "realization"}),
            "step": ("step", steps, PERIOD),
            "valid_time": (("time", "step"), inits[:, None] + steps, TIME),
            "latitude": ("latitude", coarse.lat.values, coarse.lat.attrs),
            "longitude": ("longitude", coarse.lon.values, coarse.lon.attrs),
            "heightAboveGround": 2.0,
            "centre": ("number", ["ecmf", "kwbc"]),
            "expver": (("time", "number"), np.arange(6).reshape(3, 2)),
        },
        name="tas",
        attrs=fine.attrs,
    )


def series(forecast: xr.DataArray, init: int, number: int) -> xr.DataArray:
    """Return one forecast as a plain series in time."""
    one = forecast.isel(time=init, number=number).drop_vars(["time", "step", "number", "centre", "expver"])
    return one.rename(step="time").assign_coords(time=one.valid_time.values).drop_vars("valid_time")


def assert_others_identical(got: xr.DataArray, given: xr.DataArray) -> None:
    """Check that dims, their order and all coordinates but the horizontal ones are as they were."""
    assert got.dims == given.dims
    others = [name for name, c in given.coords.items() if not set(c.dims) & {"latitude", "longitude", "lat", "lon"}]
    assert others
    for name in others:
        assert got.coords[name].identical(given.coords[name]), name
    assert set(given.coords) | set(STATIC) == set(got.coords)


# windows stay in their forecast


@pytest.mark.parametrize(
    "data", [{}, {"calendar": True}, {"time_alignment": "centre"}], ids=["last", "calendar", "centre"]
)
@pytest.mark.parametrize(
    "order",
    [
        ("time", "number", "step", "latitude", "longitude"),
        ("step", "latitude", "time", "longitude", "number"),
        ("number", "time", "step", "longitude", "latitude"),
    ],
)
def test_every_forecast_as_if_it_were_alone(models, forecast, order, data):
    model = models(3, **data)
    given = forecast.transpose(*order)
    out = given.sr.downscale(model)
    assert_others_identical(out, given)
    for init, number in np.ndindex(3, 2):
        alone = series(forecast, init, number).sr.downscale(model).transpose("time", "latitude", "longitude")
        part = out.isel(time=init, number=number).transpose("step", "latitude", "longitude")
        np.testing.assert_array_equal(part.values, alone.values)


@pytest.mark.parametrize("calendar", [False, True])
@pytest.mark.parametrize("window", [3, None])
def test_the_calendar_is_that_of_the_valid_time(models, forecast, window, calendar):
    """With it, other initial times or leads are another result; without, they are not."""
    model = models(window, calendar=calendar)
    out = forecast.sr.downscale(model)
    later = forecast.assign_coords(
        time=("time", forecast.time.values + np.timedelta64(180, "D"), REFERENCE),
        valid_time=(("time", "step"), forecast.valid_time.values + np.timedelta64(180, "D"), TIME),
    )
    changed = bool((later.sr.downscale(model).values != out.values).any())
    assert changed == calendar
    made = forecast.drop_vars("valid_time").sr.downscale(model)  # initial time and lead
    np.testing.assert_array_equal(made.values, out.values)


CHUNKS = [
    {"time": 1, "step": 1, "number": 1},
    {"time": 2, "step": 2, "number": 2},
    {"time": 3, "step": 3},
    {"time": (1, 2), "step": (3, 1, 1)},
    {"step": 2, "latitude": 4},
]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("window", [2, 4])
def test_chunks_are_not_felt(models, forecast, check, chunks, window):
    model = models(window, calendar=True)
    assert np.isfinite(check.chunked_equals_whole(model, forecast, chunks)).all()


def test_chunks_and_coordinates_stay(models, forecast):
    given = forecast.chunk(time=2, number=1, step=2)
    lazy = given.sr.downscale(models(2, calendar=True))
    assert lazy.chunks[:3] == ((2, 1), (1, 1), (2, 2, 1))
    assert_others_identical(lazy, forecast)
    assert_others_identical(lazy.compute(scheduler="synchronous"), forecast)


def test_members_of_a_random_network_are_those_of_the_whole(fine, forecast, check, reinitialise):
    """Along a dim of their own, before initial times, leads and the forecast's members; in any chunks."""
    model = fit(fine, time_window=2, network=TINY | {"dropout": "vanilla", "dropout_rate": 0.3})
    reinitialise(model.network, seed=5, gain=1.2)
    model = replace(model)
    whole = check.chunked_equals_whole(model, forecast, {"time": (1, 2), "step": 2, "number": 1}, members=2, seed=3)
    assert whole.dims == ("member", *forecast.dims) and (whole[0] != whole[1]).any(("latitude", "longitude")).all()
    np.testing.assert_array_equal(whole.valid_time.values, forecast.valid_time.values)


def felt(model, forecast: xr.DataArray) -> np.ndarray:
    """Return which fields (time, number, step) a change of one frame, of the second forecast, is felt in."""
    moved = forecast.copy(deep=True)
    moved[1, 0, 2] += 3.0
    changed = moved.sr.downscale(model) != forecast.sr.downscale(model)
    return changed.any(("latitude", "longitude")).values


def test_neither_other_forecasts_nor_earlier_leads_feel_a_frame(models, forecast):
    expected = np.zeros((3, 2, 5), bool)
    expected[1, 0, 2:5] = True
    np.testing.assert_array_equal(felt(models(3), forecast), expected)


def test_a_window_that_crosses_initial_times_shows(models, forecast, monkeypatch):
    """The negative control: with windows along initial times another forecast is felt, and the numbers are others."""
    right = forecast.sr.downscale(models(3))

    def crossed(field, model):
        return xr.Variable(("step", "time", "column"), np.zeros((5, 3, 1)))

    monkeypatch.setattr(layout, "_step_features", crossed)
    assert felt(models(3), forecast)[2, 0, 2]
    assert (np.abs(forecast.sr.downscale(models(3)) - right).max(("latitude", "longitude")) > 0.01).any()


def test_gaps_along_leads_are_seen_in_every_forecast(models, forecast, check):
    model = models(3)
    gap = forecast.isel(step=[0, 1, 2, 4]).assign_coords(
        step=("step", np.array([0, 6, 12, 30]) * SIX_HOURS // 6, PERIOD)
    )
    gap = gap.drop_vars("valid_time")
    with pytest.warns(XSuperResWarning, match="'step' are irregular: 1 gap"):
        out = gap.sr.downscale(model)
    for init in range(3):
        alone = gap.isel(time=[init], step=[3]).sr.downscale(model)
        check.same_numbers(out.isel(time=[init], step=[3]), alone, model.scaling.sd)


def test_an_interval_that_lengthens_is_no_gap(models, forecast, check):
    """As of GEFS and IFS: the late leads are seen as they are alone, and it is said that they are of another speed."""
    model = models(3)
    ahead = np.array([0, 6, 12, 24, 36]) * SIX_HOURS // 6
    late = forecast.drop_vars("valid_time").assign_coords(step=("step", ahead, PERIOD))
    with (
        pytest.warns(XSuperResWarning, match="'step' are irregular: steps of 6 to 12 hours"),
        pytest.warns(XSuperResWarning, match="'step' are of 9 hours, those that the model was trained on of 6"),
    ):
        out = late.sr.downscale(model)
    np.testing.assert_array_equal(out.values, forecast.sr.downscale(model).values)
    frames = forecast.isel(step=slice(2, 5)).sr.downscale(model).isel(step=[2])
    check.same_numbers(out.isel(step=[4]), frames, model.scaling.sd)


def test_a_gap_is_told_by_the_step_of_the_training(models, forecast):
    """Most steps of these are holes, of twice the step that the model knows."""
    model = models(3)
    ahead = np.array([0, 12, 18, 30, 42]) * SIX_HOURS // 6
    holed = forecast.drop_vars("valid_time").assign_coords(step=("step", ahead, PERIOD))
    with (
        pytest.warns(XSuperResWarning, match=r"1 gap\(s\) wider than 1.5 usual steps.*; 1 step\(s\) beside them"),
        pytest.warns(XSuperResWarning, match="'step' are of 12 hours, those that the model was trained on of 6"),
    ):
        holed.sr.downscale(model)


def test_a_gap_in_one_of_the_forecasts(models, forecast, check):
    """Where leads are mere numbers, valid times say where gaps are."""
    model = models(3)
    valid = forecast.valid_time.values.copy()
    valid[1, 3:] += np.timedelta64(12, "h")
    given = forecast.assign_coords(step=[1, 2, 3, 4, 5], valid_time=(("time", "step"), valid, TIME))
    with pytest.warns(XSuperResWarning, match="'step' are irregular: 1 gap"):
        out = given.sr.downscale(model)
    whole = forecast.sr.downscale(model)
    np.testing.assert_array_equal(out.isel(time=[0, 2]).values, whole.isel(time=[0, 2]).values)
    np.testing.assert_array_equal(
        out.isel(time=1, step=slice(0, 3)).values, whole.isel(time=1, step=slice(0, 3)).values
    )
    after = forecast.isel(time=[1], step=slice(3, 5)).sr.downscale(model)
    check.same_numbers(out.isel(time=[1], step=slice(3, 5)), after, model.scaling.sd)
    with pytest.warns(XSuperResWarning, match="1 gap"):
        lazy = given.chunk(time=1, step=3).sr.downscale(model)
    check.same_numbers(lazy.compute(scheduler="synchronous"), out, model.scaling.sd)


# forms of files


def renamed(forecast: xr.DataArray, init: str, lead: str, leads: tuple) -> xr.DataArray:
    """Return the forecast with other names, leads as numbers with units, and no valid time."""
    bare = forecast.drop_vars(["valid_time", "step"]).rename(time=init, step=lead)
    bare[init].attrs.clear()
    return bare.assign_coords({lead: (lead, *leads)})


FORMS = {
    "hours": lambda da: renamed(da, "init", "lead", (np.arange(5) * 6, {"units": "hours"})),
    "days": lambda da: renamed(da, "init", "lead_time", (np.arange(5) / 4, {"units": "days"})),
    "S, L and M": lambda da: renamed(da, "S", "L", (np.arange(5) * 6.0, {"units": "hours"})).rename(number="M"),
    "forecast_period": lambda da: renamed(
        da, "forecast_reference_time", "forecast_period", (np.arange(5) * 6.0, {"units": "hours"} | PERIOD)
    ),
    "cftime": lambda da: da.drop_vars("valid_time").convert_calendar("standard", dim="time", use_cftime=True),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_forms_of_files(models, forecast, form):
    """Names and units differ, numbers do not; all coordinates come through."""
    model = models(3, calendar=True)
    given = form(forecast)
    out = given.sr.downscale(model)
    assert_others_identical(out, given)
    np.testing.assert_array_equal(out.values, forecast.sr.downscale(model).values)
    chunked = given.chunk({given.dims[0]: 1, given.dims[2]: 3}).sr.downscale(model)
    assert_others_identical(chunked.compute(scheduler="synchronous"), given)


@pytest.mark.parametrize("valid", ["given", "made"])
def test_one_initial_time(models, forecast, valid):
    model = models(3, calendar=True)
    one = forecast.isel(time=1) if valid == "given" else forecast.isel(time=1).drop_vars("valid_time")
    out = one.sr.downscale(model)
    assert_others_identical(out, one)
    np.testing.assert_array_equal(out.values, forecast.sr.downscale(model).isel(time=1).values)


def test_a_single_field_has_a_calendar(models, forecast, check):
    model = models(None, calendar=True)
    out = forecast.isel(time=2, step=3, number=0).sr.downscale(model)
    whole = forecast.sr.downscale(model).isel(time=2, step=3, number=0)
    check.same_numbers(out, whole, model.scaling.sd)


def test_one_lead_is_a_series(models, fine):
    """Analyses that cfgrib reads have an initial time, a step of 0, and a valid time that is the same."""
    model = models(3, calendar=True)
    plain = fine.sr.coarsen(2).drop_vars(STATIC)
    read = plain.assign_coords(
        time=("time", plain.time.values, REFERENCE),
        step=((), np.timedelta64(0, "ns"), PERIOD),
        valid_time=("time", plain.time.values, TIME),
    )
    out = read.sr.downscale(model)
    assert_others_identical(out, read)
    np.testing.assert_array_equal(out.values, plain.sr.downscale(model).values)


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_seasonal_forecasts_by_month(fine, reinitialise, calendar):
    """A model trained on months applies to leads in months, whatever the length of these."""
    times = xr.date_range("1990-01-15", periods=24, freq="MS", calendar=calendar, use_cftime=True)
    monthly = fine.assign_coords(time=times)
    model = fit(monthly, time_window=2, data={"calendar": True})
    reinitialise(model.network, seed=3)
    model = replace(model)
    coarse = monthly.sr.coarsen(2).drop_vars(STATIC)
    given = xr.DataArray(
        np.stack([coarse.values[1:7], coarse.values[4:10]]),
        dims=("S", "L", "lat", "lon"),
        coords={
            "S": ("S", times[[0, 3]], REFERENCE),
            "L": ("L", np.arange(1, 7), {"units": "months"} | PERIOD),
            "lat": coarse.lat,
            "lon": coarse.lon,
        },
        name="tas",
        attrs=fine.attrs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = given.sr.downscale(model)
    assert_others_identical(out, given)
    for row, start in enumerate((1, 4)):
        alone = coarse.isel(time=slice(start, start + 6)).sr.downscale(model)
        np.testing.assert_array_equal(out[row].values, alone.values)


def test_decadal_forecasts_by_year(fine, reinitialise):
    """Initial years as numbers: a window needs no dates, and the calendar says that it does."""
    yearly = fine.assign_coords(time=xr.date_range("1950-07-01", periods=24, freq="YS"))
    model = fit(yearly, time_window=2)
    coarse = yearly.sr.coarsen(2).drop_vars([*STATIC, "time"])
    given = xr.concat([coarse[:10], coarse[5:15]], "init").rename(time="lead")
    given = given.assign_coords(init=[1960, 1961], lead=("lead", np.arange(1, 11), {"units": "years"}))
    assert_others_identical(given.sr.downscale(model), given)
    with pytest.raises(DataError, match="calendar=True needs dates.*valid_time"):
        given.sr.downscale(fit(yearly, data={"calendar": True}))


# what is said and refused


def test_steps_of_another_length_are_told_with_both_numbers(models, forecast):
    daily = forecast.drop_vars("valid_time").assign_coords(step=("step", np.arange(5) * 4 * SIX_HOURS, PERIOD))
    with pytest.warns(XSuperResWarning, match="'step' are of 24 hours, those that the model was trained on of 6"):
        daily.sr.downscale(models(3))
    daily.sr.downscale(models(None, calendar=True))  # one step at a time


def test_a_file_remembers_the_usual_step(models, tmp_path):
    from xsuperres import load_model

    models(3).save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.training.step == 6.0 and loaded.digest == models(3).digest


@pytest.mark.parametrize(
    "lead", [[4, 3, 2, 1, 0], [0, 1, 1, 2, 3], [0, 2, 1, 3, 4]], ids=["falling", "repeated", "unsorted"]
)
def test_leads_that_do_not_increase(models, forecast, lead):
    given = forecast.isel(step=lead)
    with pytest.raises(DataError, match="Times along 'step' must increase for a time window; sort them"):
        given.sr.downscale(models(3))
    assert np.isfinite(given.sr.downscale(models(None, calendar=True))).all()


def test_initial_times_in_any_order(models, forecast):
    """No window crosses them, so that nothing is asked of their order."""
    model = models(3, calendar=True)
    mixed = forecast.isel(time=[2, 0, 1])
    np.testing.assert_array_equal(
        mixed.sr.downscale(model).values, forecast.sr.downscale(model).isel(time=[2, 0, 1]).values
    )


def test_valid_times_that_are_missing(models, forecast):
    given = forecast.copy(deep=True)
    given.valid_time.values[1, 2] = np.datetime64("NaT")
    with pytest.raises(DataError, match="1 of the valid times are missing"):
        given.sr.downscale(models(3, calendar=True))
    given.sr.downscale(models(3))


def test_forecasts_by_valid_time_are_no_series(models, forecast):
    given = forecast.drop_vars("valid_time")
    given = given.assign_coords(time=("time", given.time.values, TIME))
    for model in (models(3), models(None, calendar=True)):
        with pytest.raises(DataError, match="'time' calls itself time.*forecast_reference_time.*'valid_time'"):
            given.sr.downscale(model)
    assert_others_identical(given.sr.downscale(models(None)), given)
    valid = given.rename(time="valid_time")
    with pytest.raises(DataError, match="not along the lead 'step'"):
        valid.sr.downscale(models(3))
    assert_others_identical(valid.sr.downscale(models(None, calendar=True)), valid)


def test_a_lead_of_one_step_is_no_series(models, forecast):
    """Its windows hold one frame; without the dimension the initial times are a series."""
    one = forecast.isel(time=[0, 1], step=[1])
    with pytest.warns(XSuperResWarning, match=r"one step along the lead 'step'.* \.squeeze\('step'\)") as caught:
        out = one.sr.downscale(models(3))
    assert caught[0].filename == __file__
    for init in range(2):
        alone = one.isel(time=[init]).sr.downscale(models(3))
        np.testing.assert_array_equal(out.isel(time=[init]).values, alone.values)
    near = forecast.isel(step=[1]).assign_coords(
        time=("time", forecast.time.values[0] + np.arange(3) * SIX_HOURS, REFERENCE)
    )
    near = near.drop_vars("valid_time")
    series = near.squeeze("step").sr.downscale(models(3))
    assert_others_identical(series, near.squeeze("step"))
    with pytest.warns(XSuperResWarning, match="one step along the lead"):
        apart = near.sr.downscale(models(3)).squeeze("step")
    assert (np.abs(series - apart).max(("number", "latitude", "longitude")) > 0.01).values.tolist() == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("dim", ["time", "number", "step"])
def test_no_forecast_at_all(models, forecast, dim):
    empty = forecast.isel({dim: slice(0, 0)})
    for model in (models(3, calendar=True), models(None)):
        assert empty.sr.downscale(model).shape == tuple(s * (2 if s in (8, 12) else 1) for s in empty.shape)


# predictors


def test_predictors_of_forecasts(fine, forecast):
    """By initial time and lead, in any order; a series in time is taken at the valid times."""
    rain = toy_field(time=24, y=16, x=24, seed=7).rename("pr").assign_coords(time=fine.time).drop_vars(STATIC)
    rain.attrs = {"units": "1"}
    model = fit(fine, predictors=rain)
    line = rain.sr.coarsen(2).rename(lat="latitude", lon="longitude")
    where = np.array([0, 4, 12])[:, None] + np.arange(5)
    table = line.drop_vars("time").isel(time=xr.Variable(("start", "step"), where)).rename(start="time")
    table = table.assign_coords(time=forecast.time, step=forecast.step)
    expected = forecast.sr.downscale(model, predictors=table)
    assert_others_identical(expected, forecast)
    for given in (line, line.chunk(time=5), table.isel(time=[2, 1, 0]), table.transpose("step", ..., "time")):
        np.testing.assert_array_equal(forecast.sr.downscale(model, predictors=given).values, expected.values)
    other = (line + line.time.dt.day).rename("pr").assign_attrs(line.attrs)
    assert (forecast.sr.downscale(model, predictors=other).values != expected.values).any()
    with pytest.raises(DataError, match="'pr' lacks .* valid times of the forecast"):
        forecast.sr.downscale(model, predictors=line.sel(time=forecast.time.values))
    at_start = line.sel(time=forecast.time.values).assign_coords(time=forecast.time)  # says that it is by initial time
    repeated = at_start.expand_dims(step=forecast.step)
    np.testing.assert_array_equal(
        forecast.sr.downscale(model, predictors=at_start).values,
        forecast.sr.downscale(model, predictors=repeated).values,
    )


@pytest.mark.parametrize("valid", ["given", "made", "without attributes"])
def test_predictors_of_forecasts_at_one_lead(fine, reinitialise, valid):
    """A series is taken at the valid times, whether or not the dim of leads was kept."""
    rain = toy_field(time=24, y=16, x=24, seed=7).rename("pr").assign_coords(time=fine.time).drop_vars(STATIC)
    rain.attrs = {"units": "1"}
    model = fit(fine, predictors=rain)
    reinitialise(model.network, seed=5)
    model = replace(model)
    coarse, line = fine.sr.coarsen(2).drop_vars(STATIC), rain.sr.coarsen(2)
    expected = coarse.isel(time=slice(3, 13)).sr.downscale(model, predictors=line)
    one = coarse.isel(time=slice(3, 13)).assign_coords(
        time=("time", fine.time.values[:10], {} if valid == "without attributes" else REFERENCE),
        step=((), 3 * SIX_HOURS, PERIOD),
    )
    if valid == "given":
        one = one.assign_coords(valid_time=("time", fine.time.values[3:13], TIME))
    for given in (one, one.chunk(time=4)):
        np.testing.assert_array_equal(given.sr.downscale(model, predictors=line).values, expected.values)
    kept = one.drop_vars("valid_time", errors="ignore").expand_dims("step").sr.downscale(model, predictors=line)
    np.testing.assert_array_equal(kept.isel(step=0).values, expected.values)
    single = one.isel(time=4).sr.downscale(model, predictors=line)
    np.testing.assert_allclose(single.values, expected.isel(time=4).values, rtol=1e-6)
    alike = line.isel(time=slice(3, 13)).assign_coords({name: one[name] for name in one.coords if name != "lat"})
    np.testing.assert_array_equal(one.sr.downscale(model, predictors=alike).values, expected.values)
    with pytest.raises(DataError, match="'pr' lacks 3 of 10 valid times of the forecast"):
        one.sr.downscale(model, predictors=line.isel(time=slice(0, 10)))
    with pytest.raises(DataError, match="Predictor 'pr' has other valid times"):
        single_at = coarse.isel(time=4)
        single_at.sr.downscale(model, predictors=line.isel(time=5))
