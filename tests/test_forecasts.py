"""Training on forecasts: pairs joined on valid time, windows within one forecast, what is held out."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres import fitting
from xsuperres.errors import DataError, XSuperResWarning
from xsuperres.testing import toy_field

TINY = {"width": 5, "depth": 1, "head_width": 4}
REFERENCE, PERIOD, TIME = ({"standard_name": n} for n in ("forecast_reference_time", "forecast_period", "time"))
STATIC = ["elevation", "land_fraction"]
SIX_HOURS = np.timedelta64(6, "h").astype("m8[ns]")
FIRST = [0, 3, 4, 10]  # of the truth's times, where forecasts begin


def options(**changed):
    defaults = {"network": TINY, "validation": None, "activate": False, "progress": False}
    defaults |= {"sampling": {"batch_size": 2, "patch_size": 4}, "optimization": {"max_steps": 2, "validations": 1}}
    return defaults | changed


@pytest.fixture(scope="module")
def truth() -> xr.DataArray:
    """Return an analysis: a series of fine fields, six hours apart."""
    field = toy_field(time=16, y=16, x=24)
    return field.assign_coords(time=field.time[0].values + np.arange(16) * SIX_HOURS)


def forecast_of(field: xr.DataArray, *, leads: int = 4) -> xr.DataArray:
    """Return forecasts (init, lead, ...) that are right."""
    where = np.array(FIRST)[:, None] + np.arange(leads)
    bare = field.drop_vars([name for name, c in field.coords.items() if "time" in c.dims])
    table = bare.isel(time=xr.Variable(("init", "lead"), where))
    return table.assign_coords(
        init=("init", field.time.values[FIRST], REFERENCE),
        lead=("lead", np.arange(leads) * 6, {"units": "hours"} | PERIOD),
    )


@pytest.fixture(scope="module")
def forecast(truth) -> xr.DataArray:
    return forecast_of(truth.sr.coarsen(2).drop_vars(STATIC))


@pytest.fixture
def trained_on(monkeypatch):
    """Return what `fit` was given to train on: (samples, windows or None) of its reader."""
    seen = []
    true_loop = fitting.Loop

    def spy(network, reader, *args, **kwargs):
        seen.append(reader._prepared(0))
        return true_loop(network, reader, *args, **kwargs)

    monkeypatch.setattr(fitting, "Loop", spy)
    return seen


def as_cfgrib(da: xr.DataArray) -> xr.DataArray:
    """Return forecasts named as cfgrib names them."""
    steps = da.lead.values * np.timedelta64(1, "h").astype("m8[ns]")
    da = da.drop_vars("lead").rename(init="time", lead="step").assign_coords(step=("step", steps, PERIOD))
    return da.assign_coords(valid_time=(("time", "step"), da.time.values[:, None] + steps, TIME))


# pairs


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("form", ["climpred", "cfgrib", "lead first"])
def test_forecasts_are_joined_with_the_truth_on_valid_times(truth, forecast, trained_on, form, lazy):
    """As the plain pairs of the same fields, sample by sample."""
    given = {"climpred": forecast, "cfgrib": as_cfgrib(forecast), "lead first": forecast.transpose("lead", ..., "init")}
    coarse = given[form].chunk() if lazy else given[form]
    fine = truth.chunk(time=3) if lazy else truth
    model = coarse.sr.fit(target=fine, **options())
    where = (np.array(FIRST)[:, None] + np.arange(4)).ravel()
    plain = truth.isel(time=where).assign_coords(time=np.arange(16))
    expected = plain.sr.coarsen(2).drop_vars(STATIC).sr.fit(target=plain, **options())
    np.testing.assert_array_equal(trained_on[0].target, trained_on[1].target)
    np.testing.assert_array_equal(trained_on[0].coarse, trained_on[1].coarse)
    assert model.training.samples == 16 and model.training.step == 6.0
    assert model.training.period == ("2001-01-01T00:00:00", "2001-01-04T06:00:00")
    for name, weight in expected.network.state_dict().items():
        np.testing.assert_array_equal(model.network.state_dict()[name], weight)


def test_members_share_the_truth(truth, forecast, trained_on):
    ensemble = xr.concat([forecast, forecast + 0.1], "member").transpose("init", "member", ...)
    model = ensemble.sr.fit(target=truth, **options())
    assert model.training.samples == 32
    target = trained_on[0].target
    np.testing.assert_array_equal(target[0::2], target[1::2])
    out = ensemble.sr.downscale(model)
    assert out.dims == ensemble.dims and out.init.identical(ensemble.init)


def test_leads_without_a_truth_are_left_out(truth, forecast, trained_on, caplog):
    short = truth.isel(time=slice(0, 12))
    with caplog.at_level("INFO", logger="xsuperres"):
        model = forecast.sr.fit(target=short, time_window=2, **options())
    assert "14 of 16 coarse times have a target" in caplog.text
    assert model.training.samples == 14 and len(trained_on[0].target) == 14


def test_windows_stay_in_their_forecast(truth, forecast, trained_on):
    forecast.sr.fit(target=truth, time_window=3, **options())
    expected = [np.maximum(np.arange(4)[:, None] + [-2, -1, 0], 0) + 4 * init for init in range(4)]
    np.testing.assert_array_equal(trained_on[0].windows, np.concatenate(expected))


def test_windows_do_not_cross_a_lead_without_a_truth(truth, forecast, trained_on):
    holed = truth.isel(time=[*range(5), *range(6, 16)])
    with pytest.warns(XSuperResWarning, match="gap"):
        forecast.sr.fit(target=holed, time_window=2, **options())
    kept = [(i, k) for i, k in np.ndindex(4, 4) if FIRST[i] + k != 5]
    windows = trained_on[0].windows
    assert len(windows) == len(kept) == 14
    for at, (init, lead) in enumerate(kept):
        before = kept[at - 1] == (init, lead - 1)
        assert windows[at].tolist() == [at - 1 if before else at, at]


def test_one_lead_is_joined_on_valid_time(truth, forecast, trained_on):
    """A series of forecasts a day ahead belongs to the analyses a day later."""
    for coarse in (as_cfgrib(forecast).isel(step=2), forecast.isel(lead=2)):
        coarse.sr.fit(target=truth, **options())
    expected = truth.values[np.array(FIRST) + 2]
    for seen in trained_on:
        np.testing.assert_allclose(
            seen.target[:, 0] - seen.target[0, 0], (expected - expected[0]) / _sd(seen, expected), atol=1e-4
        )


def _sd(seen, expected: np.ndarray) -> float:
    """Return the standard deviation that targets were divided by."""
    return float(np.ptp(expected)) / float(np.ptp(seen.target))


def test_two_forecasts_are_joined_on_initial_time_and_lead(truth, forecast, trained_on):
    fine = forecast_of(truth)
    model = forecast.sr.fit(target=fine.isel(init=[3, 1, 0]), **options())
    assert model.training.samples == 12
    where = (np.array(FIRST)[[0, 1, 3]][:, None] + np.arange(4)).ravel()
    expected = truth.values[where]
    seen = trained_on[0]
    np.testing.assert_allclose(
        seen.target[:, 0] - seen.target[0, 0], (expected - expected[0]) / _sd(seen, expected), atol=1e-4
    )


def one_start(field: xr.DataArray, start: str) -> xr.DataArray:
    """Return one forecast along its leads, as a file of one initial time holds it."""
    steps = np.arange(4) * SIX_HOURS
    bare = field.isel(time=slice(0, 4)).drop_vars("time").rename(time="step")
    return bare.assign_coords(step=("step", steps, PERIOD), time=((), np.datetime64(start, "ns"), REFERENCE))


def test_forecasts_of_other_initial_times_are_no_pair(truth):
    """Step by step along the lead they have the same labels, and are of other years."""
    coarse = one_start(truth.sr.coarsen(2).drop_vars(STATIC), "2001-01-01")
    fine, late = one_start(truth, "2001-01-01"), one_start(truth, "2009-07-01")
    with pytest.raises(DataError, match=r"No time is common.*2001-01-01 00:00:00 \+ 2001-01-01.*2009-07-01"):
        coarse.sr.fit(target=late, **options())
    rain = [field.rename("pr").assign_attrs(units="1") for field in (fine, late)]
    with pytest.raises(DataError, match="'pr' lacks 4 of 4 values of 'valid_time', the first 2001-01-01 00:00:00"):
        fine.sr.fit(2, predictors=rain[1], static=[], **options())
    model = fine.sr.fit(2, predictors=rain[0], static=[], **options())
    assert fine.sr.coarsen(2).sr.downscale(model, predictors=rain[0]).dims == fine.dims
    with pytest.raises(
        DataError, match="Predictor 'pr' has other initial times: expected 2001-01-01.*, got 2009-07-01"
    ):
        fine.sr.coarsen(2).sr.downscale(model, predictors=rain[1])
    dated = coarse.sr.fit(target=xr.concat([late, fine], "time"), **options())
    assert dated.training.samples == 4 and dated.training.period[0] == "2001-01-01T00:00:00"


def test_single_fields_of_other_times_are_no_pair(truth):
    coarse = truth.sr.coarsen(2).drop_vars(STATIC)
    with pytest.raises(DataError, match="The target has other valid times"):
        coarse.isel(time=0).sr.fit(target=truth.isel(time=1), **options())


def test_one_lead_is_recorded_by_its_valid_times(truth, forecast):
    """The period that was trained on is that of the weather; so is what `validation=` holds out."""
    model = forecast.isel(lead=2).sr.fit(target=truth, **options(validation=slice("2001-01-03", "2001-01-04")))
    times = truth.time.values[np.array(FIRST) + 2]
    held = times >= np.datetime64("2001-01-03")
    assert model.training.samples == int((~held).sum()) == 3
    assert model.training.period == (str(times[0])[:19], str(times[2])[:19])
    rain = toy_field(time=16, y=8, x=12, seed=7).rename("pr").assign_coords(time=truth.time).drop_vars(STATIC)
    rain = rain.assign_coords(lat=forecast.lat, lon=forecast.lon)
    assert forecast.isel(lead=2).sr.fit(target=truth, predictors=rain, **options()).training.samples == 4


def test_steps_that_have_no_valid_time_are_not_trained_on(truth):
    """Ragged forecasts of another calendar, whose missing times are NaN among cftime dates."""
    dates = xr.date_range("2001-01-01", periods=12, freq="6h", calendar="noleap", use_cftime=True).values.copy()
    dates[5] = np.nan
    shape = (3, 4, *truth.shape[1:])
    ragged = xr.DataArray(truth.values[:12].reshape(shape), dims=("init", "lead", "lat", "lon"), attrs=truth.attrs)
    ragged = ragged.rename("tas").assign_coords(lat=truth.lat, lon=truth.lon, lead=[1, 2, 3, 4])
    ragged = ragged.assign_coords(valid_time=(("init", "lead"), dates.reshape(3, 4), TIME))
    model = ragged.sr.fit(2, static=[], **options(validation=slice("2001-01-03", "2001-01-03")))
    assert model.training.samples == 7
    assert model.training.period == ("2001-01-01 00:00:00", "2001-01-02 18:00:00")


def test_monthly_pairs_on_other_days_of_the_month_are_told_what_to_do():
    """NMME's leads of half months are mid-months; analyses are often stamped with the first."""
    months = xr.date_range("2001-01-01", periods=8, freq="MS")
    fine = toy_field(time=8, y=8, x=12).assign_coords(time=months)
    coarse = fine.sr.coarsen(2).drop_vars([*STATIC, "time"])
    table = coarse.isel(time=xr.Variable(("S", "L"), [[0, 1, 2], [1, 2, 3]])).assign_coords(
        S=("S", months[:2], REFERENCE), L=("L", [0.5, 1.5, 2.5], {"units": "months"} | PERIOD)
    )
    with pytest.raises(DataError, match="No time is common.*stamp both alike.*or give leads in whole months"):
        table.sr.fit(target=fine, **options())
    with pytest.raises(DataError, match="lacks 6 of 6 valid times of the forecast.*stamp both alike"):
        table.sr.interpolate(2, like=fine).sr.score(fine)
    whole = table.assign_coords(L=("L", [0, 1, 2], {"units": "months"} | PERIOD))
    assert whole.sr.fit(target=fine, **options()).training.samples == 6


