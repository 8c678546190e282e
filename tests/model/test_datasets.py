"""Small Datasets through tensors and JSON: values, dtypes, dims, attributes, times of any calendar."""

from __future__ import annotations

import json

import cftime
import numpy as np
import pytest
import safetensors.torch
import xarray as xr

from xsuperres.model.datasets import dataset_from_tensors, dataset_to_tensors

rng = np.random.default_rng(8)
VALUES = {
    "float32": rng.normal(size=(3, 4)).astype("float32"),
    "float64": rng.normal(size=(3, 4)),
    "big-endian": rng.normal(size=(3, 4)).astype(">f8"),
    "int16": rng.integers(-9, 9, (3, 4)).astype("int16"),
    "int64": rng.integers(-(2**62), 2**62, (3, 4)),
    "uint8": rng.integers(0, 200, (3, 4)).astype("uint8"),
    "uint16": rng.integers(0, 60000, (3, 4)).astype("uint16"),
    "bool": rng.random((3, 4)) > 0.5,
    "NaN": np.where(rng.random((3, 4)) > 0.5, np.nan, 1.5),
    "infinite": np.where(rng.random((3, 4)) > 0.5, np.inf, -0.0),
    "text": np.array([["sea", "Åland", "", "côte"]] * 3),
    "objects": np.array([["sea", "land", "ice", ""]] * 3, dtype=object),
    "datetime": np.datetime64("2001-01-01T06:00", "ns") + np.arange(12).reshape(3, 4) * np.timedelta64(7, "h"),
    "microseconds": np.datetime64("1850-01-01", "us") + np.arange(12).reshape(3, 4) * np.timedelta64(1, "s"),
    "NaT": np.array([["2001-01-01", "NaT", "2002-01-01", "NaT"]] * 3, dtype="datetime64[ns]"),
    "timedelta": np.arange(12).reshape(3, 4) * np.timedelta64(90, "m"),
    "not contiguous": np.asfortranarray(rng.normal(size=(3, 4)))[:, ::1],
    "strided": rng.normal(size=(6, 8))[::2, ::-2],
    "empty": np.zeros((3, 0)),
}


def round_trip(ds: xr.Dataset) -> xr.Dataset:
    tensors, header = dataset_to_tensors(ds, "coords.")
    tensors = safetensors.torch.load(safetensors.torch.save(tensors)) if tensors else {}
    return dataset_from_tensors(tensors, json.loads(json.dumps(header)), "coords.")


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_values_come_back(values):
    ds = xr.Dataset({"a": (("y", "x"), values, {"units" if values.dtype.kind not in "mM" else "note": "m"})})
    again = round_trip(ds)
    xr.testing.assert_identical(again, ds)
    if values.dtype.kind in "fiub":
        assert again.a.dtype == values.dtype.newbyteorder("=")
    if values.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(again.a), np.signbit(values))


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "standard", "julian"])
def test_calendars_come_back(calendar):
    times = xr.date_range("2001-02-27", periods=4, freq="D", calendar=calendar, use_cftime=True)
    again = round_trip(xr.Dataset({"t": ("x", times, {"standard_name": "time"})}))
    assert again.t.values.tolist() == list(times)
    assert isinstance(again.t.values[0], cftime.datetime)
    assert again.t.values[0].calendar == calendar
    assert again.t.attrs == {"standard_name": "time"}
    assert again.t.encoding == {}


def test_times_become_numbers_with_cf_units():
    ds = xr.Dataset({"t": ("x", np.array(["2001-01-01", "2001-01-03"], dtype="datetime64[ns]"))})
    tensors, header = dataset_to_tensors(ds, "p.")
    assert tensors["p.t"].tolist() == [0, 2]
    assert "since" in header["t"]["attrs"]["units"]
    assert header["t"]["attrs"]["calendar"] == "proleptic_gregorian"


@pytest.mark.parametrize(
    "attrs",
    [
        {"units": "m", "valid_range": [0, 1], "flag": True, "n": 3, "x": 1.5, "nothing": None},
        {"units": "Grad Å°", "long_name": 'a "quoted" <b>'},
    ],
    ids=["plain", "text"],
)
def test_attributes_come_back(attrs):
    assert round_trip(xr.Dataset({"a": ("x", np.zeros(2), attrs)})).a.attrs == attrs


@pytest.mark.parametrize(
    "attr",
    [
        np.array([1, 2], "int16"),
        np.float32(1.5),
        np.bool_(True),
        np.str_("m"),
        b"bytes",
        (1, 2),
        [np.float32(1.5), np.int64(2)],
        np.datetime64("2001-01-01"),
        {"a": np.float32(1)},
        np.array(["a", "b"]),
        float("nan"),
    ],
    ids=["array", "float32", "bool", "str", "bytes", "tuple", "list", "datetime", "dict", "texts", "NaN"],
)
def test_any_attribute_can_be_written(attr):
    """What netCDF files and users put in attributes; JSON holds the like of it, and then it stays as it is."""
    ds = xr.Dataset({"a": ("x", np.zeros(2), {"it": attr})})
    once = round_trip(ds)
    assert "it" in once.a.attrs
    _, first = dataset_to_tensors(ds, "")
    _, second = dataset_to_tensors(once, "")
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def test_the_order_of_variables_comes_back():
    ds = xr.Dataset({name: ("x", np.arange(2.0)) for name in ("z", "a", "m")})
    assert list(round_trip(ds).data_vars) == ["z", "a", "m"]


def test_indexes_and_coordinates_become_variables():
    ds = xr.Dataset(coords={"lat": ("lat", [1.0, 2.0]), "b": (("lat",), [3, 4])})
    again = round_trip(ds)
    assert set(again.variables) == {"lat", "b"}
    xr.testing.assert_equal(again.set_coords(["lat", "b"]), ds)


def test_encodings_do_not_travel():
    """Neither packing nor the name of the source file is part of a model."""
    ds = xr.Dataset({"a": ("x", np.array([1.0, 2.0]))})
    ds.a.encoding = {"dtype": "int16", "scale_factor": 0.1, "source": "elsewhere.nc"}
    plain = xr.Dataset({"a": ("x", np.array([1.0, 2.0]))})
    assert dataset_to_tensors(ds, "")[1] == dataset_to_tensors(plain, "")[1]
    assert round_trip(ds).a.encoding == {}


def test_tensors_do_not_alias_the_data():
    values = np.arange(4.0)
    tensors, _ = dataset_to_tensors(xr.Dataset({"a": ("x", values)}), "")
    tensors["a"][:] = -1
    np.testing.assert_array_equal(values, np.arange(4.0))


def test_dask_arrays_are_read():
    ds = xr.Dataset({"a": ("x", np.arange(4.0))}).chunk(x=2)
    xr.testing.assert_identical(round_trip(ds), ds.compute())


def test_an_empty_dataset():
    assert len(round_trip(xr.Dataset()).variables) == 0
