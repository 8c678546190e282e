"""Every backbone with every upsampling: none is skipped, a new one is picked up by itself.

Scales are covered pairwise; all combinations at all scales run with `make test-full`. Networks in their trainings,
with and without a time window, are in `test_matrix.py`.
"""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from covering import covering

import xsuperres as xsr
from xsuperres.config import NetworkConfig, OptimizationConfig
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.geometry import Interval
from xsuperres.nn.network import Cells, NetworkSpec, build_network
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.samples.readers import Batch
from xsuperres.testing import toy_field

SCALES = (4, 2, 3, 5)
COMBINATIONS = list(itertools.product(BACKBONES, UPSAMPLERS))
CASES = covering(list(BACKBONES), list(UPSAMPLERS), SCALES)
REST = [row for row in itertools.product(BACKBONES, UPSAMPLERS, SCALES) if row not in CASES]
every = pytest.mark.parametrize(
    ("backbone", "upsampling", "scale"), [*CASES, *(pytest.param(*row, marks=pytest.mark.full) for row in REST)]
)


def spec_of(backbone: str, upsampling: str, scale: int, **changes) -> NetworkSpec:
    settings = {
        "inputs": 3,
        "statics": 2,
        "config": NetworkConfig(width=6, depth=1, head_width=4, activation="gelu"),
    }
    return NetworkSpec(backbone=backbone, upsampling=upsampling, scale=scale, **(settings | changes))


def test_the_matrix_has_at_least_its_twelve_combinations():
    assert {"conv", "residual", "dense"} <= set(BACKBONES)
    assert {"interpolation", "subpixel", "resize", "deconvolution"} <= set(UPSAMPLERS)
    assert {(backbone, upsampling) for backbone, upsampling, _ in CASES} == set(COMBINATIONS)
    assert len(COMBINATIONS) >= 12
    assert len(CASES) < 0.5 * len([*CASES, *REST]) == 0.5 * len(COMBINATIONS) * len(SCALES)


@every
def test_output_shape(backbone, upsampling, scale):
    network = build_network(spec_of(backbone, upsampling, scale, outputs=2))
    out = network(torch.randn(2, 3, 7, 9), torch.randn(1, 2, 7 * scale, 9 * scale))
    assert out.shape == (2, 2, 7 * scale, 9 * scale)


@every
def test_a_new_network_adds_nothing(backbone, upsampling, scale):
    """Training starts at the linear baseline, not worse."""
    network = build_network(spec_of(backbone, upsampling, scale))
    assert not network(torch.randn(1, 3, 7, 9), torch.randn(1, 2, 7 * scale, 9 * scale)).any()


