"""The state of a training: plain values, and a loop that is restored goes on to the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from xsuperres import fitting
from xsuperres.config import OptimizationConfig
from xsuperres.fields.field import Field
from xsuperres.material import Sources, gathered
from xsuperres.settings import FitSettings
from xsuperres.testing import toy_field
from xsuperres.training.budget import Budget, Clock
from xsuperres.training.state import State, random_state, restore_random_state

STEPS = 12
FIELD = toy_field(time=8, y=12, x=16)
ONE_STEP = 12 * 16 * 4 * 5  # bytes of memory that a time step takes

RANDOM = {"dropout": "spatial", "normalization": "batch"}
GAME = {"warm_up": 0.4, "width": 4, "depth": 1, "noise": 2}
CASES: dict[str, dict[str, Any]] = {
    "supervised": {"network": {"dropout": "vanilla"}, "sampling": {"flip": ("x", "y")}, "data": {"domain": "open"}},
    "supervised, streamed": {"network": RANDOM, "sampling": {"memory_budget": 6 * ONE_STEP}},
    "supervised, a time window": {"time_window": 2, "network": {"dropout": "gaussian"}},
    "without validation": {"network": RANDOM, "validation": None},
    "adversarial": {"training": "adversarial", "adversarial": GAME, "network": {"dropout": "spatial"}},
    "adversarial, streamed": {
        "training": "adversarial",
        "adversarial": GAME | {"loss": "wasserstein_gp"},
        "sampling": {"memory_budget": 6 * ONE_STEP},
    },
}


def settings_of(case: dict[str, Any]) -> FitSettings:
    given = {"scale": 2, "seed": 3, "training": "supervised", "backbone": "residual", "upsampling": "subpixel"}
    given |= {"data": None, "validation": 0.2} | case
    given["network"] = {"width": 5, "depth": 1, "head_width": 4} | case.get("network", {})
    given["sampling"] = {"batch_size": 2, "patch_size": 4} | case.get("sampling", {})
    given["optimization"] = {"max_steps": STEPS, "validations": 4}
    return FitSettings.of(given)


def loop_of(settings: FitSettings, material):
    """Return a loop made anew from the data: nothing is shared with another one but these."""
    model = fitting._untrained(material, settings, None)
    return fitting._loop(model, material, settings, None, Clock())[1]


def in_a_file(state: State) -> State:
    """Return a state that was written as safetensors and JSON, and read again."""
    tensors: dict[str, torch.Tensor] = {}

    def taken_out(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: taken_out(part, f"{name}/{key}") for key, part in value.items()}
        if isinstance(value, torch.Tensor):
            tensors[name] = value.contiguous()
            return {"tensor": name}
        return value

    def put_back(value: Any) -> Any:
        if isinstance(value, dict):
            return stored[value["tensor"]] if set(value) == {"tensor"} else {k: put_back(v) for k, v in value.items()}
        return value

    text = json.dumps(taken_out(state, ""))
    stored = safetensors.torch.load(safetensors.torch.save(tensors))
    return put_back(json.loads(text))


def same_tensors(first: State, second: State) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, msg=name)


def history_of(trained) -> dict[str, list[float]]:
    return {name: values for name, values in trained.history.items() if name != "seconds"}


@cache
def whole(name: str):
    """Return the settings and data of a case, and a loop that ran to its end."""
    settings = settings_of(CASES[name])
    material = gathered(Sources((Field(FIELD, gaps=True),)), settings, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        loop = loop_of(settings, material)
        loop.run(progress=False)
    return settings, material, loop, loop.result()


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_a_restored_loop_goes_on_to_the_same_bits(name, stop):
    settings, material, expected_loop, expected = whole(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        first = loop_of(settings, material)
        first.run(steps=stop, progress=False)
        assert first.steps == stop
        state = in_a_file(first.state())
        first.run(steps=1, progress=False)  # a state is a copy: what goes on does not change it
        torch.manual_seed(99)
        second = loop_of(settings, material)
        torch.rand(7)
        second.restore(state)
        epoch, batch = divmod(stop - 1, second.reader.steps_per_epoch)
        assert second.steps == stop and second.position == (epoch, batch + 1)
        second.run(progress=False)
        got = second.result()
    assert got.steps == expected.steps == STEPS
    same_tensors(expected.network.state_dict(), got.network.state_dict())
    same_tensors(expected_loop.network.state_dict(), second.network.state_dict())
    assert expected.score == got.score
    np.testing.assert_equal(history_of(got), history_of(expected))
    if settings.training == "adversarial":
        same_tensors(expected_loop.step.discriminator.state_dict(), second.step.discriminator.state_dict())


def test_every_part_of_the_state_matters():
    """A control: take one part from the first step instead, and the training goes elsewhere."""
    settings = settings_of(CASES["supervised, streamed"])
    material = gathered(Sources((Field(FIELD, gaps=True),)), settings, None)

    def loop(seed: int):
        torch.manual_seed(seed)
        return loop_of(settings, material)

    def weights(state: State) -> list[dict[str, torch.Tensor]]:
        """Return the weights at the end, and those that are kept."""
        restored = loop(99)
        restored.restore(state)
        restored.run(progress=False)
        return [restored.network.state_dict(), restored.average.average.state_dict()]

    with torch.random.fork_rng(devices=[]):
        first = loop(settings.seed)
        first.run(steps=1, progress=False)
        early = first.state()
        first.run(steps=6, progress=False)
        state = first.state()
        expected = weights(state)
        assert first.history, "it has validated"
        for part in ("random", "position", "counts", "step", "average"):
            changed = weights(state | {part: early[part]})
            equal = [all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(expected, changed, strict=True)]
            assert equal == [part == "average", False], part


def test_random_numbers_go_on():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = random_state(torch.device("cpu"))
        expected = torch.rand(5)
        torch.manual_seed(2)
        restore_random_state(state, torch.device("cpu"))
        torch.testing.assert_close(torch.rand(5), expected, rtol=0, atol=0)


def test_random_numbers_of_a_gpu_are_part_of_it(monkeypatch):
    """Dropout there draws from the device's own generator."""
    generators = {"cuda:1": torch.tensor([4], dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generators[str(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generators.update({str(device): state}))
    state = random_state(torch.device("cuda:1"))
    generators["cuda:1"] = torch.tensor([7], dtype=torch.uint8)
    restore_random_state(state, torch.device("cuda:1"))
    assert generators["cuda:1"].tolist() == [4]


def test_a_budget_of_seconds_does_not_count_those_in_between():
    config = OptimizationConfig(max_seconds=100.0, max_cpu_seconds=50.0)
    clock = Clock.after(wall=20.0, cpu=10.0)
    first = Budget(config, 10, clock)
    first.clock = Clock.after(wall=60.0, cpu=12.0)
    first.reserve = 3.0
    share = first.progress(5)
    state = json.loads(json.dumps(first.state()))
    second = Budget(config, 10, Clock())
    second.restore(state)
    assert second.progress(5) == pytest.approx(share, abs=1e-3) and share > 0.4
    assert second.reserve == 3.0
    assert second.clock.wall_seconds() == pytest.approx(60.0, abs=1.0)


def test_the_clock_of_a_restored_loop_is_that_of_the_whole_training():
    settings = settings_of(CASES["supervised"])
    settings = replace(settings, optimization=replace(settings.optimization, max_steps=4))
    material = gathered(Sources((Field(FIELD, gaps=True),)), settings, None)
    with torch.random.fork_rng(devices=[]):
        first = loop_of(settings, material)
        first.budget.clock = Clock.after(wall=500.0, cpu=100.0)
        first.run(steps=2, progress=False)
        second = loop_of(settings, material)
        second.restore(first.state())
        second.run(progress=False)
    assert min(second.result().history["seconds"]) >= 500.0
