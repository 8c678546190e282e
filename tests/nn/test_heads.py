"""Heads: today's, and another one with two channels per target from training to members."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import xsuperres as xsr
from xsuperres import fitting
from xsuperres.config import NetworkConfig
from xsuperres.errors import UnknownNameError
from xsuperres.nn.heads import HEADS, Head
from xsuperres.nn.losses import build_loss
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.nn.place import normal
from xsuperres.testing import toy_field

TINY = {"width": 5, "depth": 1, "head_width": 4}


class Gaussian(Head):
    """Mean and log standard deviation, in units of the skip's error: a head as another part adds it."""

    channels = 2
    is_random = True

    def loss(self, raw, target, weight, predicted, error):
        spread = raw[:, 1::2]
        miss = (predicted(self.mean(raw)) - target) * torch.exp(-spread)
        return (weight * (spread + miss.square() / 2)).mean()

    def mean(self, raw):
        return raw[:, ::2]

    def draw(self, raw, place):
        noise = torch.randn_like(raw[:, ::2]) if place is None else normal(place, raw[:, ::2], 99)
        return raw[:, ::2] + torch.exp(raw[:, 1::2]) * noise


@pytest.fixture
def gaussian(monkeypatch):
    """Register the head, and let `fit` take it."""
    HEADS.add("gaussian")(Gaussian())
    true_spec = fitting.network_spec

    def spec(*args):
        found = true_spec(*args)
        return replace(found, head="gaussian", outputs=2 * found.outputs)

    monkeypatch.setattr(fitting, "network_spec", spec)
    yield
    HEADS._parts.pop("gaussian")


def trained(data, **options):
    quick = {"optimization": {"max_steps": 12, "validations": 2, "learning_rate": 5e-3}, "network": TINY}
    return data.sr.fit(2, sampling={"batch_size": 2}, activate=False, progress=False, **(quick | options))


def test_the_deterministic_head_is_its_output():
    head, raw = HEADS.get("deterministic"), torch.randn(2, 3, 4, 5)
    assert head.channels == 1 and head.mean(raw) is raw and head.draw(raw, None) is raw
    target, weight = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    got = head.loss(raw, target, weight, lambda fields: 2 * fields + 1, build_loss("mae"))
    expected = float(((2 * raw + 1 - target).abs() * weight).sum() / weight.sum())
    assert float(got) == pytest.approx(expected, rel=1e-5)


def test_a_spec_counts_targets_by_its_head(gaussian):
    parts = {"backbone": "conv", "upsampling": "subpixel", "scale": 2, "inputs": 3, "config": NetworkConfig(**TINY)}
    spec = NetworkSpec(**parts, outputs=6, head="gaussian")
    assert spec.targets == 3 and NetworkSpec(**parts, outputs=6).targets == 6
    network = build_network(spec)
    assert network(torch.randn(1, 3, 4, 5)).shape == (1, 6, 8, 10)
    assert isinstance(network.output_head, Gaussian)


def test_an_unknown_head_lists_the_choices():
    with pytest.raises(UnknownNameError, match="Unknown head 'gausian'.*'deterministic'"):
        HEADS.get("gausian")


@pytest.mark.parametrize("several", [False, True])
def test_another_head_is_trained_saved_and_applied(gaussian, tmp_path, check, several):
    """One output is no longer one target: in training, validation, the file, tiles, and members."""
    fine = toy_field(time=8, y=12, x=16)
    if several:
        other = toy_field(time=8, y=12, x=16, seed=2).drop_vars(["elevation", "land_fraction"])
        fine = xsr.testing.toy_field(time=8, y=12, x=16).to_dataset().assign(dew=other)
    targets = 2 if several else 1
    model = trained(fine)
    assert model.spec.outputs == 2 * targets and model.spec.targets == targets
    assert np.isfinite(model.training.validation["rmse"])
    assert model.network.head.blocks[-1].conv.weight[1::2].abs().max() > 0, "its spread was trained"
    coarse = fine.sr.coarsen(2)
    result = coarse.sr.downscale(model)
    assert set(result.sizes) == set(fine.sizes) and result.sizes == fine.sizes
    model.save(tmp_path / "gaussian.safetensors")
    loaded = xsr.load_model(tmp_path / "gaussian.safetensors")
    assert loaded.spec == model.spec and loaded.digest == model.digest
    again = coarse.sr.downscale(loaded)
    for name in result.data_vars if several else [None]:
        one, two = (result[name], again[name]) if several else (result, again)
        np.testing.assert_array_equal(one, two)
    if not several:
        check.chunked_equals_whole(model, coarse, {"lat": 2, "lon": 3, "time": 3})


def test_the_head_is_in_the_file_only_where_it_is_another(gaussian, monkeypatch):
    from xsuperres.model.file import _spec_header

    fine = toy_field(time=6, y=12, x=16)
    assert _spec_header(trained(fine).spec)["head"] == "gaussian"
    monkeypatch.undo()
    assert "head" not in _spec_header(trained(fine).spec)


def test_the_game_is_played_with_draws_of_the_head(gaussian, monkeypatch):
    drawn = []
    true_draw = Gaussian.draw
    monkeypatch.setattr(
        Gaussian, "draw", lambda self, raw, place: (drawn.append(place), true_draw(self, raw, place))[1]
    )
    game = {"warm_up": 0.0, "width": 4, "depth": 1}
    model = trained(toy_field(time=6, y=12, x=16), training="adversarial", adversarial=game)
    assert len(drawn) == 12, "each step one; validation is of the mean"
    assert model.discriminator.spec.outputs == 1, "it sees fields"


def test_members_are_draws_and_do_not_depend_on_chunks(gaussian, check):
    fine = toy_field(time=6, y=12, x=16)
    model = trained(fine)
    coarse = fine.sr.coarsen(2)
    members = coarse.sr.downscale(model, members=3)
    assert float(members.std("member").min()) > 0
    lazy = coarse.chunk(time=2).sr.downscale(model, members=3).compute(scheduler="synchronous")
    check.same_numbers(lazy, members.transpose(*lazy.dims), model.scaling.sd)
