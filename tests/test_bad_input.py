"""Bad input gives a clear error: of a class one can catch, saying what was expected, what came and what to do."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array
import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr
from covering import covering

import xsuperres as xsr
from xsuperres.errors import (
    ConfigError,
    DataError,
    GridError,
    ModelFileError,
    NoModelError,
    StaticFieldError,
    UnitsError,
    UnknownNameError,
    XSuperResError,
    XSuperResWarning,
)
from xsuperres.model.file import FORMAT_VERSION, model_from_bytes, model_to_bytes
from xsuperres.testing import toy_field

QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1, "validations": 1},
    "validation": None,
    "progress": False,
}


def quick_fit(da: xr.DataArray, scale=2, **settings):
    return da.sr.fit(scale, **(QUICK | settings))


@contextlib.contextmanager
def refused(error: type[XSuperResError], builtin: type[Exception], *words: str) -> Iterator[None]:
    """Expect exactly `error`, which is also a `builtin`, with all `words` in its message."""
    with pytest.raises(XSuperResError) as caught:
        yield
    assert type(caught.value) is error
    assert issubclass(error, builtin)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    assert message.endswith((".", "?"))


@pytest.fixture
def fine() -> xr.DataArray:
    return toy_field(time=3, y=12, x=16)


@pytest.fixture(autouse=True)
def table_stays(make_model) -> Iterator[None]:
    """Nothing that is refused changes which models are active."""
    xsr.deactivate()
    model = xsr.activate(make_model().model)
    yield
    after = xsr.active_models()
    xsr.deactivate()
    assert list(after) == [("tas", 2)]
    assert after["tas", 2] is model


class Poison:
    """A scheduler that refuses to compute."""

    def __call__(self, graph, keys, **options):
        raise AssertionError("data were read before the settings were checked")


# No latitude and longitude.

ON_A_FIELD = {
    "fit": quick_fit,
    "coarsen": lambda da: da.sr.coarsen(2),
    "interpolate": lambda da: da.sr.interpolate(2),
    "downscale": lambda da: da.sr.downscale(scale=2),
    "score": lambda da: da.sr.score(toy_field(time=3, y=12, x=16), coarse=da),
    "describe": lambda da: da.sr.describe(scale=2),
    "with_bounds": lambda da: da.sr.with_bounds(),
}
everywhere = pytest.mark.parametrize("operation", ON_A_FIELD.values(), ids=ON_A_FIELD.keys())


@everywhere
def test_no_latitude_and_longitude(operation, fine):
    bare = fine.drop_vars(["lat", "lon", "elevation", "land_fraction"]).rename(lat="a", lon="b")
    with refused(GridError, ValueError, "No latitude and longitude", "'a'", "'b'", "standard_name", "rename"):
        operation(bare)


@everywhere
def test_a_dimension_without_coordinate(operation, fine):
    with refused(GridError, ValueError, "'lat'", "no 1-D coordinate", "assign"):
        operation(fine.drop_vars("lat"))


def test_a_field_without_a_plane(fine):
    with refused(GridError, ValueError, "No latitude and longitude", "'time'"):
        fine.isel(lat=0, lon=0).sr.coarsen(2)


# A size that scale does not divide.

DIVIDING = {"fit": quick_fit, "coarsen": lambda da, scale: da.sr.coarsen(scale)}
dividing = pytest.mark.parametrize("operation", DIVIDING.values(), ids=DIVIDING.keys())


def follow_the_advice(operation, da: xr.DataArray, scale: int) -> xr.DataArray:
    """Crop as the errors say until it works; return the crop."""
    for _ in range(3):
        try:
            operation(da, scale)
        except GridError as error:
            advice = re.search(r"\.isel\((\w+)=slice\(0, (\d+)\)\)", str(error))
            assert advice, error
            assert f"scale={scale}" in str(error)
            da = da.isel({advice[1]: slice(0, int(advice[2]))})
        else:
            return da
    raise AssertionError("the crops that were advised do not work")


@dividing
@pytest.mark.parametrize(
    ("y", "x", "scale", "crop"), [(14, 16, 4, (12, 16)), (12, 17, 2, (12, 16)), (13, 17, 3, (12, 15))]
)
def test_a_size_that_scale_does_not_divide(operation, y, x, scale, crop):
    da = toy_field(time=2, y=y, x=x)
    with refused(GridError, ValueError, "does not divide", "crop it to"):
        operation(da, scale)
    cropped = follow_the_advice(
        lambda da, scale: operation(da, scale, activate=False) if operation is quick_fit else operation(da, scale),
        da,
        scale,
    )
    assert cropped.shape[1:] == crop


@dividing
def test_without_static_fields_too(operation):
    da = toy_field(time=2, y=13, x=16).drop_vars(["elevation", "land_fraction"])
    with refused(GridError, ValueError, "'lat' has 13 cells", "scale=2", "isel(lat=slice(0, 12))"):
        operation(da, 2)


@dividing
def test_other_orientations_too(operation):
    da = toy_field(time=2, y=13, x=16).isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
    with refused(GridError, ValueError, "'lat' has 13 cells", "isel(lat=slice(0, 12))"):
        operation(da, 2)


@dividing
def test_smaller_than_one_coarse_cell(operation):
    with refused(GridError, ValueError, "'lat' has 4 cells", "scale=5", "larger domain"):
        operation(toy_field(time=2, y=4, x=15), 5)


def test_a_part_between_gaps_that_scale_does_not_divide():
    """The advice must keep what it can: the dimension has 19 cells, a part of it has 9."""
    da = toy_field(time=2, y=12, x=24).isel(lon=[*range(10), *range(13, 22)])
    with refused(GridError, ValueError, "lon", "9 cells", "gap"):
        quick_fit(da)


# Scales.

SCALED = {
    "fit": lambda da, scale: quick_fit(da, scale),
    "coarsen": lambda da, scale: da.sr.coarsen(scale),
    "interpolate": lambda da, scale: da.sr.interpolate(scale),
    "downscale": lambda da, scale: da.sr.downscale(scale=scale),
    "describe": lambda da, scale: da.sr.describe(scale=scale),
}


NO_SCALES = [1, 0, -2, 2.5, "4", True, np.nan, np.inf, (2, 2)]


@pytest.mark.parametrize(("name", "scale"), [*((name, 2.5) for name in SCALED), *(("coarsen", s) for s in NO_SCALES)])
def test_scale_must_be_a_whole_number_of_at_least_2(name, scale, fine):
    """All methods ask one function, which is shown all kinds of numbers."""
    with refused(GridError, ValueError, "scale", "at least 2", repr(scale)):
        SCALED[name](fine, scale)


@pytest.mark.parametrize("scale", [2.0, np.int64(2), np.float32(2)])
def test_scale_may_come_from_numpy(scale, fine):
    assert fine.sr.coarsen(scale).sizes["lat"] == 6
    model = quick_fit(fine, scale, activate=False)
    assert model.scale == 2
    assert model_from_bytes(model_to_bytes(model)).digest == model.digest


@pytest.mark.parametrize("scale", [3, 4])
def test_scale_other_than_the_models(toy, scale):
    with refused(ConfigError, ValueError, f"scale={scale}", "model's scale of 2", "leave scale out"):
        toy.coarse.sr.downscale(toy.model, scale=scale)


# No model.


@pytest.mark.parametrize("scale", [3, 4])
def test_no_model_for_this_scale(toy, scale):
    words = ("'tas'", f"scale {scale}", "'tas' at scale 2", f".sr.fit(scale={scale})", "load_model(path)", "downscale(")
    with refused(NoModelError, LookupError, *words):
        toy.coarse.sr.downscale(scale=scale)


def test_no_model_for_this_variable(toy):
    with refused(NoModelError, LookupError, "'pr'", "scale 2", "active: 'tas' at scale 2"):
        toy.coarse.rename("pr").sr.downscale(scale=2)


def test_neither_model_nor_scale(toy):
    with refused(ConfigError, ValueError, "Pass a model", "scale"):
        toy.coarse.sr.downscale()


@pytest.mark.parametrize("model", [4, xr.Dataset(), torch.nn.Identity()], ids=["number", "dataset", "module"])
def test_what_is_no_model(toy, model):
    with refused(ConfigError, ValueError, "SRModel", "path", type(model).__name__):
        toy.coarse.sr.downscale(model)


@pytest.mark.parametrize("model", [4, xr.Dataset()], ids=["number", "dataset"])
def test_what_is_no_model_to_start_from_or_activate(fine, model):
    with refused(ConfigError, ValueError, "SRModel", type(model).__name__):
        quick_fit(fine, init=model)
    with refused(ConfigError, ValueError, "SRModel", type(model).__name__):
        xsr.activate(model)


def test_a_path_that_is_not_there(toy, tmp_path, fine):
    missing = tmp_path / "none.safetensors"
    with refused(ModelFileError, OSError, "Cannot read", "none.safetensors"):
        toy.coarse.sr.downscale(missing)
    with refused(ModelFileError, OSError, "Cannot read", "none.safetensors"):
        quick_fit(fine, init=str(missing))
    with refused(ModelFileError, OSError, "Cannot read"):
        xsr.load_model(tmp_path)


# Static fields.


def planes_of(da: xr.DataArray) -> xr.Dataset:
    return da.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()


@pytest.fixture
def open_toy(make_model):
    return make_model(domain="open")


def test_fit_static_names_that_are_not_there(fine):
    with refused(StaticFieldError, ValueError, "['slope']", "'elevation'", "assign_coords"):
        quick_fit(fine, static=["elevation", "slope"])


SPOILT = {
    "on another grid": (lambda s: s.assign_coords(lat=s.lat + 0.3), ("another grid", "expected", "got")),
    "elsewhere": (lambda s: s.assign_coords(lon=s.lon + 90), ("another grid", "expected", "got")),
    "coarser": (lambda s: s.isel(lat=slice(0, None, 2), lon=slice(0, None, 2)), ("another grid", "expected", "got")),
    "partly outside": (lambda s: s.isel(lat=slice(0, -1)), ("another grid", "expected", "got")),
    "NaN in a cell": (lambda s: s.where(s.lat > s.lat[0]), ("NaN on", "fill")),
    "infinite": (lambda s: s.where(s.lat > s.lat[0], np.inf), ("fill",)),
    "with time": (lambda s: s.expand_dims(time=2), ("time", "isel(time=0")),
    "text": (lambda s: s.astype(str), ("numeric",)),
}
spoilt = pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT.keys())


@spoilt
def test_fit_refuses_static_fields(fine, spoil, words):
    with refused(StaticFieldError, ValueError, "'elevation'", *words):
        quick_fit(fine.drop_vars(["elevation", "land_fraction"]), static=spoil(planes_of(fine)))


@spoilt
def test_an_open_model_refuses_static_fields(open_toy, spoil, words):
    with refused(StaticFieldError, ValueError, *words):
        open_toy.coarse.sr.downscale(open_toy.model, static=spoil(planes_of(open_toy.fine)))


@spoilt
def test_a_fixed_model_does_not_ignore_what_it_is_given(toy, spoil, words):
    """It has static fields of its own; those given are checked all the same, or a person believes they were used."""
    with refused(StaticFieldError, ValueError, *words):
        toy.coarse.sr.downscale(toy.model, static=spoil(planes_of(toy.fine)))


def test_fit_refuses_nan_in_static_fields_that_ride_along(fine):
    sea = fine.elevation.where(fine.elevation > 0)
    with refused(StaticFieldError, ValueError, "'elevation'", "NaN on", "%", ".fillna(0)"):
        quick_fit(fine.assign_coords(elevation=sea))


def test_nan_beside_the_domain_does_not_matter(open_toy):
    """Static fields of a larger domain may be incomplete where they are not used."""
    static = planes_of(open_toy.fine)
    static = static.where(static.lat <= static.lat[-5])
    part = open_toy.coarse.isel(lat=slice(0, -2))
    expected = part.sr.downscale(open_toy.model, static=planes_of(open_toy.fine))
    np.testing.assert_array_equal(part.sr.downscale(open_toy.model, static=static), expected)


def test_static_fields_missing_elsewhere(open_toy):
    there = open_toy.coarse.assign_coords(lon=open_toy.coarse.lon + 40)
    words = ("'elevation'", "'land_fraction'", "static=Dataset", "fine grid")
    with refused(StaticFieldError, ValueError, *words):
        there.sr.downscale(open_toy.model)


def test_partly_outside_the_domain_is_outside(open_toy, toy):
    """The model's own static fields are not stretched beyond its domain."""
    shifted = open_toy.coarse.assign_coords(lon=open_toy.coarse.lon + 2 * 2)  # two coarse cells to the east
    with refused(StaticFieldError, ValueError, "'elevation'", "are not on (a crop of)"):
        shifted.sr.downscale(open_toy.model)
    with refused(GridError, ValueError, "bound to its domain", "validation='space'"):
        shifted.sr.downscale(toy.model)


