"""Linear baselines against direct least squares on the samples themselves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from xsuperres.errors import DataError
from xsuperres.fields.baselines import InputMoments, TrainingMoments, coarse_area

SHAPE, STATICS, SAMPLES = (6, 8), 2, 30


@pytest.fixture
def data():
    rng = np.random.default_rng(4)
    area, anomaly = rng.uniform(0.2, 1.0, SHAPE), rng.normal(size=(STATICS, *SHAPE))
    bicubic = rng.normal(280, 8, (SAMPLES, *SHAPE))
    field = 0.9 * (bicubic - 280) + 281 + rng.normal(size=SHAPE)
    target = field + np.einsum("s,syx->yx", [-2.0, 0.7], anomaly) + rng.normal(0, 0.5, bicubic.shape)
    coarse = bicubic.reshape(SAMPLES, 3, 2, 4, 2).mean(axis=(2, 4))
    return area, anomaly, target, bicubic, coarse


def moments_of(area, anomaly, target, bicubic, coarse, *, blocks=1) -> TrainingMoments:
    moments = TrainingMoments(area, anomaly)
    for index in np.array_split(np.arange(len(target)), blocks):
        moments.add(target[index], bicubic[index], coarse[index])
    return moments


def with_gaps(data):
    area, anomaly, target, bicubic, coarse = data
    rng = np.random.default_rng(5)
    target, bicubic, coarse = target.copy(), bicubic.copy(), coarse.copy()
    target[rng.random(target.shape) < 0.3] = np.nan
    target[:, 2, 3] = np.nan
    bicubic[:4, :2] = np.nan
    coarse[:4, 0] = np.nan
    return area, anomaly, target, bicubic, coarse


gaps = pytest.mark.parametrize("gaps", [False, True])


@gaps
def test_scaling_is_the_weighted_mean_and_sd(data, gaps):
    area, _anomaly, target, bicubic, _coarse = data = with_gaps(data) if gaps else data
    scaling, _ = moments_of(*data).fit()
    valid = np.isfinite(target) & np.isfinite(bicubic)
    weight = np.broadcast_to(area, target.shape)[valid]
    mean = np.average(target[valid], weights=weight)
    assert scaling.mean == pytest.approx(mean, rel=1e-12)
    assert scaling.sd == pytest.approx(np.sqrt(np.average((target[valid] - mean) ** 2, weights=weight)), rel=1e-8)


@gaps
def test_inputs_are_scaled_by_weighted_moments(data, gaps):
    """Poles have small cells, cells held out none; block by block it is the same."""
    area, _anomaly, _target, _bicubic, coarse = with_gaps(data) if gaps else data
    area = coarse_area(area, coarse.shape[1:])
    area[1, 1] = 0.0
    moments = InputMoments()
    for part in np.array_split(coarse, 3):
        moments.add(part, area)
    valid = np.isfinite(coarse)
    weight = np.broadcast_to(area, coarse.shape)[valid]
    mean = np.average(coarse[valid], weights=weight)
    scaling = moments.scaling("tas")
    assert scaling.mean == pytest.approx(mean, rel=1e-12)
    assert scaling.sd == pytest.approx(np.sqrt(np.average((coarse[valid] - mean) ** 2, weights=weight)), rel=1e-8)
    assert moments.missing == gaps
    with pytest.raises(DataError, match="no valid value"):
        InputMoments().scaling("tas")


@gaps
def test_static_regression_is_weighted_least_squares(data, gaps):
    area, anomaly, target, bicubic, _coarse = data = with_gaps(data) if gaps else data
    _, baselines = moments_of(*data).fit()
    residual = target - bicubic
    valid = np.isfinite(residual)
    root = np.sqrt(np.broadcast_to(area, target.shape)[valid])
    columns = np.stack([np.broadcast_to(plane, target.shape)[valid] for plane in anomaly], axis=1)
    expected = np.linalg.lstsq(columns * root[:, None], residual[valid] * root, rcond=None)[0]
    np.testing.assert_allclose(baselines.coefficients, expected, rtol=1e-8)
    misfit = residual[valid] - columns @ expected
    variance = np.average(misfit**2, weights=root**2)
    assert baselines.residual_sd["linear_open"] == pytest.approx(np.sqrt(variance), rel=1e-6)
    assert baselines.residual_sd["bicubic"] == pytest.approx(
        np.sqrt(np.average(residual[valid] ** 2, weights=root**2)), rel=1e-6
    )


@gaps
def test_delta_and_climatology_are_means(data, gaps):
    area, _anomaly, target, bicubic, coarse = data = with_gaps(data) if gaps else data
    _, baselines = moments_of(*data).fit()
    residual = target - bicubic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        delta, climatology = np.nanmean(residual, axis=0), np.nanmean(coarse, axis=0)
        fixed = np.nanmean((residual - delta) ** 2 * area) / np.nanmean(np.isfinite(residual) * area)
    np.testing.assert_allclose(baselines.delta, delta, rtol=1e-9)
    np.testing.assert_allclose(baselines.climatology, climatology, rtol=1e-12)
    assert np.isnan(baselines.delta).sum() == (1 if gaps else 0)
    if not gaps:
        assert baselines.residual_sd["linear_fixed"] == pytest.approx(np.sqrt(fixed), rel=1e-6)
        about = (target - target.mean(axis=0)) ** 2
        assert baselines.residual_sd["climatology"] == pytest.approx(
            np.sqrt(np.average(about, weights=np.broadcast_to(area, about.shape))), rel=1e-6
        )


def test_regression_lies_between_slope_one_and_least_squares(data):
    _area, _anomaly, target, bicubic, _coarse = data
    _, baselines = moments_of(*data).fit()
    b, t = bicubic - bicubic.mean(axis=0), target - target.mean(axis=0)
    free = (b * t).sum(axis=0) / (b * b).sum(axis=0)
    low, high = np.minimum(free, 1), np.maximum(free, 1)
    assert ((baselines.slope >= low - 1e-9) & (baselines.slope <= high + 1e-9)).all()
    np.testing.assert_allclose(
        baselines.intercept, target.mean(axis=0) - baselines.slope * bicubic.mean(axis=0), rtol=1e-8
    )
    # A slope of 0.9 in every cell, 30 samples, little noise: hardly any ridge is needed.
    np.testing.assert_allclose(baselines.slope, free, atol=0.02)


def test_regression_falls_back_on_slope_one_for_noise():
    """Where the residual has nothing to do with bicubic, the ridge wins."""
    rng = np.random.default_rng(0)
    bicubic = rng.normal(0, 1, (6, 20, 20))
    target = bicubic + rng.normal(0, 3, bicubic.shape)
    moments = TrainingMoments(np.ones((20, 20)), np.zeros((0, 20, 20)))
    moments.add(target, bicubic, bicubic[:, ::2, ::2])
    _, baselines = moments.fit()
    b, t = bicubic - bicubic.mean(axis=0), target - target.mean(axis=0)
    free = (b * t).sum(axis=0) / (b * b).sum(axis=0)
    assert np.std(baselines.slope) < 0.3 * np.std(free)


@gaps
@pytest.mark.parametrize("blocks", [2, 7, SAMPLES])
def test_several_blocks_are_one(data, gaps, blocks):
    data = with_gaps(data) if gaps else data
    one, many = moments_of(*data).fit(), moments_of(*data, blocks=blocks).fit()
    assert many[0].mean == pytest.approx(one[0].mean, rel=1e-12)
    assert many[0].sd == pytest.approx(one[0].sd, rel=1e-9)
    for name in ("coefficients", "delta", "slope", "intercept", "climatology"):
        np.testing.assert_allclose(getattr(many[1], name), getattr(one[1], name), rtol=1e-6, err_msg=name)


def test_held_out_cells_count_for_nothing(data):
    """Weight 0 means that the value there may be anything."""
    area, anomaly, target, bicubic, coarse = data
    area = area * (np.arange(SHAPE[1]) < 5)
    expected, first = moments_of(area, anomaly, target, bicubic, coarse).fit()
    wild = np.where(area > 0, target, 9e3)
    got, second = moments_of(area, anomaly, wild, bicubic, coarse).fit()
    assert got == expected
    np.testing.assert_array_equal(second.coefficients, first.coefficients)
    assert second.residual_sd == first.residual_sd


def test_collinear_static_fields_do_not_explode(data):
    area, anomaly, target, bicubic, coarse = data
    twins = np.concatenate([anomaly, anomaly[:1], 0 * anomaly[:1]])
    _, baselines = moments_of(area, twins, target, bicubic, coarse).fit()
    assert np.isfinite(baselines.coefficients).all()
    _, single = moments_of(area, anomaly, target, bicubic, coarse).fit()
    np.testing.assert_allclose(
        np.einsum("s,syx->yx", baselines.coefficients, twins),
        np.einsum("s,syx->yx", single.coefficients, anomaly),
        atol=1e-6,
    )


def test_float32_kelvins_keep_their_variance():
    """Sums of squares of 280 K: float32 would leave nothing of a variance of 1e-2."""
    rng = np.random.default_rng(1)
    target = (280 + 0.1 * rng.normal(size=(40, 6, 8))).astype(np.float32)
    moments = TrainingMoments(np.ones((6, 8)), np.zeros((0, 6, 8)))
    moments.add(target, target, target[:, ::2, ::2])
    scaling, _ = moments.fit()
    assert scaling.sd == pytest.approx(target.astype(float).std(), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, 280.0, 0.0])
def test_nothing_to_learn_is_an_error(value):
    field = np.full((3, 4, 4), value, np.float32)
    moments = TrainingMoments(np.ones((4, 4)), np.zeros((0, 4, 4)))
    moments.add(field, field, field[:, ::2, ::2])
    with pytest.raises(DataError, match=r"'tas'.*(every cell is NaN|constant)"):
        moments.fit("tas")


def test_no_sample_at_all_is_an_error():
    with pytest.raises(DataError, match="no valid value"):
        TrainingMoments(np.ones((4, 4)), np.zeros((0, 4, 4))).fit("tas")
