"""The game: its losses against formulas, what the discriminator sees, sharper fields, collapse, and members."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn import functional as F

import xsuperres as xsr
from xsuperres.config import AdversarialConfig, OptimizationConfig
from xsuperres.errors import ConfigError, ModelFileError, TrainingError, UnknownNameError, XSuperResWarning
from xsuperres.nn.discriminator import DISCRIMINATORS, DiscriminatorSpec, build_discriminator
from xsuperres.testing import toy_field
from xsuperres.training.adversarial import GAMES, AdversarialStep, Game

TINY = {"width": 5, "depth": 1, "head_width": 4}


@pytest.fixture(scope="module")
def fine() -> xr.DataArray:
    return toy_field(time=8, y=16, x=24)


def fit(da, scale=2, *, steps=3, **options):
    """Train a tiny network against a tiny discriminator."""
    defaults = {
        "network": TINY,
        "upsampling": "subpixel",
        "activate": False,
        "progress": False,
        "training": "adversarial",
    }
    if options.get("training") != "supervised":
        defaults["adversarial"] = {"warm_up": 0.0, "width": 6, "depth": 1} | options.pop("adversarial", {})
    defaults["sampling"] = {"batch_size": 2, "patch_size": 6} | options.pop("sampling", {})
    defaults["optimization"] = {"max_steps": steps, "validations": 1} | options.pop("optimization", {})
    return da.sr.fit(scale, **(defaults | options))


# losses


def test_the_losses_of_the_games_against_formulas():
    true, made = torch.tensor([2.0, -0.5, 0.3]), torch.tensor([-1.5, 0.2, 1.4])
    ones, zeros = torch.ones(3), torch.zeros(3)
    cross = F.binary_cross_entropy_with_logits
    bce, hinge, wasserstein = (GAMES.get(name) for name in ("bce", "hinge", "wasserstein_gp"))
    torch.testing.assert_close(bce.judge(true, made), cross(true, ones) + cross(made, zeros))
    torch.testing.assert_close(bce.maker(made), cross(made, ones))
    torch.testing.assert_close(hinge.judge(true, made), torch.tensor((0 + 1.5 + 0.7) / 3 + (0 + 1.2 + 2.4) / 3))
    torch.testing.assert_close(hinge.maker(made), -made.mean())
    torch.testing.assert_close(wasserstein.judge(true, made), made.mean() - true.mean())
    assert [bce.penalty, hinge.penalty, wasserstein.penalty] == [False, False, True]


@pytest.mark.parametrize("loss", ["bce", "hinge", "wasserstein_gp"])
@pytest.mark.parametrize("window", [None, 2])
def test_every_game_is_played(fine, loss, window):
    model = fit(fine, adversarial={"loss": loss}, time_window=window, steps=4, optimization={"validations": 2})
    history = model.history
    for name in ("loss", "generator_loss", "discriminator_loss", "detail"):
        assert history[name].sizes["step"] == 2 and np.isfinite(history[name]).all(), name
    assert np.isfinite(fine.sr.coarsen(2).sr.downscale(model)).all()


def test_the_gradient_penalty_pulls_the_slope_to_one(fine):
    """A discriminator that is a plane of slope s is fined (s - 1) squared."""

    class Plane(torch.nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(slope))

        def forward(self, field, coarse, static):
            return self.slope * field.flatten(1).sum(1)[:, None, None, None] / field[0].numel() ** 0.5

    fields = torch.randn(2, 3, 1, 8, 8)
    for slope in (0.5, 1.0, 3.0):
        step = AdversarialStep.__new__(AdversarialStep)
        step.discriminator = Plane(slope)
        batch = _batch()
        assert float(step._penalty(*fields, batch).detach()) == pytest.approx((slope - 1) ** 2, abs=1e-5)


def _batch():
    from types import SimpleNamespace

    return SimpleNamespace(coarse=torch.randn(3, 1, 4, 4), fine=None, windows=None)


def test_the_warm_up_is_supervised(fine):
    """Before the game begins its weights are those of a supervised network, bit for bit."""
    warm = fit(fine, steps=6, adversarial={"warm_up": 0.99}, validation=None)
    plain = fit(fine, steps=6, training="supervised", validation=None)
    for name, weight in plain.network.state_dict().items():
        torch.testing.assert_close(warm.network.state_dict()[name], weight, rtol=0, atol=0)


def test_the_weight_of_the_pixel_loss_is_the_users(fine):
    light, heavy = (fit(fine, steps=5, adversarial={"pixel_weight": w}, validation=None) for w in (0.0, 10.0))
    same = [torch.equal(a, b) for a, b in zip(light.network.parameters(), heavy.network.parameters(), strict=True)]
    assert not any(same)


def test_the_discriminator_has_a_learning_rate_of_its_own(fine):
    models = [fit(fine, steps=4, adversarial={"learning_rate": rate}, validation=None) for rate in (1e-4, 1e-2)]
    first, second = (torch.cat([p.flatten() for p in m.discriminator.parameters()]) for m in models)
    assert (first - second).abs().max() > 1e-3


# the discriminator


@pytest.mark.parametrize("name", list(DISCRIMINATORS))
@pytest.mark.parametrize("scale", [2, 3, 5])
def test_a_discriminator_sees_coarse_fine_and_static_fields_patch_by_patch(name, scale):
    torch.manual_seed(0)
    spec = DiscriminatorSpec(name=name, scale=scale, outputs=1, inputs=2, statics=3, width=6, depth=2)
    judge = build_discriminator(spec)
    parts = [
        torch.randn(2, 1, 6 * scale, 7 * scale, requires_grad=True),
        torch.randn(2, 2, 6, 7, requires_grad=True),
        torch.randn(1, 3, 6 * scale, 7 * scale, requires_grad=True),
    ]
    logits = judge(*parts)
    assert logits.ndim == 4 and logits.shape[:2] == (2, 1) and logits.shape[-1] > 1, "one per patch, not one in all"
    logits.square().sum().backward()
    for part in parts:
        assert (part.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
    assert all(parameter.grad.any() for parameter in judge.parameters())


def test_the_discriminator_is_kept_on_request(fine, tmp_path):
    model = fit(fine)
    model.save(tmp_path / "with.safetensors", discriminator=True)
    model.save(tmp_path / "without.safetensors")
    loaded = xsr.load_model(tmp_path / "with.safetensors")
    for name, weight in model.discriminator.state_dict().items():
        torch.testing.assert_close(loaded.discriminator.state_dict()[name], weight, rtol=0, atol=0)
    without = xsr.load_model(tmp_path / "without.safetensors")
    assert without.discriminator is None
    assert without.digest == loaded.digest == model.digest, "its results do not depend on it"
    assert (tmp_path / "without.safetensors").stat().st_size < (tmp_path / "with.safetensors").stat().st_size
    again = fit(fine, init=loaded, steps=1, adversarial={"learning_rate": 1e-12}, validation=None)
    for name, weight in model.discriminator.state_dict().items():
        torch.testing.assert_close(again.discriminator.state_dict()[name], weight, rtol=0, atol=1e-6)
    with pytest.raises(ModelFileError, match="no discriminator"):
        fit(fine, training="supervised").save(tmp_path / "none.safetensors", discriminator=True)


# sharpness


@pytest.mark.slow
def test_the_game_makes_fields_sharper():
    """On rough fields a supervised network is too smooth; the game brings gradients nearer to the truth's."""
    field = toy_field(time=24, y=32, x=64)
    rng = np.random.default_rng(0)
    rough = field + xr.DataArray(rng.normal(size=field.shape).astype(np.float32), dims=field.dims) * 1.5
    rough = rough.astype(np.float32).assign_attrs(field.attrs)
    train, test = rough.isel(time=slice(0, 18)), rough.isel(time=slice(18, None))
    ratio, game = {}, {"adversarial": {"warm_up": 0.2, "weight": 0.3, "width": 24, "noise": 1}}
    for training in ("supervised", "adversarial"):
        model = fit(
            train,
            4,
            training=training,
            steps=250,
            network={"width": 16, "depth": 1, "head_width": 16},
            sampling={"batch_size": 4, "patch_size": 8},
            optimization={"learning_rate": 3e-3, "validations": 2},
            **(game if training == "adversarial" else {}),
        )
        coarse = test.sr.coarsen(4)
        fine = coarse.sr.downscale(model)
        if model.network.is_random:
            fine = coarse.sr.downscale(model, members=1).isel(member=0, drop=True)
        table = fine.sr.score(test, coarse=coarse, model=model, metrics="gradient_ratio", baselines=[])
        ratio[training] = float(table.gradient_ratio.sel(region="all").values.squeeze())
    assert abs(ratio["adversarial"] - 1) < abs(ratio["supervised"] - 1), ratio