def test_one_static_field_missing(open_toy):
    static = planes_of(open_toy.fine)[["land_fraction"]]
    with refused(StaticFieldError, ValueError, "['elevation']", "['land_fraction']"):
        open_toy.coarse.sr.downscale(open_toy.model, static=static)


def test_names_of_static_fields_where_fields_are_needed(open_toy):
    with refused(StaticFieldError, ValueError, "Dataset or DataArray", "['elevation']"):
        open_toy.coarse.sr.downscale(open_toy.model, static=["elevation"])


# Units and names.


@pytest.mark.parametrize("units", ["degC", "celsius", "mK", "1", "F"])
def test_units_other_than_the_models(toy, units):
    with refused(UnitsError, ValueError, repr(units), "'K'", "convert"):
        toy.coarse.assign_attrs(units=units).sr.downscale(toy.model)
    with refused(UnitsError, ValueError, repr(units), "'K'", "convert"):
        toy.coarse.assign_attrs(units=units).sr.downscale(scale=2)


@pytest.mark.parametrize("units", ["kelvin", "degK", "Kelvin", "K "])
def test_kelvin_by_any_name(toy, units):
    given = toy.coarse.assign_attrs(units=units)
    fine = given.sr.downscale(toy.model)
    np.testing.assert_array_equal(fine, toy.coarse.sr.downscale(toy.model))
    assert fine.attrs["units"] == units


