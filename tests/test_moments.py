"""What is told from the training values: fill values that were not decoded, physical bounds."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.config import DataConfig
from xsuperres.errors import DataError, StaticFieldError
from xsuperres.fields.stages import Bounds
from xsuperres.model.file import model_from_bytes, model_to_bytes
from xsuperres.testing import toy_field

QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1},
    "progress": False,
    "activate": False,
}


def rain(*, lowest: float = 0.0, time: int = 6, **attrs: str) -> xr.DataArray:
    """Return showers: 0 nearly everywhere, so that any interpolation overshoots below."""
    field = toy_field(time=time, y=16, x=24)
    showers = np.random.default_rng(1).gamma(0.3, 2.0, field.shape)
    showers = np.where(showers > 2.0, showers, lowest).astype("float32")
    told = {"units": "kg m-2 s-1", "standard_name": "precipitation_flux", **attrs}
    return field.copy(data=showers).rename("pr").drop_attrs(deep=False).assign_attrs(told)


# Fill values.


@pytest.mark.parametrize("fill", [1e20, -1e20, 9.96921e36, 1e15])
@pytest.mark.parametrize("at", [0, -1], ids=["trained on", "held out"])
def test_fill_values_are_refused(fill, at):
    field = toy_field(time=6, y=16, x=24)
    field[at, 3:8, 5:9] = fill
    with pytest.raises(DataError, match=r"'tas' holds values of up to (1|9.97)e\+.*_FillValue or missing_value"):
        field.sr.fit(2, **QUICK)


def test_fill_values_are_refused_in_pairs_and_predictors():
    fine = toy_field(time=6, y=16, x=24)
    coarse = fine.sr.coarsen(2)
    broken = coarse.copy()
    broken[2, 1, 1] = 1e20
    with pytest.raises(DataError, match="'tas' holds values of up to 1e"):
        broken.sr.fit(target=fine, **QUICK)
    with pytest.raises(DataError, match="'psl' holds values of up to 1e"):
        fine.sr.fit(2, predictors=broken.rename("psl"), **QUICK)
    missing = fine.copy()
    missing[5, 1, 1] = 1e20  # held out
    with pytest.raises(DataError, match="'tas' holds values of up to 1e"):
        coarse.sr.fit(target=missing, **QUICK)


def test_fill_values_of_static_fields_are_refused():
    field = toy_field(time=6, y=16, x=24)
    elevation = field.elevation.where(field.land_fraction > 0.5, 1e20)
    with pytest.raises(StaticFieldError, match="'elevation' holds values of up to"):
        field.assign_coords(elevation=elevation).sr.fit(2, **QUICK)


def test_missing_and_large_values_are_not_refused():
    field = toy_field(time=6, y=16, x=24) * 1e11
    field[0, :2, :2] = np.nan
    field.assign_attrs(units="K").sr.fit(2, **QUICK)


# Bounds.


def lowest_of(model, field) -> float:
    return float(field.sr.coarsen(2).sr.downscale(model).min())


def test_what_cannot_be_negative_is_not():
    field = rain()
    model = field.sr.fit(2, **QUICK)
    assert model.targets[0].bounds == (0.0, None)
    assert lowest_of(model, field) == 0.0
    assert "at least 0" in repr(model)
    free = field.sr.fit(2, data={"valid_min": {"pr": None}}, **QUICK)
    assert free.targets[0].bounds == (None, None)
    assert lowest_of(free, field) < 0.0
    again = model_from_bytes(model_to_bytes(model))
    assert again.targets[0].bounds == (0.0, None)
    assert lowest_of(again, field) == 0.0


@pytest.mark.parametrize(
    ("field", "data", "expected"),
    [
        (rain(lowest=-1e-9), {}, (None, None)),
        (rain(standard_name="air_temperature"), {}, (None, None)),
        (rain(standard_name="geopotential"), {}, (None, None)),
        (rain(), {"valid_max": 40.0}, (0.0, 40.0)),
        (rain(), {"valid_min": -1.0}, (-1.0, None)),
        (rain(), {"valid_max": {"pr": 30.0}}, (0.0, 30.0)),
        (rain(lowest=-1.0), {"valid_min": 0.5, "valid_max": 2.0}, (0.5, 2.0)),
        (rain(), {"transform": "log1p"}, (0.0, None)),
    ],
    ids=["negative", "other name", "geopotential", "maximum", "minimum", "by name", "both", "transformed"],
)
def test_bounds_are_asked_for_or_told_by_name_and_data(field, data, expected):
    model = field.sr.fit(2, data=data, **QUICK)
    assert model.targets[0].bounds == model.channels.find(Bounds).limits[0] == expected
    fine = field.sr.coarsen(2).sr.downscale(model)
    low, high = expected
    assert low is None or float(fine.min()) >= low
    assert high is None or float(fine.max()) <= high


def test_only_training_fields_count():
    """A negative value that was held out is none of training's."""
    field = rain()
    field[-1, 0, 0] = -1.0
    model = field.sr.fit(2, validation=slice("2001-01-06", None), **QUICK)
    assert model.targets[0].bounds == (0.0, None)


def test_each_variable_has_its_bounds():
    ds = xr.Dataset({"tas": toy_field(time=6, y=16, x=24), "pr": rain()})
    model = ds.sr.fit(2, **QUICK)
    assert [target.bounds for target in model.targets] == [(None, None), (0.0, None)]
    other = ds.sr.fit(2, data={"valid_min": {"tas": 200.0}}, **QUICK)
    assert [target.bounds for target in other.targets] == [(200.0, None), (0.0, None)]
    fine = ds.sr.coarsen(2).sr.downscale(model)
    assert float(fine.pr.min()) == 0.0


def test_the_names_are_those_the_docstring_tells():
    from xsuperres.moments import _NEVER_NEGATIVE

    told = " ".join(DataConfig.__doc__.split())
    assert all(name in told for name in _NEVER_NEGATIVE)
    assert list(_NEVER_NEGATIVE) == sorted(_NEVER_NEGATIVE)
