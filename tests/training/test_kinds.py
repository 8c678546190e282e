"""Kinds of training: one entry brings settings, checks, noise, opponent, step and what is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import xsuperres as xsr
from xsuperres.errors import ConfigError, UnknownNameError
from xsuperres.model.file import digest_of, model_to_bytes
from xsuperres.settings import FitSettings
from xsuperres.testing import toy_field
from xsuperres.training.kinds import TRAININGS, Supervised, Training
from xsuperres.training.supervised import SupervisedStep

GIVEN = {
    "scale": 2,
    "seed": 0,
    "training": "supervised",
    "backbone": "conv",
    "upsampling": "subpixel",
    "network": None,
    "data": None,
    "sampling": None,
    "optimization": None,
    "validation": None,
}


@dataclass(frozen=True, kw_only=True)
class BoldConfig:
    """Settings of a kind of training that is not in the package."""

    noise: int = 1
    gain: float = 10.0


class Bold(Training[BoldConfig]):
    """Larger steps, on a network with noise; its last average is kept."""

    config = BoldConfig
    keyword = "bold"
    keep = "last"

    def check(self, config, optimization):
        if config.gain <= 0:
            raise ConfigError(f"gain must be positive, got {config.gain}.")

    def noise(self, config):
        return config.noise

    def step(self, network, opponent, channels, optimization, config):
        class Step(SupervisedStep):
            def __call__(self, batch, rate, share):
                return super().__call__(batch, config.gain * rate, share)

        return Step(network, channels, optimization)


@pytest.fixture
def bold():
    TRAININGS.add("bold")(Bold())
    yield
    TRAININGS._parts.pop("bold")


def fit(training: str, **options):
    return toy_field(time=6, y=12, x=16).sr.fit(
        2,
        training=training,
        network={"width": 5, "depth": 1, "head_width": 4},
        sampling={"batch_size": 2, "patch_size": 4},
        optimization={"max_steps": 4, "validations": 2},
        activate=False,
        progress=False,
        **options,
    )


def test_the_kinds_of_the_package():
    assert list(TRAININGS) == ["supervised", "adversarial"]
    assert [TRAININGS.get(name).keep for name in TRAININGS] == ["best", "last"]


def test_a_third_kind_is_one_more_entry(bold, tmp_path):
    model, plain = fit("bold"), fit("supervised")
    assert model.spec.noise == 1 and plain.spec.noise == 0
    assert model.training.kind == "bold" and ", bold, " in repr(model)
    assert model.training.settings["bold"] == {"noise": 1, "gain": 10.0}
    moved = [float(m.network.head.blocks[-1].conv.weight.abs().max()) for m in (model, plain)]
    assert moved[0] > 3 * moved[1], "its own step was taken"
    coarse = toy_field(time=6, y=12, x=16).sr.coarsen(2)
    model.save(tmp_path / "bold.safetensors")
    loaded = xsr.load_model(tmp_path / "bold.safetensors")
    assert loaded.training == model.training and loaded.digest == model.digest
    np.testing.assert_array_equal(coarse.sr.downscale(loaded), coarse.sr.downscale(model))


def test_its_settings_are_resolved_and_checked(bold):
    settings = FitSettings.of(GIVEN | {"training": "bold", "bold": {"gain": 2.0}})
    assert settings.training_config == BoldConfig(gain=2.0)
    with pytest.raises(ConfigError, match="gain must be positive, got -1"):
        FitSettings.of(GIVEN | {"training": "bold", "bold": {"gain": -1}})
    with pytest.raises(UnknownNameError, match="Did you mean 'gain'"):
        FitSettings.of(GIVEN | {"training": "bold", "bold": {"gian": 1}})


@pytest.mark.parametrize("training", ["supervised", "adversarial"])
def test_settings_of_another_kind_are_refused(bold, training):
    message = f"bold= holds settings of training='bold', this fit has training='{training}'; choose one"
    with pytest.raises(ConfigError, match=message):
        FitSettings.of(GIVEN | {"training": training, "bold": {}})


@pytest.mark.parametrize("training", ["supervise", None, 3, ("supervised",)])
def test_an_unknown_kind_lists_the_choices(training):
    with pytest.raises(UnknownNameError, match="Unknown training .* Choose from: 'adversarial', 'supervised'"):
        FitSettings.of(GIVEN | {"training": training})


def test_a_kind_without_settings_has_none():
    assert FitSettings.of(GIVEN).training_config is None
    assert TRAININGS.get("supervised").recorded(None) == {}


def test_the_file_knows_the_two_first_kinds_by_a_flag():
    """As format 3 always had it, so that digests stay those of files that exist."""

    def header(model):
        data = model_to_bytes(model)
        size = int.from_bytes(data[:8], "little")
        return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["xsuperres"])["training"]

    for kind, flag in (("supervised", False), ("adversarial", True)):
        model = fit(kind, **({"adversarial": {"warm_up": 0.0, "width": 4, "depth": 1}} if flag else {}))
        assert header(model)["adversarial"] is flag and "kind" not in header(model)
        assert model.training.kind == kind and len(digest_of(model)) == 64


def test_a_kind_has_no_opponent_unless_it_says_so():
    model = fit("supervised")
    assert Supervised().opponent(model.spec, None, None) is None
    assert model.discriminator is None


def test_the_discriminator_of_init_is_copied():
    game = {"warm_up": 0.0, "width": 4, "depth": 1}
    first = fit("adversarial", adversarial=game)
    before = {name: weight.clone() for name, weight in first.discriminator.state_dict().items()}
    again = fit("adversarial", adversarial=game, init=first)
    assert again.discriminator is not first.discriminator
    for name, weight in first.discriminator.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