def test_missing_units_are_warned_about(toy):
    nameless = toy.coarse.copy()
    del nameless.attrs["units"]
    with pytest.warns(XSuperResWarning, match=r"units are None.*'K'"):
        nameless.sr.downscale(toy.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda da: da.rename("ta"), "name is 'ta'.*'tas'"),
        (lambda da: da.assign_attrs(standard_name="soil_temperature"), "'soil_temperature'.*'air_temperature'"),
    ],
    ids=["name", "standard_name"],
)
def test_another_variable_is_warned_about(toy, change, message):
    with pytest.warns(XSuperResWarning, match=message):
        change(toy.coarse).sr.downscale(toy.model)


def test_fine_tuning_in_other_units(toy):
    with refused(UnitsError, ValueError, "'degC'", "'K'"):
        quick_fit(toy.fine.assign_attrs(units="degC"), init=toy.model)


# What cannot be trained on.

UNTRAINABLE = {
    "all NaN": (lambda da: da.where(False), {}, DataError, ("no valid value", "NaN", "check")),
    "constant": (lambda da: xr.full_like(da, 280.0), {}, DataError, ("constant", "280")),
    "constant zero": (lambda da: xr.zeros_like(da), {}, DataError, ("constant", "0")),
    "zero-length time": (lambda da: da.isel(time=slice(0, 0)), {}, DataError, ("'time'", "length 0", "check")),
    "zero-length, chunked": (lambda da: da.isel(time=slice(0, 0)).chunk(), {}, DataError, ("'time'", "length 0")),
    "zero-length member": (lambda da: da.expand_dims(member=[0]).isel(member=[]), {}, DataError, ("'member'", "0")),
    "fewer than a batch": (
        lambda da: da,
        {"sampling": {"batch_size": 8, "patch_size": None}},
        DataError,
        ("3 training samples", "batch_size=8", "smaller"),
    ),
    "one time, to be split": (lambda da: da.isel(time=[0]), {"validation": 0.2}, DataError, ("0.2", "validation=None")),
    "one field, to be split": (
        lambda da: da.isel(time=0),
        {"validation": 0.2},
        DataError,
        ("0.2", "validation=None"),
    ),
}


