"""Time windows: what they are worth, which frames they read, and that no chunk, gap or end is felt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from xsuperres.errors import ConfigError, DataError, XSuperResWarning
from xsuperres.nn.network import build_network
from xsuperres.nn.temporal import RecurrentFusion
from xsuperres.testing import toy_field

TINY = {"width": 5, "depth": 1, "head_width": 4}


def fit(da, scale=2, *, steps=2, **options):
    """Train for a few steps with a tiny network."""
    defaults = {"network": TINY, "upsampling": "subpixel", "validation": None, "activate": False, "progress": False}
    defaults["sampling"] = {"batch_size": 2, "patch_size": 6} | options.pop("sampling", {})
    defaults["optimization"] = {"max_steps": steps, "validations": 1} | options.pop("optimization", {})
    return da.sr.fit(scale, **(defaults | options))


@pytest.fixture(scope="module")
def fine() -> xr.DataArray:
    return toy_field(time=12, y=16, x=24)


@pytest.fixture(scope="module")
def random_weights(fine, reinitialise):
    """Return the function that makes a model of random weights with a time window."""

    def make(window: int, **options):
        model = fit(fine, time_window=window, **options)
        network = build_network(model.spec).eval()
        reinitialise(network, seed=5, gain=1.2)
        return replace(model, network=network)

    return make


def advected(times: int, *, y: int = 32, x: int = 64, seed: int = 0) -> xr.DataArray:
    """Return waves carried along x by one fine cell a step, smooth in y: the past tells what one frame cannot."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(y, x + times))
    spectrum = np.fft.rfft2(noise)
    waves = np.hypot(np.fft.fftfreq(y)[:, None] / 0.04, np.fft.rfftfreq(x + times)[None, :] / 0.15)
    field = np.fft.irfft2(spectrum * np.exp(-(waves**2)), s=noise.shape)
    frames = np.stack([field[:, times - t : times - t + x] for t in range(times)]).astype(np.float32)
    return toy_field(time=times, y=y, x=x).copy(data=frames / frames.std()).drop_vars(["elevation", "land_fraction"])


@pytest.mark.slow
@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
def test_the_past_is_worth_a_fifth_of_the_error_on_an_advected_field(upsampling):
    field = advected(80)
    train, test = field.isel(time=slice(0, 60)), field.isel(time=slice(60, None))
    rmse = {}
    for window in (None, 4):
        model = train.sr.fit(
            4,
            time_window=window,
            upsampling=upsampling,
            network={"width": 24, "depth": 2, "head_width": 16},
            sampling={"patch_size": 8, "batch_size": 8},
            optimization={"max_steps": 400, "validations": 4, "learning_rate": 3e-3},
            data={"domain": "open", "contrast_radius": 0},
            progress=False,
            activate=False,
        )
        table = test.sr.coarsen(4).sr.downscale(model).sr.score(test, metrics="rmse", baselines="bicubic")
        rmse[window] = float(table.rmse.sel(product="network", region="all"))
    assert rmse[4] <= 0.8 * rmse[None], rmse


@pytest.mark.parametrize("window", [2, 3, 4])
def test_every_frame_of_the_window_matters(window):
    """To a trained network: each frame moves the output by at least a thousandth of what the output frame does."""
    field = advected(40)
    model = fit(field, 2, steps=60, time_window=window, optimization={"learning_rate": 1e-2}, data={"domain": "open"})
    coarse = field.sr.coarsen(2)
    last = coarse.isel(time=slice(-window, None))
    base = last.sr.downscale(model).isel(time=-1)
    moved = []
    for frame in range(window):
        nudged = last.copy(deep=True)
        nudged[frame] += 0.1 * np.random.default_rng(frame).normal(size=nudged[frame].shape).astype(np.float32)
        moved.append(float(np.abs(nudged.sr.downscale(model).isel(time=-1) - base).mean()))
    assert min(moved) >= 1e-3 * moved[-1]


def test_nothing_of_the_future_is_used(fine, random_weights):
    model, coarse = random_weights(3), fine.sr.coarsen(2)
    whole = coarse.sr.downscale(model)
    np.testing.assert_array_equal(coarse.isel(time=slice(0, 7)).sr.downscale(model), whole.isel(time=slice(0, 7)))
    later = coarse.copy(deep=True)
    later[7:] += 5.0
    np.testing.assert_array_equal(later.sr.downscale(model)[:7], whole[:7])
    assert (np.abs(later.sr.downscale(model)[7:] - whole[7:]) > 1).all(dim=("lat", "lon")).all()


def test_the_centre_uses_as_much_of_both(fine, random_weights):
    model, coarse = random_weights(3, data={"time_alignment": "centre"}), fine.sr.coarsen(2)
    whole = coarse.sr.downscale(model)
    assert model.time_halo == (1, 1)
    for frame, felt in ((4, False), (5, True), (6, True), (7, True), (8, False)):
        other = coarse.copy(deep=True)
        other[frame] += 3.0
        assert bool((other.sr.downscale(model)[6] != whole[6]).any()) == felt, frame


