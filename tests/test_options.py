"""Options hold within their block, whatever happens in it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import xsuperres as xsr
from xsuperres.errors import ConfigError
from xsuperres.options import Options, cache_folder, current_options, set_options


def test_defaults():
    assert current_options() == Options()
    assert xsr.set_options is set_options


def test_set_and_restored():
    before = current_options()
    with set_options(memory_budget=2**21) as options:
        assert options is current_options()
        assert options.memory_budget == 2**21
        assert options.cache_dir == before.cache_dir
    assert current_options() is before


def test_restored_after_an_error():
    before = current_options()
    with pytest.raises(RuntimeError), set_options(memory_budget=2**21):
        raise RuntimeError
    assert current_options() is before


def test_nested():
    with set_options(memory_budget=2**21):
        with set_options(cache_dir="somewhere") as inner:
            assert (inner.memory_budget, inner.cache_dir) == (2**21, "somewhere")
        assert current_options().cache_dir is None
        assert current_options().memory_budget == 2**21


@pytest.mark.parametrize("value", [0, -1, 2**20 - 1, "1GB", float("nan")], ids=repr)
def test_a_budget_that_is_none(value):
    before = current_options()
    with pytest.raises(ConfigError, match=r"memory_budget .*bytes.* got"), set_options(memory_budget=value):
        pass
    assert current_options() is before


def test_unknown_options():
    with pytest.raises(TypeError, match="memory"), set_options(memory=3):
        pass
    with pytest.raises(TypeError), set_options(2**21):
        pass


def test_as_decorator():
    @set_options(memory_budget=2**21)
    def inside():
        return current_options().memory_budget

    assert inside() == inside() == 2**21
    assert current_options() == Options()


def test_threads_have_their_own():
    """One user's block does not change another's results."""
    seen = []
    with set_options(memory_budget=2**21):
        thread = threading.Thread(target=lambda: seen.append(current_options().memory_budget))
        thread.start()
        thread.join()
    assert seen == [Options().memory_budget]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XSUPERRES_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "xsuperres"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "xsuperres"
    monkeypatch.setenv("XSUPERRES_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    with set_options(cache_dir="~/mine"):
        assert cache_folder() == tmp_path / "mine"
    assert cache_folder() == tmp_path / "own"


def test_a_path_is_a_folder_too(tmp_path):
    with set_options(cache_dir=tmp_path / "a"):
        assert cache_folder() == Path(tmp_path / "a")


def test_a_smaller_budget_changes_tiles_not_numbers(make_model, check):
    toy = make_model(coarse=(40, 18))
    whole = toy.coarse.sr.downscale(toy.model)
    with set_options(memory_budget=2**20):
        check.same_numbers(toy.coarse.sr.downscale(toy.model), whole, toy.model.scaling.sd)