@pytest.mark.parametrize(("change", "settings", "error", "words"), UNTRAINABLE.values(), ids=UNTRAINABLE.keys())
def test_what_cannot_be_trained_on(fine, change, settings, error, words):
    with refused(error, ValueError, *words):
        quick_fit(change(fine).assign_attrs(fine.attrs), **settings)


def test_a_dimension_that_is_not_there_is_not_named(fine):
    with pytest.raises(DataError, match=r"validation=0\.2") as caught:
        quick_fit(fine.isel(time=0), validation=0.2)
    assert "along None" not in str(caught.value)


def test_all_nan_where_it_trains(fine):
    """Valid only in the held-out period."""
    da = fine.where(fine.time == fine.time[-1]).assign_attrs(fine.attrs)
    with refused(DataError, ValueError, "no valid value"):
        quick_fit(da, validation=0.3)


@pytest.mark.parametrize(
    "validation", [1.5, -0.1, "tim", True, 3, (0.1, 0.2), slice("1850", "1860"), slice("banana", None)], ids=str
)
def test_validations_that_hold_out_nothing(fine, validation):
    with pytest.raises((ConfigError, DataError), match="validation") as caught:
        quick_fit(fine, validation=validation)
    assert isinstance(caught.value, ValueError)


def test_a_period_of_times_that_are_not_sorted(fine):
    """A period is a set of times, whatever their order."""
    model = quick_fit(fine.isel(time=[1, 0, 2]), validation=slice("2001-01-01", "2001-01-01"), activate=False)
    assert model.training.samples == 2


# Unknown names and keywords.

NAMES = {
    "backbone": ({"backbone": "residul"}, "residul", "'residual'"),
    "upsampling": ({"upsampling": "sub-pixel"}, "sub-pixel", "'subpixel'"),
    "training": ({"training": "supervise"}, "supervise", "'supervised'"),
    "loss": ({"optimization": {"loss": "hubber", "max_steps": 1}}, "hubber", "'huber'"),
    "activation": ({"network": {"activation": "leaky-relu"}}, "leaky-relu", "'leaky_relu'"),
    "skip": ({"network": {"skip": "linea"}}, "linea", "'linear'"),
    "domain": ({"data": {"domain": "opened"}}, "opened", "'open'"),
    "flip": ({"sampling": {"flip": ["z"]}}, "z", "'x', 'y'"),
    "field of network": ({"network": {"widht": 8}}, "widht", "'width'"),
    "field of data": ({"data": {"contrast_radus": 2}}, "contrast_radus", "'contrast_radius'"),
    "field of sampling": ({"sampling": {"batchsize": 2}}, "batchsize", "'batch_size'"),
    "field of optimization": ({"optimization": {"lr": 1e-3}}, "'lr'", "'learning_rate'"),
    "no name": ({"backbone": None}, "None", "'residual'"),
    "no string": ({"backbone": ["residual"]}, "['residual']", "'residual'"),
}


@pytest.mark.parametrize(("settings", "given", "meant"), NAMES.values(), ids=NAMES.keys())
def test_unknown_names_in_fit(fine, settings, given, meant):
    """Before a byte is read: an archive takes hours to read."""
    with refused(UnknownNameError, KeyError, "Unknown", given, "Choose from", meant):
        quick_fit(fine, **settings)
    with dask.config.set(scheduler=Poison()), pytest.raises(UnknownNameError):
        quick_fit(fine.drop_vars(["elevation", "land_fraction"]).chunk(), **settings)


@pytest.mark.parametrize("close", ["residul", "bacth_size", "mea"])
def test_the_closest_name_is_named(fine, close):
    settings = {
        "residul": {"backbone": close},
        "bacth_size": {"sampling": {close: 1}},
        "mea": {"optimization": {"loss": close}},
    }[close]
    with pytest.raises(UnknownNameError, match="Did you mean '(residual|batch_size|mae|mse)'"):
        quick_fit(fine, **settings)