@pytest.mark.parametrize("window", [2, 5])
@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 1, 6), (12,), (4, 4, 4)])
@pytest.mark.parametrize("alignment", ["last", "centre"])
def test_chunks_in_time_are_not_felt(fine, random_weights, check, window, chunks, alignment):
    window = 3 if alignment == "centre" and window == 2 else window
    model = random_weights(window, data={"time_alignment": alignment})
    check.chunked_equals_whole(model, fine.sr.coarsen(2), {"time": chunks})


def test_a_halo_in_time_too_short_shows(fine, random_weights, check, monkeypatch):
    model, coarse = random_weights(4), fine.sr.coarsen(2)
    check.chunked_equals_whole(model, coarse, {"time": 4})
    model.digest  # noqa: B018 (before it is falsified)
    monkeypatch.setattr(type(model), "time_halo", (2, 0))
    with pytest.raises(AssertionError):
        check.chunked_equals_whole(model, coarse, {"time": 4})


def test_members_do_not_see_each_other(fine, random_weights):
    """Nor does it matter where in the dims time stands."""
    model, coarse = random_weights(3), fine.sr.coarsen(2)
    ensemble = xr.concat([coarse, coarse[::-1].assign_coords(time=coarse.time), coarse + 2], "member")
    for order in (("member", "time", "lat", "lon"), ("time", "member", "lat", "lon"), ("lat", "time", "lon", "member")):
        out = ensemble.transpose(*order).sr.downscale(model)
        assert out.dims == order
        for member in range(3):
            alone = ensemble.isel(member=member).transpose("time", "lat", "lon").sr.downscale(model)
            np.testing.assert_array_equal(out.isel(member=member).transpose("time", "lat", "lon"), alone)


def test_no_window_crosses_a_gap(fine, random_weights, check):
    model, coarse = random_weights(3), fine.sr.coarsen(2)
    gap = coarse.isel(time=[0, 1, 2, 3, 7, 8, 9])
    with pytest.warns(XSuperResWarning, match="1 gap"):
        out = gap.sr.downscale(model)
    np.testing.assert_array_equal(out[4:], coarse[7:10].sr.downscale(model))
    np.testing.assert_array_equal(out[:4], coarse[:4].sr.downscale(model))
    with pytest.warns(XSuperResWarning, match="1 gap"):
        chunked = gap.chunk(time=(3, 2, 2)).sr.downscale(model)
    check.same_numbers(chunked, out, model.scaling.sd)


def test_irregular_steps_are_noticed(fine, random_weights):
    model, coarse = random_weights(2), fine.sr.coarsen(2)
    uneven = coarse.isel(time=slice(0, 4)).assign_coords(
        time=np.datetime64("2001-01-01", "ns") + np.array([0, 24, 48, 76]) * np.timedelta64(1, "h")
    )
    with pytest.warns(XSuperResWarning, match="steps of 24 to 28 hours"):
        uneven.sr.downscale(model)
    monthly = replace(model, training=replace(model.training, step=30 * 24.0))
    months = coarse.isel(time=slice(0, 6)).assign_coords(time=xr.date_range("2001-01-01", periods=6, freq="MS"))
    months.sr.downscale(monthly)  # the calendar's own unevenness is none


def test_steps_of_another_length_than_the_training_are_noticed(fine, random_weights):
    """A window of days does not know hours."""
    model, coarse = random_weights(2), fine.sr.coarsen(2)
    assert model.training.step == 24.0
    hourly = coarse.assign_coords(time=coarse.time[0].values + np.arange(12) * np.timedelta64(6, "h"))
    with pytest.warns(XSuperResWarning, match=r"'time' are of 6 hours, those that the model was trained on of 24"):
        hourly.sr.downscale(model)
    near = coarse.assign_coords(time=coarse.time[0].values + np.arange(12) * np.timedelta64(25, "h"))
    near.sr.downscale(model)
    coarse.drop_vars("time").sr.downscale(model)  # nothing is known, nothing is said
    hourly.sr.downscale(fit(fine))  # a model without a window sees one step at a time


def test_training_windows_stay_in_their_segment(fine, monkeypatch):
    """What `fit` reads around a gap is what `downscale` reads."""
    gap = fine.isel(time=[0, 1, 2, 6, 7, 8])
    seen = []
    from xsuperres import fitting

    true_loop = fitting.Loop

    def spy(network, reader, *args, **options):
        block = reader._prepared(0)
        seen.append(block.windows)
        return true_loop(network, reader, *args, **options)

    monkeypatch.setattr(fitting, "Loop", spy)
    with pytest.warns(XSuperResWarning, match="1 gap"):
        fit(gap, time_window=3)
    assert seen[0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [3, 3, 4], [3, 4, 5]]


