"""Blocks of fields: the same whether kept or streamed, and shown to the network as inference shows them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import dask.array
import numpy as np
import pytest
import torch
import xarray as xr

from xsuperres.fields.baselines import TrainingMoments
from xsuperres.fields.stages import Anomaly, Skip
from xsuperres.samples.blocks import FieldBlocks
from xsuperres.testing import toy_field


def bicubic_of(blocks: FieldBlocks, index: int = 0) -> np.ndarray:
    return blocks.bicubic(blocks.load(index).coarse)


def steps(da: xr.DataArray, count: int) -> int:
    """Return the budget that holds `count` steps of `da`."""
    return count * int(np.prod([s for d, s in da.sizes.items() if d != "time"])) * 4 * 5


@pytest.fixture(scope="module")
def field() -> xr.DataArray:
    return toy_field(time=12, y=8, x=12)


# the blocks


def test_what_fits_is_one_block_read_once(blocks_of, field):
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    lazy = field.chunk(time=4).copy(
        data=field.chunk(time=4).data.map_blocks(read, dtype=field.dtype, meta=np.empty((0,) * 3))
    )
    blocks = blocks_of(lazy)
    assert len(blocks) == 1 and blocks.fields(0) == slice(0, 12) and blocks.count == 12
    assert blocks.load(0) is blocks.load(0)
    assert len(reads) == 3


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, (1, 7, 4)])
@pytest.mark.parametrize("in_memory", [3, 6, 9])
def test_streamed_blocks_follow_the_chunks_and_the_budget(blocks_of, field, chunks, in_memory):
    lazy = field.chunk(time=chunks)
    blocks = blocks_of(lazy, budget=steps(field, in_memory))
    edges = {0, *np.cumsum(lazy.chunks[0]).tolist()}
    assert len(blocks) > 1
    assert blocks.slices[0].start == 0 and blocks.slices[-1].stop == 12
    for before, after in itertools.pairwise(blocks.slices):
        assert before.stop == after.start
    largest = in_memory // 3  # one in use, one being read, one being made
    assert all(0 < block.stop - block.start <= largest for block in blocks.slices)
    if max(lazy.chunks[0]) <= largest:
        assert all({block.start, block.stop} <= edges for block in blocks.slices), "a chunk is read once per epoch"


def test_a_chunk_larger_than_the_budget_is_read_in_parts(blocks_of, field):
    """One chunk for all times is what `open_dataset(chunks={})` gives of most netCDF files."""
    blocks = blocks_of(field.chunk(time=-1), budget=steps(field, 3))
    assert max(s.stop - s.start for s in blocks.slices) <= 3


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("budget", [3, 7])
def test_streamed_fields_are_those_in_memory(blocks_of, field, lazy, missing, budget):
    da = field.copy(deep=True)
    if missing:
        da[2:9, 4:, :5] = np.nan
    whole = blocks_of(da)
    streamed = blocks_of(da.chunk(time=2, lat=3) if lazy else da, budget=steps(da, budget))
    assert len(streamed) > 1
    for get in (lambda b, i: b.load(i).target, lambda b, i: b.load(i).coarse, bicubic_of):
        joined = np.concatenate([get(streamed, index) for index in range(len(streamed))])
        assert joined.dtype == np.float32
        np.testing.assert_array_equal(joined, get(whole, 0))


def test_fields_are_those_of_the_public_methods(blocks_of, field):
    da = field.isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
    blocks = blocks_of(da)
    got, coarse = blocks.load(0), field.sr.coarsen(2)
    np.testing.assert_array_equal(got.target[:, 0], field)
    np.testing.assert_array_equal(got.coarse[:, 0], coarse)
    np.testing.assert_array_equal(bicubic_of(blocks)[:, 0], coarse.sr.interpolate(2, like=field))


def test_members_are_counted_within_each_time(blocks_of, field):
    values = field.values.reshape(6, 2, 8, 12)
    da = field.isel(time=slice(0, 6)).expand_dims(member=2, axis=1).copy(data=values)
    for order in (("time", "member", "lat", "lon"), ("member", "lat", "lon", "time")):
        blocks = blocks_of(da.transpose(*order), budget=steps(da, 3))
        assert blocks.per_step == 2 and blocks.count == 12
        got = np.concatenate([blocks.load(i).target for i in range(len(blocks))])
        np.testing.assert_array_equal(got[:, 0], field)
        assert [blocks.fields(i) for i in range(len(blocks))] == [slice(2 * i, 2 * i + 2) for i in range(6)]


def test_chosen_fields_come_with_their_blocks(blocks_of, field):
    blocks = blocks_of(field, budget=steps(field, 3))
    assert len(blocks) == 12
    mask = np.zeros(12, bool)
    mask[[1, 7]] = True
    assert [(index, part.tolist()) for index, part in blocks.chosen(mask)] == [(1, [True]), (7, [True])]


def test_moments_of_streamed_blocks_are_those_in_memory(blocks_of, field):
    da = field.copy(deep=True)
    da[5:, 6:, :4] = np.nan
    anomaly = np.random.default_rng(0).normal(size=(2, 8, 12))
    fits = []
    for blocks in (blocks_of(da), blocks_of(da.chunk(time=5), budget=steps(da, 6))):
        moments = TrainingMoments(blocks.grid.area, anomaly, contrast_radius=2)
        for index in range(len(blocks)):
            fields = blocks.load(index)
            moments.add(fields.target[:, 0], bicubic_of(blocks, index)[:, 0], fields.coarse[:, 0])
        fits.append(moments.fit())
    (scaling, one), (again, many) = fits
    assert (scaling.mean, scaling.sd) == pytest.approx((again.mean, again.sd), rel=1e-12)
    assert one.residual_sd == pytest.approx(many.residual_sd, rel=1e-9)
    for name in ("coefficients", "delta", "slope", "intercept", "climatology"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-9, atol=1e-9)


def test_bicubic_never_reads_across_a_gap(blocks_of):
    wide = toy_field(time=1, y=8, x=40)
    cut = xr.concat([wide.isel(lon=slice(0, 16)), wide.isel(lon=slice(24, 40))], "lon")
    got = bicubic_of(blocks_of(cut))
    for side in (slice(0, 16), slice(16, 32)):
        alone = bicubic_of(blocks_of(cut.isel(lon=side)))
        np.testing.assert_array_equal(got[..., side], alone)


def test_bicubic_wraps_around_a_globe(blocks_of):
    globe = toy_field(time=1, y=8, x=24, periodic=True)
    rolled = globe.roll(lon=6, roll_coords=True)
    got, turned = bicubic_of(blocks_of(globe)), bicubic_of(blocks_of(rolled))
    np.testing.assert_array_equal(np.roll(got, 6, axis=-1), turned)


def test_the_store_is_not_read_when_blocks_are_made(blocks_of, field):
    def refuse(block):
        raise AssertionError("read")

    lazy = field.copy(
        data=dask.array.map_blocks(
            refuse, field.chunk(time=3).data, dtype=field.dtype, meta=np.empty((0,) * 3, field.dtype)
        )
    )
    blocks = blocks_of(lazy, budget=steps(field, 3))
    with pytest.raises(AssertionError, match="read"):
        blocks.load(0)


# the samples made from them


def scaled_by_hand(da: xr.DataArray, model):
    """Return target and skip in scaled units from the public methods."""
    coarse = da.sr.coarsen(model.scale)
    skip = coarse.sr.interpolate(model.scale, like=da).transpose(*da.dims).values.astype(np.float64)
    if model.correction is not None:
        skip = skip + model.correction[0]
    return (da.values - model.scaling.mean) / model.scaling.sd, (skip - model.scaling.mean) / model.scaling.sd


@pytest.mark.parametrize("domain", ["fixed", "open"])
@pytest.mark.parametrize("missing", [False, True])
def test_samples_are_scaled_and_what_is_missing_does_not_count(blocks_of, make_model, domain, missing):
    toy = make_model(domain=domain, missing=missing)
    blocks = blocks_of(toy.fine, domain=domain)
    block = blocks.scaled(0, np.array([True, False, True]), toy.model.channels)
    assert {a.dtype for a in (block.coarse, block.skip, block.target)} == {np.dtype(np.float32)}
    target, skip = (values[[0, 2]] for values in scaled_by_hand(toy.fine, toy.model))
    known = np.isfinite(skip)
    np.testing.assert_allclose(block.skip[:, 0][known], skip[known], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(np.isnan(block.target[:, 0]), np.isnan(target) | ~known)
    np.testing.assert_allclose(block.target[:, 0], np.where(known, target, np.nan), rtol=0, atol=2e-5)
    assert np.isfinite(block.coarse).all() and np.isfinite(block.skip).all()
    assert known.all() != missing


def test_without_a_skip_there_is_none(blocks_of, make_model):
    toy = make_model(network=(("skip", None),))
    assert not blocks_of(toy.fine).scaled(0, np.ones(3, bool), toy.model.channels).skip.any()


def shown_by_inference(monkeypatch, toy, **chunks) -> np.ndarray:
    """Return the coarse channels that inference gives the network, with the halo of each tile cut off."""
    from xsuperres.inference import frames as inference
    from xsuperres.inference import tile

    seen = {}
    model, (ny, nx) = replace(toy.model), toy.model.coarse_grid.shape
    true_apply, recorded = tile.apply, {}

    def spy_apply(prepared, frames, **options):
        recorded["at"] = (frames.rows, frames.columns)
        return true_apply(prepared, frames, **options)

    true_inputs = inference.Channels.inputs

    def spy_inputs(channels, values, valid, calendar=None):
        value, stack = true_inputs(channels, values, valid, calendar)
        rows, columns = recorded["at"]
        seen.setdefault("tiles", []).append((rows, columns, stack.numpy().copy()))
        return value, stack

    monkeypatch.setattr(tile, "apply", spy_apply)
    monkeypatch.setattr(inference.Channels, "inputs", spy_inputs)
    toy.coarse.isel(time=slice(0, 1)).chunk(chunks).sr.downscale(model).compute(scheduler="synchronous")
    monkeypatch.undo()
    out = np.full((seen["tiles"][0][2].shape[1], ny, nx), np.nan, np.float32)
    reach = model.data.reach
    for rows, columns, stack in seen["tiles"]:
        keep_rows = slice(reach if rows[0] else 0, len(rows) - reach if rows[-1] < ny - 1 else None)
        west, east = columns[0] != 0 or toy.model.grid.x.periodic, columns[-1] != nx - 1 or toy.model.grid.x.periodic
        keep = slice(reach if west else 0, len(columns) - reach if east else None)
        out[(slice(None), *np.ix_(rows[keep_rows], columns[keep]))] = stack[0][:, keep_rows, keep]
    return out


@pytest.mark.parametrize("domain", ["fixed", "open"])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_training_shows_the_network_what_inference_shows_it(
    blocks_of, make_model, monkeypatch, domain, periodic, missing
):
    toy = make_model(domain=domain, periodic=periodic, missing=missing, coarse=(20, 24))
    told = blocks_of(toy.fine, domain=domain).scaled(0, np.array([True, False, False]), toy.model.channels)
    shown = shown_by_inference(monkeypatch, toy, lat=10, lon=8)
    assert shown.shape == told.coarse[0].shape == (toy.model.spec.inputs, 20, 24)
    np.testing.assert_allclose(shown, told.coarse[0], rtol=0, atol=1e-5)


def changed(channels, *, coarse, fine):
    """Return the chain with functions applied to the planes of its anomaly and of its skip."""

    def of(stage):
        if isinstance(stage, Anomaly):
            return replace(stage, climatology=coarse(stage.climatology))
        if isinstance(stage, Skip):
            return replace(stage, correction=fine(stage.correction), scaled=fine(stage.scaled))
        return stage

    return replace(channels, stages=tuple(map(of, channels.stages)))


@pytest.mark.parametrize("domain", ["fixed", "open"])
def test_training_shows_each_side_of_a_gap_alone(blocks_of, make_model, domain):
    toy = make_model(domain=domain, coarse=(8, 20))
    cut = xr.concat([toy.fine.isel(lon=slice(0, 16)), toy.fine.isel(lon=slice(24, 40))], "lon")
    channels = changed(
        toy.model.channels,
        coarse=lambda plane: np.delete(plane, range(8, 12), axis=-1),
        fine=lambda plane: np.delete(plane, range(16, 24), axis=-1),
    )
    both = blocks_of(cut, domain=domain).scaled(0, np.ones(3, bool), channels)
    for part in (slice(0, 8), slice(8, 16)):
        fine = slice(part.start * 2, part.stop * 2)
        own = changed(
            channels,
            coarse=lambda plane, part=part: plane[..., part],
            fine=lambda plane, fine=fine: plane[..., fine],
        )
        alone = blocks_of(cut.isel(lon=fine), domain=domain).scaled(0, np.ones(3, bool), own)
        np.testing.assert_array_equal(both.coarse[..., part], alone.coarse)
        np.testing.assert_array_equal(both.skip[..., fine], alone.skip)


@pytest.mark.parametrize("domain", ["fixed", "open"])
def test_training_wraps_as_a_globe_does(blocks_of, make_model, domain):
    toy = make_model(domain=domain, periodic=True)
    channels, cells = toy.model.channels, 5
    turned = changed(
        channels,
        coarse=lambda plane: np.roll(plane, cells, axis=-1),
        fine=lambda plane: np.roll(plane, 2 * cells, axis=-1),
    )
    straight = blocks_of(toy.fine, domain=domain).scaled(0, np.ones(3, bool), channels)
    rolled = blocks_of(toy.fine.roll(lon=2 * cells, roll_coords=True), domain=domain).scaled(
        0, np.ones(3, bool), turned
    )
    np.testing.assert_array_equal(np.roll(straight.coarse, cells, axis=-1), rolled.coarse)
    np.testing.assert_array_equal(np.roll(straight.skip, 2 * cells, axis=-1), rolled.skip)


def test_an_open_domain_is_shown_contrasts_not_values(make_model):
    """Adding a constant to the whole field changes nothing that an open network sees."""
    toy = make_model(domain="open")
    channels = toy.model.channels
    values = torch.from_numpy(toy.coarse.values).double()[:, None]
    valid = torch.isfinite(values)
    _, shown = channels.inputs(values, valid)
    _, warmer = channels.inputs(values + 5.0, valid)
    torch.testing.assert_close(shown, warmer, rtol=0, atol=1e-4)
    assert abs(float(shown.std()) - 1) < 0.3, "scaled to about 1"