def test_initial_dims_of_any_name(truth, forecast, trained_on):
    """Once a lead is selected they are the only times: S, run, hdate."""
    for name in ("init", "S", "run", "hdate"):
        one = forecast.isel(lead=2).rename(init=name)
        if name in ("run", "hdate"):
            times = forecast.init.values
            one = one.assign_coords({name: (name, times), "valid_time": (name, times + 2 * SIX_HOURS, TIME)})
        one.sr.fit(target=truth, **options())
    for seen in trained_on[1:]:
        np.testing.assert_array_equal(seen.target, trained_on[0].target)
    with pytest.warns(XSuperResWarning, match="'S' are irregular: 1 gap"):
        forecast.isel(lead=2).rename(init="S").sr.fit(target=truth, time_window=2, **options())
    assert trained_on[-1].windows.tolist() == [[0, 0], [0, 1], [1, 2], [3, 3]]


def test_times_that_may_be_initial_ones_are_not_trained_on(truth, forecast):
    """CDO calls both time: lead 3 would be trained on the truth of the initial day."""
    said = forecast.rename(init="time").assign_coords(time=("time", forecast.init.values, TIME))
    with pytest.raises(DataError, match="'time' calls itself time.*initial times, or the valid times of every lead"):
        said.sr.fit(target=truth, **options())
    right = said.rename(time="init")
    right.init.attrs = dict(REFERENCE)
    assert right.sr.fit(target=truth, **options()).training.samples == 16


