"""What is told about the surface, and the regions that follow."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xsuperres.fields.field import Field
from xsuperres.testing import toy_field
from xsuperres.verify.surface import elevation_of, land_of, region_areas, surface_of


@pytest.fixture
def fine() -> xr.DataArray:
    return toy_field(time=1, y=8, x=12)


@pytest.mark.parametrize(
    ("factor", "attrs"),
    [
        (1.0, {"units": "m", "standard_name": "surface_altitude"}),
        (1e-3, {"units": "km", "standard_name": "surface_altitude"}),
        (9.80665, {"units": "m2 s-2", "standard_name": "surface_geopotential"}),
    ],
)
def test_elevation_is_in_metres_whatever_it_comes_as(fine, factor, attrs):
    other = fine.drop_vars("elevation").assign_coords(z=(fine.elevation * factor).assign_attrs(attrs).variable)
    given, same = Field.of(other), Field.of(fine)
    surface, notes = surface_of([given], given.grid)
    np.testing.assert_allclose(elevation_of(surface), fine.elevation, rtol=1e-12)
    assert not notes
    found, expected = (region_areas(f.grid, surface_of([f], f.grid)[0]) for f in (given, same))
    assert list(found) == list(expected)
    for region, areas in expected.items():
        np.testing.assert_allclose(found[region], areas)


def test_the_lapse_rate_takes_geopotential(fine):
    """ERA5 gives no altitude but the surface geopotential."""
    z = (fine.elevation * 9.80665).assign_attrs(standard_name="surface_geopotential", units="m2 s-2")
    other = fine.drop_vars("elevation").assign_coords(z=z.variable)
    tables = [f.sr.coarsen(2).sr.interpolate(2, like=f).sr.score(f, coarse=f.sr.coarsen(2)) for f in (fine, other)]
    np.testing.assert_allclose(tables[1].rmse.sel(product="lapse"), tables[0].rmse.sel(product="lapse"), rtol=1e-6)


def test_land_in_percent(fine):
    percent = fine.drop_vars("land_fraction").assign_coords(
        sftlf=(100 * fine.land_fraction).assign_attrs(units="%").variable
    )
    field = Field.of(percent)
    surface, _ = surface_of([field], field.grid)
    np.testing.assert_allclose(land_of(surface), fine.land_fraction, rtol=1e-12)
