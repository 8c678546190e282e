"""Which variables change their sign when mirrored: known by name, asked for otherwise."""

from __future__ import annotations

import pytest
import xarray as xr

from xsuperres.config import SamplingConfig
from xsuperres.errors import ConfigError
from xsuperres.fields.components import mirror_signs
from xsuperres.fields.field import Field


def field(name: str, standard_name: str | None = None) -> Field:
    return Field(xr.DataArray(0.0, name=name, attrs={"standard_name": standard_name} if standard_name else {}))


U, V = field("uas"), field("anything", "northward_wind")
T, GRID = field("tas", "air_temperature"), field("wind", "x_wind")


@pytest.mark.parametrize(
    ("fields", "flips", "signed", "expected"),
    [
        ([U], "x", "x", {"x": [0]}),
        ([T, U, GRID], "x", "x", {"x": [1, 2]}),
        ([T, U, V], "xy", "xy", {"x": [1], "y": [2]}),
        ([T, U, V], "y", "y", {"y": [2]}),
        ([T], "xy", "x", {"x": [0]}),
        ([T, field("b")], "xy", "", {}),
        ([U, V], "", "", {}),
    ],
)
def test_components_by_name(fields, flips, signed, expected):
    assert mirror_signs(fields, SamplingConfig(flip=tuple(flips), flip_sign=tuple(signed))) == expected


def test_a_component_that_would_be_mirrored_without():
    with pytest.raises(ConfigError, match=r"'northward_wind' is a vector component along y.*flip_sign=\('y',\)"):
        mirror_signs([T, V], SamplingConfig(flip=("x", "y")))


def test_several_fields_without_a_component():
    with pytest.raises(ConfigError, match=r"along y, but none of \['tas', 'uas'\].*'northward_wind'.*take 'y' out"):
        mirror_signs([T, U], SamplingConfig(flip=("y",), flip_sign=("y",)))
