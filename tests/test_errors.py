"""The exception tree: one root, each leaf also a built-in exception; messages that help."""

from __future__ import annotations

import pickle
import warnings

import pytest

from xsuperres import errors
from xsuperres.errors import UnknownNameError, XSuperResError, XSuperResWarning, unknown_name

LEAVES = {
    "ConfigError": ValueError,
    "DataError": ValueError,
    "GridError": ValueError,
    "ModelFileError": OSError,
    "NoModelError": LookupError,
    "StaticFieldError": ValueError,
    "StoreError": OSError,
    "TrainingError": RuntimeError,
    "TutorialDataError": OSError,
    "UnitsError": ValueError,
    "UnknownNameError": KeyError,
}


def test_every_leaf_is_known_here():
    found = {n for n in errors.__all__ if isinstance(getattr(errors, n), type) and n.endswith("Error")}
    assert found - {"XSuperResError"} == set(LEAVES)


@pytest.mark.parametrize(("name", "builtin"), LEAVES.items())
def test_leaves(name, builtin):
    leaf = getattr(errors, name)
    assert leaf.__bases__ == (XSuperResError, builtin)
    with pytest.raises(builtin, match="what to do"):
        raise leaf("what to do")
    with pytest.raises(XSuperResError):
        raise leaf("what to do")


@pytest.mark.parametrize("name", LEAVES)
def test_messages_are_shown_as_they_are(name):
    """A KeyError would show the repr of its message, quotes and escapes and all."""
    message = "Expected 'a', got \"b\":\nuse ä."
    assert str(getattr(errors, name)(message)) == message


@pytest.mark.parametrize("name", LEAVES)
def test_errors_travel_between_processes(name):
    """Workers raise them; a client sees the same class and text."""
    again = pickle.loads(pickle.dumps(getattr(errors, name)("message")))
    assert type(again) is getattr(errors, name)
    assert str(again) == "message"


@pytest.mark.parametrize("name", LEAVES)
def test_without_message(name):
    assert str(getattr(errors, name)()) == ""


def test_the_root_is_not_a_builtin():
    assert XSuperResError.__bases__ == (Exception,)
    assert not issubclass(XSuperResError, ValueError)


def test_warnings_are_user_warnings():
    assert issubclass(XSuperResWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", XSuperResWarning)
        warnings.warn("quiet", XSuperResWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("resnt", ["conv", "resnet"], "Unknown part 'resnt'. Choose from: 'conv', 'resnet'. Did you mean 'resnet'?"),
        ("zzz", ["b", "a"], "Unknown part 'zzz'. Choose from: 'a', 'b'."),
        ("x", [], "Unknown part 'x'. Choose from: nothing."),
        (None, ["a"], "Unknown part None. Choose from: 'a'."),
        ("linea", ["linear", "bicubic", None], "Did you mean 'linear'?"),
    ],
)
def test_unknown_name(name, choices, message):
    error = unknown_name("part", name, choices)
    assert isinstance(error, UnknownNameError)
    assert message in str(error)


def test_none_is_a_choice_without_quotes():
    """`skip=None` is typed without quotes; the text 'None' would be refused again."""
    assert "'None'" not in str(unknown_name("skip", "x", ("linear", None)))


def test_an_iterator_of_choices_is_fine():
    assert "'a', 'b'" in str(unknown_name("part", "x", iter("ba")))