# collapse


def test_a_game_that_becomes_nan_returns_the_best_before(fine, monkeypatch):
    true_call, steps = AdversarialStep.__call__, []

    def broken(self, batch, rate, share):
        losses = true_call(self, batch, rate, share)
        steps.append(1)
        return {name: loss * (float("nan") if len(steps) > 6 else 1) for name, loss in losses.items()}

    monkeypatch.setattr(AdversarialStep, "__call__", broken)
    with pytest.warns(XSuperResWarning, match="The best model before that is returned"):
        model = fit(fine, steps=12, optimization={"validations": 4})
    assert np.isfinite(model.training.validation["rmse"])
    assert np.isfinite(fine.sr.coarsen(2).sr.downscale(model)).all()


def test_a_game_whose_output_becomes_constant_is_ended(fine, monkeypatch):
    true_call, steps = AdversarialStep.__call__, []

    def flat(self, batch, rate, share):
        losses = true_call(self, batch, rate, share)
        steps.append(1)
        return losses | {"detail": torch.tensor(0.5 if len(steps) <= 6 else 1e-6)}

    monkeypatch.setattr(AdversarialStep, "__call__", flat)
    with pytest.warns(XSuperResWarning, match="became constant after"):
        model = fit(fine, steps=20, optimization={"validations": 10})
    assert model.training.steps < 20


