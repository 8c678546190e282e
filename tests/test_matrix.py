"""The matrix: {supervised, adversarial} x {spatial, spatio-temporal} x every backbone x every upsampling x scales.

Each of the 48 networks that carry a name, and so many more that every pair of choices occurs, trains, is saved and
loaded, tiles exactly in time and space. None is skipped; a part that is registered is picked up by itself. All
combinations run with `make test-full`.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from covering import covering

import xsuperres as xsr
from xsuperres.config import NetworkConfig, OptimizationConfig
from xsuperres.inference import workers
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.geometry import Interval
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.nn.resample import interpolate
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.testing import toy_field

TRAININGS, WINDOWS, SCALES = ("supervised", "adversarial"), (None, 2), (2, 3, 4, 5)
PARTS = (list(BACKBONES), list(UPSAMPLERS))
NAMED = (("conv", "residual", "dense"), ("interpolation", "subpixel", "resize", "deconvolution"))
_SEEDED = np.random.default_rng(48).choice(SCALES, 48).tolist()
THE_48 = [(*case, scale) for case, scale in zip(itertools.product(TRAININGS, WINDOWS, *NAMED), _SEEDED, strict=True)]


def cases(*factors, first=()) -> list:
    """Return a pairwise covering, and the rest of the product for the full run."""
    rows = covering(*factors, first=first)
    rest = [row for row in itertools.product(*factors) if row not in rows]
    return [*rows, *(pytest.param(*row, marks=pytest.mark.full) for row in rest)]


NETWORKS = ("window", "backbone", "upsampling", "scale")
networks = pytest.mark.parametrize(NETWORKS, cases(WINDOWS, *PARTS, SCALES))


def test_the_matrix_holds_the_48():
    rows = covering(TRAININGS, WINDOWS, *PARTS, SCALES, first=THE_48)
    assert len({row[:4] for row in rows} & {row[:4] for row in THE_48}) == 48
    assert {row[2:4] for row in rows} == set(itertools.product(*PARTS))
    assert {"unet", "convnext"} <= set(BACKBONES)
    assert (
        len(rows) < 0.2 * len(cases(TRAININGS, WINDOWS, *PARTS, SCALES)) == 0.2 * 16 * len(BACKBONES) * len(UPSAMPLERS)
    )


def trained(training: str, window: int | None, backbone: str, upsampling: str, scale: int):
    """Return a model after three steps on a toy globe, and the coarse field: around the globe two tiles of it fit."""
    x = 2 * (small(window, backbone, upsampling, scale).reach + 1)
    fine = toy_field(time=5, y=8 * scale, x=x * scale, periodic=True)
    model = fine.sr.fit(
        scale,
        training=training,
        time_window=window,
        backbone=backbone,
        upsampling=upsampling,
        network={"width": 6, "depth": 1, "head_width": 4},
        adversarial={"warm_up": 0.0, "width": 4, "depth": 1} if training == "adversarial" else None,
        sampling={"batch_size": 2, "patch_size": 6},
        optimization={"max_steps": 3, "validations": 1},
        progress=False,
        activate=False,
    )
    return model, fine.sr.coarsen(scale)


@pytest.mark.parametrize(("training", *NETWORKS), cases(TRAININGS, WINDOWS, *PARTS, SCALES, first=THE_48))
def test_it_learns_is_saved_and_tiles(
    training, window, backbone, upsampling, scale, check, reinitialise, monkeypatch, tmp_path
):
    model, coarse = trained(training, window, backbone, upsampling, scale)
    assert (model.spec.backbone, model.spec.upsampling, model.spec.time_window) == (backbone, upsampling, window)
    assert_it_has_learnt(model, training)
    monkeypatch.setattr(workers, "_PREPARED", {})  # by digest: else the loaded model would not be used at all
    assert_saved_and_loaded_it_is_the_same(model, coarse, tmp_path / "model.safetensors")
    model = replace(model, network=build_network(model.spec).eval())
    reinitialise(model.network, seed=7, gain=1.2)
    assert coarse.sizes["lon"] == 2 * (model.halo + 1), "chunks up to the halo would be merged"
    check.chunked_equals_whole(model, coarse, {"time": (2, 2, 1), "lon": model.halo + 1})
    check.rolling_commutes(model, coarse, 5)


def assert_it_has_learnt(model: xsr.SRModel, training: str) -> None:
    assert model.training.steps == 3
    assert np.isfinite(model.training.validation["rmse"])
    head = model.network.head.blocks[-1].conv.weight
    assert head.abs().sum() > 0, "the last layer starts at zero and has moved"
    names = set(model.history.data_vars)
    assert {"generator_loss", "discriminator_loss"} <= names or training == "supervised"
    assert (model.discriminator is not None) == (training == "adversarial")


def assert_saved_and_loaded_it_is_the_same(model: xsr.SRModel, coarse: xr.DataArray, path: Path) -> None:
    """Bits, attributes, coordinates."""
    expected = coarse.sr.downscale(model)
    model.save(path)
    workers._PREPARED.clear()
    loaded = xsr.load_model(path)
    assert loaded is not model and loaded.digest == model.digest
    assert loaded.discriminator is None, "of the game only the network is kept, unless asked for"
    assert loaded.time_halo == model.time_halo and loaded.halo == model.halo
    xr.testing.assert_identical(coarse.sr.downscale(loaded), expected)


@networks
def test_every_parameter_has_a_gradient(window, backbone, upsampling, scale, reinitialise):
    network = small(window, backbone, upsampling, scale)
    reinitialise(network, seed=1)
    frames = torch.randn(3, 2, 6, 7)
    windows = None if window is None else torch.tensor([[0, 1], [1, 2]])
    out = network(frames, torch.randn(1, 2, 6 * scale, 7 * scale), None, windows)
    assert out.shape == (3 if window is None else 2, 1, 6 * scale, 7 * scale)
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def small(window, backbone, upsampling, scale, **config) -> torch.nn.Module:
    settings = {"width": 4, "depth": 1, "head_width": 3, "activation": "gelu"} | config
    spec = NetworkSpec(
        backbone=backbone,
        upsampling=upsampling,
        scale=scale,
        inputs=2,
        statics=2,
        time_window=window,
        output_frame=-1 if window is None else window - 1,
        config=NetworkConfig(**settings),
    )
    return build_network(spec)


@pytest.mark.parametrize(("window", "backbone", "upsampling"), cases((2, 3, 5), *PARTS))
def test_the_reach_of_a_time_window_is_tight(window, backbone, upsampling, reinitialise):
    """The oldest frame is read the farthest: one cell more with every step that its state is carried on."""
    scale = 3
    network = small(window, backbone, upsampling, scale, activation="softplus").double()
    reinitialise(network, seed=4, positive=True, gain=0.3)  # gates that saturate have no gradient
    declared = network.needs(Interval(0, scale))
    reach = network.reach + 2
    size = 2 * reach + 1
    frames = torch.rand(window, 2, size, size, dtype=torch.float64).add_(0.5).requires_grad_()
    static = torch.rand(1, 2, size * scale, size * scale, dtype=torch.float64)
    out = network(frames, static, None, torch.arange(window)[None])
    own = slice(reach * scale, (reach + 1) * scale)
    out[..., own, own].sum().backward()
    for dim in (1, 0):
        line = torch.nonzero((frames.grad != 0).any(dim=1).any(dim=0).any(dim=dim)).flatten() - reach
        assert Interval(int(line.min()), int(line.max()) + 1) == declared
    for frame in frames.grad:
        assert frame.abs().sum() > 0, "every frame matters"


@networks
def test_a_batch_is_learnt_within_300_steps(window, backbone, upsampling, scale, make_step, reinitialise):
    """From random weights and without the linear skip, the mean error of ten steps falls below 0.3 of bicubic's."""
    torch.manual_seed(3)
    network = small(window, backbone, upsampling, scale, width=12, head_width=12, activation="relu")
    reinitialise(network, seed=2, gain=0.7)
    batch = learnable_batch(window, scale)
    bicubic = float((batch.target - batch.skip).square().mean())
    step = make_step(network, 1.0, OptimizationConfig(learning_rate=1e-2))
    losses: list[float] = []
    while len(losses) < 10 or np.mean(losses[-10:]) >= 0.3 * bicubic:
        assert len(losses) < 300, f"stays at {np.mean(losses[-10:]) / bicubic:.2f} of bicubic's error"
        losses.append(float(step(batch, 1e-2 * (1 - len(losses) / 300) + 1e-4)))


def learnable_batch(window: int | None, scale: int):
    """Return toy fields as a batch whose skip is bicubic."""
    from xsuperres.nn.network import Cells
    from xsuperres.samples.readers import Batch

    samples, cells = 2, 6
    field = toy_field(time=samples * (window or 1), y=cells * scale, x=cells * scale)
    fine = torch.from_numpy((field.values - field.values.mean()) / field.values.std())[:, None]
    coarse = torch.nn.functional.avg_pool2d(fine, scale)
    own = torch.arange(samples) if window is None else torch.arange(samples) * window + window - 1
    windows = None if window is None else torch.arange(samples * window).reshape(samples, window)
    elevation = torch.from_numpy(np.stack([field.elevation.values, field.land_fraction.values])).float()[None]
    elevation = elevation / elevation.std(dim=(2, 3), keepdim=True)
    line = torch.arange(cells * scale)[None]
    weight = torch.ones(1, 1, cells * scale, cells * scale)
    two = torch.cat([coarse, coarse.square()], dim=1)
    return Batch(two, elevation, interpolate(coarse[own], scale), fine[own], weight, Cells(line, line), windows)
