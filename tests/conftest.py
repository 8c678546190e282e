"""Shared by all tests: one quiet process, small models with random weights, and the checkers of the contracts.

A checker is a function that raises AssertionError when its contract is broken. The property tests show that the
code keeps the contracts; `test_controls.py` breaks each on purpose and sees its checker fail.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import Phase, settings

import xsuperres as xsr
from xsuperres.config import DataConfig, NetworkConfig, OptimizationConfig
from xsuperres.errors import ModelFileError, XSuperResWarning
from xsuperres.fields.field import Field
from xsuperres.fields.grid import grid_of
from xsuperres.fields.stack import stack
from xsuperres.model.features import plain_channels
from xsuperres.samples.blocks import FieldBlocks, Steps
from xsuperres.samples.readers import Batch
from xsuperres.testing import toy_field
from xsuperres.training.supervised import SupervisedStep

matplotlib.use("Agg")
settings.register_profile(
    "xsuperres",
    derandomize=True,
    deadline=None,
    max_examples=100,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
settings.load_profile("xsuperres")

TINY = {"width": 5, "depth": 1, "head_width": 4}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tests that need a GPU where there is one."""
    if torch.cuda.is_available():
        return
    apart = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=apart)
    items[:] = [item for item in items if item not in apart]


@pytest.fixture(scope="session", autouse=True)
def _quiet_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One torch thread, and a cache folder of its own."""
    before, threads = os.environ.get("XSUPERRES_CACHE"), torch.get_num_threads()
    os.environ["XSUPERRES_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if before is None:
        os.environ.pop("XSUPERRES_CACHE", None)
    else:
        os.environ["XSUPERRES_CACHE"] = before


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (for code under test that might use the global state)


def randomize(network: torch.nn.Module, *, seed: int = 0, positive: bool = False, gain: float = 1.0) -> None:
    """Give every parameter random values: a head that starts at zero would make every tile test vacuous."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * gain / fan_in**0.5
            if positive:
                values = values.abs() + 0.05 * gain / fan_in**0.5
            parameter.copy_(values)


@pytest.fixture(scope="session")
def reinitialise():
    """Return the function that gives every parameter of a network random values."""
    return randomize


def _shifted(field: xr.DataArray, west: float) -> xr.DataArray:
    lon = field.lon.copy(data=(field.lon.values - field.lon.values[0] + west) % 360.0)
    return field.assign_coords(lon=lon)


def _between_the_poles(field: xr.DataArray) -> xr.DataArray:
    """Return `field` about the equator, where a tall one would go beyond a pole."""
    if abs(field.lat).max() < 89:
        return field
    return field.assign_coords(lat=field.lat.copy(data=field.lat.values - field.lat.values.mean()))


