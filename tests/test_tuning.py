"""Fine-tuning: what is taken over from the first model, and what must be the same for that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from xsuperres.errors import ConfigError, UnitsError, XSuperResWarning
from xsuperres.testing import toy_field

TINY = {"width": 5, "depth": 1, "head_width": 4}
FROZEN = {"learning_rate": 1e-30}


@pytest.fixture(scope="module")
def fine() -> xr.DataArray:
    return toy_field(time=10, y=16, x=24)


@pytest.fixture(scope="module")
def rain(fine) -> xr.DataArray:
    """Return a skewed, positive field."""
    values = np.exp((fine.values - fine.values.mean()) / fine.values.std() * 1.5) * 1e-6
    attrs = {"units": "kg m-2 s-1", "standard_name": "precipitation_flux", "long_name": "rain"}
    return fine.copy(data=values.astype(np.float32)).rename("pr").assign_attrs(attrs)


@pytest.fixture(scope="module")
def heights(fine) -> list[xr.DataArray]:
    """Return two predictors of very different size on the coarse grid."""
    coarse, rng = fine.sr.coarsen(2).drop_vars(["elevation", "land_fraction"]), np.random.default_rng(0)
    made = []
    for name, mean, sd in (("zg500", 5500, 100), ("zg850", 1500, 30)):
        values = rng.normal(mean, sd, coarse.shape).astype(np.float32)
        made.append(coarse.copy(data=values).rename(name).drop_attrs(deep=False).assign_attrs(units="m"))
    return made


def fit(da, scale=2, *, steps=3, **options):
    """Train for a few steps with a tiny network."""
    defaults = {"network": TINY, "upsampling": "subpixel", "validation": None, "activate": False, "progress": False}
    defaults["sampling"] = {"batch_size": 2, "patch_size": 6} | options.pop("sampling", {})
    defaults["optimization"] = {"max_steps": steps, "validations": 1} | options.pop("optimization", {})
    return da.sr.fit(scale, **(defaults | options))


def with_sea(da: xr.DataArray) -> xr.DataArray:
    """Return `da` with NaN over whole coarse cells in the north-west."""
    values = da.values.copy()
    values[:, 8:, :10] = np.nan
    return da.copy(data=values)


# weights and scaling


def test_fine_tuning_starts_from_the_weights_given(fine, tmp_path):
    start = fit(fine, steps=10)
    before = {k: v.clone() for k, v in start.network.state_dict().items()}
    frozen = {"learning_rate": 1e-30}
    same = fit(fine, steps=1, init=start, optimization=frozen)
    coarse = fine.sr.coarsen(2)
    np.testing.assert_allclose(coarse.sr.downscale(same), coarse.sr.downscale(start), rtol=0, atol=1e-3)
    start.save(tmp_path / "start.safetensors")
    by_path = fit(fine, steps=1, init=tmp_path / "start.safetensors", optimization=frozen)
    np.testing.assert_array_equal(coarse.sr.downscale(by_path), coarse.sr.downscale(same))
    fit(fine, steps=5, init=start)
    for name, value in start.network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_fine_tuning_elsewhere_starts_with_the_same_function(fine):
    """Weights mean something only with the scaling of inputs and output they were trained with."""
    start = fit(fine, steps=20, data={"domain": "open"}, network=TINY | {"skip": "bicubic"})
    other = toy_field(time=4, y=16, x=24, seed=5)
    rough = (other + 3 * (other - other.sr.coarsen(2).sr.interpolate(2, like=other))).assign_attrs(other.attrs)
    tuned = fit(
        rough,
        steps=1,
        init=start,
        data={"domain": "open"},
        network=TINY | {"skip": "bicubic"},
        optimization={"learning_rate": 1e-30},
    )
    statics = rough.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    coarse = rough.sr.coarsen(2)
    expected = coarse.sr.downscale(start, static=statics, check_range="ignore")  # whose training was other weather
    np.testing.assert_allclose(coarse.sr.downscale(tuned, static=statics), expected, rtol=0, atol=1e-2)


def test_fine_tuning_needs_the_same_network_and_static_fields(fine):
    start = fit(fine)
    with pytest.raises(ConfigError, match="config"):
        fit(fine, init=start, network=TINY | {"width": 6})
    with pytest.raises(ConfigError, match="static"):
        fit(fine.rename(elevation="orog"), init=start)
    with pytest.raises(ConfigError, match="statics"):
        fit(fine, init=start, static=["elevation"])
    with pytest.raises(UnitsError):
        fit(fine.assign_attrs(units="degC"), init=start)


def test_fine_tuning_needs_the_same_input_channels(fine):
    """The same network with another meaning of its channels would be started from noise."""
    start = fit(fine, data={"domain": "open"})
    for data in ({"domain": "open", "contrast_radius": 0}, {"domain": "open", "contrast_radius": 1}):
        with pytest.raises(ConfigError, match="contrast_radius"):
            fit(fine, init=start, data=data)
    fit(fine, init=start, data={"domain": "open", "minimum_valid_fraction": 0.2})


def test_fine_tuning_with_a_sign_that_flips_needs_a_mean_of_zero(fine):
    wind = (fine - 285).assign_attrs(fine.attrs | {"standard_name": "eastward_wind", "units": "m s-1"})
    signed = {"sampling": {"flip": ("x",), "flip_sign": ("x",)}, "data": {"domain": "open"}}
    with pytest.raises(ConfigError, match="mean other than 0"):
        fit(wind, init=fit(wind, data={"domain": "open"}), **signed)
    assert fit(wind, init=fit(wind, **signed), **signed).scaling.mean == 0


def test_fine_tuning_with_static_fields_of_other_units_is_refused(fine):
    start = fit(fine)
    scaled = fine.assign_coords(elevation=(fine.elevation / 1000).assign_attrs(fine.elevation.attrs, units="km"))
    with pytest.raises(UnitsError, match="static field 'elevation': expected units of 'm' like init, got 'km'"):
        fit(scaled, init=start)
    percent = (100 * fine.land_fraction).assign_attrs(fine.land_fraction.attrs, units="%")
    with pytest.raises(UnitsError, match="static field 'land_fraction'"):
        fit(fine.assign_coords(land_fraction=percent), init=start)
    silent = fine.assign_coords(elevation=fine.elevation.drop_attrs(deep=False))
    with pytest.warns(XSuperResWarning, match="static field 'elevation': units are None"):
        fit(silent, init=start)


# variables and transforms


@pytest.mark.parametrize("kind", ["log1p", "sqrt", "anomaly"])
def test_fine_tuning_in_the_transformed_units_of_the_first_model(rain, kind):
    """The unit of log1p depends on the data: baselines must be fitted in that of the weights and the scaling."""
    options = {"data": {"transform": kind}, "optimization": FROZEN}
    start = fit(rain, **options)
    wetter = (rain * 10).assign_attrs(rain.attrs)
    tuned, fresh = fit(wetter, init=start, **options), fit(wetter, **options)
    assert tuned.targets[0].transform == start.targets[0].transform
    assert tuned.scaling == start.scaling
    coarse = wetter.sr.coarsen(2)
    shown = tuned.targets[0].transform.forth(coarse.values.astype(float)).mean(axis=0)
    shown = 0.0 if kind == "anomaly" else shown
    np.testing.assert_allclose(tuned.baselines.climatology, shown, rtol=1e-5, atol=1e-3 * start.scaling.sd)
    first, anew = (float(np.abs(coarse.sr.downscale(m) - wetter).mean()) for m in (tuned, fresh))
    assert first < 1.2 * anew, "it starts from a linear baseline that is as good"
    if kind == "anomaly":
        for ours, theirs in zip(tuned.targets[0].climatology, fresh.targets[0].climatology, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_fine_tuning_with_another_transform_is_refused(rain, fine):
    start = fit(rain, data={"transform": "log1p"})
    with pytest.raises(ConfigError, match=r"transform='log1p' of 'pr', this fit has None; use data=.*'log1p'"):
        fit(rain, init=start)
    both = xr.Dataset({"tas": fine, "pr": rain})
    start = fit(both, data={"transform": {"pr": "log1p"}})
    with pytest.raises(ConfigError, match=r"transform=None of 'tas', this fit has 'sqrt'"):
        fit(both, init=start, data={"transform": {"pr": "log1p", "tas": "sqrt"}})
    fit(both, init=start, data={"transform": {"tas": None, "pr": "log1p"}})


def test_fine_tuning_needs_the_same_variables_in_the_same_order(fine, rain):
    both = xr.Dataset({"tas": fine, "t2": (fine + 3).assign_attrs(fine.attrs)})
    start = fit(both)
    with pytest.raises(ConfigError, match=r"\['tas', 't2'\], in this order, this fit is of \['t2', 'tas'\]; select"):
        fit(both[["t2", "tas"]], init=start)
    with pytest.raises(ConfigError, match=r"this fit is of \['tas'\]"):
        fit(fine, init=start)
    with pytest.raises(ConfigError, match=r"variables \['tas'\].* is of \['t2m'\]; select or rename"):
        fit(fine.rename("t2m"), init=fit(fine))


def test_predictors_are_put_in_the_order_of_the_first_model(fine, heights):
    """By name, as `downscale` takes them: each keeps its channel and its scaling."""
    start = fit(fine, predictors=heights, steps=8)
    tuned = fit(fine, predictors=heights[::-1], init=start, optimization=FROZEN)
    assert [p.variable.name for p in tuned.predictors] == ["zg500", "zg850"]
    assert tuned.predictors == start.predictors
    coarse = fine.sr.coarsen(2)
    expected = coarse.sr.downscale(start, predictors=heights)
    np.testing.assert_allclose(coarse.sr.downscale(tuned, predictors=heights), expected, rtol=0, atol=1e-3)
    for others in (None, heights[:1], [heights[0], heights[1].rename("zg700")]):
        with pytest.raises(ConfigError, match=r"predictors \['zg500', 'zg850'\], this fit has"):
            fit(fine, predictors=others, init=start)
    with pytest.raises(UnitsError, match="'zg850': expected units of 'm' like init, got 'km'"):
        fit(fine, predictors=[heights[0], heights[1].assign_attrs(units="km")], init=start)


def test_fine_tuning_needs_the_same_variables_to_have_gaps(fine):
    """Two variables with one mask are one network, whichever of them the mask is of."""
    both = xr.Dataset({"a": fine, "b": (fine + 3).assign_attrs(fine.attrs)})
    start = fit(both.assign(b=with_sea(both.b)))
    with pytest.raises(ConfigError, match="'a' was complete when init= was trained, in these data it had missing"):
        fit(both.assign(a=with_sea(both.a)), init=start)
    with pytest.raises(ConfigError, match="'b' had missing cells when init= was trained, in these data it was comp"):
        fit(both, init=start)
    fit(both.assign(b=with_sea(both.b)), init=start)


# the opponent


GAME = {"training": "adversarial", "adversarial": {"warm_up": 0.0, "width": 4, "depth": 1}}


def test_fine_tuning_leaves_the_discriminator_of_the_first_model_alone(fine):
    start = fit(fine, **GAME)
    before = {name: weight.clone() for name, weight in start.discriminator.state_dict().items()}
    first, second = fit(fine, init=start, **GAME), fit(fine, init=start, **GAME)
    for name, weight in start.discriminator.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
    assert first.digest == second.digest
    assert first.discriminator is not start.discriminator
    assert any(not torch.equal(w, before[n]) for n, w in first.discriminator.state_dict().items())


def test_fine_tuning_against_another_discriminator_is_refused(fine):
    start = fit(fine, **GAME)
    with pytest.raises(ConfigError, match=r"of \{'width': 4\}, this fit asks for \{'width': 16\}; use adversarial="):
        fit(fine, init=start, **(GAME | {"adversarial": GAME["adversarial"] | {"width": 16}}))
    with pytest.raises(ConfigError, match=r"\{'width': 4, 'depth': 1\}, this fit asks for"):
        fit(fine, init=start, training="adversarial")
    other = fit(fine, init=replace(start, discriminator=None), **(GAME | {"adversarial": {"width": 6, "depth": 2}}))
    assert other.discriminator.spec.width == 6
    assert fit(fine, init=start).discriminator is None, "there is no game"
