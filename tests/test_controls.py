"""Negative controls: each contract is broken on purpose, and its checker must notice.

A checker that passes on broken code proves nothing about working code.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xsuperres.fields.grid import Grid
from xsuperres.inference import layout
from xsuperres.model import file as model_file
from xsuperres.nn import resample
from xsuperres.testing import toy_field


def fresh(model):
    """Return a copy of `model` without anything cached."""
    return replace(model)


def test_halo(make_model, check, monkeypatch):
    toy = make_model(scale=3, coarse=(28, 28), gain=1.4)
    chunks = {"lat": 7, "lon": 7}
    check.chunked_equals_whole(toy.model, toy.coarse, chunks)
    model = fresh(toy.model)
    model.digest  # noqa: B018 (covers the halo: taken before it is falsified)
    monkeypatch.setitem(vars(model), "reach", toy.model.halo - 1)
    with pytest.raises(AssertionError, match="exceeds the bound"):
        check.chunked_equals_whole(model, toy.coarse, chunks)


def test_wrap(make_model, check, monkeypatch):
    toy = make_model(scale=3, periodic=True)
    check.rolling_commutes(toy.model, toy.coarse, 7)
    true_plans = layout.plane_plans

    def without_wrap(*args):
        return [replace(plan, periodic=False) for plan in true_plans(*args)]

    monkeypatch.setattr(layout, "plane_plans", without_wrap)
    with pytest.raises(AssertionError, match="exceeds the bound"):
        check.rolling_commutes(toy.model, toy.coarse, 7)


def test_wrap_of_static_anomalies(make_model, check, monkeypatch):
    """The seam of the static fields counts too, on a globe the model is given anew."""
    from xsuperres.fields import static
    from xsuperres.inference import workers

    toy = make_model(scale=3, periodic=True, domain="open")
    planes = toy.fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    check.rolling_commutes(toy.model, toy.coarse, 7, static=planes)
    true_interpolation = static.interpolate_array
    monkeypatch.setattr(static, "interpolate_array", lambda *args, periodic: true_interpolation(*args, periodic=False))
    monkeypatch.setattr(workers, "_PREPARED", {})  # holds the anomalies of the same model from before
    with pytest.raises(AssertionError, match="exceeds the bound"):
        check.rolling_commutes(fresh(toy.model), toy.coarse, 7, static=planes)


def filled_with_zero(field, valid, scale, method="bicubic"):
    """Interpolate missing cells as if they were 0."""
    return resample.interpolate(torch.where(valid, field, torch.zeros_like(field)), scale, method)


def filled_with_mean(field, valid, scale, method="bicubic"):
    """Interpolate missing cells as if they were the mean of the others: wrong at a coast, and felt everywhere."""
    mean = (field * valid).sum() / valid.sum()
    return resample.interpolate(torch.where(valid, field, mean.expand_as(field)), scale, method)


def test_mask_of_interpolation(make_model, check, monkeypatch):
    coarse = make_model(scale=3, missing=True).coarse

    def operation(da):
        return da.sr.interpolate(3)

    check.constant_survives(operation, coarse, 280.0)
    monkeypatch.setattr(resample, "interpolate_valid", filled_with_zero)
    with pytest.raises(AssertionError):
        check.constant_survives(operation, coarse, 280.0)


@pytest.mark.parametrize("wrong", [filled_with_mean])
def test_mask_of_downscaling(make_model, check, monkeypatch, wrong):
    toy = make_model(scale=3, missing=True)

    def operation(da):
        return da.sr.downscale(toy.model, mask="input")

    check.missing_is_local(operation, toy.coarse, (3, 9), toy.model.halo, 3)
    monkeypatch.setattr(resample, "interpolate_valid", wrong)
    with pytest.raises(AssertionError, match="farther than the halo"):
        check.missing_is_local(operation, toy.coarse, (3, 9), toy.model.halo, 3)


@pytest.mark.parametrize("wrong", ["unweighted", "cosine of the centre"])
def test_area(check, monkeypatch, wrong):
    fine = toy_field(y=24, x=36, periodic=True, dtype="float64")
    fine = fine.assign_coords(lat=fine.lat.copy(data=np.linspace(90, -90, 24)))
    check.coarsening_conserves(fine, 4)

    def area(grid: Grid) -> np.ndarray:
        line = np.ones(grid.shape[0]) if wrong == "unweighted" else np.cos(np.deg2rad(grid.y.centres))
        return np.repeat(np.maximum(line, 0.0)[:, None], grid.shape[1], axis=1)

    monkeypatch.setattr(Grid, "area", property(area))
    with pytest.raises(AssertionError):
        check.coarsening_conserves(fine, 4)


def test_digest(make_model, check, monkeypatch, tmp_path):
    model = make_model().model
    check.altered_file_is_refused(model, tmp_path / "model.safetensors")
    monkeypatch.setattr(model_file, "_digest", lambda tensors, header: "always the same")
    with pytest.raises(AssertionError, match="went unnoticed"):
        check.altered_file_is_refused(model, tmp_path / "model.safetensors")


def test_orientation(make_model, check, monkeypatch):
    toy = make_model(scale=3)

    def operation(da):
        return da.sr.downscale(toy.model, check_range="ignore")  # which notices too, when it is broken

    check.orientation_free(operation, toy.coarse)
    monkeypatch.setattr(Grid, "canonical", lambda grid, da: da.transpose(..., *grid.dims))
    monkeypatch.setattr(Grid, "restored", lambda grid, da, dims: da.transpose(*dims))
    with pytest.raises(AssertionError):
        check.orientation_free(operation, toy.coarse)


def test_the_bound_itself(check):
    """1e-5 sd is let through, ten times as much is not, and neither is another pattern of gaps."""
    expected = np.linspace(-3, 3, 50)
    check.same_numbers(expected + 0.9e-5, expected, 1.0)
    with pytest.raises(AssertionError, match="exceeds"):
        check.same_numbers(expected + 1e-4, expected, 1.0)
    holed = expected.copy()
    holed[3] = np.nan
    with pytest.raises(AssertionError):
        check.same_numbers(holed, expected, 1.0)
