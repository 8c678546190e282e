"""The whole matrix: {supervised, adversarial} x {spatial, spatio-temporal} x every backbone x every upsampling.

Each network trains, is saved and loaded, tiles exactly in time and space, and learns. None is skipped; a part that is
registered is picked up by itself. Scales other than 4 are a seeded sample.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import xsuperres as xsr
from xsuperres.config import NetworkConfig, OptimizationConfig
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.geometry import Interval
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.nn.resample import interpolate
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.testing import toy_field

TRAININGS, WINDOWS = ("supervised", "adversarial"), (None, 2)
MATRIX = list(itertools.product(TRAININGS, WINDOWS, BACKBONES, UPSAMPLERS))
THE_48 = list(
    itertools.product(
        TRAININGS, WINDOWS, ("conv", "residual", "dense"), ("interpolation", "subpixel", "resize", "deconvolution")
    )
)
_RNG = np.random.default_rng(48)
SCALES = {case: int(_RNG.choice([2, 3, 4, 5])) for case in MATRIX}
every = pytest.mark.parametrize(("training", "window", "backbone", "upsampling"), MATRIX)
pairs = pytest.mark.parametrize(
    ("window", "backbone", "upsampling", "scale"),
    [(*case[1:], scale) for case, scale in SCALES.items() if case[0] == "supervised"],
)


def test_the_matrix_holds_the_48():
    assert len(THE_48) == 48
    assert set(THE_48) <= set(MATRIX)
    assert {"unet", "convnext"} <= {case[2] for case in MATRIX}
    assert len(MATRIX) == 4 * len(BACKBONES) * len(UPSAMPLERS)
    assert set(SCALES.values()) == {2, 3, 4, 5}


@cache
def trained(training: str, window: int | None, backbone: str, upsampling: str, scale: int):
    """Return a model after three steps on a toy globe, and the coarse field."""
    fine = toy_field(time=6, y=8 * scale, x=12 * scale, periodic=True)
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


@every
def test_it_trains_and_learns_something(training, window, backbone, upsampling):
    model, _ = trained(training, window, backbone, upsampling, SCALES[training, window, backbone, upsampling])
    assert model.training.steps == 3
    assert (model.spec.backbone, model.spec.upsampling, model.spec.time_window) == (backbone, upsampling, window)
    assert np.isfinite(model.training.validation["rmse"])
    head = model.network.head.blocks[-1].conv.weight
    assert head.abs().sum() > 0, "the last layer starts at zero and has moved"
    names = set(model.history.data_vars)
    assert {"generator_loss", "discriminator_loss"} <= names or training == "supervised"
    assert (model.discriminator is not None) == (training == "adversarial")


@every
def test_saved_and_loaded_it_gives_the_same_bits(training, window, backbone, upsampling, tmp_path):
    model, coarse = trained(training, window, backbone, upsampling, SCALES[training, window, backbone, upsampling])
    expected = coarse.sr.downscale(model)
    model.save(tmp_path / "model.safetensors")
    loaded = xsr.load_model(tmp_path / "model.safetensors")
    assert loaded.discriminator is None, "of the game only the network is kept, unless asked for"
    assert loaded.time_halo == model.time_halo and loaded.halo == model.halo
    assert loaded is not model
    np.testing.assert_array_equal(coarse.sr.downscale(loaded), expected)


@every
def test_chunked_in_time_and_space_equals_whole(training, window, backbone, upsampling, check, reinitialise):
    scale = SCALES[training, window, backbone, upsampling]
    model, coarse = trained(training, window, backbone, upsampling, scale)
    model = replace(model, network=build_network(model.spec).eval())
    reinitialise(model.network, seed=7, gain=1.2)
    check.chunked_equals_whole(model, coarse, {"time": (2, 3, 1), "lat": (4, 4), "lon": (5, 3, 4)})
    check.rolling_commutes(model, coarse, 5)


@pairs
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


@pytest.mark.parametrize("window", [2, 3, 5])
@pytest.mark.parametrize(("backbone", "upsampling"), list(itertools.product(BACKBONES, UPSAMPLERS)))
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


@pairs
def test_300_steps_on_one_batch_learn_it(window, backbone, upsampling, scale, make_step, reinitialise):
    """From random weights and without the linear skip, the error on one batch falls below 0.3 of bicubic's."""
    torch.manual_seed(3)
    network = small(window, backbone, upsampling, scale, width=12, head_width=12, activation="relu")
    reinitialise(network, seed=2, gain=0.7)
    batch = learnable_batch(window, scale)
    bicubic = float((batch.target - batch.skip).square().mean())
    step = make_step(network, 1.0, OptimizationConfig(learning_rate=1e-2))
    losses = [float(step(batch, 1e-2 * (1 - count / 300) + 1e-4)) for count in range(300)]
    assert np.mean(losses[-10:]) < 0.3 * bicubic


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