@pytest.mark.parametrize("budget", [2**30, 40_000])
def test_streamed_training_sees_the_same_windows(fine, budget):
    """Blocks of time are read with the frames around them."""
    model = fit(fine, time_window=3, sampling={"memory_budget": budget}, steps=1)
    whole = fit(fine, time_window=3, steps=1)
    np.testing.assert_allclose(model.baselines.delta, whole.baselines.delta, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.scaling.mean, whole.scaling.mean)


# bad input


def test_a_window_needs_time(fine, random_weights):
    model = random_weights(2)
    with pytest.raises(ConfigError, match="needs a time dimension"):
        fit(fine.isel(time=0, drop=True), time_window=2, data={"domain": "open"}, sampling={"batch_size": 1})
    with pytest.raises(DataError, match="needs a time dimension"):
        fine.isel(time=0, drop=True).sr.coarsen(2).sr.downscale(model)


@pytest.mark.parametrize("window", [0, 1, -2, 2.5, True, "3"])
def test_a_window_that_is_none(fine, window):
    with pytest.raises(ConfigError, match="time_window"):
        fit(fine, time_window=window)


def test_an_even_window_has_no_centre(fine):
    with pytest.raises(ConfigError, match="odd time_window"):
        fit(fine, time_window=4, data={"time_alignment": "centre"})


def test_an_alignment_without_a_window_is_refused(fine):
    with pytest.raises(ConfigError, match="time_alignment='centre' says where .* this fit has none; add time_window"):
        fit(fine, time_window=None, data={"time_alignment": "centre"})


def test_times_that_do_not_increase(fine, random_weights):
    with pytest.raises(DataError, match="must increase"):
        fine.isel(time=slice(None, None, -1)).sr.coarsen(2).sr.downscale(random_weights(2))


# the network below


def test_the_recurrent_block_is_a_convolutional_lstm():
    """Written down anew, gate by gate."""
    torch.manual_seed(0)
    fusion = RecurrentFusion(3, 4, 3).double()
    features = torch.randn(5, 3, 6, 7, dtype=torch.float64)
    windows = torch.tensor([[0, 1, 2], [2, 2, 4]])
    gates = fusion.gates(features)
    got = fusion(features[windows[:, -1]], [gates[step] for step in windows.T])
    for sample, frames in enumerate(windows.tolist()):
        state = memory = torch.zeros(1, 4, 6, 7, dtype=torch.float64)
        for frame in frames:
            gates = fusion.input(features[frame][None]) + fusion.recurrent(state)
            enter, keep, leave, new = gates.chunk(4, dim=1)
            memory = torch.sigmoid(enter) * torch.tanh(new / 2) + torch.sigmoid(keep) * memory
            state = torch.sigmoid(leave) * torch.tanh(memory)
        expected = features[frames[-1]][None] + fusion.output(state)
        torch.testing.assert_close(got[sample][None], expected)


def test_validation_of_several_series_step_by_step(monkeypatch):
    """Members take turns among the held-out frames; one step at a time, frames are kept as long as any needs them."""
    from xsuperres.inference import validation

    field = toy_field(time=10, y=16, x=24)
    ensemble = xr.concat([field + m for m in range(3)], "member").transpose("time", "member", ...)
    ensemble = ensemble.assign_attrs(field.attrs).rename("tas")
    scores = []
    for size in (1, 2, 100):
        monkeypatch.setattr(validation, "sub_batch", lambda prepared, cells, size=size: size)
        model = fit(ensemble, time_window=3, validation=slice("2001-01-01", "2001-01-03"))
        scores.append(model.training.validation["rmse"])
    np.testing.assert_allclose(scores, scores[-1], rtol=1e-4)


def test_a_step_without_any_value_is_told_of(fine, check):
    """The network would see the mean in it; a step that is not there is a gap, across which frames repeat."""
    sea = fine.where(fine.lat > 15).assign_attrs(fine.attrs)
    model, coarse = fit(sea, time_window=3), sea.sr.coarsen(2)
    holed = coarse.copy(deep=True)
    holed[4] = np.nan
    with pytest.warns(XSuperResWarning, match=r"1 of 12 frames hold no value at all.*\.dropna\(dim, how='all'\)"):
        holed.sr.downscale(model)
    with pytest.warns(XSuperResWarning, match="hold no value at all"):
        holed.chunk(time=6).sr.downscale(model).compute(scheduler="synchronous")
    with pytest.warns(XSuperResWarning, match="1 gap") as caught:
        out = holed.dropna("time", how="all").sr.downscale(model)
    assert len(caught) == 1
    alone = coarse.isel(time=slice(5, 12)).sr.downscale(model)
    check.same_numbers(out.isel(time=slice(4, 11)), alone, model.scaling.sd)