def test_collapse_is_noticed_after_a_warm_up_too(fine, monkeypatch):
    """The history of the warm-up has no detail: NaN, which no number is below."""
    true_call, steps = AdversarialStep.__call__, []

    def flat(self, batch, rate, share):
        losses = true_call(self, batch, rate, share)
        steps.append("detail" in losses)
        return losses | ({"detail": torch.tensor(0.5 if sum(steps) <= 6 else 1e-6)} if steps[-1] else {})

    monkeypatch.setattr(AdversarialStep, "__call__", flat)
    with pytest.warns(XSuperResWarning, match="became constant after"):
        model = fit(fine, steps=20, adversarial={"warm_up": 0.3}, optimization={"validations": 10})
    assert np.isnan(model.history.detail[0]) and model.training.steps < 20


def test_patience_with_a_game_is_refused(fine):
    """Its score is not what it gets better at; counted as stale, a game that goes well would be ended early."""
    with pytest.raises(ConfigError, match="patience=2 waits for a better score.*leave it out"):
        fit(fine, optimization={"patience": 2})


def test_a_game_that_forgets_what_it_knew_is_ended(fine, monkeypatch):
    from xsuperres import fitting

    scores = iter([1.0, 1.1, 5.0, 5.0, 5.0])
    monkeypatch.setattr(fitting, "_validator", lambda *args: lambda network: {"rmse": next(scores)})
    with pytest.warns(XSuperResWarning, match="collapsed after"):
        model = fit(fine, steps=10, optimization={"validations": 5})
    assert model.training.validation == {"rmse": 1.0}


def test_the_last_of_a_game_that_goes_well_is_kept(fine, monkeypatch):
    """It gives up a little of the score for sharper fields: its best score is not its best network."""
    from xsuperres import fitting

    scores = iter([1.0, 1.1, 1.2])
    monkeypatch.setattr(fitting, "_validator", lambda *args: lambda network: {"rmse": next(scores)})
    assert fit(fine, steps=6, optimization={"validations": 3}).training.validation == {"rmse": 1.2}
    scores = iter([1.0, 1.1, 1.2])
    model = fit(fine, steps=6, optimization={"validations": 3}, training="supervised")
    assert model.training.validation == {"rmse": 1.0}


def test_a_game_that_fails_at_once_is_an_error(fine):
    with pytest.raises(TrainingError, match="learning_rate"):
        fit(fine, steps=40, optimization={"learning_rate": 1e30, "validations": 1})


# bad input


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"loss": "hinj"}, UnknownNameError, "Did you mean 'hinge'"),
        ({"discriminator": "patch"}, UnknownNameError, "residual"),
        ({"weigth": 1}, UnknownNameError, "Did you mean 'weight'"),
        ({"weight": 0}, ConfigError, "positive"),
        ({"warm_up": 1.0}, ConfigError, "between 0.0 and 0.99"),
        ({"noise": -1}, ConfigError, "at least 0"),
        ({"noise": 1.5}, ConfigError, "integer"),
    ],
)
def test_settings_of_the_game(fine, given, error, message):
    with pytest.raises(error, match=message):
        fit(fine, adversarial=given)


@pytest.mark.parametrize("given", [{}, {"weight": 0.01}, AdversarialConfig()], ids=repr)
def test_settings_of_a_game_without_one_are_refused(fine, given):
    with pytest.raises(ConfigError, match="adversarial= holds settings of training='adversarial'.*'supervised'"):
        fit(fine, training="supervised", adversarial=given)


def test_the_settings_of_the_game_are_remembered(fine, tmp_path):
    model = fit(fine, adversarial={"loss": "bce", "weight": 0.02})
    assert model.training.settings["adversarial"] == asdict(
        AdversarialConfig(loss="bce", weight=0.02, warm_up=0.0, width=6, depth=1)
    )
    model.save(tmp_path / "model.safetensors")
    assert xsr.load_model(tmp_path / "model.safetensors").training.settings == model.training.settings
    assert "adversarial" not in fit(fine, training="supervised").training.settings


def test_a_game_of_ones_own_is_as_good_as_ours(fine):
    GAMES.add("least_squares")(
        Game(
            judge=lambda true, made: (true - 1).square().mean() + made.square().mean(),
            maker=lambda made: (made - 1).square().mean(),
        )
    )
    try:
        model = fit(fine, adversarial={"loss": "least_squares"})
        assert np.isfinite(model.history.discriminator_loss).all()
    finally:
        GAMES._parts.pop("least_squares")


def test_a_config_is_as_good_as_a_dict(fine):
    config = AdversarialConfig(warm_up=0.5, width=4, depth=1)
    model = fine.sr.fit(
        2, training="adversarial", adversarial=config, network=TINY, upsampling="subpixel",
        sampling={"batch_size": 2, "patch_size": 6},
        optimization=OptimizationConfig(max_steps=2, validations=1), progress=False, activate=False,
    )  # fmt: skip
    assert model.discriminator.spec.width == 4
