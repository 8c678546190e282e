"""Stages one by one against formulas, and the chain of them: counts, sources, reach, cutting, the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import xarray as xr

from xsuperres.config import DataConfig, NetworkConfig
from xsuperres.fields.channels import Channels
from xsuperres.fields.stages import (
    Activation,
    Anomaly,
    Bounds,
    Calendar,
    Contrast,
    Departures,
    InputFrames,
    Masks,
    OutputContext,
    Scale,
    Skip,
    Stage,
    StaticPlanes,
    Transforms,
)
from xsuperres.fields.transform import Transform
from xsuperres.model import artefact
from xsuperres.model.features import plain_channels
from xsuperres.testing import toy_field

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")
ROWS, COLUMNS, SCALE = 6, 8, 2
TINY = {"width": 5, "depth": 1, "head_width": 4}


def planes(count: int, *, fine: bool = False, seed: int = 1) -> np.ndarray:
    factor = SCALE if fine else 1
    return np.random.default_rng(seed).normal(size=(count, ROWS * factor, COLUMNS * factor))


def chain(*, fixed: bool = True, calendar: bool = True, masked: tuple[int, ...] = (0, 2)) -> Channels:
    """Return a chain of two targets and a predictor with every stage there is."""
    departures = Departures.of([None, (planes(1)[0], planes(1, fine=True)[0])])
    sd, gain = (8.0, 2.0, 1.5), (0.2, 0.4)
    stages: list[Stage | None] = [
        Bounds(limits=((None, None), (-4.0, None))),
        Transforms(transforms=(Transform("log1p", 2.0), Transform())),
        departures,
        Scale(mean=(1.0, -0.5, 3.0), sd=sd, targets=2),
        Activation(name="softplus", mean=(1.0, -0.5), sd=sd[:2], gain=gain),
        Skip(gain=gain, method="bicubic", correction=planes(2, fine=True), scaled=planes(2, fine=True) / 5),
        StaticPlanes(channels=planes(4, fine=True).astype(np.float32)),
        Anomaly(sd=(0.5, 0.7), climatology=planes(2), residual=planes(2, fine=True)) if fixed else None,
        None if fixed else Contrast(radius=2, unit=(1.0, 2.0, 3.0)),
        Calendar() if calendar else None,
        Masks(masked=masked) if masked else None,
    ]
    return Channels(tuple(stage for stage in stages if stage is not None))


def frames(count: int = 3, variables: int = 3, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = torch.from_numpy(RNG.normal(size=(count, variables, ROWS, COLUMNS))).to(dtype).abs()
    valid = torch.from_numpy(RNG.random((count, variables, ROWS, COLUMNS)) > 0.2)
    return values, valid, torch.from_numpy(RNG.normal(size=(count, 4)))


# what the chain says of itself


def test_channels_are_counted_by_the_variables_they_are_made_from():
    full, bare = chain(), chain(fixed=False, calendar=False, masked=())
    assert full.sources == (0, 1, 2, 0, 1, None, None, None, None, None, None)
    assert full.counts == (11, 6) and bare.counts == (3, 4)
    assert full.masks == ((0, 3), (2,)) and bare.masks == ()
    assert full.channels_of(1) == (1, 4) and bare.channels_of(1) == (1,)
    assert full.targets == 2 and full.masked == (0, 2)


@pytest.mark.parametrize(
    ("masked", "fixed", "targets", "predictors", "expected"),
    [
        ((0,), False, 1, 0, ((0,),)),
        ((0,), True, 1, 0, ((0, 1),)),
        ((1,), True, 1, 1, ((1,),)),
        ((1, 2), True, 2, 1, ((1, 4), (2,))),
        ((), True, 1, 0, ()),
    ],
)
def test_masks_hold_for_the_channels_of_their_variable(masked, fixed, targets, predictors, expected):
    count = targets + predictors
    stages: list[Stage] = [Scale(mean=(0.0,) * count, sd=(1.0,) * count, targets=targets), Skip(gain=(1.0,) * targets)]
    if fixed:
        stages.append(Anomaly(sd=(1.0,) * targets, climatology=planes(targets), residual=planes(targets, fine=True)))
    channels = Channels((*stages, Masks(masked=masked)) if masked else tuple(stages))
    assert channels.masks == expected
    inputs = channels.counts[0]
    assert all(channel < inputs - len(masked) for part in channels.masks for channel in part)


@pytest.mark.parametrize(("domain", "radius"), [("open", 2), ("open", 0), ("fixed", 2)])
@pytest.mark.parametrize("skip", ["linear", "bicubic", None])
def test_the_reach_is_that_of_inputs_and_network_or_of_the_skip(domain, radius, skip):
    """Bicubic reads 2 cells; the contrast's neighbourhood is read by the first of the network's cells."""
    channels = plain_channels(DataConfig(domain=domain, contrast_radius=radius), NetworkConfig(skip=skip))
    inputs = radius if domain == "open" else 0
    for network in (0, 1, 5):
        assert channels.reach(network) == max(network + inputs, 2 if skip else 0)


# forward


def test_inputs_against_formulas():
    channels = chain().on(CPU)
    values, valid, calendar = frames()
    scaled, inputs = channels.inputs(values, valid, calendar)
    v = values.double().numpy()
    transformed = np.stack([np.log1p(v[:, 0] / 2), v[:, 1] - planes(1)[0], v[:, 2]], axis=1)
    expected = (transformed - np.array([1.0, -0.5, 3.0])[:, None, None]) / np.array([8.0, 2.0, 1.5])[:, None, None]
    anomalies = (transformed[:, :2] - planes(2)) / np.array([0.5, 0.7])[:, None, None]
    known = valid.numpy()
    np.testing.assert_allclose(inputs[:, :3], np.where(known, expected, 0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(inputs[:, 3:5], np.where(known[:, :2], anomalies, 0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(inputs[:, 5:9, 2, 3], calendar.float(), rtol=1e-6)
    np.testing.assert_array_equal(inputs[:, 9:], known[:, [0, 2]])
    np.testing.assert_array_equal(scaled, inputs[:, :2])
    assert inputs.dtype == torch.float32 and inputs.shape[1] == channels.counts[0]


def test_a_contrast_replaces_the_value():
    channels = chain(fixed=False).on(CPU)
    values, valid, calendar = frames()
    scaled, inputs = channels.inputs(values, valid, calendar)
    plain = scaled.double().numpy()
    known = valid[:, :2].numpy()
    for row, column in ((0, 0), (3, 4), (5, 7)):
        box = np.s_[..., max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        mean = plain[box].sum(axis=(-2, -1)) / known[box].sum(axis=(-2, -1))
        expected = np.where(known[..., row, column], plain[..., row, column] - mean, 0) * [1.0, 2.0]
        np.testing.assert_allclose(inputs[:, :2, row, column], expected, rtol=0, atol=1e-5)


def test_the_calendar_is_not_shown_where_it_is_not_known():
    values, valid, _ = frames()
    assert chain().on(CPU).inputs(values, valid)[1].shape[1] == chain().counts[0] - 4


def test_targets_of_samples_go_the_same_way_as_frames():
    """The fine target, and the coarse one before it is interpolated, in numpy and as float32."""
    channels = chain()
    values = frames()[0][:, :2].numpy()
    got, through = values, InputFrames(
        values=torch.from_numpy(values), valid=torch.ones(values.shape, dtype=torch.bool), dtype=torch.float32
    )  # fmt: skip
    for stage in channels.before_scale:
        got, through = stage.forward_targets(got, "coarse"), stage.on(CPU).forward(through)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, through.values, rtol=0, atol=1e-5)
    fine = np.repeat(np.repeat(values, SCALE, axis=-2), SCALE, axis=-1)
    departures = channels.find(Departures).forward_targets(fine, "fine")
    np.testing.assert_allclose(departures[:, 1], fine[:, 1] - planes(1, fine=True)[0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(departures[:, 0], fine[:, 0])


# back


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_goes_in_comes_out(dtype):
    """Scaled targets back in units are the values, within the bounds."""
    channels = chain(fixed=False).on(CPU)
    values = frames(dtype=torch.float64)[0][:, :2]
    fine = values.repeat_interleave(SCALE, -2).repeat_interleave(SCALE, -1)
    fine[0, 1, 2, 3] = -50.0
    scaled = fine.numpy()
    for stage in chain().before_scale:
        scaled = stage.forward_targets(scaled, "fine")
    scaled = (scaled - channels.scale.plane("mean")) / channels.scale.plane("sd")
    back = channels.fields(torch.from_numpy(scaled).float(), dtype)
    assert back.dtype == dtype
    np.testing.assert_allclose(back, fine.clamp_min(torch.tensor([-torch.inf, -4.0])[:, None, None]), atol=2e-5)
    assert float(back[0, 1, 2, 3]) == -4.0


def test_predictions_against_formulas():
    channels = chain()
    output, skip = (torch.from_numpy(RNG.normal(size=(3, 2, 4, 5))).float() for _ in range(2))
    gain, sd, mean = (np.array(n)[:, None, None] for n in ((0.2, 0.4), (8.0, 2.0), (1.0, -0.5)))
    physical = (output.double().numpy() * gain + skip.double().numpy()) * sd + mean
    unit = gain * sd
    expected = (unit * np.log1p(np.exp(physical / unit)) - mean) / sd
    np.testing.assert_allclose(channels.prediction(output, skip), expected, rtol=0, atol=1e-5)
    without = Channels(tuple(stage for stage in channels.stages if not isinstance(stage, Activation)))
    np.testing.assert_allclose(without.prediction(output, None), output.numpy() * gain, rtol=1e-6)


def test_the_skip_reads_valid_cells_only_and_has_its_correction():
    skip = chain().skip.on(CPU)
    scaled, valid, _ = frames(variables=2)
    whole = skip.interpolated(scaled, torch.ones_like(valid), SCALE, complete=True)
    bare = replace(skip, scaled=None).interpolated(scaled, torch.ones_like(valid), SCALE, complete=False)
    np.testing.assert_allclose(whole - bare, np.broadcast_to(planes(2, fine=True) / 5, whole.shape), atol=1e-5)
    changed = torch.where(valid, scaled, 99.0)
    holes = [skip.interpolated(part, valid, SCALE, complete=False) for part in (scaled, changed)]
    torch.testing.assert_close(*holes, rtol=0, atol=0)
    assert replace(skip, method=None).interpolated(scaled, valid, SCALE, complete=False) is None


# blocks


@pytest.mark.parametrize("rows", [np.arange(1, 5), np.array([0, 2, 5])])
@pytest.mark.parametrize("columns", [np.arange(2, 7), np.array([6, 7, 0, 1])])
def test_a_block_of_the_chain_is_the_block_of_the_whole(rows, columns):
    """Also across the edge of a globe, where columns do not follow each other."""
    channels = chain(masked=()).on(CPU)
    values, valid, calendar = frames()
    cut = channels.cut(rows, columns, SCALE)
    part = values[:, :, rows][..., columns], valid[:, :, rows][..., columns]
    for whole, block in zip(channels.inputs(values, valid, calendar), cut.inputs(*part, calendar), strict=True):
        torch.testing.assert_close(block, whole[:, :, rows][..., columns], rtol=0, atol=0)
    fine = [np.add.outer(index * SCALE, np.arange(SCALE)).ravel() for index in (rows, columns)]
    prediction = torch.from_numpy(planes(2, fine=True)).float()[None]
    got = cut.fields(prediction[:, :, fine[0]][..., fine[1]], torch.float32)
    torch.testing.assert_close(
        got, channels.fields(prediction, torch.float32)[:, :, fine[0]][..., fine[1]], rtol=0, atol=0
    )
    assert {plane.shape[-1] for plane in cut.planes()} == {len(columns), SCALE * len(columns)}


def test_planes_on_a_device_have_the_dtype_of_their_stage():
    """Coarse ones double: departures of float32 data are taken in double precision."""
    got = {type(stage).__name__: stage.planes() for stage in chain().on(CPU).stages if stage.planes()}
    dtypes = {name: {key: plane.dtype for key, plane in planes.items()} for name, planes in got.items()}
    assert dtypes == {
        "Departures": {"coarse": torch.float64, "climatology": torch.float32},
        "Skip": {"scaled": torch.float32},
        "Anomaly": {"climatology": torch.float64},
    }


def test_departures_of_targets_without_a_climatology_are_the_values():
    assert Departures.of([None, None]) is None
    stage = Departures.of([(planes(1)[0], planes(1, fine=True)[0]), None])
    assert not stage.coarse[1].any() and not stage.climatology[1].any()


def test_the_base_changes_nothing():
    values = torch.ones(1, 1, 2, 2)
    stage = Stage()
    assert stage.inverse(values, OutputContext()) is values and stage.on(CPU) is stage
    assert stage.forward_targets(values.numpy(), "fine") is not None and stage.reach == 0 and stage.fine is None


# one more stage


@dataclass(frozen=True, kw_only=True, eq=False)
class Conserved(Stage):
    """The mean of the fine cells of a coarse cell becomes that of the skip: a constraint, as another part adds it."""

    scale: int

    def inverse(self, values, context):
        from torch.nn.functional import avg_pool2d

        excess = avg_pool2d(values - context.skip, self.scale)
        return values - excess.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)


def test_a_stage_that_is_slipped_in_acts_in_training_validation_and_inference(monkeypatch):
    """Between scale and skip: with a network of large weights, block means of the result are still the skip's."""
    fine = toy_field(time=6, y=12, x=16)
    build, calls = artefact.channels_of, []

    class Counted(Conserved):
        def inverse(self, values, context):
            calls.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            return super().inverse(values, context)

    def with_constraint(*args, **options):
        channels = build(*args, **options)
        at = channels.stages.index(channels.skip)
        return Channels((*channels.stages[:at], Counted(scale=2), *channels.stages[at:]))

    monkeypatch.setattr(artefact, "channels_of", with_constraint)
    quick = {"optimization": {"max_steps": 4, "validations": 2, "learning_rate": 0.05}, "network": TINY}
    model = fine.sr.fit(2, sampling={"batch_size": 2}, activate=False, progress=False, **quick)
    assert (True, False) in calls and (False, True) in calls, "in training, and in validation"
    coarse = fine.sr.coarsen(2)
    result = coarse.sr.downscale(model)
    skip = coarse.sr.interpolate(2, like=fine) + xr.DataArray(model.baselines.delta, dims=("lat", "lon"))
    means = [da.coarsen(lat=2, lon=2).mean() for da in (result, skip)]
    np.testing.assert_allclose(means[0], means[1], rtol=0, atol=2e-4)
    assert float(abs(result - skip).max()) > 0.01, "the network takes part"
