"""What tells runs apart: what matters changes it, what does not leaves it."""

from __future__ import annotations

import subprocess
import sys

import dask
import numpy as np
import pytest
import xarray as xr
from zarr.codecs import BloscCodec

from xsuperres.errors import ConfigError
from xsuperres.fields.field import Field
from xsuperres.inference import identity
from xsuperres.inference.identity import difference, encoding_text
from xsuperres.testing import toy_field


def fingerprint(fields):
    """Return the fingerprint of arrays."""
    return identity.fingerprint([Field(da) for da in fields])


@pytest.fixture(scope="module")
def field():
    return toy_field(time=9, y=6, x=8)


SAME = {
    "a copy": lambda da: da.copy(deep=True),
    "chunks": lambda da: da.chunk(time=2, lat=3),
    "other attributes": lambda da: da.assign_attrs(history="again", comment="x"),
    "another encoding": lambda da: da.copy().drop_encoding(),
    "byte order": lambda da: da.astype(">f4", keep_attrs=True).astype("f4", keep_attrs=True),
    "memory order": lambda da: da.copy(data=np.asfortranarray(da.values)),
    "resolution of times": lambda da: da.assign_coords(time=da.time.values.astype("M8[s]")),
    "chunked coordinates": lambda da: da.assign_coords(elevation=da.elevation.chunk(lat=2)),
}
OTHER = {
    "values": lambda da: da + 1e-3,
    "the last value": lambda da: da.where((da.time < da.time[-1]) | (da.lon < da.lon[-1]), 0.0),
    "units": lambda da: da.assign_attrs(units="degC"),
    "name": lambda da: da.rename("ts"),
    "order of dims": lambda da: da.transpose("lat", "lon", "time"),
    "orientation": lambda da: da.isel(lat=slice(None, None, -1)),
    "coordinates": lambda da: da.assign_coords(lon=da.lon + 1),
    "times": lambda da: da.assign_coords(time=da.time + np.timedelta64(1, "h")),
    "another calendar": lambda da: da.assign_coords(
        time=xr.date_range("2001-01-01", periods=9, calendar="noleap", use_cftime=True)
    ),
    "fewer times": lambda da: da.isel(time=slice(0, 8)),
    "dtype": lambda da: da.astype("f8", keep_attrs=True),
    "a coordinate more": lambda da: da.assign_coords(height=2.0),
    "missing values": lambda da: da.where(da.lat > da.lat[0]),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_what_does_not_matter(field, change):
    assert fingerprint([change(field)]) == fingerprint([field])


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_what_matters(field, change):
    changed = change(field)
    changed = changed if "units" in changed.attrs else changed.assign_attrs(field.attrs)
    assert fingerprint([changed]) != fingerprint([field])
    assert fingerprint([changed]) == fingerprint([changed.chunk()])


def test_dates_of_calendars_that_print_alike(field):
    prints = set()
    for calendar in ("noleap", "360_day", "standard"):
        times = xr.date_range("2001-01-01", periods=9, calendar=calendar, use_cftime=True)
        prints.add(fingerprint([field.assign_coords(time=times)]))
    assert len(prints) == 3


def test_eight_fields_are_read_in_one_go(field):
    computed = []
    long = xr.concat([field] * 4, "time")
    lazy = long.chunk(time=1).data.map_blocks(lambda block: computed.append(block.shape) or block, dtype="f4", meta=1)
    with dask.config.set(scheduler="synchronous"):
        computed.clear()
        fingerprint([long.copy(data=lazy)])
    assert computed == [(1, 6, 8)] * 8


def test_fields_are_read_from_the_first_to_the_last(field):
    """Missing ones at the ends and in the middle do not hide the others."""
    gaps = field.where(~field.time.isin(field.time[[0, 4, 8]]))
    assert fingerprint([gaps]) != fingerprint([gaps + 1])
    seen = [at for at in range(9) if fingerprint([field.where(field.time != field.time[at])]) != fingerprint([field])]
    assert len(seen) == 8 and {0, 8} < set(seen)


def test_another_process_finds_the_same(field):
    code = """
from xsuperres.errors import ConfigError
from xsuperres.fields.field import Field
from xsuperres.inference.identity import fingerprint
from xsuperres.testing import toy_field
print(fingerprint([Field(toy_field(time=9, y=6, x=8))]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == fingerprint([field])


def test_encodings_as_text():
    codec = {"tas": {"compressors": (BloscCodec(cname="zstd"),), "chunks": (1, 2)}}
    again = {"tas": {"chunks": [1, 2], "compressors": [BloscCodec(cname="zstd")]}}
    assert encoding_text(codec) == encoding_text(again) != encoding_text({"tas": {"chunks": (1, 2)}})
    assert " at 0x" not in encoding_text(codec)
    assert encoding_text(None) is encoding_text({}) is None


def test_what_has_no_settings_is_no_part_of_an_encoding():
    with pytest.raises(ConfigError, match="another process could not tell from others; give it as text, or as a codec"):
        encoding_text({"tas": {"filters": [object()]}})
    assert encoding_text({"tas": {"dtype": np.dtype("i2"), "_FillValue": np.int16(-1)}}) == (
        '{"tas": {"_FillValue": "-1", "dtype": "int16"}}'
    )


def test_what_differs_is_told():
    stored = {"model": "a" * 64, "fields": {"tas": {"time": 3}}, "inputs": "b" * 64, "settings": {}}
    assert difference(stored, stored) is None
    assert difference(
        stored, {**stored, "model": "c" * 64}
    ) == f"other model (digest): it has {'a' * 16}, this run " + ("c" * 16)
    assert difference(stored, {**stored, "fields": {"tas": {"time": 4}}}).endswith(
        "it has tas={'time': 3}, this run tas={'time': 4}"
    )
    assert difference({"model": "a"}, {"model": "a", "inputs": "x"}).startswith("other coarse data")