@pytest.mark.parametrize(
    ("kind", "operation", "meant"),
    [
        ("interpolation method", lambda da: da.sr.interpolate(2, method="bicubik"), "'bicubic'"),
        ("metric", lambda da: da.sr.score(da, coarse=da.sr.coarsen(2), metrics="rsme"), "'rmse'"),
        ("baseline", lambda da: da.sr.score(da, coarse=da.sr.coarsen(2), baselines=["bicubik"]), "'bicubic'"),
        ("dimension", lambda da: da.sr.score(da, coarse=da.sr.coarsen(2), dim="tim"), "'time'"),
    ],
    ids=["method", "metric", "baseline", "dim"],
)
def test_unknown_names_elsewhere(fine, kind, operation, meant):
    with refused(UnknownNameError, KeyError, f"Unknown {kind}", "Choose from", f"Did you mean {meant}?"):
        operation(fine)


@pytest.mark.parametrize(
    "operation",
    [
        lambda da: da.sr.fit(2, lr=1e-3),
        lambda da: da.sr.fit(2, epochs=3),
        lambda da: da.sr.fit(2, targets=da),
        lambda da: da.sr.downscale(scale=2, member=4),
        lambda da: da.sr.downscale(scale=2, tta=True),
        lambda da: da.sr.coarsen(2, how="mean"),
        lambda da: da.sr.interpolate(2, order=3),
        lambda da: da.sr.score(da, metric="rmse"),
        lambda da: da.sr.describe(factor=2),
        lambda da: da.sr.with_bounds(names=1),
        lambda da: xsr.set_options(memory=3),
        lambda da: xsr.NetworkConfig(widht=3),
        lambda da: xsr.NetworkConfig(8),
        lambda da: xsr.load_model("x", device="cpu"),
        lambda da: da.sr.fit(2, None, "supervised"),
        lambda da: da.sr.downscale(None, 2),
    ],
)
def test_unknown_keywords_and_positions(fine, operation):
    """Signatures are explicit: there is no sink that swallows a keyword."""
    with pytest.raises(TypeError, match="keyword|positional"):
        operation(fine)


VALUES = {
    "width": {"network": {"width": 0}},
    "depth": {"network": {"depth": 1.5}},
    "batch_size": {"sampling": {"batch_size": 0}},
    "patch_size": {"sampling": {"patch_size": 1}},
    "max_steps": {"optimization": {"max_steps": 0}},
    "learning_rate": {"optimization": {"learning_rate": -1.0}},
    "learning_rate ": {"optimization": {"learning_rate": "fast"}},
    "learning_rate  ": {"optimization": {"learning_rate": float("nan")}},
    "max_seconds": {"optimization": {"max_seconds": 0}},
    "averaging": {"optimization": {"averaging": 2}},
    "weight_decay": {"optimization": {"weight_decay": None}},
    "minimum_valid_fraction": {"data": {"minimum_valid_fraction": "half"}},
    "contrast_radius": {"data": {"contrast_radius": -1}},
    "flip_sign": {"sampling": {"flip_sign": ["x"]}},
    "location_features": {"network": {"location_features": 2}, "data": {"domain": "open"}},
    "location_features ": {"network": {"location_features": 2}, "sampling": {"flip": ["x"]}},
    "device": {"optimization": {"device": "cud", "max_steps": 1}},
    "device ": {"optimization": {"device": "meta", "max_steps": 1}},
    "seed": {"seed": -1},
    "seed ": {"seed": "seven"},
    "NetworkConfig": {"network": "small"},
}


@pytest.mark.parametrize(("name", "settings"), VALUES.items(), ids=VALUES.keys())
def test_settings_out_of_range(fine, name, settings):
    with refused(ConfigError, ValueError, name.strip()):
        quick_fit(fine, **settings)


def test_settings_from_numpy(fine):
    """Seeds and sizes come from arange, rates from logspace: taken as the numbers they are, and saved."""
    model = quick_fit(
        fine,
        seed=np.int64(3),
        network={"width": np.int64(4), "depth": np.int32(1), "head_width": 4},
        optimization={"max_steps": np.int64(1), "learning_rate": np.float32(1e-3)},
        activate=False,
    )
    assert model_from_bytes(model_to_bytes(model)).digest == model.digest


@pytest.mark.parametrize("units", [1, np.int64(1)], ids=["int", "numpy"])
def test_units_that_are_a_number(fine, units):
    """netCDF attributes may be numbers; a model of such data can still be saved."""
    model = quick_fit(fine.assign_attrs(units=units), activate=False)
    assert model_from_bytes(model_to_bytes(model)).digest == model.digest
    fine.sr.coarsen(2).assign_attrs(units="1").sr.downscale(model)