def test_a_truth_for_many_leads_is_not_copied(truth, forecast):
    """It is read block by block, whatever the number of leads."""
    from xsuperres.fields.field import Field
    from xsuperres.fields.pairs import paired
    from xsuperres.fields.steps import flattened

    pair = paired([flattened(Field(forecast))], [Field(truth.isel(time=slice(0, 14)))], 2)
    assert pair.fine[0].lazy and not pair.coarse[0].lazy
    model = forecast.sr.fit(
        target=truth, **options(sampling={"batch_size": 2, "patch_size": 4, "memory_budget": 60_000})
    )
    whole = forecast.sr.fit(target=truth, **options())
    np.testing.assert_allclose(model.scaling.sd, whole.scaling.sd, rtol=1e-6)


def test_forecasts_that_have_no_valid_times(truth, forecast):
    with pytest.raises(
        DataError, match="joined on valid times, which are unknown here: assign a coordinate valid_time"
    ):
        forecast.drop_vars(["init", "lead"]).sr.fit(target=truth, **options())
    with pytest.raises(DataError, match="No time is common"):
        later = forecast.assign_coords(init=("init", forecast.init.values + np.timedelta64(900, "D"), REFERENCE))
        later.sr.fit(target=truth, **options())
    with pytest.raises(DataError, match="The target repeats values of 'time'"):
        truth.sr.coarsen(2).drop_vars(STATIC).sr.fit(target=forecast_of(truth), **options())


