"""One block: batches, masks, dtypes, and the devices of a prepared model."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from xsuperres.errors import XSuperResError, XSuperResWarning
from xsuperres.inference.apply import apply
from xsuperres.inference.devices import Execution
from xsuperres.inference.frames import Frames
from xsuperres.inference.prepared import bytes_per_cell, prepare, sub_batch


def run(prepared, block: np.ndarray, rows: np.ndarray, columns: np.ndarray, **options) -> np.ndarray:
    """Apply to fields (n, y, x) of a single variable."""
    return apply(prepared, Frames(block[:, None], rows, columns), **options)[:, 0]


def everywhere(toy) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = toy.coarse.shape[1:]
    return np.arange(ny), np.arange(nx)


@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_sub_batches_equal_the_whole(make_model, check, upsampling, missing, size):
    """With gaps too: a field in whose batch another one has gaps is treated no differently."""
    toy = make_model(upsampling=upsampling, missing=missing)
    prepared = prepare(toy.model)
    whole = run(prepared, toy.coarse.values, *everywhere(toy))
    parts = run(prepared, toy.coarse.values, *everywhere(toy), batch_size=size)
    check.same_numbers(parts, whole, toy.model.scaling.sd)
    assert np.isnan(whole).any() == missing


def test_the_result_is_network_plus_skip_in_physical_units(make_model):
    """Written down anew: (network x gain + bicubic + correction) x sd + mean."""
    toy = make_model(scale=3)
    model, coarse = toy.model, toy.coarse
    got = run(prepare(model), coarse.values, *everywhere(toy))
    scaled = (coarse.values.astype(np.float64) - model.scaling.mean) / model.scaling.sd
    anomaly = (coarse.values - model.baselines.climatology) / model.baselines.residual_sd["climatology"]
    channels = torch.from_numpy(np.stack([scaled, anomaly], axis=1)).float()
    with torch.no_grad():
        output = model.network(channels, torch.from_numpy(model.channels.fine)[None])[:, 0].numpy()
    bicubic = coarse.sr.interpolate(3, like=toy.fine).values
    expected = output * model.residual_sd[0] + bicubic + model.baselines.delta
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert np.abs(output).max() > 0.1, "the network takes part"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_that_of_the_block(make_model, dtype):
    toy = make_model()
    block = toy.coarse.values.astype(dtype)
    kept = block.copy()
    assert run(prepare(toy.model), block, *everywhere(toy)).dtype == dtype
    np.testing.assert_array_equal(block, kept)


def test_missing_cells_are_restored_or_filled(make_model):
    toy = make_model(missing=True, scale=3)
    prepared = prepare(toy.model)
    block = toy.coarse.values
    missing = np.isnan(block).repeat(3, axis=1).repeat(3, axis=2)
    restored = run(prepared, block, *everywhere(toy))
    filled = run(prepared, block, *everywhere(toy), mask=None)
    np.testing.assert_array_equal(np.isnan(restored), missing)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~missing], restored[~missing])


def test_a_block_of_nothing_but_gaps(make_model):
    toy = make_model(missing=True)
    block = np.full_like(toy.coarse.values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(run(prepare(toy.model), block, *everywhere(toy))).all()
        assert np.isfinite(run(prepare(toy.model), block, *everywhere(toy), mask=None)).all()


def test_infinities_count_as_missing(make_model):
    toy = make_model(missing=True)
    holed, infinite = toy.coarse.values.copy(), toy.coarse.values.copy()
    holed[0, 3, 3], infinite[0, 3, 3] = np.nan, -np.inf
    prepared = prepare(toy.model)
    np.testing.assert_array_equal(run(prepared, infinite, *everywhere(toy)), run(prepared, holed, *everywhere(toy)))


def test_gaps_without_a_mask_channel_warn(make_model):
    toy = make_model()
    block = toy.coarse.values.copy()
    block[1, 2, 3] = np.nan
    with pytest.warns(XSuperResWarning, match="no mask channel"):
        out = run(prepare(toy.model), block, *everywhere(toy))
    assert np.isnan(out[1, 4:6, 6:8]).all() and np.isnan(out).sum() == 4


def test_no_fields_give_no_fields(make_model):
    toy = make_model()
    assert run(prepare(toy.model), toy.coarse.values[:0], *everywhere(toy)).shape == (0, 28, 36)


def test_another_network_can_be_validated_in_the_models_place(make_model):
    toy = make_model()
    other = make_model(seed=4).model.network
    own = run(prepare(toy.model), toy.coarse.values, *everywhere(toy))
    lent = run(prepare(toy.model, network=other), toy.coarse.values, *everywhere(toy))
    assert np.abs(own - lent).max() > 0.01
    np.testing.assert_array_equal(run(prepare(toy.model), toy.coarse.values, *everywhere(toy)), own)


def test_preparing_for_one_device_leaves_the_others_alone(make_model):
    """The model, and what was prepared for the CPU, stay on the CPU when a second device is used."""
    toy = make_model(seed=11)
    model = replace(toy.model)
    first = prepare(model)
    expected = run(first, toy.coarse.values, *everywhere(toy))
    state = {k: v.clone() for k, v in model.network.state_dict().items()}
    elsewhere = Execution(device="cpu")
    object.__setattr__(elsewhere, "device", "meta")  # stands for a GPU
    try:
        prepare(model, elsewhere)
        assert {p.device.type for p in model.network.parameters()} == {"cpu"}
        np.testing.assert_array_equal(run(first, toy.coarse.values, *everywhere(toy)), expected)
    finally:
        model.network.to_empty(device="cpu").load_state_dict(state)


def test_nothing_is_recorded_for_gradients(make_model):
    toy = make_model()
    run(prepare(toy.model), toy.coarse.values, *everywhere(toy))
    assert all(p.grad is None for p in toy.model.network.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
def test_memory_estimates_grow_with_scale_and_width(make_model, upsampling):
    small, large = (make_model(upsampling=upsampling, scale=s).model for s in (2, 3))
    assert 0 < bytes_per_cell(small) < bytes_per_cell(large)
    prepared = prepare(small)
    assert sub_batch(prepared, 10) > sub_batch(prepared, 10_000) >= sub_batch(prepared, 10**9) == 1


def test_a_network_that_is_nan_somewhere_has_no_good_score(make_model, blocks_of):
    """Cells that it fails to predict must not drop out of its validation score."""
    from xsuperres.inference.validation import Validator

    toy = make_model(network=(("location_features", 1),))
    validate = Validator(
        toy.model, blocks_of(toy.fine), np.ones(3, bool), toy.model.grid.area, device=torch.device("cpu"), keep=2**40
    )
    good = validate(toy.model.network)["rmse"]
    broken = make_model(network=(("location_features", 1),), seed=3).model.network
    broken.location.fields.data[0, 26:] = torch.nan
    try:
        score = validate(broken)["rmse"]
    except XSuperResError:
        return
    assert np.isfinite(good) and not np.isfinite(score)