def test_vector_components_are_not_mirrored(fine):
    wind = fine.assign_attrs(units="m s-1", standard_name="eastward_wind")
    with refused(ConfigError, ValueError, "'eastward_wind'", "flip_sign=('x',)"):
        quick_fit(wind, sampling={"flip": ["x"]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "land"}, ("mask", "'input'", "'land'")),
        ({"batch_size": 0}, ("batch_size", "at least 1")),
        ({"batch_size": "a"}, ("batch_size", "'a'")),
        ({"batch_size": 1.5}, ("batch_size", "1.5")),
        ({"device": "cud"}, ("device", "'cud'")),
        ({"device": "meta"}, ("device", "'meta'")),
    ],
    ids=str,
)
def test_options_of_downscale(make_model, options, words):
    """The model is unharmed (`network.to(device)` works in place)."""
    toy = make_model(seed=77)
    model = copy.deepcopy(toy.model)
    with refused(ConfigError, ValueError, *words):
        toy.coarse.sr.downscale(model, **options)
    assert {str(p.device) for p in model.network.parameters()} == {"cpu"}


@pytest.mark.parametrize("fraction", [-0.1, 1.5, "half"])
def test_minimum_valid_fraction_of_coarsen(fine, fraction):
    with refused(ConfigError, ValueError, "minimum_valid_fraction", "between 0", repr(fraction)):
        fine.sr.coarsen(2, minimum_valid_fraction=fraction)


# Model files.


@pytest.fixture(scope="module")
def content(make_model) -> bytes:
    return model_to_bytes(make_model().model)


def header_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def with_header(content: bytes, **changes) -> bytes:
    """Return a model file whose header says something else."""
    tensors = safetensors.torch.load(content)
    outer = json.loads(content[8 : header_size(content)])
    header = json.loads(outer["__metadata__"]["xsuperres"]) | changes
    return safetensors.torch.save(tensors, metadata={"xsuperres": json.dumps(header)})


def test_a_whole_file_is_read(content, make_model):
    assert model_from_bytes(content).digest == make_model().model.digest


def test_a_truncated_file(content, tmp_path):
    """Cut anywhere: at every byte of the beginning, and all through the rest."""
    size = header_size(content)
    lengths = {*range(0, 40), *range(40, size, 97), size - 1, size, *range(size, len(content), 1499), len(content) - 1}
    path = tmp_path / "cut.safetensors"
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with refused(ModelFileError, OSError, "cut.safetensors"):
            xsr.load_model(path)


@pytest.mark.parametrize("more", [b"\0", b" " * 8, b"x" * 100])
def test_a_file_with_something_behind_it(content, more):
    with refused(ModelFileError, OSError, "damaged", "copy it again"):
        model_from_bytes(content + more)


def assert_refused_or_harmless(altered: bytes, digest: str) -> bool:
    """Return whether the altered file was refused; if not, it is the same model."""
    try:
        loaded = model_from_bytes(altered)
    except ModelFileError:
        return True
    assert loaded.digest == digest, "a flipped bit gives another model"
    return False


def test_the_whole_header_counts(content, make_model):
    """One bit of every third byte: each alteration is refused, or changes nothing (the last digit of a long decimal).

    No name and no number is so short that it could be left out of the digest and not be hit.
    """
    digest, bits = make_model().model.digest, np.random.default_rng(5).integers(0, 8, header_size(content))
    positions = [(at, bit) for at in range(8) for bit in range(8)]
    positions += [(at, bits[at]) for at in range(8, header_size(content), 3)]
    seen = 0
    for at, bit in positions:
        altered = bytearray(content)
        altered[at] ^= 1 << int(bit)
        seen += assert_refused_or_harmless(bytes(altered), digest)
    assert seen > 0.99 * len(positions)


def test_every_tensor_counts(content):
    """Some bits of each tensor, the first and last byte among them: all are refused."""
    size = header_size(content)
    outer = json.loads(content[8:size])
    rng = np.random.default_rng(6)
    for name, entry in outer.items():
        if name == "__metadata__":
            continue
        first, stop = entry["data_offsets"]
        for at in {first, stop - 1, *rng.integers(first, stop, 4).tolist()}:
            altered = bytearray(content)
            altered[size + at] ^= 1 << int(rng.integers(8))
            with refused(ModelFileError, OSError, "altered", "sha256", "copy it again"):
                model_from_bytes(bytes(altered))


def test_tensors_cannot_be_swapped(content):
    """Two tensors of one shape exchange names: same bytes, another model."""
    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : header_size(content)])["__metadata__"]
    tensors["targets.0.slope"], tensors["targets.0.intercept"] = (
        tensors["targets.0.intercept"],
        tensors["targets.0.slope"],
    )
    with refused(ModelFileError, OSError, "altered"):
        model_from_bytes(safetensors.torch.save(tensors, metadata=header))


@pytest.mark.parametrize(
    "change",
    [{"scale": 4}, {"targets": [{"scaling": {"mean": 0.0, "sd": 1.0}}]}, {"halo": 0}, {"sha256": None}],
)
def test_a_header_cannot_be_edited(content, change):
    with refused(ModelFileError, OSError, "altered", "sha256"):
        model_from_bytes(with_header(content, **change))


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99])
def test_a_newer_format(content, version):
    words = (f"format {version}", f"up to {FORMAT_VERSION}", "upgrade xsuperres", "written by xsuperres")
    with refused(ModelFileError, OSError, *words):
        model_from_bytes(with_header(content, format=version))