@pytest.mark.parametrize("kind", ["forecast", "series"])
def test_predictors_beside_pairs(truth, forecast, trained_on, kind):
    """A predictor by initial time and lead, or a series in valid time: the same samples."""
    rain = toy_field(time=16, y=8, x=12, seed=7).rename("pr").assign_coords(time=truth.time).drop_vars(STATIC)
    rain = rain.assign_coords(lat=forecast.lat, lon=forecast.lon)
    given = forecast_of(rain).isel(init=[2, 0, 3, 1]) if kind == "forecast" else rain
    model = forecast.sr.fit(target=truth, predictors=given, **options())
    values = rain.values[(np.array(FIRST)[:, None] + np.arange(4)).ravel()]
    seen = trained_on[0].coarse
    assert len(model.predictors) == 1
    assert any(_is_line_of(seen[:, channel], values) for channel in range(seen.shape[1]))


def _is_line_of(channel: np.ndarray, values: np.ndarray) -> bool:
    """Return whether a channel is the values, shifted and scaled."""
    return bool(abs(np.corrcoef(channel.ravel(), values.ravel())[0, 1]) > 1 - 1e-6)


# perfect prognosis


def test_fine_forecasts_are_coarsened_and_their_windows_kept_apart(truth, trained_on):
    fine = as_cfgrib(forecast_of(truth))
    model = fine.sr.fit(2, time_window=2, data={"calendar": True}, **options())
    expected = [np.maximum(np.arange(4)[:, None] + [-1, 0], 0) + 4 * init for init in range(4)]
    np.testing.assert_array_equal(trained_on[0].windows, np.concatenate(expected))
    out = fine.sr.coarsen(2).sr.downscale(model)
    assert out.dims == fine.dims and out.valid_time.identical(fine.valid_time)
    with pytest.warns(XSuperResWarning, match=r"16 time step\(s\) of the truth lie in the model's training period"):
        table = out.sr.score(fine, metrics="rmse", baselines="bicubic")
    assert np.isfinite(table.rmse).all()


def test_what_is_held_out_shares_no_time_with_the_training(truth):
    """Forecasts overlap: a time is trained on in all of them or in none."""
    fine = forecast_of(truth, leads=6)
    model = fine.sr.fit(2, **options(validation=0.3))
    assert model.training.samples < 24
    (start, stop), *_ = model.training.held_out
    times = (fine.init.values[:, None] + np.arange(6) * SIX_HOURS).ravel()
    held = (times >= np.datetime64(start)) & (times <= np.datetime64(stop))
    spans = [(np.datetime64(a), np.datetime64(b)) for a, b in model.training.held_out]
    inside = np.any([(times >= a) & (times <= b) for a, b in spans], axis=0)
    assert held.any() and model.training.samples == int((~inside).sum())
    period = fine.sr.fit(2, **options(validation=slice("2001-01-02", "2001-01-02")))
    assert period.training.samples == int((times.astype("M8[D]") != np.datetime64("2001-01-02")).sum())
    other = fine.sr.fit(2, **options(validation=fine.isel(init=[1, 2])))
    assert other.training.samples == 24 and other.training.validation["rmse"] > 0