def _with_coast(field: xr.DataArray) -> xr.DataArray:
    """Return `field` with a continent missing in all times and a hole in one of them."""
    ny, nx = field.sizes["lat"], field.sizes["lon"]
    rows, columns = np.arange(ny)[:, None] / ny, np.arange(nx)[None, :] / nx
    missing = (rows > 0.55) & (columns > 0.3 + 0.2 * rows) & (columns < 0.85)
    values = np.where(missing, np.nan, field.values)
    values[-1, : ny // 5, : nx // 6] = np.nan
    return field.copy(data=values.astype(field.dtype))


Settings = tuple[tuple[str, object], ...]
_TRAINED: dict[tuple, SimpleNamespace] = {}


def tiny_model(
    *,
    backbone: str = "residual",
    upsampling: str = "subpixel",
    scale: int = 2,
    coarse: tuple[int, int] = (14, 18),
    periodic: bool = False,
    missing: bool = False,
    domain: str = "fixed",
    west: float = 0.5,
    dtype: str = "float32",
    seed: int = 0,
    positive: bool = False,
    gain: float = 1.0,
    network: Settings = (),
    data: Settings = (),
    options: Settings = (),
) -> SimpleNamespace:
    """Return a model whose every parameter is random, with the fine field it knows and its coarsening.

    One step of training per combination gives it scaling, baselines and grid; the result is kept. `options` are
    further keywords of ``fit``.
    """
    key = (backbone, upsampling, scale, coarse, periodic, missing, domain, west, dtype, seed, positive, gain)
    key = (*key, network, data, options)
    if key not in _TRAINED:
        field = toy_field(time=3, y=coarse[0] * scale, x=coarse[1] * scale, periodic=periodic, dtype=dtype)
        field = _between_the_poles(_shifted(field, west))
        field = _with_coast(field) if missing else field
        trained = field.sr.fit(
            scale,
            backbone=backbone,
            upsampling=upsampling,
            network=TINY | dict(network),
            data={"domain": domain} | dict(data),
            optimization={"max_steps": 1, "validations": 1},
            validation=None,
            progress=False,
            activate=False,
            **({"sampling": {"batch_size": 1}} | dict(options)),
        )
        randomize(trained.network, seed=seed, positive=positive, gain=gain)
        model = replace(trained)  # a new object: digest and halo are cached on the old one
        _TRAINED[key] = SimpleNamespace(model=model, fine=field, coarse=field.sr.coarsen(scale), scale=scale)
    return _TRAINED[key]


@pytest.fixture(scope="session")
def make_model():
    """Return `tiny_model`."""
    return tiny_model


def with_target(model, **changes):
    """Return a copy of `model` whose first variable differs by `changes`."""
    return replace(model, targets=(replace(model.targets[0], **changes), *model.targets[1:]))


@pytest.fixture(scope="session")
def retarget():
    """Return `with_target`."""
    return with_target


def assert_same_numbers(got, expected, sd: float) -> None:
    """Check the bound of the exactness promise: 1e-5 training sd + 2 float32 ulp, and the same missing cells."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    bound = 1e-5 * sd + 2 * np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    excess = np.nan_to_num(np.abs(got - expected) - bound)
    assert excess.max(initial=0) <= 0, f"exceeds the bound by {excess.max() / sd:.2e} training sd"


def assert_chunked_equals_whole(model, coarse: xr.DataArray, chunks, **options) -> xr.DataArray:
    """Halo: downscaling chunk by chunk gives what downscaling the whole gives."""
    whole = coarse.sr.downscale(model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)  # chunks below the halo are merged
        lazy = coarse.chunk(chunks).sr.downscale(model, **options)
    assert lazy.chunks is not None
    parts = lazy.compute(scheduler="synchronous")
    assert parts.dtype == whole.dtype == coarse.dtype
    xr.testing.assert_identical(parts.coords.to_dataset(), whole.coords.to_dataset())
    assert_same_numbers(parts, whole, model.scaling.sd)
    return whole


def assert_rolling_commutes(model, coarse: xr.DataArray, cells: int, static: xr.Dataset | None = None) -> None:
    """Wrap: the globe has no seam, so where its first column lies changes nothing."""
    fine_cells, dim = cells * model.scale, "lon"
    whole = coarse.sr.downscale(model, static=static)
    turned = None if static is None else static.roll({dim: fine_cells}, roll_coords=True)
    rolled = coarse.roll({dim: cells}, roll_coords=True).sr.downscale(model, static=turned)
    expected = whole.roll({dim: fine_cells}, roll_coords=True)
    np.testing.assert_array_equal(rolled[dim] % 360.0, expected[dim] % 360.0)
    assert rolled.dims == expected.dims
    assert_same_numbers(rolled, expected, model.scaling.sd)


def assert_missing_is_local(operation, coarse: xr.DataArray, cell: tuple[int, int], reach: int, scale: int) -> None:
    """Mask: making one cell missing changes nothing farther than `reach` coarse cells."""
    row, column = cell
    holed = coarse.copy(deep=True)
    holed[..., row, column] = np.nan
    before, after = operation(coarse), operation(holed)
    changed = ~((before == after) | (before.isnull() & after.isnull()))
    near = np.zeros(changed.shape[-2:], bool)
    rows = slice(max(0, row - reach) * scale, (row + reach + 1) * scale)
    near[rows, max(0, column - reach) * scale : (column + reach + 1) * scale] = True
    assert not changed.values[..., ~near].any(), "a missing cell is felt farther than the halo"
    own = after[..., row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
    assert own.isnull().all()


def assert_constant_survives(operation, coarse: xr.DataArray, value: float, rtol: float = 1e-6) -> None:
    """Mask: a constant field with holes stays that constant everywhere it is valid (no fill bleeds in)."""
    constant = xr.where(coarse.isnull(), np.nan, value).astype(coarse.dtype).transpose(*coarse.dims)
    fine = operation(constant.assign_attrs(coarse.attrs))
    assert fine.isnull().any() and fine.notnull().any()
    np.testing.assert_allclose(fine.values[fine.notnull().values], value, rtol=rtol)


def spherical_area(da: xr.DataArray) -> np.ndarray:
    """Return cell areas (lat, lon) written down anew: |sin north - sin south|, bounds half-way, ends at the poles."""
    lat = np.sort(da.lat.values.astype(np.float64))
    edges = np.concatenate([[1.5 * lat[0] - 0.5 * lat[1]], (lat[1:] + lat[:-1]) / 2, [1.5 * lat[-1] - 0.5 * lat[-2]]])
    band = np.diff(np.sin(np.deg2rad(np.clip(edges, -90, 90))))
    band = band if da.lat.values[0] <= da.lat.values[-1] else band[::-1]
    return np.broadcast_to(band[:, None], (da.sizes["lat"], da.sizes["lon"]))


def assert_coarsening_conserves(fine: xr.DataArray, scale: int) -> None:
    """Area: the spherical mean of a complete field is that of its coarsening."""
    fine = fine.transpose(..., "lat", "lon")
    coarse = fine.sr.coarsen(scale).transpose(..., "lat", "lon")
    area = spherical_area(fine)
    groups = area.reshape(area.shape[0] // scale, scale, area.shape[1] // scale, scale).sum(axis=(1, 3))
    expected = (fine.values.astype(np.float64) * area).sum(axis=(-2, -1)) / area.sum()
    got = (coarse.values.astype(np.float64) * groups).sum(axis=(-2, -1)) / groups.sum()
    np.testing.assert_allclose(got, expected, rtol=3e-8 if fine.dtype == np.float32 else 1e-13)


def assert_altered_file_is_refused(model, path: Path) -> None:
    """Digest: one flipped bit anywhere in the tensors is seen when the file is loaded."""
    model.save(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for at in np.linspace(start, len(content) - 1, 7).astype(int):
        altered = bytearray(content)
        altered[at] ^= 1 << (at % 8)
        path.write_bytes(altered)
        try:
            xsr.load_model(path)
        except ModelFileError:
            continue
        raise AssertionError(f"a flipped bit in byte {at} went unnoticed")


def assert_orientation_free(operation, coarse: xr.DataArray, dims: tuple[str, ...] = ("lat",)) -> None:
    """Orientation: data stored north to south (or east to west) give the same bits, in their own order."""
    flip = {dim: slice(None, None, -1) for dim in dims}
    straight, turned = operation(coarse), operation(coarse.isel(flip))
    np.testing.assert_array_equal(turned.isel(flip).values, straight.values)
    for dim in dims:
        np.testing.assert_array_equal(turned[dim].values[::-1], straight[dim].values)


@pytest.fixture(scope="session")
def check() -> SimpleNamespace:
    """Return the checkers of the contracts."""
    return SimpleNamespace(
        same_numbers=assert_same_numbers,
        chunked_equals_whole=assert_chunked_equals_whole,
        rolling_commutes=assert_rolling_commutes,
        missing_is_local=assert_missing_is_local,
        constant_survives=assert_constant_survives,
        coarsening_conserves=assert_coarsening_conserves,
        altered_file_is_refused=assert_altered_file_is_refused,
        orientation_free=assert_orientation_free,
    )


@pytest.fixture(scope="session")
def rotated_field() -> xr.DataArray:
    """Return a small field on a rotated-pole grid with 2-D lat and lon, across the date line."""
    rlat, rlon = np.arange(-6.0, 6.0, 1.0) + 0.5, np.arange(-8.0, 8.0, 1.0) + 0.5
    u, v = np.meshgrid(np.deg2rad(rlon), np.deg2rad(rlat))
    x, y, z = np.cos(v) * np.cos(u), np.cos(v) * np.sin(u), np.sin(v)
    tilt, turn = np.deg2rad(60.0), np.deg2rad(179.0)
    x, z = x * np.cos(tilt) - z * np.sin(tilt), x * np.sin(tilt) + z * np.cos(tilt)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    lat, lon = np.rad2deg(np.arcsin(z)), np.rad2deg(np.arctan2(y, x))
    values = np.random.default_rng(3).normal(280, 5, (2, 12, 16)).astype(np.float32)
    return xr.DataArray(
        values,
        dims=("time", "rlat", "rlon"),
        coords={
            "time": np.arange(2),
            "rlat": ("rlat", rlat, {"standard_name": "grid_latitude", "units": "degrees"}),
            "rlon": ("rlon", rlon, {"standard_name": "grid_longitude", "units": "degrees"}),
            "lat": (("rlat", "rlon"), lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": (("rlat", "rlon"), lon, {"standard_name": "longitude", "units": "degrees_east"}),
            "rotated_pole": ((), 0, {"grid_mapping_name": "rotated_latitude_longitude"}),
        },
        name="tas",
        attrs={"units": "K", "grid_mapping": "rotated_pole"},
    )


def field_blocks(da: xr.DataArray, *, budget: int = 2**40, scale: int = 2, **data) -> FieldBlocks:
    """Return the blocks of a single variable, made from its own coarsening."""
    field = Field(da, gaps=True)
    grid, lead = field.grid, field.sample_dim
    sizes = {lead: da.sizes[lead]} | {dim: da.sizes[dim] for dim in da.dims if dim not in grid.dims}
    return FieldBlocks(
        stack([field], grid, list(sizes), sizes),
        None,
        None,
        grid=grid,
        scale=scale,
        config=DataConfig(**({"domain": "fixed"} | data)),
        steps=Steps(np.arange(da.sizes[lead])),
        memory_budget=budget,
    )


def supervised_step(network: torch.nn.Module, gain: float, config: OptimizationConfig | None = None):
    """Return the function (batch, rate) that takes a supervised step and returns its loss.

    Fields are scaled already, there are no static ones, and the skip has an error of `gain`.
    """
    channels = plain_channels(DataConfig(), NetworkConfig(), gain=gain)
    step = SupervisedStep(network, channels, config or OptimizationConfig())

    def take(batch: Batch, rate: float) -> torch.Tensor:
        (loss,) = step(batch, rate, 0.5).values()
        return loss

    return take


@pytest.fixture(scope="session")
def make_step():
    """Return `supervised_step`."""
    return supervised_step


@pytest.fixture(scope="session")
def blocks_of():
    """Return `field_blocks`."""
    return field_blocks


@pytest.fixture(scope="session")
def grid():
    """Return `grid_of`."""
    return grid_of


@pytest.fixture
def toy(make_model):
    """Return a model with random weights beside its fine and coarse fields."""
    return make_model()