@pytest.mark.parametrize("version", ["2", "2.0", None, [2], {}])
def test_a_format_that_is_no_number(content, version):
    with pytest.raises(ModelFileError):
        model_from_bytes(with_header(content, format=version))


def no_models() -> dict[str, bytes]:
    tensors = {"weight": torch.arange(6.0)}
    rng = np.random.default_rng(0)
    return {
        "empty": b"",
        "one byte": b"\0",
        "random": rng.bytes(5000),
        "random after a length": (200).to_bytes(8, "little") + rng.bytes(5000),
        "zeros": bytes(1000),
        "plain safetensors": safetensors.torch.save(tensors),
        "safetensors of others": safetensors.torch.save(tensors, metadata={"format": "pt"}),
        "safetensors with text": safetensors.torch.save(tensors, metadata={"xsuperres": "hello"}),
        "safetensors with a list": safetensors.torch.save(tensors, metadata={"xsuperres": "[1]"}),
        "safetensors with an empty header": safetensors.torch.save(tensors, metadata={"xsuperres": "{}"}),
        "pickle": pickle.dumps({"weight": list(range(100))}),
        "JSON": b'{"xsuperres": {}}',
        "JSON list": (2).to_bytes(8, "little") + b"[]",
        "deep JSON": (90000).to_bytes(8, "little") + b"[" * 90000,
        "netCDF": b"CDF\x01" + bytes(500),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(500),
        "text": b"Not Found. " * 50,
    }


@pytest.mark.parametrize("name", list(no_models()))
def test_what_is_not_a_model(name, tmp_path):
    path = tmp_path / "thing.safetensors"
    path.write_bytes(no_models()[name])
    with refused(ModelFileError, OSError, "thing.safetensors"):
        xsr.load_model(path)


def test_a_pickle_is_not_run(tmp_path):
    """Reading a stranger's file never runs her code."""
    trace = tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return Path.touch, (trace,)

    path = tmp_path / "evil.safetensors"
    for data in (pickle.dumps(Evil()), _torch_bytes(Evil(), tmp_path)):
        path.write_bytes(data)
        with refused(ModelFileError, OSError, "evil.safetensors", "not an xsuperres model"):
            xsr.load_model(path)
    assert not trace.exists()


def _torch_bytes(thing: object, folder: Path) -> bytes:
    torch.save(thing, folder / "torch.pt")
    return (folder / "torch.pt").read_bytes()


# Coordinates.


BOTH_WAYS = [(lambda da: da.sr.coarsen(2), dim) for dim in ("lat", "lon")]
along = pytest.mark.parametrize(
    ("operation", "dim"),
    [*((operation, ("lat", "lon")[at % 2]) for at, operation in enumerate(ON_A_FIELD.values())), *BOTH_WAYS],
)


@along
def test_repeated_coordinates(operation, dim, fine):
    index = [0, 1, 1, *range(2, fine.sizes[dim] - 1)]
    with refused(GridError, ValueError, repr(dim), "repeated", "drop_duplicates"):
        operation(fine.isel({dim: index}))


@along
def test_coordinates_that_are_not_monotonic(operation, dim, fine):
    """Two columns changed places: the advice is to sort, not to drop."""
    index = [0, 2, 1, *range(3, fine.sizes[dim])]
    with refused(GridError, ValueError, repr(dim), "not monotonic", "sortby"):
        operation(fine.isel({dim: index}))


@pytest.mark.parametrize("dim", ["lat", "lon"])
def test_sorting_helps(fine, dim):
    mixed = fine.isel({dim: np.random.default_rng(1).permutation(fine.sizes[dim])})
    with pytest.raises(GridError):
        mixed.sr.coarsen(2)
    xr.testing.assert_equal(mixed.sortby(dim).sr.coarsen(2), fine.sr.coarsen(2))


@pytest.mark.parametrize("step", [24.0, 25.0, 27.0])
def test_coordinates_of_more_than_a_turn(fine, step):
    """A cyclic point, or two: increasing all the way, so sorting would not help."""
    with refused(GridError, ValueError, "'lon'", "more than a full turn", "drop"):
        fine.assign_coords(lon=("lon", np.arange(16) * step, fine.lon.attrs)).sr.coarsen(2)


def test_latitudes_beyond_the_pole(fine):
    with refused(GridError, ValueError, "'lat'", "beyond the poles"):
        fine.assign_coords(lat=("lat", fine.lat.values + 80, fine.lat.attrs)).sr.coarsen(2)


@pytest.mark.parametrize("dim", ["lat", "lon"])
def test_missing_coordinates(fine, dim):
    values = fine[dim].values.copy()
    values[2] = np.nan
    with refused(GridError, ValueError, repr(dim), "missing values", "fill"):
        fine.assign_coords({dim: (dim, values, fine[dim].attrs)}).sr.coarsen(2)


def test_coordinates_that_are_text(fine):
    with refused(GridError, ValueError, "'lat'", "numeric"):
        fine.assign_coords(lat=fine.lat.astype(str)).sr.coarsen(2)