@every
def test_every_parameter_has_a_gradient(backbone, upsampling, scale, reinitialise):
    config = NetworkConfig(width=6, depth=2, head_width=4, activation="gelu", location_features=2)
    domain = (12 * scale, 15 * scale)
    network = build_network(spec_of(backbone, upsampling, scale, config=config, domain=domain))
    reinitialise(network, seed=1)
    cells = Cells(torch.arange(7 * scale)[None], torch.arange(8 * scale)[None])
    out = network(torch.randn(2, 3, 7, 8), torch.randn(1, 2, 7 * scale, 8 * scale), cells)
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@every
def test_static_fields_and_inputs_are_all_read(backbone, upsampling, scale, reinitialise):
    network = build_network(spec_of(backbone, upsampling, scale))
    reinitialise(network, seed=2)
    coarse = torch.randn(1, 3, 6, 6, requires_grad=True)
    static = torch.randn(1, 2, 6 * scale, 6 * scale, requires_grad=True)
    network(coarse, static).square().sum().backward()
    for tensor in (coarse, static):
        assert (tensor.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


@every
def test_one_static_plane_for_the_batch_is_as_good_as_one_per_sample(backbone, upsampling, scale, reinitialise):
    network = build_network(spec_of(backbone, upsampling, scale)).double()
    reinitialise(network, seed=3)
    coarse, static = torch.randn(3, 3, 6, 7).double(), torch.randn(1, 2, 6 * scale, 7 * scale).double()
    expected = network(coarse, static.expand(3, -1, -1, -1))
    torch.testing.assert_close(network(coarse, static), expected, rtol=1e-10, atol=1e-10)


def footprint(network: torch.nn.Module, scale: int, reach: int) -> Interval:
    """Return the coarse cells, counted from the middle one, that its fine outputs depend on along each axis."""
    size = 2 * reach + 1
    coarse = torch.rand(1, 3, size, size, dtype=torch.float64).add_(0.5).requires_grad_()
    static = torch.rand(1, 2, size * scale, size * scale, dtype=torch.float64)
    out = network(coarse, static)
    own = slice(reach * scale, (reach + 1) * scale)
    out[..., own, own].sum().backward()
    support = (coarse.grad != 0).any(dim=1)[0]
    rows, columns = (torch.nonzero(support.any(dim=dim)).flatten() - reach for dim in (1, 0))
    found = [Interval(int(line.min()), int(line.max()) + 1) for line in (rows, columns)]
    assert found[0] == found[1]
    assert support[rows.min() + reach : rows.max() + reach + 1].any(dim=0).sum() == len(columns)
    return found[0]


@pytest.mark.parametrize("depth", [1, 2])
@every
def test_halo_is_tight(backbone, upsampling, scale, depth, reinitialise):
    """The declared halo is the support of the gradient on every side: not one cell more, not one less."""
    config = NetworkConfig(width=3, depth=depth, head_width=3)
    network = build_network(spec_of(backbone, upsampling, scale, config=config)).double()
    reinitialise(network, seed=4, positive=True)
    declared = network.needs(Interval(0, scale))
    measured = footprint(network, scale, network.reach + 2)
    assert measured == declared
    assert network.reach == max(-measured.start, measured.stop - 1)


@every
def test_chunked_equals_whole_and_one_cell_less_does_not(backbone, upsampling, scale, make_model, check, monkeypatch):
    """Three tiles along each axis, the one in the middle with neighbours all around, each larger than the halo."""
    halo = build_network(spec_of(backbone, upsampling, scale)).reach
    chunks = (halo + 1, halo + 2, halo + 1)
    toy = make_model(backbone=backbone, upsampling=upsampling, scale=scale, coarse=(sum(chunks), sum(chunks)), gain=1.4)
    assert toy.model.halo == halo
    coarse = toy.coarse.isel(time=slice(0, 1))
    check.chunked_equals_whole(toy.model, coarse, {"lat": chunks, "lon": chunks})

    toy.model.digest  # noqa: B018 (the digest covers the halo; take it before the halo is falsified)
    monkeypatch.setitem(vars(toy.model), "reach", halo - 1)
    with pytest.raises(AssertionError, match="exceeds the bound"):
        check.chunked_equals_whole(toy.model, coarse, {"lat": chunks, "lon": chunks})


def test_saved_and_loaded_it_gives_the_same_labels(make_model, tmp_path):
    toy = make_model()
    toy.model.save(tmp_path / "model.safetensors")
    got = toy.coarse.sr.downscale(tmp_path / "model.safetensors")
    xr.testing.assert_identical(got, toy.coarse.sr.downscale(toy.model))


COMPANIONS = {
    "bool plane": (("lat", "lon"), np.eye(28, 36) > 0),
    "int16 plane": (("lat", "lon"), np.eye(28, 36).astype("int16")),
    "missing plane": (("lat", "lon"), np.full((28, 36), np.nan)),
    "big-endian line": ("lat", np.arange(28, dtype=">f4")),
    "text": ("lat", [str(row) for row in range(28)]),
    "days": ("lat", np.datetime64("2001-01-01", "ns") + np.arange(28) * np.timedelta64(1, "D")),
    "360-day calendar": ("lat", xr.date_range("2001-01-01", periods=28, calendar="360_day", use_cftime=True)),
}


@pytest.mark.parametrize("kind", COMPANIONS)
def test_whatever_rides_on_the_grid_survives_the_file(kind, make_model, tmp_path):
    """Another digest after loading means that a worker refuses the file as another model's."""
    from dataclasses import replace

    toy = make_model()
    grid = toy.model.grid
    model = replace(toy.model, grid=replace(grid, coords={**grid.coords, "extra": xr.Variable(*COMPANIONS[kind])}))
    model.save(tmp_path / "model.safetensors")
    loaded = xsr.load_model(tmp_path / "model.safetensors")
    assert loaded.digest == model.digest
    before, after = (each.grid.coords["extra"] for each in (model, loaded))
    assert after.dtype.kind == before.dtype.kind or {after.dtype.kind, before.dtype.kind} <= set("OUS")
    np.testing.assert_array_equal(after, before)


def test_coordinates_of_an_old_netcdf_file_can_be_trained_on(tmp_path):
    """NetCDF-3 holds big-endian numbers."""
    fine = toy_field(time=2, y=8, x=12)
    old = fine.assign_coords(lat=fine.lat.astype(">f8"), lon=fine.lon.astype(">f4"))
    model = old.sr.fit(
        2,
        network={"width": 4, "depth": 1, "head_width": 4},
        sampling={"batch_size": 1},
        optimization={"max_steps": 1},
        validation=None,
        progress=False,
        activate=False,
    )
    model.save(tmp_path / "model.safetensors")
    assert xsr.load_model(tmp_path / "model.safetensors").digest == model.digest


def test_a_fresh_process_gives_the_same_bits(make_model, tmp_path):
    toy = make_model(backbone="dense", upsampling="deconvolution", scale=3, missing=True)
    toy.model.save(tmp_path / "model.safetensors")
    toy.coarse.to_netcdf(tmp_path / "coarse.nc", engine="h5netcdf")
    expected = toy.coarse.sr.downscale(toy.model)
    program = (
        "import sys, numpy as np, torch, xarray as xr, xsuperres\n"
        "torch.set_num_threads(1)\n"
        "da = xr.open_dataarray(sys.argv[1] + '/coarse.nc', engine='h5netcdf').load()\n"
        "np.save(sys.argv[1] + '/fine.npy', da.sr.downscale(sys.argv[1] + '/model.safetensors').values)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "fine.npy"), expected.values)


def test_pre_upsampling_reads_valid_cells_only(make_model):
    """A fill value must not bleed into the fine channels at a coast (5 K at a warm coast, where mean is filled in)."""
    toy = make_model(upsampling="interpolation", scale=3, missing=True)
    mean, sd, seen = toy.model.scaling.mean, toy.model.scaling.sd, []
    constant = xr.where(toy.coarse.isnull(), np.nan, mean + 2 * sd).astype("float32").assign_attrs(toy.coarse.attrs)
    hook = toy.model.network.upsampler.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    try:
        constant = constant.transpose(*toy.coarse.dims).rename("tas")
        fine = constant.sr.downscale(toy.model, mask="input", check_range="ignore")
    finally:
        hook.remove()
    values = torch.cat(seen)[:, 0].numpy()[fine.notnull().values]
    np.testing.assert_allclose(values, 2.0, atol=1e-4)


def one_batch(scale: int) -> Batch:
    """Return a batch whose target a local network can learn: edges of the input and of a static field."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(2, 1, 5, 5, generator=generator)
    fine = torch.randn(1, 1, 5 * scale, 5 * scale, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=scale, mode="nearest")
    target = 0.8 * wide * fine.sign() + 0.5 * fine
    weight = torch.ones(1, 1, 5 * scale, 5 * scale)
    line = torch.arange(5 * scale)[None]
    return Batch(coarse, fine, torch.zeros_like(target), target, weight, Cells(line, line))


@pytest.mark.parametrize(("backbone", "upsampling"), COMBINATIONS)
def test_steps_lower_the_loss(make_step, backbone, upsampling):
    spec = spec_of(backbone, upsampling, 4, inputs=1, statics=1, config=NetworkConfig(width=6, depth=1, head_width=8))
    torch.manual_seed(0)
    step = make_step(build_network(spec), 1.0, OptimizationConfig(learning_rate=1e-2))
    batch = one_batch(4)
    losses = [float(step(batch, 1e-2)) for _ in range(6)]
    assert losses[0] == pytest.approx(float(batch.target.square().mean()), rel=1e-5)
    assert min(losses[1:]) < losses[0]
    while np.mean(losses[-5:]) >= 0.7 * losses[0]:
        assert len(losses) < 60
        losses.append(float(step(batch, 1e-2)))


@pytest.mark.parametrize(("backbone", "upsampling"), COMBINATIONS)
def test_aliases_name_the_same_network(backbone, upsampling):
    shapes = []
    for first, second in itertools.product(_labels(BACKBONES, backbone), _labels(UPSAMPLERS, upsampling)):
        network = build_network(spec_of(first, second, 2))
        shapes.append([tuple(p.shape) for p in network.parameters()])
    assert all(shape == shapes[0] for shape in shapes)


def _labels(registry, name: str) -> list[str]:
    return [name, *(alias for alias, target in registry._aliases.items() if target == name)]