# Dtypes.

COMPUTING = {name: ON_A_FIELD[name] for name in ("fit", "coarsen", "interpolate", "downscale", "score")}
computing = pytest.mark.parametrize("operation", COMPUTING.values(), ids=COMPUTING.keys())


@pytest.mark.parametrize(
    ("name", "dtype", "lazy"), covering(list(COMPUTING), ["float16", "complex64", "bool", "longdouble"], [False, True])
)
def test_dtypes_other_than_float32_and_float64(name, dtype, lazy, fine):
    da = fine.astype(dtype)
    da = da.assign_attrs(fine.attrs)
    with refused(DataError, ValueError, "'tas'", str(np.dtype(dtype)), "float32 or float64", ".astype('float32')"):
        COMPUTING[name](da.chunk() if lazy else da)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "int16") for name in COMPUTING), ("coarsen", "uint8"), ("fit", "int32")]
)
def test_integers_that_look_packed(name, dtype, fine):
    packed = (fine - 280).astype(dtype).assign_attrs(fine.attrs, scale_factor=0.01, add_offset=280.0)
    with refused(DataError, ValueError, "'tas'", dtype, "packed", "mask_and_scale=True", ".astype('float32')"):
        COMPUTING[name](packed)


def test_packed_truth(toy):
    truth = (toy.fine - 280).astype("int16").assign_attrs(toy.fine.attrs)
    with refused(DataError, ValueError, "int16", "packed"):
        toy.fine.sr.score(truth, coarse=toy.coarse)


# Unknown chunk sizes.


@computing
def test_unknown_chunk_sizes(operation, fine):
    """What boolean indexing leaves, and what the error advises against it."""
    chosen = dask.array.from_array(np.array([True, True, False]), chunks=1)
    lazy = fine.chunk(time=1).data[chosen]
    coords = {name: fine[name] for name in ("lat", "lon", "elevation", "land_fraction")}
    da = xr.DataArray(lazy, dims=fine.dims, coords=coords, name="tas", attrs=fine.attrs)
    with refused(DataError, ValueError, "'tas'", "unknown chunk sizes", "compute_chunk_sizes()"):
        operation(da)
    da.data.compute_chunk_sizes()
    assert da.sr.coarsen(2).compute().shape == (2, 6, 8)


# Saving.


@pytest.fixture
def saved(toy, tmp_path) -> Path:
    """Return the path of a model that must survive."""
    path = tmp_path / "model.safetensors"
    toy.model.save(path)
    return path


@contextlib.contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    yield
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullStream:
    """A file on a disk that is full after a few bytes."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, data):
        self.stream.write(data[:100])
        full()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stream.close()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def fill_disk(monkeypatch, when: str) -> None:
    true_fdopen = os.fdopen
    if when == "opening":
        monkeypatch.setattr("tempfile.mkstemp", full)
    elif when == "writing":
        monkeypatch.setattr(os, "fdopen", lambda *args, **kwargs: FullStream(true_fdopen(*args, **kwargs)))
    elif when == "syncing":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)


@pytest.mark.parametrize("when", ["opening", "writing", "syncing", "renaming"])
def test_a_full_disk(make_model, saved, monkeypatch, when):
    other = make_model(seed=9).model
    with monkeypatch.context() as patch, nothing_changes(saved.parent):
        fill_disk(patch, when)
        with refused(ModelFileError, OSError, "Cannot write the model", "model.safetensors", "No space left"):
            other.save(saved)
        with refused(ModelFileError, OSError, "Cannot write the model", "new.safetensors"):
            other.save(saved.parent / "new.safetensors")
    assert xsr.load_model(saved).digest == make_model().model.digest


def test_the_cause_can_be_told(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelFileError) as caught:
        toy.model.save(tmp_path / "a.safetensors")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_save(make_model, saved, monkeypatch, stop):
    """Ctrl-C while a large model is written leaves no hidden half of it behind."""

    def interrupt(*args):
        raise stop

    monkeypatch.setattr(os, "fsync", interrupt)
    with nothing_changes(saved.parent), pytest.raises(stop):
        make_model(seed=9).model.save(saved)


@pytest.mark.parametrize("where", ["a file as folder", "no folder", "a folder", "too long a name"])
def test_a_path_that_cannot_be_written(toy, tmp_path, where):
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder").mkdir()
    path = {
        "a file as folder": tmp_path / "file" / "m.safetensors",
        "no folder": tmp_path / "none" / "m.safetensors",
        "a folder": tmp_path / "folder",
        "too long a name": tmp_path / ("m" * 300),
    }[where]
    with nothing_changes(tmp_path), refused(ModelFileError, OSError, "Cannot write the model", path.name):
        toy.model.save(path)
    assert (tmp_path / "folder").is_dir()


def test_a_cache_that_cannot_be_written(toy, tmp_path):
    (tmp_path / "file").write_text("here")
    with (
        xsr.set_options(cache_dir=str(tmp_path / "file" / "cache")),
        refused(ModelFileError, OSError, "cache folder", "XSUPERRES_CACHE"),
    ):
        toy.coarse.chunk().sr.downscale(toy.model)
